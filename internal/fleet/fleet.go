// Package fleet is many simulated sidecars: what a control plane sees of them, and no more.
//
// In: who the sidecars are ([Sidecar]), a server's address, and their certificates ([Issuer] gets
// them). Out: streams that behave as those of the real relay with its Envoy: a TCP and
// TLS connection each with the sidecar's own leaf, delta ADS over gRPC, names asked for as clusters and
// listeners name them, every response acknowledged or, now and then, refused, reconnects with jittered
// back-off that say which versions are held; and when each sidecar learned of a change ([Watch]).
//
// It is lean, so that a benchmark measures the server: one goroutine for each sidecar, and of what
// arrives only names, versions and references to further resources are looked at.
//
// It leaves registering the sidecars, and what changes, to its user.
package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Sidecar says who one of them is.
type Sidecar struct {
	Service string // that it stands for
	ID      string // service ID of the connect-proxy
	Node    string // catalog node that it is registered on
}

// Options configure a [Fleet].
type Options struct {
	Address string           // gRPC, "ip:port"
	Roots   *x509.CertPool   // that the server's certificate comes from
	Names   string           // a DNS name of that certificate
	Refuse  float64          // share of changed endpoints that a sidecar answers with a NACK
	From    func(int) net.IP // local address of a connection; nil: the kernel's choice
	Log     *slog.Logger
}

// Fleet is sidecars that are up, or may be. Safe for concurrent use.
type Fleet struct {
	opts     Options
	sidecars []*sidecar
	names    names

	watches sync.Map // of *Watch, by watched
	loose   sync.WaitGroup
	server  atomic.Pointer[x509.Certificate] // the server's, verified

	// Counters since the start.
	bytes, responses, nacks, connects, broken atomic.Int64
	synced                                    atomic.Int64 // sidecars that have all they asked for
	up                                        atomic.Int64 // sidecars with a stream that the server took
	latest                                    atomic.Int64 // when the last resource came, in Unix nanoseconds

	mu  sync.Mutex
	why map[string]int // connections broke; guarded by mu
}

// New makes a fleet whose sidecars are all down.
func New(o Options, list []Sidecar) *Fleet {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{opts: o, names: names{known: map[string]string{}}}
	for i, s := range list {
		f.sidecars = append(f.sidecars, &sidecar{Sidecar: s, fleet: f, at: i})
	}
	return f
}

// Len is the number of sidecars.
func (f *Fleet) Len() int { return len(f.sidecars) }

// Certify gives a sidecar its leaf, which its next connection shows.
func (f *Fleet) Certify(i int, leaf *tls.Certificate) { f.sidecars[i].leaf.Store(leaf) }

// Start lets sidecars connect, from first to below end, until ctx or [Fleet.Stop] ends them.
func (f *Fleet) Start(ctx context.Context, first, end int) {
	for _, s := range f.sidecars[first:end] {
		ctx, cancel := context.WithCancel(ctx)
		s.mu.Lock()
		s.stop, s.done = cancel, make(chan struct{})
		done := s.done
		s.mu.Unlock()
		f.loose.Go(func() {
			defer close(done)
			s.run(ctx)
		})
	}
}

// Stop disconnects sidecars and waits until they are down. They forget what they hold.
func (f *Fleet) Stop(first, end int) {
	for _, s := range f.sidecars[first:end] {
		s.mu.Lock()
		stop := s.stop
		s.mu.Unlock()
		if stop != nil {
			stop()
		}
	}
	for _, s := range f.sidecars[first:end] {
		s.mu.Lock()
		done := s.done
		s.mu.Unlock()
		if done != nil {
			<-done
		}
		s.forget()
	}
}

// Redial ends a sidecar's connection, as a new leaf does: it comes back at once.
func (f *Fleet) Redial(i int) {
	s := f.sidecars[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.planned = true
		s.conn.Close()
	}
}

// Totals are the fleet's counters since its start.
type Totals struct {
	Up, Synced                                int64
	Bytes, Responses, Nacks, Connects, Broken int64
}

// Totals reads the counters. Broken counts connections that ended, or were not taken, without the sidecar's doing.
func (f *Fleet) Totals() Totals {
	return Totals{
		Up: f.up.Load(), Synced: f.synced.Load(), Bytes: f.bytes.Load(), Responses: f.responses.Load(),
		Nacks: f.nacks.Load(), Connects: f.connects.Load(), Broken: f.broken.Load(),
	}
}

