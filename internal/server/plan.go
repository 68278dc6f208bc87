package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Bounds of a plan.
const (
	maxPlanBody    = 8 << 20
	maxPlanEntries = 1000
	maxPlanChanges = 2000
	maxPlanNames   = 100       // of sidecars, beside one change
	maxPlanDiff    = 128 << 10 // of one resource
	maxPlanText    = 4 << 20   // of all
)

// planner makes plans, one at a time, beside the mesh's own goroutine.
type planner struct {
	turn chan struct{} // holds a token while nobody plans

	// What sidecars read under the present entries, and what cannot be honoured of them.
	// Guarded by turn.
	entries *config.Set
	reads   map[*catalog.Service][]config.Key
	found   map[*catalog.Service][]proxy.Problem
	filters proxy.Filters
}

func newPlanner() planner {
	p := planner{turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

// planRequest is the body of POST /v1/crossfade/config/plan.
type planRequest struct {
	Entries []json.RawMessage `json:"entries"`
	Delete  []planKey         `json:"delete"`
}

type planKey struct {
	Kind config.Kind `json:"kind"`
	Name string      `json:"name"`
}

// planAnswer is what writing the entries would do.
type planAnswer struct {
	Sidecars int `json:"sidecars"` // registered
	Changing int `json:"changing"` // of them
	// Listeners is how many listeners drain, wholly or some filter chains of theirs, and
	// Connections how many connections that is but for those of Unknown listeners.
	Listeners   int   `json:"listeners"`
	Connections int64 `json:"connections"`
	Unknown     int   `json:"unknown"`

	Entries  []plannedEntry  `json:"entries"`
	Changes  []plannedChange `json:"changes"`            // by type and name
	Omitted  int             `json:"omitted,omitempty"`  // changes that are not shown
	Problems []string        `json:"problems,omitempty"` // that are not there now
}

type plannedEntry struct {
	planKey
	Action string `json:"action"` // create, change, delete, or unchanged
}

// plannedChange is one resource that becomes another, on all sidecars that have it so.
type plannedChange struct {
	Type     string   `json:"type"`
	Name     string   `json:"name"`
	Action   string   `json:"action"` // added, changed or removed
	Sidecars []string `json:"sidecars"`
	More     int      `json:"more,omitempty"` // sidecars that are not named
	Drains   bool     `json:"drains,omitempty"`
	Chains   []string `json:"chains,omitempty"` // filter chains that drain, where the others of the listener don't
	Diff     string   `json:"diff"`
}

// plan says what writing entries would do, and writes nothing.
func (s *Server) plan(w http.ResponseWriter, r *http.Request) {
	var in planRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPlanBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		http.Error(w, "plan: the request can't be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	if n := len(in.Entries) + len(in.Delete); n == 0 || n > maxPlanEntries {
		http.Error(w, fmt.Sprintf("plan: got %d entries, want 1 to %d", n, maxPlanEntries), http.StatusBadRequest)
		return
	}
	put, drop, err := in.decode()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.catchUp(r.Context())
	answer, err := s.mesh.plan(r.Context(), put, drop, time.Now())
	if err != nil {
		http.Error(w, "plan: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	entries := s.mesh.config()
	if err := s.judgeStrict(entries, entries.With(put, drop), time.Now()); err != nil {
		answer.Problems = append(answer.Problems, refusedLines(err)...)
		slices.Sort(answer.Problems)
	}
	s.answer(w, answer)
}

// catchUp waits, not for long, until the mesh knows the entries that are written now.
func (s *Server) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var index uint64
	s.store.Read(ctx, 0, func(r *store.Reader) { index = r.EntriesIndex() })
	s.mesh.awaitChange(ctx, index)
}

func (in planRequest) decode() (put []config.Entry, drop []config.Key, err error) {
	seen := map[config.Key]bool{}
	once := func(k config.Key) error {
		if seen[k] {
			return fmt.Errorf("%s %q: given twice", k.Kind, k.Name)
		}
		seen[k] = true
		return nil
	}
	for _, raw := range in.Entries {
		e, err := config.DecodeEntryJSON(raw)
		if err != nil {
			return nil, nil, err
		}
		if err := once(config.KeyOf(e)); err != nil {
			return nil, nil, err
		}
		put = append(put, e)
	}
	for _, d := range in.Delete {
		k := config.Key{Kind: d.Kind, Name: d.Name}
		if err := config.CheckKind(k.Kind); err != nil {
			return nil, nil, err
		}
		if err := once(k); err != nil {
			return nil, nil, err
		}
		drop = append(drop, k)
	}
	return put, drop, nil
}

// difference is a resource before and after; either may be nil.
type difference struct {
	xds.Key
	old, new *xds.Resource
	in       []catalog.Instance
}

// refusedLines is why a write would be refused, for people.
func refusedLines(err error) (out []string) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		out = append(out, "the write would be refused: "+line)
	}
	return out
}

// plan builds every registered sidecar that reads what would change, with and without
// the change. It does not hold the mesh up.
func (m *mesh) plan(ctx context.Context, put []config.Entry, drop []config.Key, now time.Time) (*planAnswer, error) {
	select {
	case <-m.plans.turn:
		defer func() { m.plans.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.mu.Lock()
	snap, entries, known := m.catalog, m.entries, m.known
	m.mu.Unlock()
	if snap == nil || entries == nil {
		return nil, fmt.Errorf("this server does not know the catalog yet: try again")
	}
	out := &planAnswer{Changes: []plannedChange{}}
	next := entries.With(out.take(entries, put, drop))
	changed := config.Changed(entries, next)

	found := map[string]*difference{}
	problems := map[string]struct{}{}
	if err := judge(entries, next, m.datacenter); err != nil {
		for _, line := range refusedLines(err) {
			problems[line] = struct{}{}
		}
	}
	proxies := snap.Proxies()
	out.Sidecars = len(proxies)
	for _, in := range proxies {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !m.plans.concerns(m, in, snap, entries, known, changed) {
			continue
		}
		differs, newly := m.compare(in, snap, entries, next, known)
		for _, p := range newly {
			problems[p] = struct{}{}
		}
		if len(differs) > 0 {
			out.Changing++
		}
		for _, d := range differs {
			if whole, chains := d.draining(); whole || len(chains) > 0 {
				out.Listeners++
				if n, known := m.open.of(in, d.Name, now); known && (whole || n == 0) {
					out.Connections += n
				} else {
					out.Unknown++
				}
			}
			id := d.id()
			if found[id] == nil {
				found[id] = &d
			}
			found[id].in = append(found[id].in, in)
		}
	}
	m.plans.keep(proxies)
	out.Problems = slices.Sorted(maps.Keys(problems))
	if len(out.Problems) > maxProblemsTold {
		out.Problems = out.Problems[:maxProblemsTold]
	}
	return out, out.show(found)
}

// take says what becomes of each entry, and returns what is to be changed.
func (out *planAnswer) take(entries *config.Set, put []config.Entry, drop []config.Key) (changed []config.Entry, gone []config.Key) {
	note := func(k config.Key, action string) {
		out.Entries = append(out.Entries, plannedEntry{planKey{k.Kind, k.Name}, action})
	}
	for _, e := range put {
		k := config.KeyOf(e)
		old := entries.Get(k)
		e = config.Succeed(old, e) // as it would be written
		switch {
		case old == nil:
			note(k, "create")
			changed = append(changed, e)
		case sameEntry(old, e):
			note(k, "unchanged")
		default:
			note(k, "change")
			changed = append(changed, e)
		}
	}
	for _, k := range drop {
		if entries.Get(k) == nil {
			note(k, "unchanged")
			continue
		}
		note(k, "delete")
		gone = append(gone, k)
	}
	slices.SortFunc(out.Entries, func(a, b plannedEntry) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name)) })
	return changed, gone
}

