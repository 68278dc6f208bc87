// Package sidecar supervises one service instance in the mesh: its registration,
// its key and certificate, its Envoy, and its app.
//
// In: a service definition, the addresses of the servers, and two directories.
// Out: a registered instance whose Envoy serves it, status.json, and, at the end, an
// instance that left without losing a request.
//
// It starts without a server if it once had one: Envoy from its last good
// configuration, the certificate from disk. It runs the definition's checks itself
// and pulses their results, so a host that dies takes its checks with it.
//
// It leaves passing xDS on to package relay, running checks to package check, and
// what Envoy is told to the servers.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/sidecar/relay"
)

// Run supervises the instance until ctx ends, a signal asks it to stop, or its app
// ends; then it drains and stops everything it started. An app that ended by
// itself, and not with success, gives an [*ExitError].
func Run(ctx context.Context, o Options) error {
	o, err := o.adopt(ctx)
	if err != nil {
		return err
	}
	if o, err = o.withDefaults(); err != nil {
		return err
	}
	s, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()

	ctx, s.stop = context.WithCancelCause(ctx)
	defer s.stop(nil)
	// life outlives ctx: what serves the instance goes on while it drains.
	life, die := context.WithCancel(context.WithoutCancel(ctx))
	defer die()
	hurry, rush := context.WithCancel(life)
	defer rush()
	s.registering, s.serving, s.envoys = newCrew(life), newCrew(life), newCrew(life)
	s.serving.run(func(ctx context.Context) { s.signals(ctx, rush) })

	if s.start(ctx, hurry) {
		<-ctx.Done()
	}
	s.leave(hurry)
	reason := context.Cause(ctx)
	if errors.Is(reason, errSignal) || errors.Is(reason, errFinished) || errors.Is(reason, context.Canceled) || errors.Is(reason, context.DeadlineExceeded) {
		return nil
	}
	return reason
}

// signals acts on the process's signals until ctx ends.
func (s *sidecar) signals(ctx context.Context, rush func()) {
	asked := false
	for {
		select {
		case <-ctx.Done():
			return
		case sig, ok := <-s.opts.Signals:
			switch {
			case !ok:
				return
			case sig == syscall.SIGUSR1:
				s.relay.LookLocal()
			case sig == syscall.SIGHUP:
				s.log.Info("renewing the certificate", "signal", sig.String())
				s.certs.renewNow()
				s.resize(ctx)
			case sig == os.Interrupt || sig == syscall.SIGTERM:
				if asked {
					s.log.Warn("asked again to stop, not waiting any longer", "signal", sig.String())
					rush()
					continue
				}
				asked = true
				s.log.Info("draining", "signal", sig.String())
				s.stop(errSignal)
			}
		}
	}
}

// start brings the instance into the mesh. It is false when ctx ended first.
func (s *sidecar) start(ctx, hurry context.Context) bool {
	s.board.set(func(st *Status) { st.State = Starting })
	alone := s.relay.Status().FromLastGood && s.certs.complete()

	s.serving.run(s.contact.run)
	if alone && s.agent.cred.secure() {
		waitFor(ctx, firstContact, s.contact.asked) // a server may refuse what we have
	} else if alone {
		waitFor(ctx, firstContact, s.contact.found, s.contact.asked)
	} else if !s.await(ctx, s.contact.found, "a control-plane server, there is no last good configuration with a valid certificate to start from", "servers", hosts(s.opts.HTTPAddrs)) {
		return false
	}
	if !s.join(ctx) {
		return false
	}
	if err := s.registration.checkID(ctx); err != nil {
		s.stop(err)
		return false
	}

	s.registering.run(func(ctx context.Context) {
		if err := s.registration.run(ctx); err != nil {
			s.stop(err)
		}
	})
	if alone {
		if waitFor(ctx, firstContact, s.registration.tried); !isClosed(s.registration.first) {
			s.log.Warn("starting from the last good configuration, no server has taken the registration yet", "servers", hosts(s.opts.HTTPAddrs))
		}
	} else if !s.await(ctx, s.registration.first, "a server to take the registration", "servers", hosts(s.opts.HTTPAddrs)) {
		return false
	}

	if err := s.writeBootstrap(int64(s.sizes.Heap)); err != nil {
		s.stop(err)
		return false
	}
	s.serving.run(func(ctx context.Context) {
		if err := s.relay.Run(ctx); err != nil {
			s.stop(err)
		}
	})
	s.serving.run(s.certs.watch)
	s.serving.run(s.certs.run)
	s.serving.run(s.mirror)
	s.serving.run(s.watchSizes)
	s.serving.run(s.reportConnections)
	s.serving.run(s.reporter.run)
	s.serving.run(s.oldWays.run)
	s.serving.run(s.drift.Run)
	s.serving.run(s.cutter.run)
	s.envoys.run(func(ctx context.Context) { s.envoy.run(ctx, hurry) })
	select {
	case <-s.envoyUp:
		return s.startApp(ctx)
	case <-ctx.Done():
		return false
	}
}

// join gets the instance its first certificate, where servers want to see one. It is
// false when that was refused, or ctx ended first.
func (s *sidecar) join(ctx context.Context) bool {
	cred := s.agent.cred
	for attempt := 0; cred.secure() && cred.certificate() == nil && isClosed(s.contact.found); attempt++ {
		err := s.certs.join(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
		case refusedToJoin(err):
			s.stop(fmt.Errorf("service %q: cannot join the mesh: %w", s.opts.Definition.Service.Name, err))
		default:
			s.log.Warn("no certificate yet", "service", s.opts.Definition.Service.Name, "error", err)
		}
		if err != nil && !sleep(ctx, backOff(attempt, 250*time.Millisecond, 5*time.Second, rand.Float64())) {
			return false
		}
	}
	return ctx.Err() == nil
}

