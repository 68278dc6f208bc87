package demo

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"time"
)

const rotateLimit = 20 * time.Second

// snapshot is what must not change while certificates are replaced.
type snapshot struct {
	serials map[string]string // by instance
	// kept are the connections between sidecars that stayed open for a while.
	kept map[connection]bool
	// closed are connections to callees that each Envoy has seen end: all it had,
	// without those it has. Only HTTP is in it, since a TCP client that hangs up
	// ends its connection between the sidecars too.
	closed map[string]int64
}

// rotate makes every sidecar replace its certificate.
func (d *demo) rotate(ctx context.Context, p *Proof) error {
	all := d.mesh.running()
	m := d.traffic.mark()
	before, err := d.snapshot(ctx, all)
	if err != nil {
		return err
	}
	for _, in := range all {
		in.child.Signal(syscall.SIGHUP)
	}
	if d.o.sabotaged("rotate") {
		d.out.step("sabotage: every Envoy is restarted for its new certificate")
		for _, in := range all {
			if s, err := in.status(); err == nil {
				_ = syscall.Kill(s.Envoy.PID, syscall.SIGKILL)
			}
		}
	}
	if err := d.awaitRotated(ctx, all, before.serials); err != nil {
		return err
	}
	// Time for whatever the new certificates might close.
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	after, err := d.snapshot(ctx, all)
	if err != nil {
		return err
	}
	p.check(true, "%d of %d certificates replaced, each signed for a key that never left its sidecar", len(all), len(all))
	_, roots, err := d.mesh.api.roots(ctx)
	if err != nil {
		return err
	}
	shown := 0
	for _, in := range all {
		s, err := in.status()
		if err != nil {
			return err
		}
		got, err := dialServed(s.PublicAddress, roots)
		if err != nil {
			return err
		}
		if got.Serial == serial(s.Certificate.Serial) {
			shown++
		}
	}
	p.check(shown == len(all), "%d of %d public ports show the serial that was issued last", shown, len(all))
	lost, ended := 0, int64(0)
	for c := range before.kept {
		if !after.kept[c] {
			lost++
		}
	}
	for envoy, n := range after.closed {
		ended += n - min(n, before.closed[envoy])
	}
	p.figure("connections", len(before.kept))
	p.figure("connections_closed", lost)
	p.check(lost == 0 && len(before.kept) > 0, "%d of %d connections between sidecars closed, as the kernel lists them", lost, len(before.kept))
	p.check(ended == 0, "%d HTTP connections between sidecars ended, as the Envoys count them", ended)
	return d.nothingFailed(ctx, p, m)
}

// awaitRotated waits until every sidecar has another serial than before, and its
// Envoy has loaded it.
func (d *demo) awaitRotated(ctx context.Context, all []*instance, before map[string]string) error {
	for _, in := range all {
		err := await(ctx, rotateLimit, in.id+" has a new certificate", func() error {
			s, err := in.status()
			if err != nil {
				return err
			}
			issued := serial(s.Certificate.Serial)
			if issued == before[in.id] {
				return fmt.Errorf("it still has %s", issued)
			}
			loaded, err := loadedSerial(ctx, s.Envoy.AdminSocket, s.Certificate.URI)
			if err != nil {
				return err
			}
			if loaded != issued {
				return fmt.Errorf("%s was issued, Envoy has %s", issued, loaded)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) snapshot(ctx context.Context, all []*instance) (snapshot, error) {
	out := snapshot{serials: map[string]string{}, closed: map[string]int64{}}
	var addrs []string
	for _, in := range all {
		s, err := in.status()
		if err != nil {
			return out, err
		}
		out.serials[in.id] = serial(s.Certificate.Serial)
		if in.protocol != "tcp" { // whose clients hang up now and then; the one that must not is looked at by itself
			addrs = append(addrs, s.PublicAddress)
		}
		c, err := counted(ctx, s.Envoy.AdminSocket, `^cluster\.(catalog|assignments)\..*\.upstream_cx_(total|active)$`)
		if err != nil {
			return out, err
		}
		for name, n := range c {
			if strings.HasSuffix(name, "_total") {
				out.closed[in.id] += n
			} else {
				out.closed[in.id] -= n
			}
		}
	}
	// Connections that a client's own hanging up ends are short; what is there at
	// both ends of a quarter second is kept.
	early, err := connectionsTo(addrs)
	if err != nil {
		return out, err
	}
	if err := pause(ctx, 250*time.Millisecond); err != nil {
		return out, err
	}
	late, err := connectionsTo(addrs)
	if err != nil {
		return out, err
	}
	maps.DeleteFunc(early, func(c connection, _ bool) bool { return !late[c] })
	out.kept = early
	return out, nil
}