func sameEntry(a, b config.Entry) bool {
	x, err := config.EncodeEntry(a)
	if err != nil {
		return false
	}
	y, err := config.EncodeEntry(b)
	return err == nil && bytes.Equal(x, y)
}

// concerns reports whether a sidecar reads any of the keys. What it reads follows from
// the entries that it reads, so no other change can make it read more.
func (p *planner) concerns(m *mesh, in catalog.Instance, snap *catalog.Snapshot, entries *config.Set, known map[string]struct{}, keys []config.Key) bool {
	p.begin(entries)
	reads, ok := p.reads[in.Service]
	if !ok {
		err := isolated(func() error {
			made, _ := m.decide(m.input(in, snap, entries, known))
			reads = made.Reads
			return nil
		})
		if err != nil {
			return true // and what is wrong will be said
		}
		p.reads[in.Service] = reads
	}
	return slices.ContainsFunc(keys, func(k config.Key) bool { return slices.Contains(reads, k) })
}

// begin forgets what was true of other entries.
func (p *planner) begin(entries *config.Set) {
	if p.entries != entries {
		p.entries, p.reads, p.found = entries, map[*catalog.Service][]config.Key{}, map[*catalog.Service][]proxy.Problem{}
	}
}

// keep forgets what is no longer registered.
func (p *planner) keep(proxies []catalog.Instance) {
	if max(len(p.reads), len(p.found)) <= 2*len(proxies) {
		return
	}
	there := make(map[*catalog.Service]bool, len(proxies))
	for _, in := range proxies {
		there[in.Service] = true
	}
	maps.DeleteFunc(p.reads, func(s *catalog.Service, _ []config.Key) bool { return !there[s] })
	maps.DeleteFunc(p.found, func(s *catalog.Service, _ []proxy.Problem) bool { return !there[s] })
}

