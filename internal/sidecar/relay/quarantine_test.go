package relay

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// seasoned is a world whose relay was started from what Envoy had acknowledged:
// one cluster, its endpoints and a route.
func seasoned(t *testing.T) (w *world, cluster1, route1 *xds.Resource) {
	w = newWorld(t)
	w.serve()
	cluster1, route1 = res(t, xds.ClusterType, cluster, "1"), res(t, xds.RouteType, "r", "1")
	w.tell(cluster1, route1)
	w.start()
	e := w.life()
	e.ack(e.take(xds.ClusterType, cluster1))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, route1))
	w.eventually("all is acknowledged", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })
	e.crash()
	w.stop()
	w.start()
	return w, cluster1, route1
}

// mortal is an Envoy that can crash.
type mortal struct {
	*envoy
	end context.CancelFunc
}

// life starts an Envoy that has asked for its clusters.
func (w *world) life() *mortal {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	w.t.Cleanup(cancel)
	m := &mortal{end: cancel}
	w.eventually("the relay listens", func() bool {
		c, err := xds.Connect(ctx, dial(w.t, w.dir+"/xds.sock"), &corev3.Node{Id: "envoy"})
		m.envoy = &envoy{w.t, c}
		return err == nil
	})
	m.send(xds.Request{Type: xds.ClusterType})
	w.eventually("the relay knows of its Envoy", func() bool {
		w.relay.mu.Lock()
		defer w.relay.mu.Unlock()
		return w.relay.told
	})
	return m
}

func (m *mortal) crash() {
	m.end()
	for {
		if _, err := m.c.Recv(); err != nil {
			return
		}
	}
}

func TestQuarantine(t *testing.T) {
	w, c1, r1 := seasoned(t)
	e := w.life()
	e.ack(e.take(xds.ClusterType, c1))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, r1))
	w.eventually("the server has the stream", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })

	c2, r2 := res(t, xds.ClusterType, cluster, "2"), res(t, xds.RouteType, "r", "2")
	w.tell(c2, r2)
	e.ack(e.take(xds.ClusterType, c2))
	e.ack(e.take(xds.RouteType, r2))
	w.eventually("the change is acknowledged", func() bool { return w.serverSays(xds.RouteType).Acked == 1 && !w.serverSays(xds.RouteType).Pending })
	if change := w.relay.LastChange(); change.Time.IsZero() || strings.Join(change.Resources, ",") != `RouteConfiguration "r"` {
		t.Errorf("last change = %+v", change)
	}

	e.crash()
	if got := w.relay.Crashed("signal: segmentation fault", time.Now()); got != nil {
		t.Fatalf("quarantined after one crash: %v", got)
	}
	if got := w.relay.Crashed("signal: segmentation fault", time.Now()); got != nil {
		t.Fatalf("an Envoy that asked for nothing counts: %v", got)
	}
	e = w.life()
	e.ack(e.take(xds.ClusterType, c2))
	e.crash()
	got := w.relay.Crashed("signal: segmentation fault", time.Now())
	if want := `Cluster "` + cluster + `",RouteConfiguration "r"`; strings.Join(got, ",") != want {
		t.Fatalf("quarantined %v, want %s", got, want)
	}

	// Envoy gets what was before; the server hears why.
	e = w.life()
	e.ack(e.take(xds.ClusterType, c1))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, r1))
	for _, typ := range []xds.Type{xds.ClusterType, xds.RouteType} {
		w.eventually("the server hears of the quarantine of a "+typ.Short(), func() bool {
			for _, r := range w.serverSays(typ).Refused {
				return strings.Contains(r.Message, "Envoy crashed 2 times within 1m0s") && strings.Contains(r.Message, "segmentation fault")
			}
			return false
		})
	}
	if q := w.relay.Status().Quarantine; q == nil || len(q.Resources) != 2 || q.Since.IsZero() {
		t.Errorf("status: %+v", q)
	}
	// It is what a restarted Envoy gets without a server, too.
	w.eventually("the disk holds what was before", func() bool {
		held, err := load(w.dir + "/lastgood.pb")
		return err == nil && held[xds.ClusterType][cluster].Version == c1.Version && held[xds.RouteType]["r"].Version == r1.Version
	})

	// Another version of one releases all.
	r3 := res(t, xds.RouteType, "r", "3")
	w.tell(c2, r3)
	e.ack(e.take(xds.ClusterType, c2))
	e.ack(e.take(xds.RouteType, r3))
	w.eventually("the server sees it applied", func() bool {
		return len(w.serverSays(xds.ClusterType).Refused) == 0 && w.serverSays(xds.RouteType).Acked == 1
	})
	if q := w.relay.Status().Quarantine; q != nil {
		t.Errorf("still in quarantine: %+v", q)
	}
}

