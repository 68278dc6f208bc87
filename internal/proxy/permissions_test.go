package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// TestBrokenPermissionShutsMoreOut decides by permissions that nothing has checked.
// One that cannot be read allows nothing, and denies by the rest of it.
func TestBrokenPermissionShutsMoreOut(t *testing.T) {
	header := func(h config.HeaderPermission) config.HTTPPermission {
		return config.HTTPPermission{Header: []config.HeaderPermission{h}}
	}
	for _, tc := range []struct {
		name   string
		broken config.HTTPPermission
		want   string
	}{
		{"two paths", config.HTTPPermission{PathExact: "/a", PathPrefix: "/b"}, "more than one of PathExact"},
		{"expression", config.HTTPPermission{PathRegex: "("}, "no regular expression"},
		{"expression of characters", config.HTTPPermission{PathRegex: `\x{100}`}, "no regular expression"},
		{"path with a query", config.HTTPPermission{PathPrefix: "/a?b"}, "has a query"},
		{"no header name", header(config.HeaderPermission{Exact: "a"}), "no header is called so"},
		{"bad header name", header(config.HeaderPermission{Name: "a b", Exact: "a"}), "no header is called so"},
		{"no condition", header(config.HeaderPermission{Name: "a"}), "want exactly one"},
		{"two conditions", header(config.HeaderPermission{Name: "a", Exact: "b", Prefix: "c"}), "want exactly one"},
		{"header expression", header(config.HeaderPermission{Name: "a", Regex: "a{1001}"}), "no regular expression"},
		{"inverted", header(config.HeaderPermission{Name: "a", Regex: "(", Invert: true}), "no regular expression"},
	} {
		for action, left := range map[config.Action]int{config.Allow: 1, config.Deny: 2} {
			t.Run(tc.name+" "+string(action), func(t *testing.T) {
				in := sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", LocalServicePort: 80}})
				broken := tc.broken
				broken.Methods = []string{"GET"}
				in.Config = config.NewSet(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "web", Protocol: "http"},
					&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "web", Sources: []*config.SourceIntention{{Name: "a", Permissions: []*config.Permission{
						{Action: action, HTTP: &broken}, {Action: config.Allow, HTTP: &config.HTTPPermission{PathPrefix: "/"}},
					}}}})
				p, problems := proxy.Build(in)
				if len(problems) != 1 || !strings.Contains(problems[0].Reason, tc.want) || problems[0].Subject != `service-intentions/web source "a" permission 1` {
					t.Errorf("problems %v, want %q", problems, tc.want)
				}
				got := p.Inbound.Intentions.Callers[0].Permissions
				if len(got) != left || got[left-1].Number != 2 {
					t.Errorf("permissions %v, want %d", got, left)
				}
				if action == config.Deny && fmt.Sprint(got[0]) != `deny method exact "GET" any case` {
					t.Errorf("%s, want a deny by what is left", got[0])
				}
			})
		}
	}
}

// TestBrokenProviderAcceptsNothing decides by providers that nothing has checked.
func TestBrokenProviderAcceptsNothing(t *testing.T) {
	keys := &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: "eyJrZXlzIjpbe31dfQ=="}}
	for want, e := range map[string]*config.JWTProvider{
		"no key set in the entry":    {},
		"illegal base64":             {JSONWebKeySet: &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: "{"}}},
		"invalid character":          {JSONWebKeySet: &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: "eHg="}}},
		"it has no keys":             {JSONWebKeySet: &config.JSONWebKeySet{Local: &config.LocalJWKS{JWKS: "e30="}}},
		"is negative":                {JSONWebKeySet: keys, ClockSkewSeconds: -1},
		`no header is called "a b"`:  {JSONWebKeySet: keys, Locations: []*config.JWTLocation{{Header: &config.JWTHeader{Name: "a b"}}}},
		`no header is called "x\ny"`: {JSONWebKeySet: keys, Forwarding: &config.JWTForwarding{HeaderName: "x\ny"}},
	} {
		e.Kind, e.Name = config.KindJWTProvider, "okta"
		in := sidecar(catalog.Service{Port: 20000, Proxy: &catalog.Proxy{DestinationServiceName: "web", LocalServicePort: 80}})
		in.Config = config.NewSet(e, &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "web", Protocol: "http"},
			&config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "web", Sources: []*config.SourceIntention{{Name: "a", Action: config.Allow}},
				JWT: &config.JWTRequirement{Providers: []*config.JWTProviderRequirement{{Name: "okta"}}}})
		p, problems := proxy.Build(in)
		if len(problems) != 1 || !strings.Contains(problems[0].Reason, want) {
			t.Errorf("problems %v, want %q", problems, want)
		}
		if i := p.Inbound.Intentions; i.Callers[0].Allow || i.Otherwise.Allow || len(i.Providers) != 0 {
			t.Errorf("%s: intentions %+v, want nobody let in", want, i)
		}
	}
}
