package routing_test

import (
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

func entries(t *testing.T, bodies ...string) *config.Set {
	t.Helper()
	var out []config.Entry
	for _, b := range bodies {
		e, err := config.DecodeEntryJSON([]byte(b))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return config.NewSet(out...)
}

// What cannot be honoured is refused, whichever entry comes last; what is broken
// already is no reason.
func TestCheckShifts(t *testing.T) {
	const (
		http   = `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`
		router = `{"Kind":"service-router","Name":"api","Routes":[{"Destination":{"Service":"api"}}]}`
		half   = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Legacy":{"Address":"api.old:80"},"Shares":{"legacy":50,"mtls":50}}`
		other  = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Shares":{"direct":50,"mtls":50}}`
		done   = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Legacy":{"Address":"api.old:80"},"Shares":{"mtls":100}}`
		all    = `{"Kind":"traffic-shift","Source":"*","Destination":"*","Shares":{"direct":100}}`
	)
	const (
		routed = `traffic-shift/web~api: service-router/api: its rules are for the way between sidecars alone: have all on mtls, or delete it`
		named  = `traffic-shift/web~api: Legacy.Address "api.old:80": "api" speaks tcp, and connections are divided by IP address alone: give one`
	)
	for name, tc := range map[string]struct {
		before, after []string
		want          string
	}{
		"a shift beside a router":  {[]string{http, router}, []string{http, router, half}, routed},
		"a router beside a shift":  {[]string{http, half}, []string{http, half, router}, routed},
		"a shift that is over":     {[]string{http, router}, []string{http, router, done}, ""},
		"a shift of all":           {[]string{http, router}, []string{http, router, all}, ""},
		"requests to a name":       {[]string{http}, []string{http, half}, ""},
		"connections to a name":    {nil, []string{half}, named},
		"requests no longer":       {[]string{http, half}, []string{half}, named},
		"connections past the old": {nil, []string{other}, ""},
		"broken before":            {[]string{http, router, half}, []string{http, router, other}, ""},
	} {
		err := routing.Check(entries(t, tc.before...), entries(t, tc.after...), "dc1")
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
