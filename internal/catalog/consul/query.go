package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxBody      = 64 << 20 // bytes of one answer
	answerWithin = 15 * time.Second
	// crowdedWait is how long a query blocks when there are more services than slots.
	crowdedWait = time.Second
	// quorum, in place of an index, asks for what a quorum of Consul's servers agrees on now.
	quorum = math.MaxUint64

	// A query that returns again and again is held to a burst, then to one per paceEvery.
	paceBurst = 5
	paceEvery = 200 * time.Millisecond

	minBackOff = 200 * time.Millisecond
	maxBackOff = 5 * time.Second
	// farBackOff is the longest while nothing can be reached at all: the list of names is
	// asked for more often, and wakes the others.
	farBackOff = 15 * time.Second
)

// answer is a body that came with status 200.
type answer struct {
	body     []byte
	index    uint64 // at least 1
	filtered bool   // Consul left out what the token may not see
}

// unreachable marks a failure to get any answer at all.
type unreachable struct{ error }

func (u unreachable) Unwrap() error { return u.error }

// get asks once. With after > 0 Consul answers when its index exceeds that, or after wait.
func (s *Source) get(ctx context.Context, path string, after uint64, wait time.Duration) (answer, error) {
	timeout := answerWithin
	query := url.Values{}
	if s.datacenter != "" {
		query.Set("dc", s.datacenter)
	}
	if after == quorum {
		query.Set("consistent", "")
	} else if after > 0 {
		query.Set("index", strconv.FormatUint(after, 10))
		query.Set("wait", strconv.FormatInt(wait.Milliseconds(), 10)+"ms")
		timeout += wait + wait/16 // Consul adds up to a sixteenth
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u := s.base.String() + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	if s.token != "" {
		req.Header.Set("X-Consul-Token", s.token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{}, unreachable{err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case resp.StatusCode != http.StatusOK:
		return answer{}, statusError(resp.StatusCode, body)
	case err != nil:
		return answer{}, fmt.Errorf("the answer breaks off after %d bytes: %w", len(body), err)
	case len(body) > maxBody:
		return answer{}, fmt.Errorf("the answer is longer than %d MiB", maxBody>>20)
	}
	a := answer{body: body, filtered: resp.Header.Get("X-Consul-Results-Filtered-By-ACLs") == "true"}
	if header := resp.Header.Get("X-Consul-Index"); header != "" {
		if a.index, err = strconv.ParseUint(header, 10, 64); err != nil {
			return answer{}, fmt.Errorf("X-Consul-Index %q is not a number", header)
		}
		// An index of 0 would make the next query return at once.
		a.index = max(a.index, 1)
	}
	return a, nil
}

// errKicked is what a query that was under way at a [Source.Recheck] ends with.
var errKicked = errors.New("asked anew")

// getUnlessKicked is get that a [Source.Recheck] of the path ends.
func (s *Source) getUnlessKicked(ctx context.Context, path string, after uint64, wait time.Duration) (answer, error) {
	s.mu.Lock()
	kick := s.kicks[path]
	if kick == nil {
		kick = make(chan struct{})
		s.kicks[path] = kick
	}
	s.mu.Unlock()
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-kick:
			cancel(errKicked)
		case <-done:
		}
	}()
	a, err := s.get(asking, path, after, wait)
	if err != nil && errors.Is(context.Cause(asking), errKicked) {
		return answer{}, errKicked
	}
	return a, err
}

// Recheck makes what is known of the services, and which there are, be read anew: an answer
// that was wrong with an index too high would else hide the next one for a minute.
func (s *Source) Recheck(services []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range append([]string{pathServices}, paths(services)...) {
		if kick := s.kicks[path]; kick != nil {
			close(kick)
			delete(s.kicks, path)
		}
	}
}

func paths(services []string) (out []string) {
	for _, name := range services {
		out = append(out, pathHealth(name))
	}
	return out
}

func statusError(code int, body []byte) error {
	text := strings.ToValidUTF8(strings.TrimSpace(string(body[:min(len(body), 200)])), "?")
	if code == http.StatusForbidden {
		return fmt.Errorf("status %d: %s (the token needs service:read, node:read and, when no datacenter is set, agent:read)", code, text)
	}
	return fmt.Errorf("status %d: %s", code, text)
}

// decode is strict about what surrounds the value: one value and nothing after it.
func decode(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("not Consul's JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("not Consul's JSON: something follows the value")
	}
	return nil
}

// follower repeats one blocking query.
type follower struct {
	source  *Source
	trouble *trouble
	path    string
	slots   chan struct{} // shared by all that take turns; nil: no need to
	wait    func() int    // how many share the slots now
}

// follow hands each answer to take until ctx ends. An error from take counts as a
// bad answer: the query is repeated, after a while, from the index of the last good one.
func (f *follower) follow(ctx context.Context, take func(answer) error) {
	var last uint64 // index of the last good answer; 0: ask without blocking
	var pace pace
	var again backOff
	for pause(ctx, pace.delay(time.Now())) {
		if !f.acquire(ctx) {
			return
		}
		wait := defaultWait
		if f.wait() > cap(f.slots) {
			wait = crowdedWait
		}
		asked := time.Now()
		a, err := f.source.getUnlessKicked(ctx, f.path, last, wait)
		f.release()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errKicked) {
			last = 0
			continue
		}
		if !errors.As(err, new(unreachable)) {
			f.trouble.ok("")
		}
		if err == nil && a.index == 0 {
			err = errors.New("the answer has no X-Consul-Index; is this a Consul agent?")
		}
		if err == nil && a.index < last {
			// Consul was restored or rebuilt. This answer is dropped; a fresh read decides.
			f.source.Doubt()
			f.source.log.Debug("index runs backwards", "query", f.path, "from", last, "to", a.index)
			last = 0
			continue
		}
		if err == nil {
			err = take(a)
		}
		if err != nil {
			if errors.As(err, new(unreachable)) {
				// What answers next may have another history.
				last = 0
			}
			f.trouble.fail(f.path, err)
			if !f.retreat(ctx, again.next(f.longest(err))) {
				return
			}
			continue
		}
		if f.trouble.ok(f.path) && f.path == pathServices {
			f.source.wakeAll()
		}
		again = backOff{}
		if a.index == last && time.Since(asked) < wait/2 {
			// Something between us and Consul does not block.
			if !pause(ctx, jitter(time.Second)) {
				return
			}
		}
		last = a.index
	}
}

