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
	http2    bool   // it came over HTTP/2
}

// get asks once. With after > 0 Consul answers when its index exceeds that, or after wait.
func (s *Source) get(ctx context.Context, path string, after uint64, wait time.Duration) (answer, error) {
	var query url.Values
	if after == quorum {
		after, query = 0, url.Values{"consistent": {""}}
	}
	got, err := s.Do(ctx, http.MethodGet, path, query, nil, after, wait)
	switch {
	case err != nil:
		return answer{}, err
	case got.Status != http.StatusOK:
		return answer{}, statusError(got.Status, got.Body)
	}
	index, err := got.Index()
	return answer{body: got.Body, index: index, filtered: got.Header.Get("X-Consul-Results-Filtered-By-ACLs") == "true", http2: got.HTTP2}, err
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

// follow hands each answer to take until ctx ends. An error from take counts as a bad answer: the
// query is repeated after a while, without blocking, so that it is known at once when all is well.
func (f *follower) follow(ctx context.Context, take func(answer) error) {
	var last uint64 // index of the last good answer; 0: none
	block := true   // until there is another
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
		after := last
		if !block {
			after = 0
		}
		asked := time.Now()
		a, err := f.source.getUnlessKicked(ctx, f.path, after, wait)
		f.release()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errKicked) {
			last = 0
			continue
		}
		if !errors.As(err, new(Unreachable)) {
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
			if errors.As(err, new(Unreachable)) {
				// What answers next may have another history.
				last = 0
			}
			block = false
			f.trouble.fail(f.path, err)
			if !f.retreat(ctx, again.next(f.longest(err))) {
				return
			}
			continue
		}
		if f.trouble.ok(f.path) && f.path == pathServices {
			f.source.wakeAll()
		}
		again, block = backOff{}, true
		if after > 0 && a.index == after && time.Since(asked) < wait/2 {
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
	if errors.As(err, new(Unreachable)) && f.path != pathServices {
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
