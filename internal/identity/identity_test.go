package identity

import "testing"

const td = "11111111-2222-3333-4444-555555555555.consul"

func TestURIRoundTrip(t *testing.T) {
	id := SPIFFE{TrustDomain: td, Datacenter: "dc1", Service: "catalog"}
	const want = "spiffe://" + td + "/ns/default/dc/dc1/svc/catalog"
	if got := id.URI(); got != want {
		t.Fatalf("URI() = %q, want %q", got, want)
	}
	got, err := ParseURI(want)
	if err != nil || got != id {
		t.Fatalf("ParseURI(%q) = %+v, %v; want %+v", want, got, err, id)
	}
	if got, want := id.SNI(), "catalog.default.dc1.internal."+td; got != want {
		t.Errorf("SNI() = %q, want %q", got, want)
	}
}

func TestParseURIRefuses(t *testing.T) {
	for _, raw := range []string{
		"", "catalog", "http://" + td + "/ns/default/dc/dc1/svc/catalog",
		"spiffe://" + td, "spiffe://" + td + "/", "spiffe:///ns/default/dc/dc1/svc/catalog",
		"spiffe://" + td + "/ns/other/dc/dc1/svc/catalog",
		"spiffe://" + td + "/ns/default/dc//svc/catalog",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/catalog/",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/a/b",
		"spiffe://" + td + ":8443/ns/default/dc/dc1/svc/catalog",
		"spiffe://user@" + td + "/ns/default/dc/dc1/svc/catalog",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/catalog?x=1",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/catalog?",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/catalog#f",
		"spiffe://" + td + "/ns/default/dc/dc1/svc/c%61talog",
	} {
		if id, err := ParseURI(raw); err == nil {
			t.Errorf("ParseURI(%q) = %+v, want an error", raw, id)
		}
	}
}

func TestServerURI(t *testing.T) {
	uri := ServerURI(td, "dc1")
	if want := "spiffe://" + td + "/agent/server/dc/dc1"; uri != want || !IsServer(uri, td) {
		t.Fatalf("ServerURI = %q, want %q, of a server", uri, want)
	}
	for _, raw := range []string{
		"", "spiffe://" + td + "/agent/server/dc/", "spiffe://" + td + "/agent/server/dc/a/b", "spiffe://" + td + "/agent/server/dc/dc1?x",
		"spiffe://other.consul/agent/server/dc/dc1", SPIFFE{TrustDomain: td, Datacenter: "dc1", Service: "server"}.URI(),
		"spiffe://" + td + "/agent/server/dc/dc%31",
	} {
		if IsServer(raw, td) {
			t.Errorf("IsServer(%q), want not", raw)
		}
	}
	if IsServer("spiffe:///agent/server/dc/dc1", "") {
		t.Error("a server of no trust domain")
	}
}
