package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Way is how a call travels.
type Way uint8

// The two ways.
const (
	Old Way = iota
	New
)

// String is "old" or "new".
func (w Way) String() string {
	if w == New {
		return "new"
	}
	return "old"
}

// Choice is the way of one call.
type Choice struct {
	Way    Way
	Scheme string // http, https, or empty where the address says neither
	Addr   string // host:port
}

// Options of a [Pair]. Only Destination is needed.
type Options struct {
	// Source is the calling service, as in the key of KV. Without it KV is not read.
	Source string
	// Destination is the service that is called, as it is registered.
	Destination string

	// OldAddr is the old address where no variable names one: what the service
	// called before it had a pair.
	OldAddr string

	// OnProblem is told of each problem once, when it begins. Calls do not overlap;
	// they come from [Open] and from the goroutine that reads KV, which waits for
	// them. It must not call [Pair.Close].
	OnProblem func(Problem)

	// Draw returns a random number of [0, n); rand.IntN if nil. It is called concurrently.
	Draw func(n int) int

	// FirstRead is how long [Open] waits for the first answer of KV, so that no call
	// goes by a percent that KV has overridden; a second if zero, not at all if negative.
	FirstRead time.Duration

	// HTTPClient reads KV, where TLS or a proxy needs more than the environment can say.
	// Its redirects and its timeout are not used.
	HTTPClient *http.Client

	// Getenv is os.Getenv if nil.
	Getenv func(string) string
}

// Stats of a pair since it was opened.
type Stats struct {
	Old, New uint64 // choices by way
	Problems uint64 // problems that began
}

// Pair is a source and a destination with the two ways between them. It is for
// concurrent use.
type Pair struct {
	opts     Options
	old, new Choice // without an Addr where there is none
	env      int    // share by the environment
	key      string // of KV

	wanted atomic.Int32 // share by the settings
	share  atomic.Int32 // share in force, given the addresses there are

	choices [2]atomic.Uint64 // by way
	began   atomic.Uint64    // problems

	mu  sync.Mutex
	now problems

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Open reads a pair's settings, and follows them until Close. An error means that the
// options themselves are wrong; whatever is wrong around them is a [Problem].
func Open(o Options) (*Pair, error) {
	if o.Destination == "" {
		return nil, errors.New("pair: no destination")
	}
	for _, name := range []string{o.Source, o.Destination} {
		if strings.Contains(name, "/") {
			return nil, fmt.Errorf("pair %q to %q: a service's name has no slash", o.Source, o.Destination)
		}
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Draw == nil {
		o.Draw = rand.IntN
	}
	p := &Pair{
		opts:   o,
		key:    "crossfade/" + o.Source + "/" + o.Destination + "/mesh_percent",
		now:    problems{},
		cancel: func() {},
	}
	p.old = p.address(Old, oldVar, o.OldAddr)
	p.new = p.address(New, newVar, "")
	if value, variable := p.lookup(percentVar); value != "" {
		if share, ok := ParsePercent(value); ok {
			p.env = share
		} else {
			p.report(Problem{BadPercent, variable, notPercent(value)})
		}
	}
	p.set(p.env)
	if o.Source != "" {
		p.follow()
	}
	return p, nil
}

// lookup reads a variable, and tells of one that somebody meant to be read.
func (p *Pair) lookup(prefix string) (value, variable string) {
	value, variable = lookup(p.opts.Getenv, prefix, p.opts.Destination)
	if upper := prefix + strings.ToUpper(cleanName(p.opts.Destination)); value == "" && p.opts.Getenv(upper) != "" {
		p.report(Problem{NotRead, upper, fmt.Errorf("is not read: names keep their case, set %s", variable)})
	}
	return value, variable
}

func (p *Pair) address(w Way, prefix, otherwise string) Choice {
	value, variable := p.lookup(prefix)
	value = cmp.Or(value, otherwise)
	if value == "" {
		return Choice{Way: w}
	}
	scheme, addr, err := parseAddress(value)
	if err != nil {
		p.report(Problem{BadAddress, variable, fmt.Errorf("%q is no address: %w", value, err)})
	}
	return Choice{w, scheme, addr}
}

// set puts a share in force.
func (p *Pair) set(share int) {
	p.wanted.Store(int32(share))
	_, oldName := lookup(p.opts.Getenv, oldVar, p.opts.Destination)
	_, newName := lookup(p.opts.Getenv, newVar, p.opts.Destination)
	noOld, noNew := p.old.Addr == "", p.new.Addr == ""
	for _, rule := range []struct {
		broken bool
		Problem
	}{
		{noOld && noNew, Problem{NoAddress, p.opts.Destination, fmt.Errorf("%w; set %s or %s", ErrNoAddress, oldName, newName)}},
		{noNew && !noOld && share > 0, Problem{NoNewAddress, newName, errors.New("no new address: all calls take the old way")}},
		{noOld && !noNew && share < whole, Problem{NoOldAddress, oldName, errors.New("no old address: all calls take the new way")}},
	} {
		if rule.broken {
			p.report(rule.Problem)
		} else {
			p.over(rule.Kind, rule.Where)
		}
	}
	switch {
	case noNew:
		share = 0
	case noOld:
		share = whole
	}
	p.share.Store(int32(share))
}

// Choose returns the way of one call. An empty key is no key: the call takes a way at
// random. The error is one of [ErrNoAddress].
func (p *Pair) Choose(key string) (Choice, error) {
	c := &p.old
	if isNew(int(p.share.Load()), key, p.opts.Draw) {
		c = &p.new
	}
	if c.Addr == "" {
		return Choice{}, fmt.Errorf("pair %q to %q: %w", p.opts.Source, p.opts.Destination, ErrNoAddress)
	}
	p.choices[c.Way].Add(1)
	return *c, nil
}

// Percent is the percent by KV or the environment. Where a way has no address it is
// not the share of calls.
func (p *Pair) Percent() float64 { return float64(p.wanted.Load()) / 100 }

// Address returns a way's address, and whether there is one.
func (p *Pair) Address(w Way) (Choice, bool) {
	c := p.old
	if w == New {
		c = p.new
	}
	return c, c.Addr != ""
}

// Stats returns what was counted so far.
func (p *Pair) Stats() Stats {
	return Stats{p.choices[Old].Load(), p.choices[New].Load(), p.began.Load()}
}

// Problems returns what is wrong now, sorted by kind.
func (p *Pair) Problems() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now.sorted()
}

// Close stops following KV, and returns when nothing of the pair runs any more.
// Choices go on by the last percent.
func (p *Pair) Close() {
	p.cancel()
	p.done.Wait()
}

func (p *Pair) report(problem Problem) {
	p.mu.Lock()
	news := p.now.add(problem)
	p.mu.Unlock()
	if !news {
		return
	}
	p.began.Add(1)
	if p.opts.OnProblem != nil {
		p.opts.OnProblem(problem)
	}
}

// over ends a problem.
func (p *Pair) over(k Kind, where string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.now, place{k, where})
}

func notPercent(value string) error {
	return fmt.Errorf("%.40q is no percent from 0 to 100 with at most two decimals", value)
}

type keyOfContext struct{}

// WithKey returns a context whose calls stick to the way of key, unless it is empty.
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, keyOfContext{}, key)
}

// Key returns the key that WithKey set, or nothing.
func Key(ctx context.Context) string {
	key, _ := ctx.Value(keyOfContext{}).(string)
	return key
}
