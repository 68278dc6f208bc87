package server

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

// What a client has shown is known for as long as its connection lasts, and parsed no longer than somebody looks at it.
func TestPassingHoldsNoParsedCertificate(t *testing.T) {
	authority, err := ca.Open(ca.Options{Datacenter: "dc1", Authorize: ca.Anyone})
	if err != nil {
		t.Fatal(err)
	}
	defer authority.Close()
	own, err := authority.ServerLeaf([]string{"localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := authority.Identity("web")
	key, csr, err := ca.NewKeyAndCSR(id)
	if err != nil {
		t.Fatal(err)
	}
	text, err := authority.Sign(t.Context(), csr, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := tls.X509KeyPair(text, key)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := ca.NewTrust(authority.Roots().PEM(), "")
	if err != nil {
		t.Fatal(err)
	}

	here, there := net.Pipe()
	defer there.Close()
	said := make(chan error, 1)
	go func() {
		config := trust.TLS(func() *tls.Certificate { return &leaf })
		config.NextProtos = []string{"h2"}
		_, err := tls.Client(there, config).Write([]byte("hello"))
		said <- err
	}()
	conn, info, err := passing{credentials.NewTLS(tlsConfig(own)), authority.CA}.ServerHandshake(here)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	v, ok := info.(visitor)
	if !ok || len(v.chain) != 1 || v.leaf.ID != id || v.SecurityLevel != credentials.PrivacyAndIntegrity {
		t.Fatalf("the visitor is %+v", info)
	}
	if held := conn.(*bounded).Conn.(*tls.Conn).ConnectionState().PeerCertificates; len(held) != 1 || held[0] != taken {
		t.Errorf("the connection holds %v", held)
	}
	for name, before := range map[string]ca.Peer{"as before": v.leaf, "anew": {}} {
		if again, err := authority.VerifyAgain(before, v.chain, time.Now()); err != nil || again != v.leaf {
			t.Errorf("verified %s it is %+v, %v", name, again, err)
		}
	}
	var b [5]byte
	if n, err := conn.Read(b[:]); err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
	there.Close() // or conn waits until its farewell is read
}
