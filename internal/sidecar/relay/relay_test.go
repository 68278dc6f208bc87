package relay

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	nodeID  = "web-sidecar-proxy"
	cluster = "a.default.dc1.internal.td"
)

// world is a control-plane server, a relay, and room for Envoys.
type world struct {
	t      *testing.T
	dir    string
	server *xds.Server
	relay  *Relay
	stop   context.CancelFunc // of the relay
	asked  atomic.Int64       // subscriptions for secrets that reached the server
}

// newWorld starts a server; the relay follows with start.
func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	w.server = xds.NewServer(xds.Options{
		Open: func(_ context.Context, n *corev3.Node) (string, error) { return n.GetId(), nil },
		Subscribed: func(_ string, typ xds.Type, _, _ []string) {
			if typ == xds.SecretType {
				w.asked.Add(1)
			}
		},
		Log: slog.New(slog.DiscardHandler),
	})
	return w
}

func (w *world) serve() (stop func()) {
	lis, err := net.Listen("unix", w.dir+"/server.sock")
	if err != nil {
		w.t.Fatal(err)
	}
	g := grpc.NewServer(xds.ServerOptions()...)
	w.server.Register(g)
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(lis) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			g.Stop()
			<-done
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) start() {
	w.t.Helper()
	r, err := New(Options{
		Conn: dial(w.t, w.dir+"/server.sock"), Socket: w.dir + "/xds.sock", StateFile: w.dir + "/lastgood.pb",
		NodeID: nodeID, NodeName: "host", Cluster: "web",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.relay = r
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}
	w.t.Cleanup(w.stop)
}

func (w *world) tell(rs ...*xds.Resource) {
	w.server.Update(xds.Update{Views: map[string]*xds.View{nodeID: {Own: xds.Own(rs...)}}})
}

// envoy is a client of the relay that behaves as Envoy does.
type envoy struct {
	t *testing.T
	c *xds.Client
}

func (w *world) envoy() *envoy {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	w.t.Cleanup(cancel)
	var c *xds.Client
	w.eventually("the relay listens", func() bool {
		var err error
		c, err = xds.Connect(ctx, dial(w.t, w.dir+"/xds.sock"), &corev3.Node{Id: "envoy"})
		return err == nil
	})
	return &envoy{w.t, c}
}

func (e *envoy) send(r xds.Request) {
	e.t.Helper()
	if err := e.c.Send(r); err != nil {
		e.t.Fatal(err)
	}
}

// take receives one response, which must hold exactly the given resources.
func (e *envoy) take(typ xds.Type, want ...*xds.Resource) xds.Response {
	e.t.Helper()
	r, err := e.c.Recv()
	if err != nil {
		e.t.Fatal(err)
	}
	var got, wanted []string
	for _, res := range r.Resources {
		got = append(got, res.Name+"@"+res.Version)
	}
	for _, res := range want {
		wanted = append(wanted, res.Name+"@"+res.Version)
	}
	if r.Type != typ || strings.Join(got, " ") != strings.Join(wanted, " ") {
		e.t.Fatalf("Envoy got %s %v, want %s %v", r.Type.Short(), got, typ.Short(), wanted)
	}
	return r
}

func (e *envoy) ack(r xds.Response) { e.send(xds.Request{Type: r.Type, Nonce: r.Nonce}) }
func (e *envoy) nack(r xds.Response, why string) {
	e.send(xds.Request{Type: r.Type, Nonce: r.Nonce, Error: why})
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if ok() {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("never came true: %s", what)
		}
	}
}

// serverSays is the server's view of one type on the relay's stream.
func (w *world) serverSays(typ xds.Type) xds.TypeStatus {
	for _, st := range w.server.Status() {
		return st.Types[typ.Short()]
	}
	return xds.TypeStatus{}
}

