package xds

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/internal/meshtest/effort"
)

// fleet is a server whose nodes all have resources of the same names, secrets among
// them, so that an answer from another's view is not seen by its name.
type fleet struct {
	t      *testing.T
	random *rand.Rand
	server *Server
	nodes  []string
	own    map[string]map[*Resource]bool // by node: all that was ever its own
	shared map[string]map[string]bool    // by node: names of endpoints that it may have
	names  []string
}

func newFleet(t *testing.T, nodes int) *fleet {
	f := &fleet{
		t: t, random: rand.New(rand.NewPCG(1, 2)), own: map[string]map[*Resource]bool{}, shared: map[string]map[string]bool{},
		server: NewServer(Options{Log: slog.New(slog.DiscardHandler)}),
		names:  []string{"", "*", "leaf", "roots", "public_listener", "local_app", "absent", "leaf\x00", "../leaf", "LEAF"},
	}
	for i := range nodes {
		f.names = append(f.names, fmt.Sprintf("service-%d", i))
		f.nodes = append(f.nodes, fmt.Sprintf("host/node-%d", i))
		f.own[f.nodes[i]], f.shared[f.nodes[i]] = map[*Resource]bool{}, map[string]bool{}
	}
	f.names = append(f.names, f.nodes...)
	update := Update{Shared: map[Key]*Resource{}}
	for i := range nodes {
		k := Key{EndpointType, fmt.Sprintf("service-%d", i)}
		update.Shared[k] = f.resource(k.Type, k.Name, "endpoints")
	}
	f.server.Update(update)
	for _, n := range f.nodes {
		f.renew(n)
	}
	return f
}

func (f *fleet) resource(t Type, name, content string) *Resource {
	res, err := NewResource(t, name, wrapperspb.String(content))
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// renew gives a node another view.
func (f *fleet) renew(node string) {
	var own []*Resource
	v := &View{Shared: map[string]struct{}{}, Growing: f.random.IntN(4) == 0}
	for _, t := range Types {
		for _, name := range []string{"leaf", "roots", "public_listener", "local_app"} {
			if f.random.IntN(8) == 0 {
				continue
			}
			// The same content for all, now and then, so that versions are equal too.
			content := fmt.Sprint(node, f.random.IntN(3))
			if f.random.IntN(4) == 0 {
				content = "same"
			}
			res := f.resource(t, name, content)
			own = append(own, res)
			f.own[node][res] = true
		}
	}
	v.Own = Own(own...)
	clear(f.shared[node])
	for range 3 {
		name := fmt.Sprintf("service-%d", f.random.IntN(len(f.nodes)))
		v.Shared[name] = struct{}{}
		f.shared[node][name] = true
	}
	f.server.Update(Update{Views: map[string]*View{node: v}})
}

func (f *fleet) connect(node string) *stream {
	_, cancel := context.WithCancelCause(context.Background())
	st := &stream{server: f.server, node: node, cancel: cancel, session: newSession(0), sending: true}
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	if f.server.streams[node] == nil {
		f.server.streams[node] = map[*stream]struct{}{}
	}
	f.server.streams[node][st] = struct{}{}
	st.view = f.server.views[node]
	return st
}

// request is anything that a client could send: subscriptions to any names of any
// types, claims to hold any version, and answers to any nonce.
func (f *fleet) request(last *response) (_ *discoveryv3.DeltaDiscoveryRequest, subscriptions int) {
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: string(Types[f.random.IntN(len(Types))])}
	for range f.random.IntN(4) {
		r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, f.names[f.random.IntN(len(f.names))])
	}
	for range f.random.IntN(2) {
		r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, f.names[f.random.IntN(len(f.names))])
	}
	if f.random.IntN(8) == 0 {
		r.InitialResourceVersions = map[string]string{f.names[f.random.IntN(len(f.names))]: "stolen"}
	}
	if last != nil && f.random.IntN(4) > 0 {
		r.TypeUrl, r.ResponseNonce = string(last.typ), last.nonce
		if f.random.IntN(6) == 0 {
			r.ErrorDetail = &rpcstatus.Status{Message: "no"}
		}
	}
	return r, max(1, len(r.ResourceNamesSubscribe)) // none is all of a type
}

// Whatever a client asks for, it gets what is its node's own, and of what is shared
// what its view names.
func TestNothingForeign(t *testing.T) {
	subscriptions := effort.Rounds(1_000_000)
	f := newFleet(t, 20)
	var streams []*stream
	last := map[*stream]*response{}
	for i := range 2 * len(f.nodes) {
		streams = append(streams, f.connect(f.nodes[i%len(f.nodes)]))
	}
	asked, got, secrets := 0, 0, 0
	for i := 0; asked < subscriptions; i++ {
		if i%500 == 0 {
			f.renew(f.nodes[f.random.IntN(len(f.nodes))])
		}
		at := f.random.IntN(len(streams))
		if i%1000 == 999 { // one client goes, another comes
			f.server.leave(streams[at])
			delete(last, streams[at])
			streams[at] = f.connect(f.nodes[f.random.IntN(len(f.nodes))])
		}
		st := streams[at]
		r, n := f.request(last[st])
		asked += n
		if err := st.handle(r); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			out, _ := st.pending(time.Now())
			if out == nil {
				break
			}
			last[st] = out
			for _, res := range out.resources {
				got++
				if out.typ == SecretType {
					secrets++
				}
				mine := f.own[st.node][res] || out.typ == EndpointType && f.shared[st.node][res.Name]
				if !mine || res.Type != out.typ {
					t.Fatalf("%s was sent a foreign %s %q", st.node, out.typ.Short(), res.Name)
				}
			}
		}
	}
	t.Logf("%d subscriptions, %d resources sent, %d of them secrets, 0 foreign", asked, got, secrets)
	if got < subscriptions/100 || secrets == 0 {
		t.Errorf("only %d resources and %d secrets were sent: this proves nothing", got, secrets)
	}
}
