package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// pastSidecar says how the app of a sidecar can be reached past it from another host; empty
// when it cannot.
func (s *Server) pastSidecar(in catalog.Instance, now time.Time) string {
	r := s.mesh.book.Reporting(keyOf(in), now)
	app := in.Service.Proxy.DestinationServiceID
	switch {
	case in.Service.Proxy.LocalServiceSocketPath != "":
		return ""
	case !r.Fresh || r.App == nil:
		return fmt.Sprintf("instance %q: its sidecar does not say how the app's own port can be reached", app)
	case r.App.Protected:
		return ""
	case len(r.App.Listening) == 0:
		return fmt.Sprintf("instance %q: nothing listens on port %d beside the sidecar, so that how the app can be reached is not known", app, r.App.Port)
	case r.App.Loopback:
		return ""
	case r.App.Unseen:
		return fmt.Sprintf("instance %q: port %d listens on %s, and its sidecar has no right to see whether rules keep others out: let the app listen on 127.0.0.1, or give the sidecar CAP_NET_ADMIN",
			app, r.App.Port, strings.Join(r.App.Listening, " and "))
	}
	return fmt.Sprintf("instance %q: port %d listens on %s, and is reached past the sidecar: let the app listen on 127.0.0.1, or run crossfade protect %d on its host",
		app, r.App.Port, strings.Join(r.App.Listening, " and "), r.App.Port)
}

// closedTo counts the instances of a pair's destination whose own port a caller on another
// host cannot reach, as their sidecars say, and how to open one.
func (b *books) closedTo(p api.PairName) (n int, why string) {
	of := b.declared()[p.Source]
	if of == nil {
		return 0, ""
	}
	for _, in := range b.snap.Connect(p.Destination) {
		if in.Service.Kind != catalog.ConnectProxy || !slices.ContainsFunc(of.calls[p.Destination], func(c catalog.Instance) bool { return c.Address() != in.Address() }) {
			continue
		}
		r := b.book.Reporting(keyOf(in), time.Now())
		if !r.Fresh || r.App == nil || !r.App.Protected && (!r.App.Loopback || len(r.App.Listening) == 0) {
			continue
		}
		n++
		why = fmt.Sprintf("instance %q: port %d is closed to other hosts: run crossfade protect --remove %d on its host", in.Service.Proxy.DestinationServiceID, r.App.Port, r.App.Port)
		if !r.App.Protected {
			why = fmt.Sprintf("instance %q: port %d listens on %s alone, and is not reached from other hosts", in.Service.Proxy.DestinationServiceID, r.App.Port, strings.Join(r.App.Listening, " and "))
		}
	}
	return n, why
}

const (
	// hearAllWithin bounds how long sidecars are waited for that are to say what they saw.
	hearAllWithin = 15 * time.Second
	// lookForReports is how often is looked whether they have.
	lookForReports = 50 * time.Millisecond
)

// hearAll waits until all sidecars of a service that report have done so twice since a moment:
// the first report may have been under way, the second one tells what came before it.
func (s *Server) hearAll(ctx context.Context, b *books, service string, since time.Time) {
	end := time.NewTimer(hearAllWithin)
	defer end.Stop()
	tick := time.NewTicker(lookForReports)
	defer tick.Stop()
	first := map[telemetry.Key]time.Time{}
	for {
		open := false
		for _, in := range b.snap.Connect(service) {
			if in.Service.Kind != catalog.ConnectProxy {
				continue
			}
			key := keyOf(in)
			r := s.mesh.book.Reporting(key, time.Now())
			if !r.Fresh {
				continue
			}
			was, ok := first[key]
			if !ok && r.At.After(since) {
				first[key] = r.At
			}
			open = open || !ok || !r.At.After(was)
		}
		if !open {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-tick.C:
		}
	}
}
