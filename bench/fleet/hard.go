package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// guest is one more stream, of the first sidecar's identity, that doesn't behave.
func (w *world) guest(ctx context.Context) (*xds.Client, func(), error) {
	in := w.sidecar(0)
	leaf, err := w.issuer.Leaf(ctx, 0, w.service(in.service))
	if err != nil {
		return nil, nil, err
	}
	o := w.fleetOptions
	conn, err := grpc.NewClient("passthrough:///"+o.Address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: o.Roots, ServerName: o.Names, Certificates: []tls.Certificate{*leaf},
	})))
	if err != nil {
		return nil, nil, err
	}
	done := func() { conn.Close() }
	meta, err := structpb.NewStruct(map[string]any{"node_name": w.nodeOf(in), "crossfade_relay": true})
	if err != nil {
		done()
		return nil, nil, err
	}
	c, err := xds.Connect(ctx, conn, &corev3.Node{Id: w.proxyID(in), Metadata: meta})
	if err != nil {
		done()
		return nil, nil, err
	}
	return c, done, nil
}

// meanwhile makes a change that all see again and again, for a while.
func (w *world) meanwhile(ctx context.Context, l *line, d time.Duration) error {
	var all []time.Duration
	end := time.Now().Add(d)
	for time.Now().Before(end) {
		times, err := w.renew(ctx)
		if err != nil {
			return err
		}
		all = append(all, times...)
		l.Changes++
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	l.spread(all)
	return w.txn(ctx, w.renewed())
}

// neverReads is a client that asks for everything and takes nothing.
func neverReads(ctx context.Context, w *world, _ *meter, l *line) error {
	c, done, err := w.guest(ctx)
	if err != nil {
		return err
	}
	defer done()
	for _, r := range []xds.Request{{Type: xds.ClusterType}, {Type: xds.ListenerType}, {Type: xds.EndpointType, Subscribe: []string{w.cluster(0)}}} {
		if err := c.Send(r); err != nil {
			return err
		}
	}
	return w.meanwhile(ctx, l, w.Duration/3)
}

// subscribeLoop is a client that subscribes and unsubscribes as fast as it can.
func subscribeLoop(ctx context.Context, w *world, _ *meter, l *line) error {
	c, done, err := w.guest(ctx)
	if err != nil {
		return err
	}
	defer done()
	go func() {
		for {
			r, err := c.Recv()
			if err != nil || c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	sent := 0
	stopped := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			err := c.Send(xds.Request{Type: xds.EndpointType, Subscribe: []string{w.cluster(0)}})
			if err == nil {
				err = c.Send(xds.Request{Type: xds.EndpointType, Unsubscribe: []string{w.cluster(0)}})
			}
			if err != nil {
				stopped <- err
				return
			}
			sent += 2
		}
		stopped <- nil
	}()
	err = w.meanwhile(ctx, l, w.Duration/3)
	cancel()
	end := <-stopped
	w.say("subscribe-loop: %d requests, until %v", sent, end)
	return err
}

// manyNames is a client that asks for 10,000 names by name.
func manyNames(ctx context.Context, w *world, _ *meter, l *line) error {
	c, done, err := w.guest(ctx)
	if err != nil {
		return err
	}
	defer done()
	go func() {
		for {
			r, err := c.Recv()
			if err != nil || c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	names := make([]string, 10_000)
	for i := range names {
		names[i] = w.cluster(i)
	}
	if err := c.Send(xds.Request{Type: xds.EndpointType, Subscribe: names}); err != nil {
		return err
	}
	return w.meanwhile(ctx, l, w.Duration/3)
}

// storm disconnects half of the sidecars, which forget everything and come back at once. The times are of the
// others, to whom changes go meanwhile.
func storm(ctx context.Context, w *world, m *meter, l *line) error {
	// An established one is there all the time, so what it learns is not late because it was away.
	first := w.Streams / 2
	w.fleet.Stop(first, w.Streams)
	before := time.Now()
	w.fleet.Start(context.Background(), first, w.Streams)
	var all []time.Duration
	for i := 0; w.fleet.Totals().Synced < int64(w.Streams) || i%2 == 1; i++ {
		watch := w.fleet.Watch(xds.EndpointType, w.cluster(0), w.Streams)
		if err := w.flip(ctx, 0, i%2 == 0); err != nil {
			return err
		}
		if err := await(ctx, "told", func() bool { return watch.CountBelow(first) == first }); err != nil {
			return err
		}
		all = append(all, watch.EndBelow(first)...)
		l.Changes++
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	l.spread(all)
	l.Seconds = time.Since(before).Seconds()
	w.say("storm: %d sidecars are back after %.1f s", w.Streams-first, l.Seconds)
	return nil
}

// rotate gives each sidecar a new leaf, with which it connects anew, over the duration. Changes that all see go on meanwhile.
func rotate(ctx context.Context, w *world, _ *meter, l *line) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	began := time.Now()
	go func() {
		defer close(failed)
		const workers = 4
		errs := make(chan error, workers)
		for k := range workers {
			go func() {
				for i := k; i < w.Streams; i += workers {
					leaf, err := w.issuer.Leaf(ctx, k, w.service(w.sidecar(i).service))
					if err != nil {
						errs <- err
						return
					}
					w.fleet.Certify(i, leaf)
					w.fleet.Redial(i)
					due := began.Add(w.Duration * time.Duration(i) / time.Duration(w.Streams))
					if pause(ctx, time.Until(due)) != nil {
						break
					}
				}
				errs <- nil
			}()
		}
		for range workers {
			if err := <-errs; err != nil {
				failed <- err
			}
		}
	}()
	if err := w.meanwhile(ctx, l, w.Duration); err != nil {
		return err
	}
	return <-failed
}

// issue has leaves signed as fast as the server does it.
func issue(ctx context.Context, w *world, _ *meter, l *line) error {
	n := max(1000, min(20_000, w.Streams))
	requests, err := w.issuer.Requests(n, everyone)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := w.issuer.Sign(ctx, everyone, requests); err != nil {
		return err
	}
	l.Changes = n
	l.PerSecond = float64(n) / time.Since(began).Seconds()
	w.say("issue: %.0f leaves per second", l.PerSecond)
	return nil
}

// restart kills the server and starts it again. The times are from its start until a change that was
// made as soon as it answered has come to each sidecar.
func restart(ctx context.Context, w *world, m *meter, l *line) error {
	w.server.Kill()
	began := time.Now()
	if err := w.startServer(ctx); err != nil {
		return err
	}
	m.anew()
	answered := time.Since(began)
	if err := w.profile(ctx, "/cpu/start", "restart.cpu"); err != nil {
		return err
	}
	times, err := w.renew(ctx)
	if err != nil {
		return fmt.Errorf("%d of %d sidecars are back: %w", len(times), w.Streams, err)
	}
	for i := range times {
		times[i] += answered
	}
	l.Changes = 1
	l.spread(times)
	w.say("restart: the server answers after %.1f s", answered.Seconds())
	return w.txn(ctx, w.renewed())
}
