package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// first are the instances that are there from the beginning.
func (m *mesh) first() (out []*instance) {
	for _, in := range m.instances {
		if in.id != "catalog-5" {
			out = append(out, in)
		}
	}
	return out
}

// old brings up the shop as it was before: apps on a node proxy, and no sidecar. The load
// begins, and does not end before the last proof.
func (d *demo) old(ctx context.Context, p *Proof) error {
	m := d.mesh
	begun := time.Now()
	if err := m.startServer(ctx); err != nil {
		return err
	}
	d.out.step("server answers after %s", seconds(time.Since(begun)))
	if err := m.startOldMesh(); err != nil {
		return err
	}
	if d.o.sabotaged("spread") {
		m.instance("catalog-3").weight = 10
		d.out.step("sabotage: catalog-3 will ask for ten times its share")
	}
	if err := d.entries(ctx); err != nil {
		return err
	}
	for _, in := range m.first() {
		if err := m.startApp(ctx, in); err != nil {
			return err
		}
	}
	var err error
	if d.traffic, err = newTraffic(m); err != nil {
		return err
	}
	if err := d.awaitAnswers(ctx); err != nil {
		return err
	}
	p.check(true, "every pair answers after %s: %d apps, one node proxy, no sidecar", seconds(time.Since(begun)), len(m.first()))
	p.figure("ready_seconds", time.Since(begun).Seconds())
	mark := d.traffic.mark()
	if err := d.traffic.start(); err != nil {
		return err
	}
	d.out.watch(d.traffic)
	p.check(true, "load: %d requests/s on each of %d pairs, open-loop, no retries, 1 in %d on a new connection; a gRPC stream and a TCP connection stay open",
		pairRate, len(d.traffic.pairs), newEvery)
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	ways := d.traffic.pairs[0].rec.Totals().Ways
	p.check(len(ways) == 1 && ways["legacy"] > 0, "catalog's apps say how their requests came: %s", byWay(ways))
	return d.nothingFailed(ctx, p, mark)
}

// entries says where every pair begins: all of it on the old mesh, through the sidecar once
// there is one.
func (d *demo) entries(ctx context.Context) error {
	for _, in := range d.mesh.first() {
		if err := d.mesh.api.setDefaults(ctx, in.service, in.protocol); err != nil {
			return err
		}
	}
	if err := d.mesh.write(ctx, "mesh.hcl", "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n"); err != nil {
		return err
	}
	return d.legacyEntries(ctx, "0")
}

// legacyEntries keeps all of every pair on the old mesh. Sidecars follow mesh_percent as apps
// do, and of that key and an entry the one written later counts: the entry says which percent
// it was written after.
func (d *demo) legacyEntries(ctx context.Context, percent string) error {
	for _, pr := range [][2]string{{"storefront", "catalog"}, {"catalog", "assignments"}, {"storefront", "payments"}} {
		legacy := fmt.Sprintf("Address = %q, Host = %q", d.mesh.old.addr(pr[1]), pr[1]+"."+oldDomain)
		if pr[1] == "payments" {
			legacy = fmt.Sprintf("Address = %q", d.mesh.old.addr(pr[1]))
		}
		guard := `Slower = 50, SlowerBy = "5ms"`
		if d.o.sabotaged("guard") {
			guard = "Off = true"
		}
		entry := fmt.Sprintf("Kind = \"traffic-shift\"\nSource = %q\nDestination = %q\nLegacy { %s }\nShares { legacy = 100 }\nStage = \"client\"\nGuard { %s }\nMeta { mesh_percent = %q }\n",
			pr[0], pr[1], oneALine(legacy), oneALine(guard), percent)
		if err := d.mesh.write(ctx, pr[0]+"-"+pr[1]+".hcl", entry); err != nil {
			return err
		}
	}
	return nil
}

// oneALine writes "a = 1, b = 2" as the body of a block.
func oneALine(fields string) string { return "\n  " + strings.ReplaceAll(fields, ", ", "\n  ") + "\n" }

