package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// What a look at the bytes finds is what clusters and listeners refer to when they are decoded, in
// every scenario that package envoy has.
func TestReferred(t *testing.T) {
	files, err := filepath.Glob("../envoy/testdata/*.txtar")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	found := map[kind]int{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s := meshtest.Parse(t, inputs(txtar.Parse(data)))
		for _, in := range s.Sidecars {
			p, _ := proxy.Build(proxy.Input{Instance: in, Config: s.Config, Datacenter: meshtest.Datacenter, TrustDomain: meshtest.TrustDomain, DefaultAllow: s.DefaultAllow})
			r, err := envoy.Build(p)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range r.Clusters {
				var want []string
				if e := c.GetEdsClusterConfig(); e != nil {
					want = append(want, fmt.Sprint(endpoints, orElse(e.GetServiceName(), c.GetName())))
				}
				check(t, clusters, c.GetName(), c, want, found)
			}
			for _, l := range r.Listeners {
				var want []string
				for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
					for _, f := range chain.GetFilters() {
						if f.GetConfigDiscovery() != nil {
							want = append(want, fmt.Sprint(extensions, f.GetName()))
						}
						m := &hcmv3.HttpConnectionManager{}
						if f.GetTypedConfig().UnmarshalTo(m) != nil {
							continue
						}
						if m.GetRds() != nil {
							want = append(want, fmt.Sprint(routes, m.GetRds().GetRouteConfigName()))
						}
						for _, h := range m.GetHttpFilters() {
							if h.GetConfigDiscovery() != nil {
								want = append(want, fmt.Sprint(extensions, h.GetName()))
							}
						}
					}
				}
				check(t, listeners, l.GetName(), l, want, found)
			}
		}
	}
	if found[endpoints] == 0 || found[routes] == 0 || found[extensions] == 0 {
		t.Errorf("the scenarios have not all kinds of references: %v", found)
	}
}

// inputs are the files before what a scenario wants.
func inputs(a *txtar.Archive) (out []txtar.File) {
	for _, f := range a.Files {
		if strings.HasPrefix(f.Name, "want/") {
			break
		}
		out = append(out, f)
	}
	return out
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func check(t *testing.T, k kind, name string, m proto.Message, want []string, found map[kind]int) {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	referred(k, []byte(name), body, func(k kind, name []byte) {
		got = append(got, fmt.Sprint(k, string(name)))
		found[k]++
	})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
		t.Errorf("%s refers to %v, found %v", name, want, got)
	}
}

func TestNumber(t *testing.T) {
	if n := number([]byte("00ff00000000abcd")); n != 0x00ff00000000abcd || string(appendNumber(nil, n)) != "00ff00000000abcd" {
		t.Errorf("%x", n)
	}
	if number([]byte("no version")) != 0 || number([]byte("00ff00000000abcx")) != 0 {
		t.Error("what is no version has a number")
	}
}
