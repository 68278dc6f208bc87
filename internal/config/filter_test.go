package config

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"sync"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

func filtered() catalog.Instance {
	return catalog.Instance{
		Node: &catalog.Node{
			ID: "n-id", Name: "n1", Address: "10.0.0.1", Datacenter: "dc1",
			TaggedAddresses: map[string]string{"wan": "1.2.3.4"}, Meta: map[string]string{"zone": "a"},
		},
		Service: &catalog.Service{
			ID: "web-1", Name: "web", Tags: []string{"canary", "v2"}, Address: "10.0.0.2", Port: 80, SocketPath: "/run/web.sock",
			Meta:            map[string]string{"version": "2", "a-b": "c"},
			TaggedAddresses: map[string]catalog.Address{"lan": {Address: "10.0.0.3", Port: 81}},
			Weights:         catalog.Weights{Passing: 3, Warning: 1}, EnableTagOverride: true, Connect: catalog.Connect{Native: true},
		},
		Checks: []*catalog.Check{
			{Node: "n1", CheckID: "c1", Name: "ping", Status: catalog.Passing, ServiceID: "web-1", ServiceName: "web", ServiceTags: []string{"v2"}, Type: "ttl", Notes: "n", Output: "o"},
			{Node: "n1", CheckID: "c2", Status: catalog.Warning},
		},
	}
}

func TestFilterMatch(t *testing.T) {
	sidecar := filtered()
	s := *sidecar.Service
	s.Kind, s.Proxy = catalog.ConnectProxy, &catalog.Proxy{
		DestinationServiceName: "web", DestinationServiceID: "web-1", LocalServicePort: 80, LocalServiceAddress: "127.0.0.1", Mode: "direct", LocalServiceSocketPath: "/x",
	}
	sidecar.Service = &s
	for text, want := range map[string]bool{
		``: true,
		`Service.Meta.version == 2 and Service.Meta["a-b"] == c`:        true,
		`Service.Meta.version != 2`:                                     false,
		`Service.Meta.version in Service.Tags or Service.ID == "web-1"`: true,
		`Service.Service == web and Service.Address == "10.0.0.2" and Service.Port == 80 and Service.SocketPath matches "web"`: true,
		`canary in Service.Tags and Service.Tags contains v2 and Service.Tags is not empty`:                                    true,
		`v3 not in Service.Tags`: true,
		`Service.TaggedAddresses.lan.Port == 81 and Service.Weights.Passing == 3 and Service.EnableTagOverride == true`: true,
		`Service.Connect.Native == true and Service.Kind == ""`:                                                         true,
		`Node.ID == "n-id" and Node.Node == n1 and Node.Address == "10.0.0.1" and Node.Datacenter == dc1`:               true,
		`Node.Meta.zone == a and Node.TaggedAddresses.wan == "1.2.3.4"`:                                                 true,
		`Checks.Status == warning and Checks.Name == ping and v2 in Checks.ServiceTags`:                                 true,
		`Checks.Status == critical`: false,
		`Checks is empty`:           false,
		// What an instance does not have is like nothing that one can ask for.
		`Service.Meta.colour == red`:                  false,
		`Service.Meta.colour != red`:                  true,
		`Node.Meta.rack matches "x"`:                  true, // Consul's library says so
		`Service.TaggedAddresses.wan.Port == 1`:       false,
		`colour in Service.Meta`:                      false,
		`Service.Proxy.DestinationServiceName == web`: false,
	} {
		f, err := CompileFilter(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := f.Match(filtered()); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	f, err := CompileFilter(`Service.Proxy.DestinationServiceName == web and Service.Proxy.LocalServicePort == 80 and Service.Kind == "connect-proxy"`)
	if err != nil || !f.Match(sidecar) || f.Match(catalog.Instance{}) {
		t.Errorf("of a sidecar: %v", err)
	}
	if !(Filter{}).Match(catalog.Instance{}) {
		t.Error("no filter selects all")
	}
}

func TestFilterBounds(t *testing.T) {
	for text, want := range map[string]string{
		strings.Repeat("a", maxText+1): "longer than 1024 bytes",
		strings.Repeat("(", 900):       "too much is nested",
		strings.Repeat("(", 8) + "Service.Port == 1" + strings.Repeat(")", 8): "too much is nested",
		strings.Repeat("Service.Port==1 or ", 50) + "Service.Port==1":         "exceeds the limit (50)",
		"Node.Meta.x matches `" + strings.Repeat("a{999}", 100) + "`":         "99900 instructions",
		"not (Node.Node == a and Node.Node not matches `" + `a{1000}b` + "`)": "1001 instructions",
		"Node.Node matches `(`":    "missing closing )",
		"Nodes.Node == a":          `Selector "Nodes" is not valid`,
		"Service.Meta.a.b == c":    `Selector "Service.Meta.a.b" is not valid`,
		"Service.Port matches `8`": "Invalid match operator",
		"Service.Port == many":     "Failed to coerce",
		"Service.Meta.version > 1": "no match found",
		"Service.Meta.version":     "no match found",
		"\x00":                     "no match found",
	} {
		if _, err := CompileFilter(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v, want %s", text, err, want)
		}
	}
}

// A compiled filter is shared.
func TestFilterConcurrent(t *testing.T) {
	f, err := CompileFilter(`Service.Meta.version == 2 and Node.Node matches "^n[0-9]$"`)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if !f.Match(filtered()) {
					t.Error("no match")
				}
			}
		})
	}
	wg.Wait()
}