// longest is the longest back-off after that error.
func (f *follower) longest(err error) time.Duration {
	if errors.As(err, new(unreachable)) && f.path != pathServices {
		return farBackOff
	}
	return maxBackOff
}

// retreat is pause that ends when Consul can be read again.
func (f *follower) retreat(ctx context.Context, d time.Duration) bool {
	f.source.mu.Lock()
	recovered := f.source.recovered
	f.source.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-recovered:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// wakeAll ends all back-offs.
func (s *Source) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.recovered)
	s.recovered = make(chan struct{})
}

func (f *follower) acquire(ctx context.Context) bool {
	if f.slots == nil {
		return true
	}
	select {
	case f.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *follower) release() {
	if f.slots != nil {
		<-f.slots
	}
}

// pace lets paceBurst events pass at once and one per paceEvery in the long run.
type pace struct {
	full time.Time // when the whole burst is allowed again
}

// delay is how long the next event has to wait; it counts as passed.
func (p *pace) delay(now time.Time) time.Duration {
	if p.full.Before(now) {
		p.full = now
	}
	d := p.full.Sub(now) - (paceBurst-1)*paceEvery
	p.full = p.full.Add(paceEvery)
	return max(d, 0)
}

// backOff doubles from minBackOff to a longest one, with jitter.
type backOff struct{ last time.Duration }

func (b *backOff) next(longest time.Duration) time.Duration {
	b.last = min(max(2*b.last, minBackOff), longest)
	return jitter(b.last)
}

// jitter is between d/2 and d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
