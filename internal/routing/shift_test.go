package routing_test

import (
	"strings"
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
		http    = `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`
		router  = `{"Kind":"service-router","Name":"api","Routes":[{"Destination":{"Service":"api"}},{"Match":{"HTTP":{"PathPrefix":"/a"}},"Destination":{"Service":"api","PrefixRewrite":"/x"}}]}`
		even    = `{"Kind":"service-router","Name":"api","Routes":[{"Match":{"HTTP":{"PathPrefix":"/a"}},"Destination":{"Service":"cart","PrefixRewrite":"/x"}},{"Destination":{"RequestTimeout":"1s"}}]}`
		half    = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Legacy":{"Address":"api.old:80"},"Shares":{"legacy":50,"mtls":50}}`
		other   = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Shares":{"direct":50,"mtls":50}}`
		done    = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Legacy":{"Address":"api.old:80"},"Shares":{"mtls":100}}`
		all     = `{"Kind":"traffic-shift","Source":"*","Destination":"*","Shares":{"direct":100}}`
		callers = `{"Kind":"traffic-shift","Source":"*","Destination":"api","Shares":{"mtls":100}}`
		plain   = `{"Kind":"traffic-shift","Source":"web","Destination":"api","Shares":{"plain":10,"mtls":90}}`
		plains  = `{"Kind":"traffic-shift","Source":"web","Destination":"*","Shares":{"plain":10,"mtls":90}}`

		permissive  = `{"Kind":"service-defaults","Name":"api","MutualTLSMode":"permissive"}`
		strict      = `{"Kind":"service-defaults","Name":"api","MutualTLSMode":"strict"}`
		unset       = `{"Kind":"service-defaults","Name":"api"}`
		permissives = `{"Kind":"proxy-defaults","Name":"global","MutualTLSMode":"permissive"}`
		stricts     = `{"Kind":"proxy-defaults","Name":"global","MutualTLSMode":"strict"}`
	)
	const (
		routed = `traffic-shift/web~api: service-router/api: Routes[1].Destination.PrefixRewrite: the path is changed before a way is chosen, and the old mesh must get the caller's: have all on mtls, or take the rewrite out`
		closed = `traffic-shift/web~api: Shares.direct: 50% would not go by mtls, and "api" takes nothing else (strict by service-defaults/api): have all on mtls, or make it permissive first`
		shut   = `traffic-shift/web~api: Shares.plain: the sidecars of "api" take no plaintext: write service-defaults/api with MutualTLSMode = "permissive" first, and have nothing on plain before that goes`
		others = `services without service-defaults that say more`
	)
	for name, tc := range map[string]struct {
		before, after []string
		want          string
	}{
		"a shift beside a router":  {[]string{http, router}, []string{http, router, half}, routed},
		"a router beside a shift":  {[]string{http, half}, []string{http, half, router}, routed},
		"a shift that is over":     {[]string{http, router}, []string{http, router, done}, ""},
		"a shift of all":           {[]string{http, router}, []string{http, router, all}, ""},
		"connections past the old": {nil, []string{other}, ""},
		"broken before":            {[]string{http, router, half}, []string{http, router, other}, ""},
		"another service's path":   {[]string{http, other}, []string{http, other, even}, ""},

		"past a strict callee":          {[]string{strict}, []string{strict, other}, closed},
		"a callee becomes strict":       {[]string{permissive, other}, []string{strict, other}, closed},
		"by default":                    {[]string{unset, other}, []string{unset, stricts, other}, strings.ReplaceAll(closed, "service-defaults/api", "proxy-defaults/global")},
		"strict when all is on mtls":    {[]string{permissive, done}, []string{strict, done}, ""},
		"nothing said":                  {nil, []string{other}, ""},
		"plaintext to who takes none":   {nil, []string{plain}, shut},
		"plaintext to who takes it":     {[]string{permissive}, []string{permissive, plain}, ""},
		"plaintext by default":          {[]string{permissives, unset}, []string{permissives, unset, plain}, ""},
		"permissive no longer":          {[]string{permissive, plain}, []string{unset, plain}, shut},
		"permissive gone":               {[]string{permissive, plain}, []string{plain}, shut},
		"default gone":                  {[]string{permissives, plain}, []string{http, plain}, shut},
		"strict with plaintext":         {[]string{permissive, plain}, []string{strict, plain}, strings.ReplaceAll(closed, "direct: 50", "plain: 10")},
		"one of all becomes strict":     {[]string{permissive, all}, []string{strict, all}, strings.NewReplacer("web~api", "*~*", "50", "100").Replace(closed)},
		"but another decides for it":    {[]string{permissive, all, callers}, []string{strict, all, callers}, ""},
		"until that goes":               {[]string{strict, all, callers}, []string{strict, all}, strings.NewReplacer("web~api", "*~*", "50", "100").Replace(closed)},
		"all become strict":             {[]string{all}, []string{all, stricts}, strings.NewReplacer("web~api", "*~*", "50", "100", `"api"`, others, "service-defaults/api", "proxy-defaults/global").Replace(closed)},
		"plaintext to all":              {[]string{permissives}, []string{permissives, plains}, ""},
		"plaintext to all but one":      {[]string{permissives}, []string{permissives, strict, plains}, strings.NewReplacer("web~api", "web~*", "direct: 50", "plain: 10").Replace(closed)},
		"plaintext to who says nothing": {[]string{permissive}, []string{permissive, plains}, strings.NewReplacer("web~api", "web~*", `"api"`, others, "service-defaults/api", "proxy-defaults/global").Replace(shut)},
		"another wrong than before":     {[]string{http, router, half}, []string{http, router, strict, half}, strings.ReplaceAll(closed, "direct", "legacy")},
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
