package dns_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	mdns "github.com/miekg/dns"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/dns"
)

// newServer runs one over an empty registry, and gives its address and the registry's API.
func newServer(t *testing.T) (addr string, c *api.Client) {
	t.Helper()
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewServer(consulapi.New(consulapi.Options{Store: st}))
	s, err := dns.Listen(dns.Options{Store: st, Addr: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		hs.Close()
		st.Close()
	})
	return s.Addr(), client(t, hs.URL)
}

func client(t *testing.T, url string) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: url})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// register fills a registry with all that the tests ask for.
func register(t *testing.T, c *api.Client) {
	t.Helper()
	put := func(node, address string, s api.AgentService, status string) {
		t.Helper()
		r := &api.CatalogRegistration{Node: node, Address: address, Service: &s}
		if status != "" {
			r.Check = &api.AgentCheck{CheckID: s.ID, Name: s.ID, ServiceID: s.ID, Status: status}
		}
		if _, err := c.Catalog().Register(r, nil); err != nil {
			t.Fatal(err)
		}
	}
	weights := api.AgentWeights{Passing: 7, Warning: 2}
	put("n1", "10.0.0.1", api.AgentService{ID: "web1", Service: "web", Port: 81, Tags: []string{"v1", "Blue"}, Weights: weights}, "passing")
	put("n1", "10.0.0.1", api.AgentService{ID: "web2", Service: "web", Port: 82, Tags: []string{"v2"}, Address: "10.9.9.9", Weights: weights}, "warning")
	put("n2", "10.0.0.2", api.AgentService{ID: "web3", Service: "web", Port: 83}, "critical")
	put("n2", "10.0.0.2", api.AgentService{ID: "down", Service: "down", Port: 84}, "critical")
	put("n2", "10.0.0.2", api.AgentService{ID: "named", Service: "named", Port: 85, Address: "foo.example.org"}, "")
	put("n2", "10.0.0.2", api.AgentService{ID: "p", Service: "web-proxy", Port: 8585, Kind: api.ServiceKindConnectProxy,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web"}}, "")
	put("n3", "host.example.com", api.AgentService{ID: "ext", Service: "ext", Port: 86}, "")
	put("n6", "fd00::6", api.AgentService{ID: "six", Service: "six", Port: 87}, "")
	put("n7", "10.0.0.7", api.AgentService{ID: "six", Service: "six", Port: 87, Address: "fd00::7"}, "")
	put("Big", "10.0.0.8", api.AgentService{ID: "Case", Service: "Case", Port: 88}, "")
	put("dotted.name", "10.0.0.9", api.AgentService{ID: "dotted", Service: "dotted", Port: 89}, "")
	for i := range 60 {
		put(fmt.Sprintf("m%d", i), fmt.Sprintf("10.1.0.%d", i), api.AgentService{ID: "many", Service: "many", Port: 1000 + i}, "")
	}
}

func ask(t *testing.T, addr, question string, change func(*mdns.Msg)) *mdns.Msg {
	t.Helper()
	qname, qtype, _ := strings.Cut(question, " ")
	qtype, transport, _ := strings.Cut(qtype, " ")
	m := new(mdns.Msg).SetQuestion(qname, mdns.StringToType[qtype])
	if change != nil {
		change(m)
	}
	r, _, err := (&mdns.Client{Net: transport, UDPSize: mdns.MaxMsgSize, Timeout: 5 * time.Second}).Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s: %v", question, err)
	}
	return r
}

// show writes an answer as lines: its code, its records, those beside it with a +.
func show(m *mdns.Msg) []string {
	var answer, extra []string
	for _, rr := range m.Answer {
		answer = append(answer, strings.Join(strings.Fields(rr.String()), " "))
	}
	for _, rr := range m.Extra {
		if a := rr.Header().Rrtype; a == mdns.TypeA || a == mdns.TypeAAAA {
			extra = append(extra, "+ "+strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	slices.Sort(answer)
	slices.Sort(extra)
	code := mdns.RcodeToString[m.Rcode]
	if m.Authoritative {
		code += " aa"
	}
	if len(m.Answer) == 0 && len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == mdns.TypeSOA {
		code += " soa"
	}
	return slices.Concat([]string{code}, answer, extra)
}

func TestAnswers(t *testing.T) {
	addr, c := newServer(t)
	testAnswers(t, addr, c)
}

// testAnswers holds for crossfade and for Consul.
func testAnswers(t *testing.T, addr string, c *api.Client) {
	register(t, c)
	const none = "NXDOMAIN aa soa"
	one, nine := "web.service.consul. 0 IN A 10.0.0.1", "web.service.consul. 0 IN A 10.9.9.9"
	for question, want := range map[string][]string{
		"web.service.consul. A":        {one, nine},
		"web.service.consul. ANY":      {one, nine},
		"web.service.consul. A tcp":    {one, nine},
		"WEB.Service.Consul. A":        {"WEB.Service.Consul. 0 IN A 10.0.0.1", "WEB.Service.Consul. 0 IN A 10.9.9.9"},
		"case.service.consul. A":       {"case.service.consul. 0 IN A 10.0.0.8"},
		"big.node.consul. A":           {"big.node.consul. 0 IN A 10.0.0.8"},
		"dotted.name.node.consul. A":   {"dotted.name.node.consul. 0 IN A 10.0.0.9"},
		"web.service.consul. AAAA":     nil,
		"web.service.dc1.consul. A":    {"web.service.dc1.consul. 0 IN A 10.0.0.1", "web.service.dc1.consul. 0 IN A 10.9.9.9"},
		"web.service.dc1.dc.consul. A": {"web.service.dc1.dc.consul. 0 IN A 10.0.0.1", "web.service.dc1.dc.consul. 0 IN A 10.9.9.9"},
		"web.service.dc2.consul. A":    {none},
		"web.service.consul. SRV": {
			"web.service.consul. 0 IN SRV 1 2 82 0a090909.addr.dc1.consul.", "web.service.consul. 0 IN SRV 1 7 81 n1.node.dc1.consul.",
			"+ 0a090909.addr.dc1.consul. 0 IN A 10.9.9.9", "+ n1.node.dc1.consul. 0 IN A 10.0.0.1"},
		"v1.web.service.consul. A":                               {"v1.web.service.consul. 0 IN A 10.0.0.1"},
		"blue.web.service.consul. SRV":                           {"blue.web.service.consul. 0 IN SRV 1 7 81 n1.node.dc1.consul.", "+ n1.node.dc1.consul. 0 IN A 10.0.0.1"},
		"nope.web.service.consul. A":                             {none},
		"a.b.web.service.consul. A":                              {none},
		"_web._v1.service.consul. SRV":                           {"_web._v1.service.consul. 0 IN SRV 1 7 81 n1.node.dc1.consul.", "+ n1.node.dc1.consul. 0 IN A 10.0.0.1"},
		"_web._v1.service.dc1.consul. A":                         {"_web._v1.service.dc1.consul. 0 IN A 10.0.0.1"},
		"_web._nope.service.consul. SRV":                         {none},
		"_case._tcp.service.consul. SRV":                         {"_case._tcp.service.consul. 0 IN SRV 1 1 88 Big.node.dc1.consul.", "+ Big.node.dc1.consul. 0 IN A 10.0.0.8"},
		"nope.service.consul. A":                                 {none},
		"down.service.consul. A":                                 {none},
		"down.service.consul. SRV":                               {none},
		"named.service.consul. A":                                {"named.service.consul. 0 IN CNAME foo.example.org."},
		"named.service.consul. SRV":                              {"named.service.consul. 0 IN SRV 1 1 85 foo.example.org."},
		"ext.service.consul. A":                                  {"ext.service.consul. 0 IN CNAME host.example.com."},
		"ext.service.consul. SRV":                                {"ext.service.consul. 0 IN SRV 1 1 86 host.example.com."},
		"n3.node.consul. A":                                      {"n3.node.consul. 0 IN CNAME host.example.com."},
		"six.service.consul. A":                                  nil,
		"six.service.consul. AAAA":                               {"six.service.consul. 0 IN AAAA fd00::6", "six.service.consul. 0 IN AAAA fd00::7"},
		"web.connect.consul. A":                                  {"web.connect.consul. 0 IN A 10.0.0.2"},
		"web.connect.consul. SRV":                                {"web.connect.consul. 0 IN SRV 1 1 8585 n2.node.dc1.consul.", "+ n2.node.dc1.consul. 0 IN A 10.0.0.2"},
		"n1.node.dc1.consul. A":                                  {"n1.node.dc1.consul. 0 IN A 10.0.0.1"},
		"n1.node.dc2.consul. A":                                  {none},
		"nope.node.consul. A":                                    {none},
		"0a000001.addr.consul. A":                                {"0a000001.addr.consul. 0 IN A 10.0.0.1"},
		"0a000001.addr.dc1.consul. A":                            {"0a000001.addr.dc1.consul. 0 IN A 10.0.0.1"},
		"zz.addr.consul. A":                                      {none},
		"x.query.consul. A":                                      {none},
		"bogus.consul. A":                                        {none},
		"example.com. A":                                         {"REFUSED"},
		"many.service.consul. NS":                                {"consul. 0 IN NS self.node.dc1.consul.", "+ self"},
		"fd00" + strings.Repeat("0", 27) + "6.addr.consul. AAAA": {"fd00" + strings.Repeat("0", 27) + "6.addr.consul. 0 IN AAAA fd00::6"},
	} {
		switch {
		case want == nil:
			want = []string{"NOERROR aa soa"}
		case !strings.HasPrefix(want[0], "NX") && want[0] != "REFUSED":
			want = slices.Concat([]string{"NOERROR aa"}, want)
		}
		got := show(ask(t, addr, question, nil))
		if last := len(got) - 1; strings.HasPrefix(got[last], "+ self") {
			got[last] = "+ self" // whose address is not the same everywhere
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", question, diff)
		}
	}
	for _, transport := range []string{"A tcp", "SRV tcp"} {
		if r := ask(t, addr, "many.service.consul. "+transport, nil); len(r.Answer) != 60 || r.Truncated {
			t.Errorf("many %s: %d answers, truncated %v", transport, len(r.Answer), r.Truncated)
		}
	}
	orders := map[string]bool{}
	for range 10 {
		orders[ask(t, addr, "many.service.consul. A tcp", nil).Answer[0].String()] = true
	}
	if len(orders) < 2 {
		t.Error("ten answers in the same order")
	}
}

// What Consul does otherwise.
func TestUDPSize(t *testing.T) {
	addr, c := newServer(t)
	register(t, c)
	for _, q := range []struct {
		question string
		offer    uint16 // by EDNS; 0 for none
		size     int
		cut      bool
	}{
		{"many.service.consul. A", 0, 512, true},
		{"many.service.consul. A", 1232, 1232, false},
		{"many.service.consul. SRV", 0, 512, true},
		{"many.service.consul. SRV", 1232, 1232, true},
		{"many.service.consul. SRV", 65535, 4096, false},
	} {
		r := ask(t, addr, q.question, func(m *mdns.Msg) {
			if q.offer > 0 {
				m.SetEdns0(q.offer, false)
			}
		})
		r.Compress = true
		raw, err := r.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > q.size || r.Truncated != q.cut || len(r.Answer) == 0 || (len(r.Answer) == 60) == q.cut || (r.IsEdns0() != nil) != (q.offer > 0) {
			t.Errorf("%s offering %d: %d bytes, %d answers, truncated %v", q.question, q.offer, len(raw), len(r.Answer), r.Truncated)
		}
	}
}

func TestRefusals(t *testing.T) {
	addr, _ := newServer(t)
	for name, q := range map[string]struct {
		change func(*mdns.Msg)
		want   int
	}{
		"another class":   {func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		"a notification":  {func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }, mdns.RcodeNotImplemented},
		"a transfer":      {func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }, mdns.RcodeNotImplemented},
		"another version": {func(m *mdns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, mdns.RcodeBadVers},
	} {
		if r := ask(t, addr, "consul. A", q.change); r.Rcode != q.want || len(r.Answer) > 0 || r.RecursionAvailable {
			t.Errorf("%s: %v", name, r)
		}
	}
	for _, empty := range []string{"consul. A", "service.consul. A", "node.dc1.consul. A"} {
		if r := ask(t, addr, empty, nil); r.Rcode != mdns.RcodeSuccess || len(r.Ns) != 1 {
			t.Errorf("%s: %v", empty, r)
		}
	}
}

func TestNodeMeta(t *testing.T) {
	addr, c := newServer(t)
	long := strings.Repeat("x", 300)
	if _, err := c.Catalog().Register(&api.CatalogRegistration{Node: "n", Address: "10.0.0.1", NodeMeta: map[string]string{"a": "b", "rfc1035-l": long}}, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"NOERROR aa", `n.node.consul. 0 IN TXT "a=b"`, `n.node.consul. 0 IN TXT "` + long[:255] + `" "` + long[255:] + `"`}
	if diff := cmp.Diff(want, show(ask(t, addr, "n.node.consul. TXT", nil))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
