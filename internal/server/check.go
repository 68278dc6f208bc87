package server

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// checkAnswer is the body of GET /v1/crossfade/config/check.
type checkAnswer struct {
	Entries  int       `json:"entries"`  // looked at
	Sidecars int       `json:"sidecars"` // registered, and looked at
	Problems []finding `json:"problems"` // sorted
}

// finding is one problem, on all sidecars that have it.
type finding struct {
	// Subject is what is at fault: an entry as KIND/NAME, a part of a registration, a
	// resource, or a file.
	Subject  string   `json:"subject"`
	Service  string   `json:"service,omitempty"` // whom it harms
	Problem  string   `json:"problem"`
	Sidecars []string `json:"sidecars,omitempty"`
	More     int      `json:"more,omitempty"` // sidecars that are not named
}

// findings collects problems, each once.
type findings map[proxy.Problem]map[string]struct{}

func (f findings) add(p proxy.Problem, sidecar string) {
	if f[p] == nil {
		f[p] = map[string]struct{}{}
	}
	if sidecar != "" {
		f[p][sidecar] = struct{}{}
	}
}

func (f findings) sorted() []finding {
	out := []finding{}
	for p, sidecars := range f {
		one := finding{Subject: p.Subject, Service: p.Service, Problem: p.Reason, Sidecars: slices.Sorted(maps.Keys(sidecars))}
		if one.More = max(0, len(one.Sidecars)-maxPlanNames); one.More > 0 {
			one.Sidecars = one.Sidecars[:maxPlanNames]
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Problem, b.Problem))
	})
	return out
}

// check says what is wrong now: with entries by themselves and with each other, with
// what sidecars are made of them, with what their Envoys make of that, and with files.
func (s *Server) check(w http.ResponseWriter, r *http.Request) {
	found := findings{}
	s.catchUp(r.Context())
	answer, err := s.mesh.check(r.Context(), found)
	if err != nil {
		http.Error(w, "check: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	for _, st := range s.mesh.xds.Status() {
		for typ, of := range st.Types {
			for name, refusal := range of.Refused {
				res := typ + ` "` + name + `"`
				found.add(proxy.Problem{Subject: res, Reason: "refused by Envoy, which keeps the version before: " + strings.TrimPrefix(refusal.Message, res+": ")}, s.mesh.idOf(st.Node))
			}
		}
	}
	for _, p := range s.dir.problems() {
		subject, reason, _ := strings.Cut(p, ": ")
		found.add(proxy.Problem{Subject: subject, Reason: reason}, "")
	}
	for pair, why := range s.steps.wrongKV() {
		subject, reason, _ := strings.Cut(why, ": ")
		found.add(proxy.Problem{Service: pair.Destination, Subject: subject, Reason: reason}, "")
	}
	s.engineProblems(found)
	answer.Problems = found.sorted()
	s.answer(w, answer)
}

var errNoCatalog = errors.New("this server does not know the catalog yet: try again")

// idOf is the proxy ID of a connected node.
func (m *mesh) idOf(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.connected[key].id
}

// check adds the problems of entries and of what sidecars are made of them.
func (m *mesh) check(ctx context.Context, found findings) (checkAnswer, error) {
	select {
	case <-m.plans.turn:
		defer func() { m.plans.turn <- struct{}{} }()
	case <-ctx.Done():
		return checkAnswer{}, ctx.Err()
	}
	m.mu.Lock()
	snap, entries, known := m.catalog, m.entries, m.known
	m.mu.Unlock()
	if snap == nil || entries == nil {
		return checkAnswer{}, errNoCatalog
	}
	keys, proxies := entries.Keys(), snap.Proxies()
	for _, k := range keys {
		if err := entries.Get(k).Validate(); err != nil {
			found.add(proxy.Problem{Subject: k.String(), Reason: err.Error()}, "")
		}
	}
	for _, p := range m.routingProblems(entries, keys) {
		found.add(p, "")
	}
	if err := config.CheckProviders(config.NewSet(), entries); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			subject, reason, _ := strings.Cut(line, ": ")
			found.add(proxy.Problem{Subject: subject, Reason: reason}, "")
		}
	}
	for _, in := range proxies {
		if err := ctx.Err(); err != nil {
			return checkAnswer{}, err
		}
		for _, p := range m.plans.problems(m, in, snap, entries, known) {
			found.add(p, in.Service.ID)
		}
	}
	m.plans.keep(proxies)
	return checkAnswer{Entries: len(keys), Sidecars: len(proxies)}, nil
}

// routingProblems is what is wrong with the way to each service that an entry is about,
// whether somebody calls it or not.
func (m *mesh) routingProblems(entries *config.Set, keys []config.Key) (out []proxy.Problem) {
	services := map[string]struct{}{}
	for _, k := range keys {
		if strings.HasPrefix(string(k.Kind), "service-") && k.Name != config.Wildcard {
			services[k.Name] = struct{}{}
		}
	}
	for _, service := range slices.Sorted(maps.Keys(services)) {
		err := isolated(func() error {
			_, problems := routing.Compile(routing.Request{Config: entries, Service: service, Datacenter: m.datacenter})
			out = append(out, problems...)
			return nil
		})
		if err != nil {
			m.log.Error("the way to a service can't be checked", "service", service, "reason", err)
			out = append(out, proxy.Problem{Service: service, Subject: "service " + service, Reason: "it cannot be checked; the server's log says why"})
		}
	}
	return out
}

// problems are those of one registered sidecar.
func (p *planner) problems(m *mesh, in catalog.Instance, snap *catalog.Snapshot, entries *config.Set, known map[string]struct{}) []proxy.Problem {
	p.begin(entries)
	if list, ok := p.found[in.Service]; ok {
		return list
	}
	made, err := m.make(in, snap, entries, known)
	if err != nil {
		m.log.Error("sidecar's configuration can't be built", "sidecar", in.Service.ID, "reason", err)
	}
	p.found[in.Service] = made.problems
	return made.problems
}