// join gives each app a sidecar while it goes on running, and then lets the apps call it.
func (d *demo) join(ctx context.Context, p *Proof) error {
	m, begun := d.mesh, time.Now()
	mark := d.traffic.mark()
	order := m.first()
	for _, in := range slices.Backward(order) { // callees first
		since := time.Now()
		if err := m.startInstance(in); err != nil {
			return err
		}
		if err := await(ctx, startLimit, in.id+" is ready", in.ready); err != nil {
			return err
		}
		d.out.step("%s has joined after %s, beside its app, which runs on as process %d", in.id, seconds(time.Since(since)), in.app.PID)
	}
	still := 0
	for _, in := range order {
		if in.app.Alive() {
			still++
		}
	}
	p.check(still == len(order), "%d instances joined one by one in %s; %d of %d apps are the processes they were", len(order), seconds(time.Since(begun)), still, len(order))
	for _, percent := range []string{"10", "100"} {
		for _, pr := range d.traffic.pairs {
			key := "crossfade/" + pr.from.service + "/" + pr.to.service + "/mesh_percent"
			if err := m.api.put(ctx, key, percent); err != nil {
				return err
			}
		}
		if err := d.legacyEntries(ctx, percent); err != nil {
			return err
		}
		d.out.step("kv put crossfade/<source>/<destination>/mesh_percent %s: so much of what the apps call goes to their sidecars", percent)
		if err := d.awaitPercent(ctx, percent); err != nil {
			return err
		}
	}
	if err := pause(ctx, 1500*time.Millisecond); err != nil {
		return err
	}
	for _, pr := range d.traffic.pairs {
		st, err := pr.from.status()
		if err != nil {
			return err
		}
		before, err := attempts(ctx, st.Envoy.AdminSocket, pr.to.service)
		if err != nil {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		now, err := attempts(ctx, st.Envoy.AdminSocket, pr.to.service)
		if err != nil {
			return err
		}
		now = load.Since(now, before)
		p.check(now["legacy"] > 0 && len(now) == 1, "%s: the caller's Envoy has it, and sends all on to the old mesh: %s", pr.key(), byWay(now))
	}
	return d.nothingFailed(ctx, p, mark)
}

// awaitPercent waits until all clients of the demo have heard of it.
func (d *demo) awaitPercent(ctx context.Context, percent string) error {
	return await(ctx, startLimit, "clients follow mesh_percent", func() error {
		for _, c := range d.traffic.roads {
			if got := fmt.Sprint(c.Percent()); got != percent {
				return fmt.Errorf("one is at %s %%", got)
			}
		}
		return nil
	})
}

// awaitReady waits for all given sidecars at once.
func (d *demo) awaitReady(ctx context.Context, all []*instance) error {
	begun := time.Now()
	errs := make(chan error, len(all))
	var wg sync.WaitGroup
	for _, in := range all {
		wg.Go(func() {
			err := await(ctx, startLimit, in.id+" is ready", in.ready)
			if err == nil {
				d.out.step("%s is ready after %s", in.id, seconds(time.Since(begun)))
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitAnswers waits until every pair answers and all four instances of catalog do.
func (d *demo) awaitAnswers(ctx context.Context) error {
	seen, n := map[string]bool{}, uint64(0)
	return await(ctx, startLimit, "every pair answers", func() error {
		if c := d.mesh.old.child; !c.Alive() {
			return final(fmt.Errorf("the node proxy has ended: %v", c.State()))
		}
		n++
		if err := d.traffic.probe(n); err != nil {
			return err
		}
		for range 8 {
			n++
			a, err := d.traffic.catalog.Item(n, time.Now().Add(requestTimeout))
			if err != nil {
				return err
			}
			seen[a.From] = true
		}
		if len(seen) < 4 {
			return fmt.Errorf("only %d of 4 instances of catalog have answered", len(seen))
		}
		return nil
	})
}