func res(t *testing.T, typ xds.Type, name, content string) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(typ, name, wrapperspb.String(content))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOnlyEnvoyAcknowledges(t *testing.T) {
	w := newWorld(t)
	w.serve()
	c1, e1 := res(t, xds.ClusterType, cluster, "1"), res(t, xds.RouteType, "r", "1")
	w.tell(c1, e1)
	w.start()
	e := w.envoy()
	e.send(xds.Request{Type: xds.ClusterType})
	r := e.take(xds.ClusterType, c1)
	w.eventually("the server waits for an answer", func() bool { return w.serverSays(xds.ClusterType).Pending })
	if st := w.serverSays(xds.ClusterType); st.Acked != 0 {
		t.Fatalf("before Envoy's ACK the server has %d acknowledged", st.Acked)
	}
	e.ack(r)
	w.eventually("Envoy's ACK reaches the server", func() bool { st := w.serverSays(xds.ClusterType); return st.Acked == 1 && !st.Pending })

	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, e1))
	w.eventually("a named type is acknowledged, too", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })

	w.tell(e1)
	gone := e.take(xds.ClusterType)
	if len(gone.Removed) != 1 || gone.Removed[0] != cluster {
		t.Fatalf("removed = %v, want the cluster", gone.Removed)
	}
	e.ack(gone)
	w.eventually("a removal is acknowledged", func() bool { st := w.serverSays(xds.ClusterType); return st.Sent == 0 && !st.Pending })
}

func TestLastGoodOutlivesServerAndRelay(t *testing.T) {
	w := newWorld(t)
	stop := w.serve()
	c1, l1 := res(t, xds.ClusterType, cluster, "1"), res(t, xds.ListenerType, "l", "1")
	w.tell(c1, l1)
	w.start()
	e := w.envoy()
	e.send(xds.Request{Type: xds.ClusterType})
	e.ack(e.take(xds.ClusterType, c1))
	e.send(xds.Request{Type: xds.ListenerType})
	e.ack(e.take(xds.ListenerType, l1))
	w.eventually("all is acknowledged", func() bool {
		return w.serverSays(xds.ListenerType).Acked == 1
	})
	w.stop()
	stop()
	if st, err := os.Stat(filepath.Join(w.dir, "lastgood.pb")); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("state file: %v, %v; want mode 0600", st, err)
	}

	w.start() // no server
	e = w.envoy()
	e.send(xds.Request{Type: xds.ClusterType})
	e.ack(e.take(xds.ClusterType, c1))
	e.send(xds.Request{Type: xds.ListenerType})
	e.ack(e.take(xds.ListenerType, l1))
	if st := w.relay.Status(); !st.FromLastGood || st.Connected || !st.EnvoyConnected {
		t.Errorf("status without a server: %+v", st)
	}

	if err := os.Remove(w.dir + "/server.sock"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	c2 := res(t, xds.ClusterType, cluster, "2")
	w.tell(c2, l1)
	w.serve()
	e.ack(e.take(xds.ClusterType, c2)) // the listener, being equal, is not sent again
	w.eventually("the server learns what Envoy holds", func() bool { return w.serverSays(xds.ClusterType).Acked == 1 })
	if st := w.relay.Status(); st.FromLastGood || !st.Connected {
		t.Errorf("status with the server back: %+v", st)
	}
}

func TestRefusalReachesServerAndGoodStays(t *testing.T) {
	w := newWorld(t)
	w.serve()
	good := res(t, xds.RouteType, "r", "good")
	w.tell(good)
	w.start()
	e := w.envoy()
	e.send(xds.Request{Type: xds.ClusterType})
	e.ack(e.take(xds.ClusterType))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, good))
	w.eventually("the good route is acknowledged", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })

	bad := res(t, xds.RouteType, "r", "bad")
	w.tell(bad)
	e.nack(e.take(xds.RouteType, bad), "missing )")
	w.eventually("the server knows the refusal and Envoy's words", func() bool {
		r := w.serverSays(xds.RouteType).Refused["r"]
		return r.Version == bad.Version && strings.Contains(r.Message, "missing )")
	})
	e.ack(e.take(xds.RouteType, good)) // what it runs already

	again := w.envoy() // as after a crash
	again.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	again.take(xds.RouteType, good)
}

