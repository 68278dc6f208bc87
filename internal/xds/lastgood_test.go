package xds_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// grouped is a server of nodes named "group/node", that is told when refusals change.
func grouped(t *testing.T) (*xds.Server, *grpc.ClientConn, chan string) {
	t.Helper()
	news := make(chan string, 100)
	srv, conn := startWith(t, xds.Options{
		Alike:    func(k xds.Key) bool { return k.Name != "own" },
		Refusing: func(group string) { news <- group },
	})
	return srv, conn, news
}

// give makes resources the view of nodes of their groups.
func give(srv *xds.Server, resources []*xds.Resource, nodes ...string) {
	u := xds.Update{Views: map[string]*xds.View{}}
	for _, n := range nodes {
		group, _, _ := strings.Cut(n, "/")
		u.Views[n] = &xds.View{Own: xds.Own(resources...), Group: group}
	}
	srv.Update(u)
}

// answer wants one response with one resource, and answers it.
func answer(t *testing.T, c *xds.Client, want *xds.Resource, refusal string) {
	t.Helper()
	r, err := c.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Resources) != 1 || r.Resources[0].Version != want.Version {
		t.Fatalf("received %d resources, the first %q; want %q alone", len(r.Resources), r.Resources[0].Version, want.Version)
	}
	send(t, c, xds.Request{Type: r.Type, Nonce: r.Nonce, Error: refusal})
}

func subscribe(t *testing.T, c *xds.Client, res *xds.Resource) {
	t.Helper()
	send(t, c, xds.Request{Type: res.Type, Subscribe: []string{res.Name}})
}

// runs waits until the status of a node is that it refused a version and runs another.
func runs(t *testing.T, srv *xds.Server, node string, refused, instead *xds.Resource) xds.Refusal {
	t.Helper()
	var found xds.Refusal
	meshtest.Eventually(t, node+" is where it is to be", func() error {
		for _, st := range srv.Status() {
			if st.Node != node {
				continue
			}
			found = st.Types[refused.Type.Short()].Refused[refused.Name]
			if found.Version == refused.Version && found.Runs == instead.Version {
				return nil
			}
		}
		return fmt.Errorf("status %+v", srv.Status())
	})
	return found
}

// What others refused comes second for who is new; whoever takes it ends that.
func TestNewcomersStartFromTheLastGood(t *testing.T) {
	srv, conn, news := grouped(t)
	v1, v2, v3 := resource(t, xds.RouteType, "r", "1"), resource(t, xds.RouteType, "r", "2"), resource(t, xds.RouteType, "r", "3")
	a := connect(t, conn, "web/a")
	give(srv, []*xds.Resource{v1}, "web/a")
	subscribe(t, a, v1)
	answer(t, a, v1, "")
	give(srv, []*xds.Resource{v2}, "web/a", "web/b", "web/c", "api/d", "web/e")
	answer(t, a, v2, "bad regex")
	if got := <-news; got != "web" {
		t.Fatalf("news of %q", got)
	}
	if r := srv.Refusals("web", xds.Own(v2)); r[xds.Key{Type: xds.RouteType, Name: "r"}].Message != "bad regex" || srv.Refusals("web", xds.Own(v3)) == nil && len(srv.Refusals("web", xds.Own(v1))) > 0 {
		t.Errorf("refusals %v", r)
	}

	b := connect(t, conn, "web/b")
	subscribe(t, b, v1)
	answer(t, b, v1, "")
	answer(t, b, v2, "bad regex, too")
	if r := runs(t, srv, "web/b", v2, v1); r.Message != "bad regex, too" {
		t.Errorf("%+v", r)
	}

	d := connect(t, conn, "api/d") // another service
	subscribe(t, d, v1)
	answer(t, d, v2, "")

	c := connect(t, conn, "web/c") // the trouble was the others'
	subscribe(t, c, v1)
	answer(t, c, v1, "")
	answer(t, c, v2, "")
	if got := <-news; got != "web" {
		t.Fatalf("news of %q", got)
	}
	e := connect(t, conn, "web/e")
	subscribe(t, e, v2)
	answer(t, e, v2, "")

	give(srv, []*xds.Resource{v3}, "web/a", "web/b", "web/c", "web/e")
	for _, p := range []*xds.Client{a, b, c, e} {
		answer(t, p, v3, "")
	}
}

// A client that is new and the first to refuse falls back as well.
func TestTheFirstToRefuseMayBeNew(t *testing.T) {
	srv, conn, _ := grouped(t)
	v1, v2 := resource(t, xds.RouteType, "r", "1"), resource(t, xds.RouteType, "r", "2")
	a := connect(t, conn, "web/a")
	give(srv, []*xds.Resource{v1}, "web/a")
	send(t, a, xds.Request{Type: xds.RouteType, Subscribe: []string{"r"}, Initial: map[string]string{"r": v1.Version}}) // said to be held is good, too
	meshtest.Eventually(t, "what is said is learnt", func() error {
		if len(srv.Good("web", xds.RouteType)) == 0 {
			return fmt.Errorf("nothing is good")
		}
		return nil
	})
	give(srv, []*xds.Resource{v2}, "web/b")
	b := connect(t, conn, "web/b")
	subscribe(t, b, v2)
	answer(t, b, v2, "bad regex")
	answer(t, b, v1, "")
	runs(t, srv, "web/b", v2, v1)
}

// One host's trouble is no fault of a version, and what ends an Envoy is offered to nobody new.
func TestRefusalsOfAHostAndOfACrash(t *testing.T) {
	srv, conn, news := grouped(t)
	v1, v2 := resource(t, xds.ListenerType, "l", "1"), resource(t, xds.ListenerType, "l", "2")
	mine := resource(t, xds.ClusterType, "own", "1")
	give(srv, []*xds.Resource{v1, mine}, "web/a")
	a := connect(t, conn, "web/a")
	subscribe(t, a, mine)
	answer(t, a, mine, "")
	subscribe(t, a, v1)
	answer(t, a, v1, "")
	if len(srv.Good("web", xds.ClusterType)) > 0 {
		t.Error("what is each node's own is remembered")
	}
	give(srv, []*xds.Resource{v2, mine}, "web/a", "web/b", "web/c")
	answer(t, a, v2, `cannot bind '127.0.0.1:7100': Address already in use`)
	b := connect(t, conn, "web/b")
	subscribe(t, b, v2)
	answer(t, b, v2, xds.QuarantinePrefix+"Envoy crashed 2 times")
	answer(t, b, v1, "")
	<-news
	c := connect(t, conn, "web/c")
	subscribe(t, c, v2)
	answer(t, c, v1, "")
	if r := runs(t, srv, "web/c", v2, v1); !strings.HasPrefix(r.Message, xds.QuarantinePrefix) {
		t.Errorf("%+v", r)
	}

	srv.Forget(func(string, xds.Key) bool { return false })
	if len(srv.Good("web", xds.ListenerType)) > 0 || len(srv.Refusals("web", xds.Own(v2))) > 0 {
		t.Error("what is forgotten is remembered")
	}
}
