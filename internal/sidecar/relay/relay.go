// Package relay stands between one Envoy and the control plane.
//
// In: Envoy's delta ADS stream on a Unix socket, a connection to the servers, and
// the instance's own secrets. Out: what the servers send, passed on undecoded;
// Envoy's own ACKs and NACKs, passed back; and the last good configuration, kept on
// disk, from which Envoy starts when no server answers.
//
// The relay never answers for Envoy: a response is acknowledged upstream only when
// Envoy has acknowledged all of it that Envoy asked for. Secrets are answered here
// and never asked of a server, so that a key does not cross the wire.
//
// What Envoy crashes on twice soon after it was changed is put in quarantine: Envoy
// gets the version before, and the server gets a NACK that says so.
//
// It leaves making keys and running Envoy to package sidecar.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"

	envoyconfig "github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Options configure a [Relay]. All fields are required but the last two.
type Options struct {
	Conn      grpc.ClientConnInterface // to the servers; reconnects by itself
	Socket    string                   // Unix socket for Envoy, at most 107 bytes; its folder must be 0700
	StateFile string                   // the last good configuration; the one before is in StateFile.before
	NodeID    string                   // the sidecar's proxy service ID
	NodeName  string                   // the catalog node it is registered on
	Cluster   string                   // the service's name
	// LocalFile, where it exists, says to hold old ways; see [Relay.LookLocal]. May be empty.
	LocalFile string
	// Probation is how long Envoy must run with a change for a crash not to be held
	// against it. Default 60 s.
	Probation time.Duration
	Log       *slog.Logger
}

// Status is what the relay knows of both sides.
type Status struct {
	Connected      bool      `json:"connected"`       // a server has taken our stream
	Since          time.Time `json:"since"`           // of Connected's last change, or of the relay's start
	EnvoyConnected bool      `json:"envoy_connected"` // Envoy has its stream
	FromLastGood   bool      `json:"from_last_good"`  // started from the disk, and no server has taken our stream since
	Listeners      []string  `json:"listeners"`       // names of the listeners Envoy is told of
	Version        string    `json:"version"`         // of the configuration as a whole, a hash

	// PlaintextPort is where Envoy takes plaintext from other hosts, with the rules for it in
	// force; 0: nowhere.
	PlaintextPort int `json:"plaintext_port,omitempty"`

	Local      *Local      `json:"local,omitempty"` // nil: servers decide
	Quarantine *Quarantine `json:"quarantine,omitempty"`
}

// viewKey is the one view of the relay's own server.
const viewKey = "envoy"

// Relay is one Envoy's relay. Safe for concurrent use.
type Relay struct {
	opts   Options
	server *xds.Server

	mu       sync.Mutex                            // guards the following
	held     map[xds.Type]map[string]*xds.Resource // newest, by type and name; a nil map is "not known yet"
	removed  map[xds.Key]struct{}                  // named resources that the server says don't exist
	good     map[xds.Type]map[string]*xds.Resource // acknowledged by Envoy: what is on disk
	acked    map[xds.Key]string                    // by the Envoy that is connected now
	refused  map[xds.Key]refusal                   // what an Envoy refused last, and none has taken since
	wanted   map[xds.Type]map[string]struct{}      // names it asked for
	pending  map[xds.Type]*pending                 // server responses that Envoy hasn't settled
	upstream *xds.Client                           // nil while there is none
	begun    map[xds.Type]bool                     // types already requested on upstream
	streams  int                                   // of Envoy, open
	gone     context.CancelFunc                    // ends the upstream of the Envoy stream that is open
	cut      context.CancelFunc                    // ends the stream to a server alone; another follows
	secrets  map[string]*xds.Resource
	view     *xds.View // as published last
	status   Status
	fresh    bool // a server has taken our stream since the start

	openedAt   time.Time          // Envoy's last stream
	told       bool               // the Envoy that runs, or ran last, has asked for its configuration
	seasoned   bool               // there is a configuration to go back to
	trials     map[xds.Key]*trial // changes that have not proved themselves
	barred     map[xds.Key]string // versions in quarantine
	quarantine *Quarantine        // nil exactly when barred is empty; replaced, not changed
	change     Change
	local      time.Time        // since when old ways are held; zero: they are not
	generation uint64           // of what Envoy was told and has answered; see [Told]
	been       map[use]struct{} // where endpoints have led since the start

	changed chan struct{}
	dirty   chan struct{} // capacity 1: good differs from the disk
}

