package envoy_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

func audit(service string, a *config.Audit) config.Entry {
	return &config.TrafficPolicy{Kind: config.KindTrafficPolicy, Name: service, Audit: a}
}

// TestAudit holds that what is audited is let through and counted, and that nothing
// else is either.
func TestAudit(t *testing.T) {
	l, address := startAPI(t)
	l.input.DefaultAllow = false
	clients := map[string]*http.Client{}
	expect := func(caller, path string, want int) {
		t.Helper()
		if clients[caller] == nil {
			clients[caller] = l.mesh.client(l.mesh.ca.Client(spiffe(caller)))
		}
		if got := send(t, clients[caller], address, "GET", path, nil); got != want {
			t.Errorf("%s %s: %d, want %d", caller, path, got, want)
		}
	}
	before := map[string]int{}
	counted := func(denied, shadow int) {
		t.Helper()
		for stat, want := range map[string]int{"http.public_listener.rbac.denied": denied, "http.public_listener.rbac.shadow_denied": shadow} {
			now := l.Stat(stat)
			if got := now - before[stat]; got != want {
				t.Errorf("%s grew by %d, want %d", stat, got, want)
			}
			before[stat] = now
		}
	}
	l.write(intentions("api",
		&config.SourceIntention{Name: "web", Permissions: []*config.Permission{rule(config.Allow, config.HTTPPermission{PathPrefix: "/v1/"})}},
		&config.SourceIntention{Name: "batch", Action: config.Deny},
		&config.SourceIntention{Name: "cron", Action: config.Deny},
		&config.SourceIntention{Name: "mobile", Action: config.Allow},
	))
	expect("web", "/v1/a", 200)
	expect("web", "/v2", 403)
	expect("batch", "/", 403)
	expect("stranger", "/", 403)
	counted(3, 0)

	l.write(audit("api", &config.Audit{Sources: []string{"web", "batch"}}))
	expect("web", "/v1/a", 200)
	expect("web", "/v2", 200) // counted
	expect("batch", "/", 200) // counted
	expect("cron", "/", 403)
	expect("mobile", "/", 200)
	expect("stranger", "/", 403)
	counted(2, 2)

	l.write(audit("api", &config.Audit{Default: true}))
	expect("web", "/v2", 403)
	expect("batch", "/", 403)
	expect("stranger", "/", 200) // counted
	expect("mobile", "/", 200)
	counted(2, 1)

	// That of "*" is for services without a policy of their own.
	l.write(audit("*", &config.Audit{Sources: []string{"cron"}}), audit("api", nil))
	expect("cron", "/", 403)
	counted(1, 0)
	l.input.Config = l.input.Config.With(nil, []config.Key{{Kind: config.KindTrafficPolicy, Name: "api"}})
	l.write()
	expect("cron", "/", 200) // counted
	expect("batch", "/", 403)
	counted(1, 1)
	l.untouched()
}

func TestAuditOfConnections(t *testing.T) {
	port := meshtest.FreePorts(t, 1)[0]
	l := startLive(t, fmt.Sprintf(`
-- services/payments.hcl --
service {
  name = "payments"
  port = %d
  connect { sidecar_service { port = %d } }
}
`, bannerApp(t), port), meshtest.NewAuthority(t))
	// The rules are looked up on a caller's first byte, which greet does not send.
	call := func() string {
		t.Helper()
		c, banner := l.greet(port)
		if banner != "" {
			fmt.Fprintln(c, "x")
			c.Read(make([]byte, 1))
		}
		return banner
	}
	deny := intentions("payments", &config.SourceIntention{Name: "storefront", Action: config.Deny}, &config.SourceIntention{Name: "web", Action: config.Deny})
	l.write(deny)
	if banner := call(); banner != "" {
		t.Errorf("denied, the caller read %q", banner)
	}
	l.write(audit("payments", &config.Audit{Sources: []string{"storefront"}}))
	if banner := call(); banner != "payments ready\n" {
		t.Errorf("audited, the caller read %q", banner)
	}
	if n := l.Stat("public_listener.rbac.shadow_denied"); n != 1 {
		t.Errorf("shadow_denied is %d, want 1", n)
	}
	l.write(audit("payments", &config.Audit{Sources: []string{"web"}}))
	if banner := call(); banner != "" {
		t.Errorf("another audited, the caller read %q", banner)
	}
	if n := l.Stat("public_listener.rbac.shadow_denied"); n != 1 {
		t.Errorf("shadow_denied is %d, want 1 still", n)
	}
	l.untouched()
}