// Why says for which reasons connections have broken since it was asked last, and how many for each.
func (f *Fleet) Why() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.why
	f.why = nil
	return out
}

// broke counts a connection that ended, or was not taken.
func (f *Fleet) broke(err error) {
	f.broken.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why == nil {
		f.why = map[string]int{}
	}
	f.why[reason(err)]++
}

// reason is an error without the addresses that tell connections apart.
func reason(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// Latest is when the last resource came.
func (f *Fleet) Latest() time.Time { return time.Unix(0, f.latest.Load()) }

// Endpoints is, for each endpoint resource, the versions that sidecars hold and by how many each is held.
func (f *Fleet) Endpoints() map[string]map[uint64]int {
	out := map[string]map[uint64]int{}
	for _, s := range f.sidecars {
		s.mu.Lock()
		for _, h := range s.held {
			if h.typ != endpoints || !h.has {
				continue
			}
			if out[h.name] == nil {
				out[h.name] = map[uint64]int{}
			}
			out[h.name][h.version]++
		}
		s.mu.Unlock()
	}
	return out
}

// Watch notes when each sidecar learns of a change of one resource.
type Watch struct {
	began time.Time
	at    []atomic.Int64 // by sidecar: nanoseconds after began; 0: not yet
	count atomic.Int64
	want  int64
	done  chan struct{} // closed when count is want
	fleet *Fleet
	what  watched
}

type watched struct {
	typ  kind
	name string
}

// Watch begins to look out for the next version of a resource, which so many sidecars
// are to get. One watch at a time may look for a resource. End it.
func (f *Fleet) Watch(t xds.Type, name string, want int) *Watch {
	k, _ := kindOf([]byte(t))
	w := &Watch{
		began: time.Now(), at: make([]atomic.Int64, len(f.sidecars)), want: int64(want), done: make(chan struct{}),
		fleet: f, what: watched{k, name},
	}
	f.watches.Store(w.what, w)
	return w
}

func (w *Watch) note(i int) {
	if !w.at[i].CompareAndSwap(0, max(1, int64(time.Since(w.began)))) {
		return
	}
	if w.count.Add(1) == w.want {
		close(w.done)
	}
}

// Wait returns when all have it, or ctx ends.
func (w *Watch) Wait(ctx context.Context) error {
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CountBelow is how many of the first n sidecars have it.
func (w *Watch) CountBelow(n int) (count int) {
	for i := range w.at[:n] {
		if w.at[i].Load() > 0 {
			count++
		}
	}
	return count
}

// Missing says of the first sidecars that asked for it and do not have it, ten at most, what they have.
func (w *Watch) Missing() (out []string) {
	for i, s := range w.fleet.sidecars {
		if w.at[i].Load() > 0 {
			continue
		}
		s.mu.Lock()
		for _, h := range s.held {
			if h.typ == w.what.typ && h.name == w.what.name {
				out = append(out, fmt.Sprintf("%s: version %x, connected %v", s.ID, h.version, s.conn != nil))
			}
		}
		s.mu.Unlock()
		if len(out) == 10 {
			break
		}
	}
	return out
}

// End stops watching and returns the times after which sidecars had it, in no order.
func (w *Watch) End() []time.Duration { return w.EndBelow(len(w.at)) }

// EndBelow is [Watch.End] for the first n sidecars.
func (w *Watch) EndBelow(n int) []time.Duration {
	w.fleet.watches.CompareAndDelete(w.what, w)
	var out []time.Duration
	for i := range w.at[:n] {
		if d := w.at[i].Load(); d > 0 {
			out = append(out, time.Duration(d))
		}
	}
	return out
}

// names keeps one string for each name, however many sidecars hold it.
type names struct {
	mu    sync.RWMutex
	known map[string]string
}

func (n *names) of(b []byte) string {
	n.mu.RLock()
	s, ok := n.known[string(b)]
	n.mu.RUnlock()
	if ok {
		return s
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s, ok := n.known[string(b)]; ok {
		return s
	}
	s = string(b)
	n.known[s] = s
	return s
}

// backOff is the relay's and its connection's: from 250 ms to 3 s, with jitter.
func backOff(attempt int) time.Duration {
	d := 250 * time.Millisecond
	for range min(attempt, 10) {
		d = d * 8 / 5
	}
	d = min(d, 3*time.Second)
	return d*7/10 + rand.N(d*6/10)
}