// What Envoy says about these sizes: each is at least its count of instructions.
func TestProgramSize(t *testing.T) {
	for text, size := range map[string]int{
		`a`: 5, `.`: 6, `[a-zA-Z0-9_]`: 7, `[^/]+`: 7, `(a)`: 7, `ab|cd`: 8, `a{2,5}`: 12, `[^/]{10}`: 24, `.{0,10}`: 34,
		`\W`: 9, `\pL`: 11, `(a*)*`: 11, `(a?){3}`: 16, `(?:(?:\d)+){1,6}`: 22, `(/|/|[aeiou])`: 13, `(?:(?:\s)+){2,6}`: 36,
		`[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}`: 78,
	} {
		r := &report{}
		r.regex("r", text)
		if len(r.list) > 0 {
			t.Errorf("%s: %v", text, r.first())
		}
		got := sizeOf(t, text)
		if got < size || got > 2*size+3 {
			t.Errorf("%s: %d instructions, Envoy's has %d", text, got, size)
		}
	}
	for _, text := range []string{`a{500}b{501}`, `(`, `\x{100}`, `\p{Greek}`, `\pX`, `\p`, `a**`, `(?=a)`, `\C`, "\n", "é", strings.Repeat("a", maxRegex+1), `(\pL{9}){99}`} {
		r := &report{}
		r.regex("r", text)
		if len(r.list) != 1 {
			t.Errorf("%.50q: %d problems", text, len(r.list))
		}
	}
	for _, text := range []string{`\Q\x{100}\E`, `\xff`, `\x{ff}`, `\\x{10}`, `\p{^Lu}`, `\PN`, `(?i)a`, `(?P<x>a)`} {
		if err := checkRegex(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func sizeOf(t *testing.T, text string) int {
	t.Helper()
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		t.Fatal(err)
	}
	return programSize(re) + 5
}

// Every list ends somewhere.
func TestEntryLimits(t *testing.T) {
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	pairs := func(n int, value string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"a%d":%s`, i, value)
		}
		return b.String()[1:]
	}
	router := func(match, destination string) string {
		return fmt.Sprintf(`{"Kind":"service-router","Name":"a","Routes":[{"Match":{"HTTP":{%s}},"Destination":{%s}}]}`, match, destination)
	}
	resolver := func(text string) string { return `{"Kind":"service-resolver","Name":"a",` + text + `}` }
	intentions := func(permission string) string {
		return `{"Kind":"service-intentions","Name":"a","Sources":[{"Name":"b","Permissions":[` + permission + `]}]}`
	}
	provider := func(text string) string {
		return `{"Kind":"jwt-provider","Name":"a","JSONWebKeySet":{"Local":{"JWKS":"` + strings.Repeat("a", 4*maxKeySet) + `"}},` + text + `}`
	}
	for body, want := range map[string]string{
		`{"Kind":"service-router","Name":"a","Routes":[` + many(1001, "{}") + `]}`:                                                                                                 "1001 routes are more than the limit of 1000",
		router(`"Header":[`+many(51, `{"Name":"a","Present":true}`)+`]`, ""):                                                                                                       "51 headers are more than",
		router(`"QueryParam":[`+many(51, `{"Name":"a","Present":true}`)+`]`, ""):                                                                                                   "51 parameters are more than",
		router(`"Methods":[`+many(10, `"GET"`)+`]`, ""):                                                                                                                            "10 methods are more than",
		router(`"PathExact":"/`+strings.Repeat("a", maxText)+`"`, ""):                                                                                                              "longer than 1024 bytes",
		router("", `"RetryOn":[`+many(25, `"5xx"`)+`]`):                                                                                                                            "25 conditions are more than",
		router("", `"RetryOnStatusCodes":[`+many(51, "500")+`]`):                                                                                                                   "51 status codes are more than",
		router("", `"RequestHeaders":{"Set":{`+pairs(51, `"b"`)+`}}`):                                                                                                              "51 headers are more than",
		router("", `"RequestHeaders":{"Set":{"a":"`+strings.Repeat("a", maxValue+1)+`"}}`):                                                                                         "longer than 4096 bytes",
		`{"Kind":"service-splitter","Name":"a","Splits":[` + many(101, `{"Weight":0}`) + `]}`:                                                                                      "101 splits are more than",
		resolver(`"Subsets":{` + pairs(101, "{}") + `}`):                                                                                                                           "101 subsets are more than",
		resolver(`"Failover":{` + pairs(102, "{}") + `}`):                                                                                                                          "102 subsets are more than",
		resolver(`"Failover":{"*":{"Targets":[` + many(51, "{}") + `]}}`):                                                                                                          "51 targets are more than",
		resolver(`"Failover":{"*":{"Datacenters":[` + many(51, `"a"`) + `]}}`):                                                                                                     "51 datacenters are more than",
		resolver(`"LoadBalancer":{"Policy":"maglev","HashPolicies":[` + many(21, "{}") + `]}`):                                                                                     "21 policies are more than",
		intentions(many(101, `{"Action":"deny","HTTP":{"PathExact":"/"}}`)):                                                                                                        "101 permissions are more than",
		intentions(`{"Action":"deny","HTTP":{"Header":[` + many(51, `{"Name":"a","Present":true}`) + `]}}`):                                                                        "51 headers are more than",
		`{"Kind":"service-intentions","Name":"a","Sources":[{"Name":"b","Action":"deny"}],"JWT":{"Providers":[` + many(21, "{}") + `]}}`:                                           "21 providers are more than",
		`{"Kind":"service-intentions","Name":"a","Sources":[{"Name":"b","Action":"deny"}],"JWT":{"Providers":[{"Name":"a","VerifyClaims":[` + many(21, "{}") + `]}]}}`:             "21 claims are more than",
		`{"Kind":"service-intentions","Name":"a","Sources":[{"Name":"b","Action":"deny"}],"JWT":{"Providers":[{"Name":"a","VerifyClaims":[{"Path":[` + many(11, `"a"`) + `]}]}]}}`: "11 parts are more than",
		provider(`"Audiences":[` + many(101, `"a"`) + `]`):                                                                                                                         "101 audiences are more than",
		provider(`"Locations":[` + many(21, `{}`) + `]`):                                                                                                                           "21 locations are more than",
		provider(`"Issuer":"a"`): "longer than 65536 bytes",
		`{"Kind":"traffic-policy","Name":"a","Audit":{"Sources":[` + many(1001, `"a"`) + `]}}`: "1001 sources are more than",
	} {
		if _, err := DecodeEntryJSON([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120s: error %.200v, want %s", body, err, want)
		}
	}
	e := &ServiceIntentions{Name: "a"}
	for i := range 101 {
		from := &SourceIntention{Name: fmt.Sprintf("s%d", i)}
		for range 100 {
			from.Permissions = append(from.Permissions, &Permission{Action: Deny, HTTP: &HTTPPermission{PathExact: "/"}})
		}
		e.Sources = append(e.Sources, from)
	}
	if err := e.Validate(); err == nil || !strings.Contains(err.Error(), "10100 permissions are more than the limit of 10000") {
		t.Errorf("many permissions: %v", err)
	}
}