// pending is a server's response that waits for Envoy.
type pending struct {
	nonce   string
	waiting map[string]string // name -> version; absent for a removal
	refused []string          // in words
}

// refusal is what an Envoy did not take.
type refusal struct {
	version, message string
	here             bool // the Envoy that is connected now
}

const absent = "absent"

// New loads the last good configuration, if there is one. A file that is there
// but damaged is reported and ignored: the servers have the truth.
func New(o Options) (*Relay, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Relay{
		opts: o, held: map[xds.Type]map[string]*xds.Resource{}, removed: map[xds.Key]struct{}{}, good: map[xds.Type]map[string]*xds.Resource{},
		acked: map[xds.Key]string{}, wanted: map[xds.Type]map[string]struct{}{}, pending: map[xds.Type]*pending{},
		begun: map[xds.Type]bool{}, secrets: map[string]*xds.Resource{}, view: &xds.View{Own: map[xds.Type]xds.Resources{}}, changed: make(chan struct{}), dirty: make(chan struct{}, 1),
		refused: map[xds.Key]refusal{}, trials: map[xds.Key]*trial{}, barred: map[xds.Key]string{},
		been: map[use]struct{}{},
	}
	r.status.Since = time.Now()
	if r.opts.Probation <= 0 {
		r.opts.Probation = defaultProbation
	}
	good, err := load(o.StateFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		o.Log.Error("last good configuration can't be read, starting without it", "file", o.StateFile, "reason", err)
	default:
		for t, byName := range good {
			r.held[t] = byName
			r.good[t] = maps.Clone(byName)
		}
		for _, res := range r.held[xds.EndpointType] {
			r.rememberLocked(res)
		}
		r.status.FromLastGood = true
		r.seasoned = true
		before, err := load(o.StateFile + beforeSuffix)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			o.Log.Error("the configuration before the last good one can't be read", "file", o.StateFile+beforeSuffix, "reason", err)
		default:
			r.retryLocked(before, time.Now())
		}
	}
	if o.LocalFile != "" {
		if st, err := os.Stat(o.LocalFile); err == nil {
			r.local = st.ModTime()
			o.Log.Warn("on old ways by order on this host, until released")
		}
	}
	r.server = xds.NewServer(xds.Options{Open: r.opened, Closed: r.closed, Subscribed: r.subscribed, Settled: r.settled, Log: o.Log})
	r.publish()
	return r, nil
}

// Run serves Envoy until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	if err := os.Remove(r.opts.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("relay: %w", err)
	}
	lis, err := net.Listen("unix", r.opts.Socket)
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	if err := os.Chmod(r.opts.Socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("relay: %w", err), lis.Close())
	}
	g := grpc.NewServer(xds.ServerOptions()...)
	r.server.Register(g)

	var wg sync.WaitGroup
	wg.Go(func() { r.keep(ctx) })
	wg.Go(func() {
		<-ctx.Done()
		g.Stop()
	})
	err = g.Serve(lis)
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("relay: %w", err)
}

// SetSecrets gives Envoy its leaf and roots, now and whenever they change.
func (r *Relay) SetSecrets(secrets ...*xds.Resource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		r.secrets[s.Name] = s
	}
	r.publishLocked(xds.SecretType)
}

// Status reports both sides.
func (r *Relay) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.status
	st.FromLastGood = st.FromLastGood && !r.fresh
	st.Listeners = slices.Sorted(maps.Keys(r.held[xds.ListenerType]))
	st.Version = versionOf(r.held)
	st.Local = r.localLocked()
	st.Quarantine = r.quarantine
	return st
}

// Changed is closed at the next change of [Relay.Status].
func (r *Relay) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *Relay) announceLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Relay) publish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publishLocked(xds.Types[:]...)
}