// startApp starts app and checks, once Envoy can take the app's calls.
func (s *sidecar) startApp(ctx context.Context) bool {
	if len(s.opts.App) > 0 {
		p, err := startApp(s.opts, s.upstreams)
		if err != nil {
			s.stop(err)
			return false
		}
		s.app = p
		s.log.Info("app started", "app", s.opts.App[0], "pid", p.PID)
		s.board.set(func(st *Status) { st.App = &AppStatus{PID: p.PID} })
		s.serving.run(func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case <-p.Done():
				s.log.Info("app ended", "app", s.opts.App[0], "how", p.State().String())
				s.board.set(func(st *Status) { st.App.PID = 0 })
				s.stop(appEnded(s.opts.App[0], p.State()))
			}
		})
		if network, address := s.appAddress(); address != "" && !awaitApp(ctx, p, network, address, s.log) {
			<-ctx.Done() // the app has ended, or will not be waited for
			return false
		}
	}
	s.health.set(func(h *health) { h.appUp = true })
	if err := s.health.start(s.runner, s.opts.Node); err != nil {
		s.stop(err)
		return false
	}
	if s.adopted() {
		if err := s.registry.maintenance(ctx, s.proxy.ID, false); err != nil {
			s.log.Warn("the Consul agent cannot be told that the sidecar is back", "sidecar", s.proxy.ID, "error", err)
		}
	}
	s.started.Store(true)
	s.board.set(s.settle)
	debug.FreeOSMemory() // a start needs more than what follows
	s.log.Info("ready", "service", s.opts.Definition.Service.ID, "public_address", s.publicAddress)
	return true
}

// leave takes the instance out of the mesh and stops everything, in the order in
// which nothing is lost: callers first, then the app, which can still call out,
// then Envoy.
func (s *sidecar) leave(hurry context.Context) {
	s.leaving.Store(true)
	s.board.set(func(st *Status) { st.State = Draining })
	s.registering.stop()
	if s.carrier != nil {
		s.carrier.stop()
	}
	s.runner.Close()
	if isClosed(s.envoyUp) {
		s.drain.run(hurry)
	} else if isClosed(s.registration.first) {
		s.drain.sayGoodbye(hurry)
	}
	if s.app != nil && s.app.Stop(hurry, s.opts.AppStopTime) {
		s.log.Warn("the app did not end in time and was killed", "app", s.opts.App[0], "after", s.opts.AppStopTime)
	}
	s.envoys.stop()
	s.serving.stop()
	s.board.set(func(st *Status) { st.State, st.Envoy.PID, st.XDS.Connected = Stopped, 0, false })
	s.log.Info("stopped", "service", s.opts.Definition.Service.ID)
}

// envoyChanged takes Envoy's state from its supervisor.
func (s *sidecar) envoyChanged(e envoyState) {
	s.health.set(func(h *health) { h.envoyUp = e.ready })
	serves := int64(0)
	if e.ready {
		serves = int64(e.pid)
	}
	s.envoyServes.Store(serves)
	if e.ready && !isClosed(s.envoyUp) {
		close(s.envoyUp)
	}
	s.board.set(func(st *Status) {
		st.Envoy.PID, st.Envoy.Restarts, st.Envoy.LastCrash = e.pid, e.restarts, e.crash
		s.settle(st)
	})
}

// settle is the state of an instance that is not leaving.
func (s *sidecar) settle(st *Status) {
	switch {
	case s.leaving.Load():
	case s.started.Load() && s.envoyServes.Load() != 0:
		st.State = Ready
	default:
		st.State = Starting
	}
}

// mirror shows the relay's state in the status.
func (s *sidecar) mirror(ctx context.Context) {
	for {
		changed := s.relay.Changed()
		r := s.relay.Status()
		if s.health.plaintextPort() != r.PlaintextPort {
			s.health.set(func(h *health) { h.plaintext = r.PlaintextPort })
		}
		s.board.set(func(st *Status) { st.XDS, st.Quarantine = s.xdsStatus(r), r.Quarantine })
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (s *sidecar) xdsStatus(r relay.Status) XDSStatus {
	x := XDSStatus{
		Connected: r.Connected, Since: r.Since.UTC(), LastUpdate: s.relay.LastChange().Time.Truncate(updateGrain),
		FromLastGood: r.FromLastGood, Local: r.Local,
	}
	if r.Connected {
		x.Server = s.contact.connectedTo()
	}
	return x
}

// await waits for done, and says from time to time what it waits for. It is false
// when ctx ended first.
func (s *sidecar) await(ctx context.Context, done <-chan struct{}, what string, args ...any) bool {
	pause := time.Second
	began := time.Now()
	for {
		waitFor(ctx, pause, done)
		if isClosed(done) || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		pause = patience
		s.log.Info("waiting for "+what, append(args, "for", time.Since(began).Round(time.Second))...) //nolint:sloglint // the callers' words are constants
	}
}

// waitFor waits until one of the channels is closed, at most for d.
func waitFor(ctx context.Context, d time.Duration, done ...<-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for _, c := range done[1:] {
		go func() {
			select {
			case <-c:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	select {
	case <-done[0]:
	case <-ctx.Done():
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
