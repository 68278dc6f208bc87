package telemetry

import (
	"net/netip"
	"testing"
)

// Connections stay counted by way when Envoy tells no more of their endpoints, since these have
// no share any more.
func TestConnectionsToEndpointsThatAreGone(t *testing.T) {
	const cluster = "payments.default.dc1.internal.x.consul"
	connection := func(way string) string {
		return "cf.connection.destination.payments.way." + way + ".wanted." + cluster + ".flags.-"
	}
	at := func(address, part string) host { return host{cluster, address, part} }
	old, direct, plain, mtls := at("1", "legacy"), at("2", "direct"), at("3", "plain"), at("4", cluster)
	var m Meter
	step := func(what, want string, made map[string]uint64, active uint64, open map[host]uint64) {
		t.Helper()
		stats := map[string]uint64{clusterStat(cluster, connectionsOpen): active}
		for way, n := range made {
			stats[connection(way)] = n
			stats[clusterStat(cluster, connectionsMade)] += n
		}
		r, again := m.Read(noon, counts(stats))
		if again {
			hosts := Hosts{}
			for h, n := range open {
				hosts[h] = hostCounts{open: n}
			}
			r = r.Merge(m.ReadHosts(hosts))
		}
		r.Outbound = nil
		if got := told(r); got != want {
			t.Errorf("%s: got\n%swant\n%s", what, got, want)
		}
	}
	step("all on mtls", "payments mtls: 7 open\n", map[string]uint64{"": 7}, 7, nil)
	step("back, and one comes by legacy", "payments legacy: 1 open\n", map[string]uint64{"": 7, "legacy": 1}, 8, map[host]uint64{old: 1})
	step("five end", "payments mtls: 2 open\n", map[string]uint64{"": 7, "legacy": 1}, 3, map[host]uint64{old: 1})
	step("all end", "payments mtls: 0 open\n", map[string]uint64{"": 7, "legacy": 1}, 1, map[host]uint64{old: 1})
	step("divided anew", "payments direct: 2 open\npayments legacy: 3 open\npayments mtls: 6 open\npayments plain: 4 open\n", map[string]uint64{"": 13, "legacy": 3, "direct": 2, "plain": 4}, 15,
		map[host]uint64{old: 3, direct: 2, plain: 4, mtls: 6})
	step("back again", "payments legacy: 4 open\n", map[string]uint64{"": 13, "legacy": 4, "direct": 2, "plain": 4}, 16, map[host]uint64{old: 4})
	step("half of what is gone ends", "payments direct: 1 open\npayments mtls: 3 open\npayments plain: 2 open\n", map[string]uint64{"": 13, "legacy": 4, "direct": 2, "plain": 4}, 10, map[host]uint64{old: 4})
	m.Restarted()
	step("another Envoy", "payments direct: 0 open\npayments legacy: 1 open\npayments mtls: 0 open\npayments plain: 0 open\n", map[string]uint64{"legacy": 1}, 1, map[host]uint64{old: 1})
}

func TestCutShort(t *testing.T) {
	name := func(destination, way, flags string) string {
		return "cf.attempt.destination." + destination + ".way." + way + ".wanted.x.code.200.flags." + flags + ".grpc."
	}
	counters := map[string]int64{
		name("a.b", "", "UC"): 1, name("a.b", "plain", "UC"): 10, name("a.b", "legacy", "UC"): 100, name("a.b", "", "-"): 1000, name("c", "", "UC"): 10_000,
		name("a.b", "direct", "UPE,UC"): 100_000, "cf.attempt.destination.a.b.way.": 7,
	}
	if n := CutShort(counters, "a.b", "legacy"); n != 100_011 {
		t.Errorf("%d", n)
	}
	if n := UnderWay(map[string]int64{"cluster.x.upstream_rq_active": 3, "cluster.y.upstream_rq_active": 5}, []string{"x", "z"}); n != 3 {
		t.Errorf("%d", n)
	}
}

func TestIdle(t *testing.T) {
	at := func(port string) string {
		return `{"socket_address": {"address": "10.0.0.1", "port_value": ` + port + `}}`
	}
	got := Hosts{
		{"a", at("1"), ""}: {open: 1}, {"a", at("2"), ""}: {requests: 1}, {"b", at("2"), ""}: {}, {"b", at("3"), ""}: {}, {"c", at("4"), ""}: {}, {"a", `{"pipe": {"path": "/x"}}`, ""}: {},
	}.Idle([]string{"a", "b"})
	if len(got) != 2 || !got[netip.MustParseAddrPort("10.0.0.1:1")] || !got[netip.MustParseAddrPort("10.0.0.1:3")] {
		t.Errorf("%v", got)
	}
}

// How far cuts are is kept of each destination, and told to a server once it asks anew.
func TestCutsInReports(t *testing.T) {
	a, b := Cut{Destination: "a", Order: "1", State: CutClosing}, Cut{Destination: "b", Order: "1", State: CutDone, Connections: 2, Closed: 9}
	later := a
	later.State = CutDone
	r := Report{Cuts: []Cut{a, b}}.Merge(Report{Cuts: []Cut{later}})
	if len(r.Cuts) != 2 || r.Cuts[0] != later || r.Cuts[1] != b || r.Empty() {
		t.Errorf("%+v", r.Cuts)
	}
	r.Session, r.Seq = 1, 1
	text, err := r.Encode()
	if err == nil {
		r, err = Decode(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	book, key := NewBook(), Key{"n", "web-1", "web"}
	book.Put(key, r, noon)
	if book.Cut(key, "a") != later || book.Cut(key, "b") != b || book.Cut(key, "c") != (Cut{}) || book.Cut(Key{}, "a") != (Cut{}) {
		t.Errorf("%+v, %+v", book.Cut(key, "a"), book.Cut(key, "b"))
	}
}