// publishLocked hands the relay's state to its xDS server as a new view. The given types may
// differ from the last, and any while something is refused; the others are shared with it.
func (r *Relay) publishLocked(types ...xds.Type) {
	if len(r.refused) > 0 {
		types = xds.Types[:]
	}
	v := &xds.View{Own: maps.Clone(r.view.Own), Growing: true, Removed: maps.Clone(r.removed)}
	for _, t := range types {
		byName := r.held[t]
		if t == xds.SecretType {
			byName = r.secrets
		}
		if byName == nil {
			delete(v.Own, t)
			continue
		}
		list := make([]*xds.Resource, 0, len(byName))
		for name, res := range byName {
			k := xds.Key{Type: t, Name: name}
			if over := r.overlayLocked(k); over != nil {
				res = over
			} else if r.doubtedLocked(k, res) {
				res = r.good[t][name]
			}
			list = append(list, res)
		}
		v.Own[t] = xds.Sort(list)
	}
	r.view = v
	r.server.Update(xds.Update{Views: map[string]*xds.View{viewKey: v}})
}

// opened admits Envoy's stream and opens one to a server for as long as it lasts.
func (r *Relay) opened(ctx context.Context, _ *corev3.Node) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone != nil {
		r.gone()
	}
	r.streams++
	up, cancel := context.WithCancel(ctx)
	r.gone = cancel
	r.acked, r.wanted, r.pending = map[xds.Key]string{}, map[xds.Type]map[string]struct{}{}, map[xds.Type]*pending{}
	for k, no := range r.refused {
		no.here = false
		r.refused[k] = no
	}
	r.openedAt, r.told = time.Now(), true
	r.generation++
	r.status.EnvoyConnected = true
	r.plaintextLocked()
	r.announceLocked()
	go r.connect(up)
	return viewKey, nil
}

func (r *Relay) closed(string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams--; r.streams > 0 {
		return // a newer stream took over
	}
	if r.gone != nil {
		r.gone()
	}
	r.status.EnvoyConnected = false
	r.generation++
	r.announceLocked()
}

// subscribed passes on what Envoy asks for. Wildcards are asked for from the start.
func (r *Relay) subscribed(_ string, t xds.Type, added, dropped []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t == xds.SecretType {
		for _, name := range dropped {
			delete(r.acked, xds.Key{Type: t, Name: name})
		}
		return
	}
	if r.wanted[t] == nil {
		r.wanted[t] = map[string]struct{}{}
	}
	added, dropped = append(added, spares(t, added)...), append(dropped, spares(t, dropped)...)
	for _, name := range added {
		r.wanted[t][name] = struct{}{}
	}
	for _, name := range dropped {
		delete(r.wanted[t], name)
		delete(r.acked, xds.Key{Type: t, Name: name})
		delete(r.removed, xds.Key{Type: t, Name: name})
		if p := r.pending[t]; p != nil {
			delete(p.waiting, name)
		}
		r.dropLocked(t, name)
	}
	if len(dropped) > 0 {
		r.publishLocked(t) // what is asked for again is not answered by what was so before
	}
	r.plaintextLocked()
	r.askLocked(t, added, dropped)
	r.answerLocked(t)
}

// dropLocked forgets a resource that Envoy no longer runs.
func (r *Relay) dropLocked(t xds.Type, name string) {
	delete(r.refused, xds.Key{Type: t, Name: name})
	if res, ok := r.held[t][name]; ok {
		r.tryLocked(xds.Key{Type: t, Name: name}, res, absent, time.Now())
		delete(r.held[t], name)
	}
	if _, ok := r.good[t][name]; ok {
		delete(r.good[t], name)
		r.saveSoon()
	}
}

// askLocked sends a request of one type upstream, if there is an upstream.
func (r *Relay) askLocked(t xds.Type, subscribe, unsubscribe []string) {
	if r.upstream == nil {
		return
	}
	req := xds.Request{Type: t, Subscribe: subscribe, Unsubscribe: unsubscribe}
	if !r.begun[t] {
		r.begun[t] = true
		req.Unsubscribe = nil
		req.Initial = versions(r.held[t])
		if named := r.wanted[t]; len(named) > 0 {
			req.Subscribe = slices.Sorted(maps.Keys(named))
		}
	}
	if len(req.Subscribe)+len(req.Unsubscribe)+len(req.Initial) == 0 && t != xds.ClusterType && t != xds.ListenerType {
		return
	}
	r.sendLocked(req)
}

