package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// lookTimeout bounds a look at whoever holds the instance's ID.
const lookTimeout = 500 * time.Millisecond

// registration keeps the instance in the registry: it registers it, pulses its
// checks, and registers it again when the registry has lost it.
type registration struct {
	agent   *agent
	entries *agent // where the service's entries are
	// adopted says that the registration, with its checks, is somebody else's: it is only looked at.
	adopted bool
	health  *health
	carrier *carrier          // nil: nothing else pulses checks
	def     config.Definition // complete, with the public port
	proxyID string
	log     *slog.Logger
	// confirmed is told when a server has, or no longer has, confirmed the registration.
	confirmed func(bool)
	// tried is closed after the first try, first at the first success.
	tried, first chan struct{}

	// Used by run alone.
	known   bool                  // registered, as far as we were told
	settled bool                  // the service's protocol has an entry
	pulsed  map[string]checkState // what the registry was told last
	once    bool
	failing bool
	// plaintext is the port at which it was registered to take plaintext.
	plaintext int
}

// run goes on until ctx ends. It returns an error only when a server refuses the
// very first registration: the definition is wrong and will not get better.
func (r *registration) run(ctx context.Context) error {
	pulse := time.Now() // when all checks are due
	for attempt := 0; ; attempt++ {
		if !pulse.After(time.Now()) {
			r.pulsed, pulse = nil, time.Now().Add(jitter(pulseEvery, rand.Float64()))
		}
		err := r.assert(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := time.Until(pulse) // however often states change meanwhile
		if err == nil {
			attempt = -1
		} else {
			if !r.once && errors.Is(err, errRefused) {
				return fmt.Errorf("service %q: cannot be registered: %w", r.def.Service.ID, err)
			}
			wait = backOff(attempt, 500*time.Millisecond, pulseEvery, rand.Float64())
		}
		r.tell(err)
		if !isClosed(r.tried) {
			close(r.tried)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-r.health.changed:
		case <-timer.C:
			r.pulsed = nil // all are due
		}
		timer.Stop()
	}
}

// tell logs changes between success and failure, not each one.
func (r *registration) tell(err error) {
	switch {
	case err != nil && !r.failing:
		r.log.Warn("registration cannot be kept up, Envoy keeps what it runs", "service", r.def.Service.ID, "error", err)
	case err == nil && r.failing:
		r.log.Info("registration is kept up again", "service", r.def.Service.ID)
	}
	r.failing = err != nil
	r.confirmed(err == nil)
	if err == nil && !r.once {
		r.once = true
		close(r.first)
	}
}

// assert makes the registry say what is true now.
func (r *registration) assert(ctx context.Context) error {
	if r.adopted {
		_, err := r.agent.service(ctx, r.proxyID)
		return err
	}
	if r.health.plaintextPort() != r.plaintext {
		r.known = false // callers learn of it by the registration
	}
	if r.known {
		err := r.pulse(ctx)
		if !errors.Is(err, errUnknown) {
			return err
		}
		r.known, r.settled = false, false
		r.log.Warn("the registry has lost this instance, registering it again", "service", r.def.Service.ID)
	}
	// The protocol comes first, so that no caller sees the service without it.
	if err := r.settleProtocol(ctx); err != nil {
		return err
	}
	states := r.health.states()
	plaintext := r.health.plaintextPort()
	body, err := r.health.definitions(r.def).MarshalRegistration()
	if err != nil {
		return fmt.Errorf("service %q: %w", r.def.Service.ID, err)
	}
	if err := r.agent.register(ctx, body); err != nil {
		return err
	}
	r.known, r.pulsed, r.plaintext = true, nil, plaintext
	r.log.Info("registered", "service", r.def.Service.ID, "sidecar", r.proxyID, "node", r.agent.node,
		"status", states[r.health.aliveID].status, "plaintext_port", plaintext)
	return r.pulse(ctx)
}

// pulse tells the registry each check that it does not know yet. When all are due
// it also looks whether the sidecar is still there, and is ours. Where reports do both, nothing
// is left to do.
func (r *registration) pulse(ctx context.Context) error {
	if r.carrier != nil {
		r.carrier.order.Lock()
		defer r.carrier.order.Unlock()
		if states := r.health.states(); r.pulsed == nil && r.carrier.carried(states) {
			r.pulsed = states
		}
	}
	if r.pulsed == nil {
		found, err := r.agent.service(ctx, r.proxyID)
		if err != nil {
			return err
		}
		if want := r.def.Sidecar.Service.Port; found.Port != want {
			return fmt.Errorf("sidecar %q: %w: the registry has it at port %d, not %d: two instances use one id", r.proxyID, errUnknown, found.Port, want)
		}
		r.pulsed = map[string]checkState{}
	}
	states := r.health.states()
	for _, id := range slices.Sorted(maps.Keys(states)) {
		if s := states[id]; r.pulsed[id] != s {
			if err := r.agent.pulse(ctx, id, s); err != nil {
				return err
			}
			r.pulsed[id] = s
		}
	}
	return nil
}

// settleProtocol writes the protocol that the short form of a definition names,
// unless the service has an entry: that is somebody's decision and stays.
func (r *registration) settleProtocol(ctx context.Context) error {
	want := r.def.Protocol
	if want == "" || r.settled {
		return nil
	}
	name := r.def.Service.Name
	have, known, err := r.entries.protocol(ctx, name)
	if err != nil {
		return err
	}
	if !known {
		if err := r.entries.createProtocol(ctx, name, want); err != nil {
			return err
		}
		have, _, err = r.entries.protocol(ctx, name)
		if err != nil {
			return err
		}
	}
	if have != want {
		r.log.Warn("the service's service-defaults entry names another protocol than its definition, the entry holds",
			"service", name, "entry", have, "definition", want)
	}
	r.settled = true
	return nil
}

// checkID is an error when another running sidecar has the instance's ID: its
// sidecar is registered at another address, and somebody listens there.
func (r *registration) checkID(ctx context.Context) error {
	if r.adopted {
		return nil // whoever has it is being taken over from
	}
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	found, err := r.agent.service(ctx, r.proxyID)
	if err != nil || found.Port == 0 || found.Port == r.def.Sidecar.Service.Port {
		return nil // free, our own, or nobody to ask
	}
	host := found.Address
	if host == "" {
		host = r.agent.addr
	}
	at := net.JoinHostPort(host, strconv.Itoa(found.Port))
	d := net.Dialer{Timeout: lookTimeout}
	conn, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil
	}
	_ = conn.Close()
	return fmt.Errorf("service id %q: a running sidecar at %s already has it on node %q: give this instance an id of its own", r.def.Service.ID, at, r.agent.node)
}
