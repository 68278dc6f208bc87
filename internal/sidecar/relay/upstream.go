package relay

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	envoyconfig "github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// connect keeps a stream to a server until ctx ends: as long as Envoy's own lasts.
func (r *Relay) connect(ctx context.Context) {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	wait, level := least, slog.LevelWarn
	for ctx.Err() == nil {
		admitted, err := r.stream(ctx)
		if ctx.Err() != nil {
			break
		}
		if admitted {
			wait, level = least, slog.LevelWarn
		}
		r.opts.Log.Log(ctx, level, "no stream to a control-plane server, Envoy keeps what it runs", "reason", err)
		level = slog.LevelDebug // said once
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, most)
	}
}

// stream runs one stream to a server. admitted says that the server took it.
func (r *Relay) stream(ctx context.Context) (admitted bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	meta, err := structpb.NewStruct(map[string]any{"node_name": r.opts.NodeName, "crossfade_relay": true, "crossfade_shifts": r.shifts()})
	if err != nil {
		return false, err
	}
	c, err := xds.Connect(ctx, r.opts.Conn, &corev3.Node{Id: r.opts.NodeID, Cluster: r.opts.Cluster, Metadata: meta}, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	if ctx.Err() != nil {
		r.mu.Unlock()
		return false, ctx.Err()
	}
	r.upstream, r.begun, r.pending, r.cut = c, map[xds.Type]bool{}, map[xds.Type]*pending{}, cancel
	for _, t := range xds.Types {
		if t != xds.SecretType && (t == xds.ClusterType || t == xds.ListenerType || len(r.wanted[t]) > 0) {
			r.askLocked(t, nil, nil)
		}
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.upstream == c {
			r.upstream = nil
			r.connectedLocked(false)
		}
	}()
	if err := c.Admitted(); err != nil {
		return false, err
	}
	r.opts.Log.Info("stream to a control-plane server is up")
	r.mu.Lock()
	r.connectedLocked(true)
	r.mu.Unlock()
	for {
		resp, err := c.Recv()
		if err != nil {
			return true, err
		}
		r.received(c, resp)
	}
}

// shifts are the shares that Envoy runs, by destination, for a server that has lost them.
func (r *Relay) shifts() map[string]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]any{}
	for _, res := range r.good[xds.RuntimeType] {
		body, err := res.Body()
		if err != nil {
			continue
		}
		var layer runtimev3.Runtime
		if err := proto.Unmarshal(body, &layer); err != nil {
			continue
		}
		for destination, text := range envoyconfig.Shifts(&layer) {
			out[destination] = text
		}
	}
	return out
}

func (r *Relay) connectedLocked(up bool) {
	if r.status.Connected == up {
		return
	}
	r.status.Connected, r.status.Since = up, time.Now()
	if up {
		r.fresh = true
	}
	r.announceLocked()
}

// received takes a server's response in and passes it on.
func (r *Relay) received(c *xds.Client, resp xds.Response) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.upstream != c {
		return
	}
	t := resp.Type
	if t == xds.SecretType {
		return // secrets are made here; nobody else's are taken
	}
	barred, released := r.barredLocked(resp)
	if released {
		r.cut()
		return
	}
	now := time.Now()
	var changes []xds.Key
	p := &pending{nonce: resp.Nonce, waiting: map[string]string{}}
	next := maps.Clone(r.held[t])
	if next == nil {
		next = map[string]*xds.Resource{}
	}
	for _, res := range resp.Resources {
		k := xds.Key{Type: t, Name: res.Name}
		if barred[res.Name] {
			p.refused = append(p.refused, fmt.Sprintf("%s %q: %s", t.Short(), res.Name, r.quarantine.Reason))
			continue
		}
		if no := r.refused[k]; no.here && no.version == res.Version && r.runsLocked(k) {
			// A server that is new, or tries again. Envoy is not asked twice.
			p.refused = append(p.refused, fmt.Sprintf("%s %q: %s", t.Short(), res.Name, no.message))
			continue
		}
		if was := next[res.Name]; versionOr(was) != res.Version {
			r.tryLocked(k, was, res.Version, now)
			changes = append(changes, k)
		}
		next[res.Name] = res
		if t == xds.EndpointType {
			r.rememberLocked(res)
		}
		delete(r.removed, k)
		switch {
		case isSpare(res.Name):
			r.goodLocked(t, res) // nobody else has a say in it
			continue
		case r.overlayLocked(k) != nil:
			p.refused = append(p.refused, heldHere(k))
			continue
		}
		if r.runsLocked(k) && r.acked[k] != res.Version {
			p.waiting[res.Name] = res.Version
		}
	}
	for _, name := range resp.Removed {
		k := xds.Key{Type: t, Name: name}
		if barred[name] {
			p.refused = append(p.refused, fmt.Sprintf("%s %q: removal %s", t.Short(), name, r.quarantine.Reason))
			continue
		}
		if was := next[name]; was != nil {
			r.tryLocked(k, was, absent, now)
			changes = append(changes, k)
		}
		delete(next, name)
		delete(r.refused, k)
		if isSpare(name) && r.good[t][name] != nil {
			delete(r.good[t], name)
			r.saveSoon()
		}
		if t != xds.ClusterType && t != xds.ListenerType {
			r.removed[k] = struct{}{}
		}
		if _, has := r.acked[k]; has {
			p.waiting[name] = absent
		}
	}
	r.held[t] = next
	r.plaintextLocked()
	if len(changes) > 0 {
		r.change = Change{Time: now.UTC(), Resources: shorten(describe(changes))}
	}
	r.pending[t] = p
	r.publishLocked(t)
	r.answerLocked(t)
	r.announceLocked()
}