// An Envoy that starts gets what works, though a server has sent again what was refused before
// it could ask; and then that, on which it may think otherwise.
func TestWhatWasRefusedComesSecond(t *testing.T) {
	w := newWorld(t)
	w.serve()
	good, bad := res(t, xds.RouteType, "r", "good"), res(t, xds.RouteType, "r", "bad")
	w.tell(good)
	w.start()
	e := w.life()
	e.ack(e.take(xds.ClusterType))
	e.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
	e.ack(e.take(xds.RouteType, good))
	w.eventually("the good route is acknowledged", func() bool { return w.serverSays(xds.RouteType).Acked == 1 })
	w.tell(bad)
	e.nack(e.take(xds.RouteType, bad), "missing )")
	over := func(e *mortal) {
		e.crash()
		w.eventually("nothing more is heard of it", func() bool { return len(w.relay.server.Connected()) == 0 })
	}
	e.ack(e.take(xds.RouteType, good))
	over(e)

	for _, accepted := range []bool{false, true} {
		w.relay.mu.Lock()
		before := w.relay.upstream
		w.relay.mu.Unlock()
		again := w.life()
		again.ack(again.take(xds.ClusterType))
		var up *xds.Client
		w.eventually("a stream to the server", func() bool {
			w.relay.mu.Lock()
			defer w.relay.mu.Unlock()
			up = w.relay.upstream
			return up != nil && up != before
		})
		w.relay.received(up, xds.Response{Type: xds.RouteType, Nonce: "early", Resources: []*xds.Resource{bad}})
		again.send(xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}})
		again.ack(again.take(xds.RouteType, good))
		second := again.take(xds.RouteType, bad)
		if accepted {
			again.ack(second)
			w.eventually("it is good now", func() bool {
				w.relay.mu.Lock()
				defer w.relay.mu.Unlock()
				return w.relay.good[xds.RouteType]["r"].Version == bad.Version && len(w.relay.refused) == 0
			})
			break
		}
		again.nack(second, "missing )")
		again.ack(again.take(xds.RouteType, good))
		w.eventually("the server knows the refusal, and Envoy's words", func() bool {
			r := w.serverSays(xds.RouteType).Refused["r"]
			return r.Version == bad.Version && strings.Contains(r.Message, "missing )")
		})
		over(again)
	}
}

func TestSecretsComeFromHereOnly(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.tell()
	w.start()
	leaf1, leaf2 := res(t, xds.SecretType, "leaf", "1"), res(t, xds.SecretType, "leaf", "2")
	w.relay.SetSecrets(leaf1)
	e := w.envoy()
	e.send(xds.Request{Type: xds.SecretType, Subscribe: []string{"leaf"}})
	e.ack(e.take(xds.SecretType, leaf1))
	w.relay.SetSecrets(leaf2)
	e.ack(e.take(xds.SecretType, leaf2))
	e.send(xds.Request{Type: xds.ClusterType})
	e.ack(e.take(xds.ClusterType))
	if n := w.asked.Load(); n != 0 {
		t.Errorf("the server was asked for secrets %d times", n)
	}
	w.stop()
	if b, err := os.ReadFile(w.dir + "/lastgood.pb"); err == nil && strings.Contains(string(b), "Secret") {
		t.Error("the last good configuration holds a secret")
	}
}

func TestDamagedStateIsIgnored(t *testing.T) {
	w := newWorld(t)
	file := w.dir + "/lastgood.pb"
	good := map[xds.Type]map[string]*xds.Resource{xds.ClusterType: {"a": res(t, xds.ClusterType, "a", "1")}}
	if err := store(file, good); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := load(file); err != nil || got[xds.ClusterType]["a"].Version != good[xds.ClusterType]["a"].Version {
		t.Fatalf("load gave %v, %v", got, err)
	}
	for n := range whole {
		for _, b := range [][]byte{whole[:n], append(append([]byte{}, whole[:n]...), append([]byte{whole[n] ^ 1}, whole[n+1:]...)...)} {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := load(file); err == nil {
				t.Fatalf("a file damaged at byte %d was taken", n)
			}
		}
	}
	r, err := New(Options{StateFile: file, Socket: w.dir + "/xds.sock"})
	if err != nil || r.Status().FromLastGood {
		t.Errorf("New over a damaged file: %v, from last good %v; want it ignored", err, r.Status().FromLastGood)
	}
}