// A change that was withdrawn is no longer waited for.
func TestQuarantineOfAddedAndRemoved(t *testing.T) {
	w, c1, _ := seasoned(t)
	e := w.life()
	e.ack(e.take(xds.ClusterType, c1))
	extra := res(t, xds.ListenerType, "extra", "1")
	e.send(xds.Request{Type: xds.ListenerType})
	e.ack(e.take(xds.ListenerType))
	w.tell(extra)
	e.ack(e.take(xds.ListenerType, extra)) // and the cluster goes
	gone := e.take(xds.ClusterType)
	if len(gone.Removed) != 1 {
		t.Fatalf("removed %v", gone.Removed)
	}
	e.ack(gone)
	e.crash()
	w.relay.Crashed("signal: killed", time.Now())
	e = w.life()
	e.crash()
	got := strings.Join(w.relay.Crashed("signal: killed", time.Now()), ",")
	if want := `Cluster "` + cluster + `",Listener "extra"`; got != want {
		t.Fatalf("quarantined %s, want %s", got, want)
	}
	e = w.life()
	e.ack(e.take(xds.ClusterType, c1)) // back again
	if l := w.relay.Status().Listeners; len(l) != 0 {
		t.Errorf("Envoy is told of %v", l)
	}
	w.eventually("the server hears of it", func() bool { return len(w.serverSays(xds.ListenerType).Refused) > 0 })
	w.tell(c1) // as before
	w.eventually("the quarantine ends", func() bool { return w.relay.Status().Quarantine == nil })
}

func TestWhatIsNoQuarantine(t *testing.T) {
	crashTwice := func(w *world, at time.Time) []string {
		for range 2 {
			w.life().crash()
			if got := w.relay.Crashed("signal: killed", at); got != nil {
				return got
			}
		}
		return nil
	}
	t.Run("unchanged", func(t *testing.T) {
		w, _, _ := seasoned(t)
		if got := crashTwice(w, time.Now()); got != nil {
			t.Errorf("quarantined %v", got)
		}
	})
	t.Run("endpoints", func(t *testing.T) {
		w, c1, r1 := seasoned(t)
		e := w.life()
		e.ack(e.take(xds.ClusterType, c1))
		ends := res(t, xds.EndpointType, cluster, "1")
		w.tell(c1, r1, ends)
		e.send(xds.Request{Type: xds.EndpointType, Subscribe: []string{cluster}})
		e.ack(e.take(xds.EndpointType, ends))
		e.crash()
		if got := crashTwice(w, time.Now()); got != nil {
			t.Errorf("quarantined %v", got)
		}
	})
	t.Run("lasted", func(t *testing.T) {
		w, c1, r1 := seasoned(t)
		e := w.life()
		e.ack(e.take(xds.ClusterType, c1))
		w.eventually("the server has the stream", func() bool { return w.relay.Status().Connected })
		c2 := res(t, xds.ClusterType, cluster, "2")
		w.tell(c2, r1)
		e.ack(e.take(xds.ClusterType, c2))
		e.crash()
		if got := crashTwice(w, time.Now().Add(2*defaultProbation)); got != nil {
			t.Errorf("quarantined %v", got)
		}
	})
	t.Run("first of all", func(t *testing.T) {
		w := newWorld(t)
		w.serve()
		w.tell(res(t, xds.ClusterType, cluster, "1"))
		w.start()
		e := w.life()
		e.ack(e.take(xds.ClusterType, res(t, xds.ClusterType, cluster, "1")))
		e.crash()
		if got := crashTwice(w, time.Now()); got != nil {
			t.Errorf("quarantined %v", got)
		}
	})
}

// A relay that starts anew knows what it can go back to.
func TestTrialOutlivesRelay(t *testing.T) {
	w, c1, r1 := seasoned(t)
	e := w.life()
	e.ack(e.take(xds.ClusterType, c1))
	w.eventually("the server has the stream", func() bool { return w.relay.Status().Connected })
	c2 := res(t, xds.ClusterType, cluster, "2")
	w.tell(c2, r1)
	e.ack(e.take(xds.ClusterType, c2))
	w.eventually("the change is acknowledged", func() bool {
		st := w.serverSays(xds.ClusterType)
		return st.Acked == 1 && !st.Pending
	})
	e.crash()
	w.stop()
	if st, err := os.Stat(w.dir + "/lastgood.pb" + beforeSuffix); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the configuration before: %v, %v", st, err)
	}
	w.start()
	for range 2 {
		w.life().crash()
		w.relay.Crashed("signal: aborted", time.Now())
	}
	e = w.life()
	e.ack(e.take(xds.ClusterType, c1))
}

// Trials end by time, and what is on disk for them goes.
func TestTrialsMature(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	k := xds.Key{Type: xds.ClusterType, Name: "c"}
	old := res(t, xds.ClusterType, "c", "old")
	r := &Relay{opts: Options{Probation: time.Minute}, seasoned: true, trials: map[xds.Key]*trial{}, openedAt: start}
	r.status.EnvoyConnected = true
	steps := []struct {
		after  time.Duration
		become string // version from here on
		before string // to go back to; "" when nothing is on trial
	}{
		{0, "v2", old.Version},
		{30 * time.Second, "v3", old.Version}, // v2 did not last
		{89 * time.Second, "", old.Version},
		{90 * time.Second, "", ""}, // v3 did
		{100 * time.Second, "v4", "v3"},
		{101 * time.Second, "v3", ""}, // as it was
	}
	now := &xds.Resource{Type: k.Type, Name: k.Name, Version: old.Version}
	for _, s := range steps {
		at := start.Add(s.after)
		if s.become != "" {
			r.tryLocked(k, now, s.become, at)
			now = &xds.Resource{Type: k.Type, Name: k.Name, Version: s.become}
		}
		r.matureLocked(at)
		got := ""
		if tr := r.trials[k]; tr != nil {
			got = tr.before.Version
		}
		if got != s.before {
			t.Errorf("after %s the version to go back to is %q, want %q", s.after, got, s.before)
		}
	}
}
