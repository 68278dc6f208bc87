package sidecar

import (
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// carrying is a registration and a reporter that carries its checks, to one server.
type carrying struct {
	*reporting
	registration *registration
	registry     *fakeAgent
	pulses       []telemetry.Alive // that reports brought
	refuse       error
}

func newCarrying(t *testing.T, log io.Writer) *carrying {
	t.Helper()
	c := &carrying{reporting: newReporting(t), registry: &fakeAgent{}}
	c.registration = newRegistration(t, c.registry, log)
	c.registration.health.set(func(h *health) { h.envoyUp, h.appUp = true, true })
	c.carrier = &carrier{health: c.registration.health, port: 21001}
	c.registration.carrier = c.carrier
	c.server.Pulse = func(_ telemetry.Key, a telemetry.Alive) error {
		c.pulses = append(c.pulses, a)
		return c.refuse
	}
	return c
}

// due lets the registry be told, with all checks due, and gives the writes.
func (c *carrying) due() []string {
	c.t.Helper()
	c.registry.change(func() { c.registry.writes = nil })
	c.registration.pulsed = nil
	if err := c.registration.assert(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	return c.registry.writes
}

// Once a server has said that it pulses checks by reports, no request does, until one of the
// checks says something else or no report comes through.
func TestReportsCarryChecks(t *testing.T) {
	c := newCarrying(t, io.Discard)
	if got := c.due(); len(got) == 0 {
		t.Fatal("not registered")
	}
	if err := c.step(time.Second); err != nil || len(c.pulses) != 0 {
		t.Fatalf("%v; before it is known what the server takes it got %v", err, c.pulses)
	}
	if got := c.due(); len(got) != 2 {
		t.Errorf("nothing was carried, and the requests are %q", got)
	}
	if err := c.step(sayEvery); err != nil || len(c.pulses) != 1 || c.pulses[0].Port != 21001 || len(c.pulses[0].Checks) != 2 {
		t.Fatalf("%v, the server got %+v", err, c.pulses)
	}
	if got := c.due(); len(got) != 0 {
		t.Errorf("what a report has carried is told again by %q", got)
	}
	c.registration.health.set(func(h *health) { h.results["service:catalog-1"] = checkState{catalog.Passing, "200 OK"} })
	if got := c.due(); len(got) != 2 || c.registry.status("service:catalog-1") != "passing" {
		t.Errorf("a check has changed, and the requests are %q", got)
	}
	c.carrier.at = c.carrier.at.Add(-carryAgain) // as if that time had passed
	if err := c.step(sayEvery); err != nil || len(c.pulses) != 2 {
		t.Fatalf("%v, the server got %+v", err, c.pulses)
	}
	if i := slices.IndexFunc(c.pulses[1].Checks, func(k telemetry.Check) bool { return k.ID == "service:catalog-1" }); c.pulses[1].Checks[i].Status != catalog.Passing {
		t.Errorf("the report carries %+v", c.pulses[1])
	}
	if got := c.due(); len(got) != 0 {
		t.Errorf("what a report has carried is told again by %q", got)
	}
	c.carrier.at = c.carrier.at.Add(-carriedFor)
	if got := c.due(); len(got) != 2 {
		t.Errorf("no report has come through for %v, and the requests are %q", carriedFor, got)
	}
}

// A registry that has lost the instance says so to the report, and hears at once of it anew.
func TestReportsOfWhatIsLost(t *testing.T) {
	c := newCarrying(t, io.Discard)
	c.due()
	if err := errors.Join(c.step(time.Second), c.step(sayEvery)); err != nil || len(c.due()) != 0 {
		t.Fatalf("%v, not carried", err)
	}
	select {
	case <-c.registration.health.changed: // of the start
	default:
	}
	c.refuse = status.Error(codes.NotFound, "not registered any more")
	c.registry.change(func() { c.registry.port = 0 })
	c.carrier.at = c.carrier.at.Add(-carryAgain)
	if err := c.step(sayEvery); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	select {
	case <-c.registration.health.changed:
	default:
		t.Error("nobody is woken")
	}
	if got := c.due(); len(got) == 0 || c.registry.port != 21001 {
		t.Errorf("it is not registered again: %q", got)
	}
}

// Who leaves is pulsed no more, and goes on reporting.
func TestReportsOfWhoLeaves(t *testing.T) {
	c := newCarrying(t, io.Discard)
	c.due()
	if err := errors.Join(c.step(time.Second), c.step(sayEvery)); err != nil || len(c.pulses) != 1 {
		t.Fatalf("%v, the server got %+v", err, c.pulses)
	}
	c.carrier.stop()
	c.carrier.at = c.carrier.at.Add(-carryAgain)
	c.envoy.add(3, 0)
	if err := c.step(sayEvery); err != nil || len(c.pulses) != 1 {
		t.Errorf("%v, the server got %+v", err, c.pulses)
	}
	c.want(3)
}

// A server that takes connections in reports is told there, another by a request.
func TestReportsCarryConnections(t *testing.T) {
	r := newReporting(t)
	open := telemetry.Connections{Listeners: map[string]int64{"public_listener:127.0.0.1:21001": 3}}
	if err := r.step(time.Second); err != nil || r.offer(open) {
		t.Fatalf("%v, or it is offered what it does not take", err)
	}
	var got []telemetry.Connections
	r.server.Connections = func(_ telemetry.Key, c telemetry.Connections) error {
		got = append(got, c)
		return nil
	}
	r.hangUp()
	if r.offer(open) {
		t.Error("taken without a stream")
	}
	if err := r.step(sayEvery); err != nil || !r.offer(open) || len(got) != 0 {
		t.Fatalf("%v, not offered, or told already: %v", err, got)
	}
	if err := errors.Join(r.step(time.Second), r.step(time.Second)); err != nil || len(got) != 1 || got[0].Listeners["public_listener:127.0.0.1:21001"] != 3 {
		t.Errorf("%v, the server got %+v", err, got)
	}
	if r.offer(telemetry.Connections{Listeners: map[string]int64{"a": -1}}) {
		t.Error("what no server takes is offered")
	}
}
