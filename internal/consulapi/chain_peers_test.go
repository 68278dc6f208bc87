//go:build peers

package consulapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// registry is one of the two that are compared.
type registry struct {
	t    *testing.T
	url  string
	said string       // of what was refused last
	keys []config.Key // of entries that it holds, in the order of their writing
}

// ask sends a request and returns the status and the answer.
func (r *registry) ask(method, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	must(r.t, err)
	resp, err := http.DefaultClient.Do(req)
	must(r.t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	must(r.t, err)
	return resp.StatusCode, string(raw)
}

// put writes an entry and says why it is refused, if so.
func (r *registry) put(e config.Entry) string {
	r.t.Helper()
	body, err := config.EncodeEntry(e)
	must(r.t, err)
	status, text := r.ask("PUT", "/v1/config", string(body))
	if status != http.StatusOK {
		return text
	}
	r.keys = append(r.keys, config.KeyOf(e))
	return ""
}

func (r *registry) drop(k config.Key) bool {
	r.t.Helper()
	status, _ := r.ask("DELETE", "/v1/config/"+k.String(), "")
	if status == http.StatusOK {
		r.keys = slices.DeleteFunc(r.keys, func(x config.Key) bool { return x == k })
	}
	return status == http.StatusOK
}

// empty deletes all entries, those first that need others.
func (r *registry) empty() {
	r.t.Helper()
	for len(r.keys) > 0 {
		before := len(r.keys)
		for _, k := range slices.Backward(slices.Clone(r.keys)) {
			r.drop(k)
		}
		if len(r.keys) == before {
			r.t.Fatalf("%s: cannot delete %v", r.url, r.keys)
		}
	}
}

var trustDomain = regexp.MustCompile(`internal\.[-0-9a-f]+\.consul`)

// chainOf is a service's chain, with what differs by registry taken out.
func (r *registry) chainOf(method, path, body string) (chain map[string]any) {
	r.t.Helper()
	status, text := r.ask(method, "/v1/discovery-chain/"+path, body)
	if status != http.StatusOK {
		r.said = text
		return map[string]any{"status": status}
	}
	var answer struct{ Chain map[string]any }
	must(r.t, json.Unmarshal([]byte(trustDomain.ReplaceAllString(text, "internal.TRUST")), &answer))
	delete(answer.Chain, "AutoVirtualIPs") // of transparent proxying
	delete(answer.Chain, "ManualVirtualIPs")
	if answer.Chain["CustomizationHash"] != nil {
		answer.Chain["CustomizationHash"] = "there is one"
	}
	return answer.Chain
}

// TestChainsConsul writes random entries to a Consul and to us, and compares which are
// taken and the chains of all services.
func TestChainsConsul(t *testing.T) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1", Judge: func(before, after *config.Set) error { return routing.Check(before, after, "dc1") }})
	must(t, err)
	t.Cleanup(func() { st.Close() })
	hs := httptest.NewServer(consulapi.New(consulapi.Options{Store: st, TrustDomain: "11111111-2222-3333-4444-555555555555.consul"}))
	t.Cleanup(hs.Close)
	ours, theirs := &registry{t: t, url: hs.URL}, &registry{t: t, url: startConsul(t)}
	seen, shapes := map[string]int{}, map[string]int{}
	written, compared := 0, 0
	const sets = 400
	for seed := range sets {
		set := config.NewSet()
		entries := meshtest.Entries(uint64(seed))
		if seed%4 > 0 { // mostly in an order in which what is needed is there
			slices.SortStableFunc(entries, func(a, b config.Entry) int { return rank(a) - rank(b) })
		}
		for _, e := range entries {
			next := set.With([]config.Entry{e}, nil)
			if crashes(next) {
				seen["crash"]++
				continue
			}
			here, there := ours.put(e), theirs.put(e)
			if (here == "") != (there == "") {
				why := acceptance(here, there)
				seen[why]++
				if why == "" {
					t.Errorf("set %d: %s\nConsul: %q\nhere:   %q\n%s", seed, config.KeyOf(e), there, here, dump(next))
				}
				for _, r := range []*registry{ours, theirs} {
					if slices.Contains(r.keys, config.KeyOf(e)) {
						r.drop(config.KeyOf(e))
					}
				}
				continue
			}
			if here == "" {
				set = next
				written++
			}
		}
		for _, service := range append(meshtest.Services(), "nobody") {
			for _, q := range [][3]string{{"GET", service, ""}, {"GET", service + "?compile-dc=dc2", ""}, {"POST", service, `{"OverrideProtocol":"tcp","OverrideConnectTimeout":"11s"}`}, {"POST", service, `{"OverrideProtocol":"grpc"}`}} {
				compared++
				got, want := ours.chainOf(q[0], q[1], q[2]), theirs.chainOf(q[0], q[1], q[2])
				count(shapes, set, got)
				for _, d := range known {
					if d.align(want, got) {
						seen[d.name]++
					}
				}
				if strings.Contains(theirs.said, "inconsistent protocols") && want["status"] != nil && strings.Contains(q[2], "OverrideProtocol") {
					seen["protocols under an override"]++
					continue
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("set %d: %v (-consul +here):\n%s\n%s\nConsul's last refusal: %s, here: %s", seed, q, diff, dump(set), theirs.said, ours.said)
				}
			}
		}
		ours.empty()
		theirs.empty()
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d sets, %d entries taken by both, %d chains compared: %v; known differences met: %v", sets, written, compared, shapes, seen)
	for _, what := range []string{"router", "splitter", "resolver", "nested", "failover"} {
		if shapes[what] < 50 {
			t.Errorf("only %d chains with %s", shapes[what], what)
		}
	}
}

// count says of what kind a chain is, so that a comparison of nothing is noticed.
func count(shapes map[string]int, set *config.Set, chain map[string]any) {
	if chain["status"] != nil {
		shapes["refused"]++
		return
	}
	kind, _, _ := strings.Cut(chain["StartNode"].(string), ":")
	shapes[kind]++
	nodes := chain["Nodes"].(map[string]any)
	for _, n := range nodes {
		n := n.(map[string]any)
		if r, ok := n["Resolver"].(map[string]any); ok && r["Failover"] != nil {
			shapes["failover"]++
		}
		name, _, _ := strings.Cut(n["Name"].(string), ".")
		if splits, ok := n["Splits"].([]any); ok && len(splits) > len(set.Splitter(name).Splits) {
			shapes["nested"]++
		}
	}
}

func rank(e config.Entry) int {
	return slices.Index([]config.Kind{config.KindProxyDefaults, config.KindServiceDefaults, config.KindServiceResolver, config.KindServiceSplitter, config.KindServiceRouter}, e.EntryKind())
}

// TestProvidersConsul compares what is taken of intentions and the providers they name.
func TestProvidersConsul(t *testing.T) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1", Judge: config.CheckProviders})
	must(t, err)
	t.Cleanup(func() { st.Close() })
	hs := httptest.NewServer(consulapi.New(consulapi.Options{Store: st}))
	t.Cleanup(hs.Close)
	ours, theirs := &registry{t: t, url: hs.URL}, &registry{t: t, url: startConsul(t)}
	const provider = `{"Kind":"jwt-provider","Name":"shop","JSONWebKeySet":{"Local":{"JWKS":"eyJrZXlzIjpbeyJrdHkiOiJPS1AiLCJjcnYiOiJFZDI1NTE5IiwieCI6IjExcVlBWUt4Q3JmVlNfN1R5V1FIT2c3aGN2UGFwaU1scndJYWFQY0hVUm8ifV19"}}}`
	for _, step := range [][3]string{
		{"PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","JWT":{"Providers":[{"Name":"shop"}]},"Sources":[{"Name":"web","Action":"allow"}]}`},
		{"PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"web","Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"},"JWT":{"Providers":[{"Name":"shop"}]}}]}]}`},
		{"PUT", "/v1/config", provider},
		{"PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","JWT":{"Providers":[{"Name":"shop"}]},"Sources":[{"Name":"web","Action":"allow"}]}`},
		{"PUT", "/v1/config", provider},
		{"DELETE", "/v1/config/jwt-provider/shop", ""},
		{"PUT", "/v1/config", `{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"web","Action":"allow"}]}`},
		{"DELETE", "/v1/config/jwt-provider/shop", ""},
	} {
		here, said := ours.ask(step[0], step[1], step[2])
		there, theySaid := theirs.ask(step[0], step[1], step[2])
		if (here == http.StatusOK) != (there == http.StatusOK) {
			t.Errorf("%v: Consul %d %s, here %d %s", step, there, theySaid, here, said)
		}
	}
}

func dump(set *config.Set) string {
	var b strings.Builder
	for _, k := range set.Keys() {
		body, err := config.EncodeEntry(set.Get(k))
		fmt.Fprintln(&b, string(body), err)
	}
	return b.String()
}

// known are the differences in chains that docs/compatibility.md names, each with a
// function that takes it out of both, and says whether it was there.
var known = []struct {
	name  string
	align func(consul, here map[string]any) bool
}{
	{"rounding", alignWeights},
	{"failover to itself", alignFailover},
	{"hash of a nested leg", alignBalancer},
}

// acceptance is the known difference because of which one of the two refuses an
// entry, or "".
func acceptance(here, there string) string {
	switch {
	case here == "" && strings.Contains(there, `protocol "tcp" that does not permit advanced routing`):
		return "tcp split"
	case there == "" && strings.Contains(here, ", to which its requests may go, speaks "):
		return "own protocol"
	}
	return ""
}

// crashes reports whether Consul would panic: of two legs, one above the other, that
// both change headers, the one passed first adds, or sets, none and the other some.
func crashes(set *config.Set) bool {
	var below func(service string, depth int) []config.ServiceSplit
	below = func(service string, depth int) (out []config.ServiceSplit) {
		e := set.Splitter(service)
		if e == nil || depth > len(meshtest.Services()) {
			return nil
		}
		for _, s := range e.Splits {
			out = append(out, s)
			if s.Service != "" && s.ServiceSubset == "" && s.Service != service {
				out = append(out, below(s.Service, depth+1)...)
			}
		}
		return out
	}
	panics := func(first, then *config.HeaderModifiers) bool {
		return first != nil && then != nil && (first.Add == nil && then.Add != nil || first.Set == nil && then.Set != nil)
	}
	for _, service := range meshtest.Services() {
		e := set.Splitter(service)
		if e == nil {
			continue
		}
		for _, s := range e.Splits {
			if s.Service == "" || s.Service == service {
				continue
			}
			for _, inner := range below(s.Service, 0) {
				if panics(s.RequestHeaders, inner.RequestHeaders) || panics(inner.ResponseHeaders, s.ResponseHeaders) {
					return true
				}
			}
		}
	}
	return false
}

// alignWeights takes ours where Consul's differ by rounding.
func alignWeights(consul, here map[string]any) (differs bool) {
	legs := func(chain map[string]any, node string) []any {
		nodes, _ := chain["Nodes"].(map[string]any)
		n, _ := nodes[node].(map[string]any)
		list, _ := n["Splits"].([]any)
		return list
	}
	nodes, _ := consul["Nodes"].(map[string]any)
	for name := range nodes {
		a, b := legs(consul, name), legs(here, name)
		if len(a) != len(b) {
			continue
		}
		for i := range a {
			x, y := a[i].(map[string]any), b[i].(map[string]any)
			w, _ := x["Weight"].(float64) // left out when it is 0
			v, _ := y["Weight"].(float64)
			if w != v && math.Abs(w-v) < 0.05 {
				differs = true
				delete(x, "Weight")
				delete(y, "Weight")
			}
		}
	}
	return differs
}

// alignFailover leaves out of Consul's failovers the target itself, and what is there twice.
func alignFailover(consul, _ map[string]any) (differs bool) {
	nodes, _ := consul["Nodes"].(map[string]any)
	for _, n := range nodes {
		r, _ := n.(map[string]any)["Resolver"].(map[string]any)
		f, _ := r["Failover"].(map[string]any)
		list, _ := f["Targets"].([]any)
		var kept []any
		for _, id := range list {
			if id != r["Target"] && !slices.Contains(kept, id) {
				kept = append(kept, id)
			}
		}
		if differs = differs || len(kept) < len(list); len(kept) > 0 {
			f["Targets"] = kept
		} else {
			delete(r, "Failover")
		}
	}
	return differs
}

// alignBalancer takes away the balancer of a splitter that has none in Consul.
func alignBalancer(consul, here map[string]any) (differs bool) {
	theirs, _ := consul["Nodes"].(map[string]any)
	ours, _ := here["Nodes"].(map[string]any)
	for name, n := range ours {
		x, _ := theirs[name].(map[string]any)
		y := n.(map[string]any)
		if x != nil && y["Splits"] != nil && y["LoadBalancer"] != nil && !reflect.DeepEqual(x["LoadBalancer"], y["LoadBalancer"]) {
			differs = true
			delete(x, "LoadBalancer")
			delete(y, "LoadBalancer")
		}
	}
	return differs
}