// compare builds a sidecar with either set of entries. problems are those that only
// the second gives.
func (m *mesh) compare(in catalog.Instance, snap *catalog.Snapshot, entries, next *config.Set, known map[string]struct{}) (out []difference, problems []string) {
	before, _ := m.make(in, snap, entries, known)
	after, err := m.make(in, snap, next, known)
	problems = newProblems(before.problems, after.problems)
	if err != nil {
		return nil, problems
	}
	for _, k := range xds.Changes(&xds.View{Own: before.own}, &xds.View{Own: after.own}) {
		out = append(out, difference{Key: k, old: before.own[k.Type].Get(k.Name), new: after.own[k.Type].Get(k.Name)})
	}
	if before.proxy != nil {
		out = append(out, m.compareEndpoints(snap, before.proxy.Endpoints(), after.proxy.Endpoints())...)
	}
	slices.SortFunc(out, func(a, b difference) int { return a.Compare(b.Key) })
	return out, problems
}

// compareEndpoints builds the endpoints that are made otherwise, either way. What cannot
// be built stays as it is, and is left out.
func (m *mesh) compareEndpoints(snap *catalog.Snapshot, before, after []proxy.EndpointsRef) (out []difference) {
	names := m.resolved()
	for _, ref := range changedRefs(before, after) {
		i := slices.IndexFunc(before, func(b proxy.EndpointsRef) bool { return b.ClusterName == ref.ClusterName })
		old, _, err := makeEndpoints(snap, before[i], names, &m.plans.filters)
		if err != nil {
			continue
		}
		next, _, err := makeEndpoints(snap, ref, names, &m.plans.filters)
		if err != nil || old.Version == next.Version {
			continue
		}
		out = append(out, difference{Key: xds.Key{Type: xds.EndpointType, Name: ref.ClusterName}, old: old, new: next})
	}
	return out
}

func newProblems(before, after []proxy.Problem) (out []string) {
	for _, p := range after {
		if !slices.Contains(before, p) {
			out = append(out, p.String())
		}
	}
	return out
}

func (d difference) id() string {
	version := func(r *xds.Resource) string {
		if r == nil {
			return "-"
		}
		return r.Version
	}
	return d.String() + " " + version(d.old) + " " + version(d.new)
}

// show makes readable what differs, in the order of types and names.
func (out *planAnswer) show(found map[string]*difference) error {
	text := 0
	for _, id := range slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		x, y := found[a], found[b]
		return cmp.Or(cmp.Compare(slices.Index(xds.Types[:], x.Type), slices.Index(xds.Types[:], y.Type)), cmp.Compare(x.Name, y.Name), cmp.Compare(a, b))
	}) {
		d := found[id]
		if text > maxPlanText || len(out.Changes) >= maxPlanChanges {
			out.Omitted++
			continue
		}
		c := plannedChange{Type: d.Type.Short(), Name: d.Name, Action: "changed"}
		whole, chains := d.draining()
		c.Drains, c.Chains = whole || len(chains) > 0, chains
		switch {
		case d.old == nil:
			c.Action = "added"
		case d.new == nil:
			c.Action = "removed"
		}
		for _, in := range d.in {
			c.Sidecars = append(c.Sidecars, in.Service.ID)
		}
		slices.Sort(c.Sidecars)
		if c.More = max(0, len(c.Sidecars)-maxPlanNames); c.More > 0 {
			c.Sidecars = c.Sidecars[:maxPlanNames]
		}
		old, err := readable(d.old)
		if err != nil {
			return err
		}
		planned, err := readable(d.new)
		if err != nil {
			return err
		}
		c.Diff = shortened(unified(d.String()+" now", old, d.String()+" planned", planned), maxPlanDiff)
		text += len(c.Diff)
		out.Changes = append(out.Changes, c)
	}
	return nil
}

// readable is a resource as indented JSON, nothing for nil.
func readable(r *xds.Resource) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	text, err := envoy.JSON(string(r.Type), body)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// unified is a unified diff that begins with the names.
func unified(oldName string, old []byte, newName string, new []byte) string {
	_, text, _ := bytes.Cut(diff.Diff(oldName, old, newName, new), []byte("\n"))
	return string(text)
}

// shortened cuts a text between lines.
func shortened(s string, most int) string {
	if len(s) <= most {
		return s
	}
	at := strings.LastIndexByte(s[:most], '\n') + 1
	return s[:at] + fmt.Sprintf("… and %d more lines\n", strings.Count(s[at:], "\n"))
}
