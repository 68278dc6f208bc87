package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// outageTime is how long the server is dead at least.
const outageTime = 8 * time.Second

// lastGood kills the server, and meanwhile stops a sidecar and starts it again.
func (d *demo) lastGood(ctx context.Context, p *Proof) error {
	in := d.mesh.instance("catalog-4")
	m := d.traffic.mark()
	d.mesh.killServer()
	dead := time.Now()
	d.out.step("server killed with SIGKILL")
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	begun := time.Now()
	if err := in.leave(ctx); err != nil {
		return err
	}
	d.out.step("%s drained and stopped in %s, with no server to tell", in.id, seconds(time.Since(begun)))
	if d.o.sabotaged("lastgood") {
		d.out.step("sabotage: what %s kept on disk is removed", in.id)
		if err := os.RemoveAll(in.stateDir()); err != nil {
			return err
		}
	}
	begun = time.Now()
	if err := d.mesh.startInstance(in); err != nil {
		return err
	}
	limit := startLimit
	if d.o.sabotaged("lastgood") {
		limit = outageTime
	}
	if err := await(ctx, limit, in.id+" is ready without a server", in.ready); err != nil {
		return err
	}
	st, err := in.status()
	if err != nil {
		return err
	}
	if err := d.awaitTrafficTo(ctx, in.id); err != nil {
		return err
	}
	p.check(st.XDS.FromLastGood && !st.XDS.Connected, "%s started again from its last good configuration and takes traffic after %s", in.id, seconds(time.Since(begun)))
	if left := outageTime - time.Since(dead); left > 0 {
		if err := pause(ctx, left); err != nil {
			return err
		}
	}
	if err := d.mesh.api.leader(ctx); err == nil {
		return errors.New("a server answers, though the only one was killed")
	}
	p.figure("dead_seconds", time.Since(dead).Seconds())
	p.check(true, "the server has been dead for %s", seconds(time.Since(dead)))
	return d.nothingFailed(ctx, p, m)
}

// back starts the server on what the dead one left.
func (d *demo) back(ctx context.Context, p *Proof) error {
	m := d.traffic.mark()
	begun := time.Now()
	if err := d.mesh.startServer(ctx); err != nil {
		return err
	}
	answered := time.Since(begun)
	all := d.mesh.running()
	for _, in := range all {
		err := await(ctx, startLimit, in.id+" is connected", func() error {
			s, err := in.status()
			if err == nil && !(s.XDS.Connected && !s.XDS.FromLastGood) {
				err = errors.New("its stream to the server is not confirmed yet")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	p.figure("connected_seconds", time.Since(begun).Seconds())
	p.check(true, "server answers after %s, all %d sidecars are connected after %s", seconds(answered), len(all), seconds(time.Since(begun)))
	if err := await(ctx, startLimit, "registry and Envoys agree", func() error { return d.agree(ctx) }); err != nil {
		return err
	}
	p.check(true, "registry, sidecars and Envoys name the same endpoints for every pair after %s", seconds(time.Since(begun)))
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	if err := d.agree(ctx); err != nil {
		return fmt.Errorf("they agreed and do not any more: %w", err)
	}
	return d.nothingFailed(ctx, p, m)
}

// agree fails unless the registry has exactly the instances that run as healthy,
// and every caller's Envoy has exactly those as endpoints.
func (d *demo) agree(ctx context.Context) error {
	for _, pr := range d.traffic.pairs {
		var run []string
		for _, in := range d.mesh.running() {
			if in.service == pr.to.service {
				s, err := in.status()
				if err != nil {
					return err
				}
				run = append(run, s.PublicAddress)
			}
		}
		slices.Sort(run)
		registry, err := d.mesh.api.healthy(ctx, pr.to.service)
		if err != nil {
			return err
		}
		if !slices.Equal(run, registry) {
			return fmt.Errorf("%s runs at %s, the registry has %s", pr.to.service, list(run), list(registry))
		}
		s, err := pr.from.status()
		if err != nil {
			return err
		}
		envoy, err := endpoints(ctx, s.Envoy.AdminSocket, pr.to.service)
		if err != nil {
			return err
		}
		if !slices.Equal(registry, envoy) {
			return fmt.Errorf("the registry has %s for %s, %s's Envoy has %s", list(registry), pr.to.service, pr.from.id, list(envoy))
		}
	}
	return nil
}

func list(addrs []string) string {
	if len(addrs) == 0 {
		return "nobody"
	}
	return strings.Join(addrs, ", ")
}
