package server

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// What a sidecar is given from a memory that all others have filled is what is made for it alone.
func TestMemoMakesNoDifference(t *testing.T) {
	files, err := filepath.Glob("../envoy/testdata/*.txtar")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	shared := newMemo()
	remembered := 0
	var held []map[xds.Type]xds.Resources // so that nothing is let go
	for range 2 {
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := meshtest.Parse(t, given(data))
			for seed := range uint64(8) {
				entries := s.Config
				if seed > 0 {
					entries = entries.With(meshtest.Entries(seed), nil)
				}
				for _, in := range s.Sidecars {
					p, _ := proxy.Build(proxy.Input{Instance: in, Config: entries, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: s.DefaultAllow})
					for _, p := range []*proxy.Proxy{p, elsewhere(p)} {
						want, n := madeAlone(t, p)
						got, _, err := shared.encode(p)
						if err != nil {
							t.Fatal(err)
						}
						held = append(held, got)
						for typ, list := range got {
							for _, res := range list {
								name := res.Name
								if want[xds.Key{Type: typ, Name: name}] != res.Version {
									t.Errorf("%s: %s: %s %q is not what is made for it alone", filepath.Base(file), in.Service.ID, typ.Short(), name)
								}
								n--
							}
						}
						if n != 0 {
							t.Errorf("%s: %s: %d resources are missing", filepath.Base(file), in.Service.ID, n)
						}
						r := shared.recall()
						if _, err := envoy.BuildRest(p, func(p envoy.Part) bool {
							if r.has(p) {
								remembered++
							}
							return false
						}); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		}
	}
	if remembered == 0 {
		t.Error("nothing was remembered")
	}
	runtime.KeepAlive(held)
}

// given are the files of a scenario without what it wants.
func given(data []byte) (out []txtar.File) {
	for _, f := range txtar.Parse(data).Files {
		if !strings.HasPrefix(f.Name, "want/") {
			out = append(out, f)
		}
	}
	return out
}

// elsewhere is the same proxy with its upstreams on other ports, and no socket.
func elsewhere(p *proxy.Proxy) *proxy.Proxy {
	out := *p
	out.Upstreams = slices.Clone(p.Upstreams)
	for i := range out.Upstreams {
		u := &out.Upstreams[i]
		u.SocketPath, u.SocketMode, u.Address, u.Port = "", 0, "127.0.0.9", u.Port+1
		u.ListenerName += ":elsewhere"
	}
	return &out
}

// Callers of a service that listen for it on different ports, and instances of one, hold most of their listeners once.
func TestMemoSharesRests(t *testing.T) {
	data, err := os.ReadFile("../envoy/testdata/http_caller.txtar")
	if err != nil {
		t.Fatal(err)
	}
	s := meshtest.Parse(t, given(data))
	p, _ := proxy.Build(proxy.Input{Instance: s.Sidecars[0], Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain})
	m := newMemo()
	one, _, err := m.encode(p)
	if err != nil {
		t.Fatal(err)
	}
	rests := len(m.rests.made)
	asked, built := elsewhere(p), 0
	r := m.recall()
	made, err := envoy.BuildRest(asked, r.has)
	if err != nil || r.err != nil {
		t.Fatal(err, r.err)
	}
	for _, l := range made.Listeners {
		if l.GetTrafficDirection() == corev3.TrafficDirection_OUTBOUND {
			built++
		}
	}
	asked.Inbound.ListenerName += ":elsewhere"
	asked.Inbound.Port++
	other, _, err := m.encode(asked)
	if err != nil {
		t.Fatal(err)
	}
	if built > 0 || len(m.rests.made) != rests || rests == 0 {
		t.Errorf("%d listeners built again, and %d rests instead of %d", built, len(m.rests.made), rests)
	}
	runtime.KeepAlive([]any{one, other})
}

func madeAlone(t *testing.T, p *proxy.Proxy) (map[xds.Key]string, int) {
	t.Helper()
	made, err := envoy.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	out := map[xds.Key]string{}
	add := func(typ xds.Type, name string, m proto.Message) {
		res, err := xds.NewResource(typ, name, m)
		if err != nil {
			t.Fatal(err)
		}
		out[xds.Key{Type: typ, Name: name}] = res.Version
	}
	for _, c := range made.Clusters {
		add(xds.ClusterType, c.GetName(), c)
	}
	for _, l := range made.Listeners {
		add(xds.ListenerType, l.GetName(), l)
	}
	for _, r := range made.Routes {
		add(xds.RouteType, r.GetName(), r)
	}
	for _, e := range made.Extensions {
		add(xds.ExtensionType, e.GetName(), e)
	}
	for _, r := range made.Runtimes {
		add(xds.RuntimeType, r.GetName(), r)
	}
	return out, len(out)
}

// Values have one fingerprint exactly when they are equal, however deep the difference is.
func TestFingerprint(t *testing.T) {
	of := func(v any) string { return string(appendValue(nil, reflect.ValueOf(v))) }
	base := func() proxy.Route {
		return proxy.Route{Name: "a", Rules: []proxy.Rule{{
			Match: &config.HTTPMatch{PathPrefix: "/x"}, Timeout: time.Second,
			RequestHeaders: &config.HeaderModifiers{Add: map[string]string{"a": "1", "b": "2"}}, Legs: []proxy.RouteLeg{{Cluster: "c", Weight: 1}},
		}}}
	}
	if one, other := of(base()), of(base()); one != other {
		t.Error("equal values differ")
	}
	for name, change := range map[string]func(*proxy.Route){
		"a name":           func(r *proxy.Route) { r.Name = "b" },
		"a duration":       func(r *proxy.Route) { r.Rules[0].Timeout++ },
		"behind a pointer": func(r *proxy.Route) { r.Rules[0].Match.PathPrefix = "/y" },
		"no pointer":       func(r *proxy.Route) { r.Rules[0].Match = nil },
		"a value in a map": func(r *proxy.Route) { r.Rules[0].RequestHeaders.Add["b"] = "3" },
		"values that change": func(r *proxy.Route) {
			r.Rules[0].RequestHeaders.Add["a"], r.Rules[0].RequestHeaders.Add["b"] = "2", "1"
		},
		"one more":       func(r *proxy.Route) { r.Rules[0].Legs = append(r.Rules[0].Legs, proxy.RouteLeg{}) },
		"empty, not nil": func(r *proxy.Route) { r.Rules[0].Hash = []config.HashPolicy{} },
	} {
		r := base()
		change(&r)
		if of(r) == of(base()) {
			t.Errorf("%s: no difference", name)
		}
	}
	if of([]string{"ab", "c"}) == of([]string{"a", "bc"}) {
		t.Error("parts run into each other")
	}
	if of([]any{1}) == of([]any{int64(1)}) {
		t.Error("types in interfaces are one")
	}
}

// What nobody holds is let go, with its place before there are many of those; what somebody holds is not.
func TestMemoLetsGo(t *testing.T) {
	m := newMemo()
	put := func(i uint32) *xds.Resource {
		res, err := xds.NewResource(xds.EndpointType, "a", envoy.Endpoints(proxy.Endpoints{ClusterName: "a"}))
		if err != nil {
			t.Fatal(err)
		}
		var of fingerprint
		binary.BigEndian.PutUint32(of[:], i)
		if m.whole.put(of, res) != res || m.whole.get(of) != res {
			t.Fatal("what was put is not there")
		}
		return res
	}
	held := put(0)
	for i := range uint32(20 * fewest) {
		put(1 + i)
		if i%fewest == 0 {
			runtime.GC()
		}
	}
	if n := len(m.whole.made); n > 3*fewest {
		t.Errorf("%d places for one resource and %d that nobody holds any more", n, fewest)
	}
	if m.whole.get(fingerprint{}) != held {
		t.Error("what is held was let go")
	}
	meshtest.Eventually(t, "let go", func() error {
		runtime.GC()
		if m.whole.get(fingerprint{3: 1}) != nil {
			return os.ErrExist
		}
		return nil
	})
	runtime.KeepAlive(held)
}