func (r *Relay) sendLocked(req xds.Request) {
	if err := r.upstream.Send(req); err != nil {
		r.opts.Log.Debug("request to the server not sent, the stream has ended", "type", req.Type.Short(), "reason", err)
	}
}

func versions(byName map[string]*xds.Resource) map[string]string {
	out := make(map[string]string, len(byName))
	for name, res := range byName {
		out[name] = res.Version
	}
	return out
}

// runsLocked reports whether Envoy asked for a resource.
func (r *Relay) runsLocked(k xds.Key) bool {
	if k.Type == xds.ClusterType || k.Type == xds.ListenerType {
		return true
	}
	_, ok := r.wanted[k.Type][k.Name]
	return ok && !isSpare(k.Name)
}

// settled is Envoy's word on a response of ours.
func (r *Relay) settled(_ string, t xds.Type, o xds.Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	if t == xds.SecretType {
		for name, v := range o.Acked {
			r.acked[xds.Key{Type: t, Name: name}] = v
		}
		return
	}
	p := r.pending[t]
	if p == nil {
		p = &pending{waiting: map[string]string{}}
	}
	again := len(o.Refused) > 0
	for name, v := range o.Acked {
		k := xds.Key{Type: t, Name: name}
		r.acked[k] = v
		switch no, is := r.refused[k]; {
		case is && no.version == v:
			delete(r.refused, k)
		case is && !no.here:
			again = true // it has what works, and is given what is doubted
		}
		if res := r.held[t][name]; res != nil && res.Version == v {
			r.goodLocked(t, res)
		}
		if p.waiting[name] == v {
			delete(p.waiting, name)
		}
	}
	for _, name := range o.Removed {
		delete(r.acked, xds.Key{Type: t, Name: name})
		if p.waiting[name] == absent {
			delete(p.waiting, name)
		}
		if r.held[t][name] == nil && r.good[t][name] != nil {
			delete(r.good[t], name)
			r.saveSoon()
		}
	}
	for name, no := range o.Refused {
		if p.waiting[name] == no.Version {
			delete(p.waiting, name)
			p.refused = append(p.refused, fmt.Sprintf("%s %q: %s", t.Short(), name, no.Message))
		}
		r.refused[xds.Key{Type: t, Name: name}] = refusal{no.Version, no.Message, true}
		r.fallBackLocked(t, name)
	}
	if again {
		r.publishLocked(t)
	}
	if layer := r.layerLocked(); !r.local.IsZero() || len(envoyconfig.Cuts(layer)) > 0 {
		r.announceLocked() // how far they are has changed
	}
	r.plaintextLocked()
	r.answerLocked(t)
}

// fallBackLocked puts the last good version in the place of a refused one, so that
// an Envoy that starts anew gets what works.
func (r *Relay) fallBackLocked(t xds.Type, name string) {
	delete(r.trials, xds.Key{Type: t, Name: name})
	r.held[t] = with(r.held[t], name, r.good[t][name])
}

// doubtedLocked reports whether a version was refused, so that an Envoy that has started gets
// the last good one first, which a server that tries the other again may not know of.
func (r *Relay) doubtedLocked(k xds.Key, res *xds.Resource) bool {
	good := r.good[k.Type][k.Name]
	return good != nil && r.refused[k].version == res.Version && good.Version != res.Version && r.acked[k] != good.Version
}

func (r *Relay) goodLocked(t xds.Type, res *xds.Resource) {
	if r.good[t] == nil {
		r.good[t] = map[string]*xds.Resource{}
	}
	if old := r.good[t][res.Name]; old == nil || old.Version != res.Version {
		r.good[t][res.Name] = res
		r.saveSoon()
	}
}

// answerLocked passes Envoy's verdict on to the server once it is complete.
func (r *Relay) answerLocked(t xds.Type) {
	p := r.pending[t]
	if p == nil || len(p.waiting) > 0 || r.upstream == nil {
		return
	}
	delete(r.pending, t)
	r.sendLocked(xds.Request{Type: t, Nonce: p.nonce, Error: strings.Join(p.refused, "; ")})
}
