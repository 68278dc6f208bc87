package envoy_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/config/configtest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest/effort"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// sets draws sets of entries whose chains are whole.
type sets struct {
	dice
	t   *testing.T
	set map[string]bool // fields of entries that were in some set
}

// kinds are drawn in this order, so that what refers to subsets finds them.
func (s *sets) draw(services []string) *config.Set {
	names := configtest.Names{Services: services, Subsets: []string{"v1", "v2"}, Providers: []string{"keycloak", "okta"}}
	names.Protocols = []string{one(s.dice, config.TCP, config.HTTP, config.HTTP2, config.GRPC)}
	if s.IntN(8) == 0 {
		names.Protocols = append(names.Protocols, config.TCP, config.HTTP)
	}
	out := config.NewSet()
	for _, kind := range []config.Kind{
		config.KindMesh, config.KindProxyDefaults, config.KindJWTProvider, config.KindServiceDefaults, config.KindServiceResolver, config.KindServiceSplitter,
		config.KindServiceRouter, config.KindTrafficPolicy, config.KindTrafficShift, config.KindServiceIntentions,
	} {
		gen := rapid.Custom(func(t *rapid.T) config.Entry { return configtest.Draw(t, kind, names) })
		for range len(services) + 1 {
			if e := gen.Example(s.IntN(1 << 30)); s.IntN(4) > 0 {
				e.Normalize()
				if err := e.Validate(); err != nil {
					s.t.Fatal(err)
				}
				if next := out.With([]config.Entry{e}, nil); whole(next, services) {
					out = next
				}
			}
		}
	}
	for _, k := range out.Keys() {
		configtest.Mark(reflect.ValueOf(out.Get(k)), s.set)
	}
	return out
}

func whole(s *config.Set, services []string) bool {
	return !slices.ContainsFunc(services, func(name string) bool {
		chain, _ := routing.Compile(routing.Request{Config: s, Service: name, Datacenter: meshtest.Datacenter})
		return chain.Broken != ""
	})
}

// What is valid is taken: whatever entries say, Envoy runs it, on the side of the
// caller and of the callee.
func TestEnvoyTakesWhateverIsValid(t *testing.T) {
	const most = time.Minute
	wanted := effort.Rounds(300)
	enough := wanted / 2
	ports := meshtest.FreePorts(t, 8)
	services := []string{"web", "catalog", "orders", "db"}
	scenario := func(service string, upstreams ...string) string {
		var ups strings.Builder
		for i, u := range upstreams {
			fmt.Fprintf(&ups, "upstreams { destination_name = %q local_bind_port = %d }\n", u, ports[i])
		}
		return fmt.Sprintf(`
-- services/%[1]s.hcl --
service {
  name = %[1]q
  port = 9
  connect { sidecar_service {
    port = %[2]d
    proxy { %[3]s }
  } }
}
-- services/db.hcl --
service {
  name = "db"
  id = "db-1"
  port = 9
  connect { native = true }
}
-- services/orders.hcl --
service {
  name = "orders"
  port = 9
  connect { sidecar_service {
    port = 10
    meta { crossfade_plaintext = "11" }
  } }
}
`, service, ports[len(upstreams)], ups.String())
	}
	ca := meshtest.NewAuthority(t)
	caller := startLive(t, scenario("web", "catalog", "orders", "db"), ca, "--drain-time-s", "1")
	ports = ports[4:]
	callee := startLive(t, scenario("catalog"), ca, "--drain-time-s", "1")
	caller.problemsAreFine, callee.problemsAreFine = true, true

	s := &sets{dice: dice{rand.New(rand.NewPCG(1, 1))}, t: t, set: map[string]bool{}}
	begin, n := time.Now(), 0
	for ; n < wanted; n++ {
		// A machine that is busy with other things gets through fewer.
		if took := time.Since(begin); took > most && n >= enough {
			break
		}
		set := s.draw(services)
		before := time.Now()
		for _, l := range []*live{caller, callee} {
			l.input.Config = set
			l.push()
		}
		caller.settle()
		callee.settle()
		if took := time.Since(before); took > 10*time.Second {
			t.Errorf("set %d: in force after %v", n, took)
		}
	}
	t.Logf("%d sets in %v", n, time.Since(begin))
	for _, l := range []*live{caller, callee} {
		for line := range strings.Lines(l.Admin("/stats")) {
			if name, value, _ := strings.Cut(strings.TrimSpace(line), ": "); strings.HasSuffix(name, "update_rejected") && value != "0" {
				t.Errorf("%s is %s", name, value)
			}
		}
	}
	if wanted < 300 {
		return // so few sets do not have it all
	}
	for _, kind := range config.Kinds() {
		gen := rapid.Custom(func(t *rapid.T) config.Entry { return configtest.Draw(t, kind, configtest.Names{}) })
		for _, field := range configtest.Fields(reflect.TypeOf(gen.Example(0))) {
			if !s.set[field] {
				t.Errorf("%s: %s was in no set", kind, field)
			}
		}
	}
}
