package envoy_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// Callers that Consul configures stop at TLS 1.2: they are let in where there are such
// callers, and nowhere else.
func TestConsulsCallersSpeakTLS12(t *testing.T) {
	port := meshtest.FreePorts(t, 1)[0]
	l := startLive(t, fmt.Sprintf(`
-- services/catalog.hcl --
service {
  name = "catalog"
  port = 9
  connect { sidecar_service { port = %d } }
}
`, port), meshtest.NewAuthority(t))
	handshake := func(most uint16, suites ...uint16) (tls.ConnectionState, error) {
		t.Helper()
		config := l.mesh.ca.Client(spiffe("storefront"))
		config.MinVersion, config.MaxVersion, config.CipherSuites = tls.VersionTLS12, most, suites
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: config}
		c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer c.Close()
		return c.(*tls.Conn).ConnectionState(), nil
	}
	if cs, err := handshake(tls.VersionTLS12); err == nil {
		t.Errorf("TLS %x was taken from nobody's caller", cs.Version)
	}
	l.input.ConsulCallers = true
	l.push()
	l.settle()
	meshtest.Eventually(t, "TLS 1.2 is taken", func() error {
		cs, err := handshake(tls.VersionTLS12)
		if err == nil && cs.Version != tls.VersionTLS12 {
			err = fmt.Errorf("version %x", cs.Version)
		}
		return err
	})
	if cs, err := handshake(tls.VersionTLS13); err != nil || cs.Version != tls.VersionTLS13 {
		t.Errorf("whoever can has 1.3: %x, %v", cs.Version, err)
	}
	for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_128_GCM_SHA256} {
		if _, err := handshake(tls.VersionTLS12, suite); err == nil {
			t.Errorf("%s is taken", tls.CipherSuiteName(suite))
		}
	}
}
