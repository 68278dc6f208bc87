package xds

import (
	"iter"
	"slices"
	"strconv"
	"time"
	"unique"
)

// source is what a session reads resources from: one node's view.
type source interface {
	// all is the resources of a wildcard type; nil while they are not known. Not to be changed.
	all(t Type) Resources
	// get is one resource, or nil where the node may not have it or nobody made it.
	get(t Type, name string) *Resource
	// absent reports whether a resource that is not there is known not to exist, so
	// that the client is to be told, rather than not known yet.
	absent(t Type, name string) bool
	// instead is what a client that has nothing of a resource is given first; nil: the
	// resource. Beside it stands how others refused that.
	instead(res *Resource) (*Resource, Refusal)
}

// session is the state of one delta stream: what the client wants, what it was
// told, and what it acknowledged. It decides what to send next and does no I/O.
// Not safe for concurrent use.
type session struct {
	subs  [len(Types)]*subscription // as in Types; nil: nothing of that type was asked for
	nonce uint64
	// linger is how long a cluster stays that nothing refers to any more: requests on
	// their way may still be sent there again.
	linger  time.Duration
	leaving map[string]time.Time // clusters, and when they go; nil: none does
}

// subscription is the state of one type on one stream.
type subscription struct {
	wildcard bool
	names    byName[struct{}] // asked for by name
	told     byName[string]   // version the client was last sent, or said that it holds; see tell
	behind   byName[string]   // version the client acknowledged, where it is another than that; "": none
	refused  byName[Refusal]  // by name: a version that was refused when sent alone

	dirty  byName[struct{}] // to be compared with what was told
	force  byName[struct{}] // to be sent although nothing changed
	solo   []string         // to be sent alone, after a NACK of several
	flight *flight          // the response not answered yet; at most one per type
	empty  bool             // an empty response is owed: the first answer to a wildcard
}

// flight is a response on its way.
type flight struct {
	nonce   string
	sent    time.Time
	members []*Resource
	removed []string
	instead map[string]Refusal // of members that stand for what others refused
}

// names are those of the members.
func (f *flight) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, res := range f.members {
			if !yield(res.Name) {
				return
			}
		}
	}
}

// Refusal is a NACK: Envoy's words for one version of one resource.
type Refusal struct {
	Version string `json:"version"`
	Message string `json:"message"`
	Runs    string `json:"runs,omitempty"` // the version that it has in place of it; in a [StreamStatus]
}

// outcome is what a request from the client said about an earlier response.
type outcome struct {
	taken   []*Resource
	removed []string
	refused map[string]Refusal // final: refused when sent alone
	retry   bool               // a response with several members was refused; they follow one by one
	message string             // Envoy's words, if any
}

// request is one DeltaDiscoveryRequest, as far as a session needs it.
type request struct {
	typ         Type // of Types
	subscribe   []string
	unsubscribe []string
	initial     map[string]string
	nonce       string
	message     string // error_detail; "" is an ACK
	nack        bool
}

// response is one DeltaDiscoveryResponse to be sent.
type response struct {
	typ       Type
	nonce     string
	resources []*Resource
	removed   []string
}

func newSession(linger time.Duration) *session {
	return &session{linger: linger}
}

// of is what the client wants of a type, or nil while it has not asked for any.
func (s *session) of(t Type) *subscription {
	if i := slices.Index(Types[:], t); i >= 0 {
		return s.subs[i]
	}
	return nil
}

// all is what the client has asked for, by type.
func (s *session) all() iter.Seq2[Type, *subscription] {
	return func(yield func(Type, *subscription) bool) {
		for i, sub := range s.subs {
			if sub != nil && !yield(Types[i], sub) {
				return
			}
		}
	}
}

// handle takes a request in. It returns the names newly asked for, those given
// up, and what became of the response that the request answers, if any.
func (s *session) handle(r request, src source) (added, dropped []string, out *outcome) {
	i := slices.Index(Types[:], r.typ)
	sub := s.subs[i]
	if sub == nil {
		sub = &subscription{}
		s.subs[i] = sub
		sub.told.room(len(r.initial))
		for name, v := range r.initial {
			sub.told.set(once(name), v)
		}
		if r.typ.wildcard() && len(r.subscribe) == 0 {
			sub.subscribeAll(r.typ, src)
		}
	}
	sub.names.room(len(r.subscribe))
	for _, name := range r.subscribe {
		if name == "*" {
			sub.subscribeAll(r.typ, src)
			continue
		}
		name = once(name)
		if sub.names.has(name) {
			sub.force.set(name, struct{}{})
		} else {
			sub.names.set(name, struct{}{})
			added = append(added, name)
		}
		sub.dirty.set(name, struct{}{})
	}
	for _, name := range r.unsubscribe {
		if name == "*" {
			sub.wildcard = false
			continue
		}
		if sub.names.has(name) {
			dropped = append(dropped, name)
		}
		sub.forget(name)
	}
	if r.nonce != "" && sub.flight != nil && sub.flight.nonce == r.nonce {
		out = sub.land(r)
	}
	return added, dropped, out
}

// once is a text that many streams have.
func once(s string) string { return unique.Make(s).Value() }

func (sub *subscription) subscribeAll(t Type, src source) {
	sub.wildcard = true
	sub.empty = sub.told.size() == 0
	sub.markAll(t, src)
}

// markAll makes everything due for comparison.
func (sub *subscription) markAll(t Type, src source) {
	for name := range sub.names.all() {
		sub.dirty.set(name, struct{}{})
	}
	if !sub.wildcard {
		return
	}
	for _, res := range src.all(t) {
		sub.dirty.set(res.Name, struct{}{})
	}
	for name := range sub.told.all() {
		sub.dirty.set(name, struct{}{})
	}
}

func (sub *subscription) forget(name string) {
	sub.names.drop(name)
	if sub.wildcard {
		return
	}
	sub.told.drop(name)
	sub.behind.drop(name)
	sub.refused.drop(name)
	sub.dirty.drop(name)
	sub.force.drop(name)
}

// acked is the version that the client acknowledged, or "".
func (sub *subscription) acked(name string) string {
	if v, is := sub.behind.look(name); is {
		return v
	}
	return sub.told.get(name)
}

// has reports whether the client was sent the version last, and acknowledged it.
func (sub *subscription) has(name, version string) bool {
	return !sub.behind.has(name) && sub.told.get(name) == version
}

// tell notes the version that the client is sent, which changes nothing about what it acknowledged.
func (sub *subscription) tell(name, version string) {
	acked := sub.acked(name)
	sub.told.set(name, version)
	sub.acknowledge(name, acked)
}

// untell notes that it is as if the client had been sent nothing.
func (sub *subscription) untell(name string) {
	acked := sub.acked(name)
	sub.told.drop(name)
	sub.acknowledge(name, acked)
}

// acknowledge notes the version that the client acknowledged last, or that it has none: "".
func (sub *subscription) acknowledge(name, version string) {
	if sub.told.get(name) == version {
		sub.behind.drop(name)
	} else {
		sub.behind.set(name, version)
	}
}

// land closes the response in flight by the client's answer to it.
func (sub *subscription) land(r request) *outcome {
	f := sub.flight
	sub.flight = nil
	if !r.nack {
		for _, res := range f.members {
			sub.acknowledge(res.Name, res.Version)
			sub.taken(res.Name, f)
		}
		for _, name := range f.removed {
			sub.acknowledge(name, "")
			sub.refused.drop(name)
		}
		return &outcome{taken: f.members, removed: f.removed}
	}
	if len(f.members)+len(f.removed) > 1 {
		// Envoy doesn't name the culprit, and may have dropped good members with it.
		for _, name := range slices.Sorted(f.names()) {
			sub.solo = append(sub.solo, name)
			sub.force.set(name, struct{}{})
			sub.dirty.set(name, struct{}{})
		}
		for _, name := range f.removed {
			sub.dirty.set(name, struct{}{})
			sub.solo = append(sub.solo, name)
			sub.tell(name, "") // not gone yet
		}
		return &outcome{retry: true, message: r.message}
	}
	out := &outcome{refused: map[string]Refusal{}, message: r.message}
	for _, res := range f.members {
		out.refused[res.Name] = Refusal{Version: res.Version, Message: r.message}
		sub.refused.set(res.Name, out.refused[res.Name])
	}
	return out
}

// taken notes that a member of a response was acknowledged. Where it stood for one that
// others refused, that follows by itself, unless it ends Envoys, or was tried here before.
func (sub *subscription) taken(name string, f *flight) {
	r, instead := f.instead[name]
	switch {
	case !instead:
		sub.refused.drop(name)
	case sub.refused.get(name).Version == r.Version:
		sub.tell(name, r.Version)
	case r.fatal():
		sub.refused.set(name, r)
		sub.tell(name, r.Version)
	default:
		sub.refused.drop(name)
		sub.dirty.set(name, struct{}{})
		sub.solo = append(sub.solo, name)
	}
}

// retreat makes due again what was refused, if the client has nothing of it: it is given
// what stands instead.
func (s *session) retreat(t Type, name string) {
	sub := s.of(t)
	if sub.acked(name) == "" {
		sub.untell(name)
		sub.dirty.set(name, struct{}{})
	}
}

// resend makes names of a type due whatever the client was told of them: those that exist
// are sent, the others are removed. A response of the type that the client owes an answer to
// is given up, its members are due as well, and an answer to it counts no more.
func (s *session) resend(t Type, names []string, src source) {
	sub := s.of(t)
	if sub == nil {
		return
	}
	if f := sub.flight; f != nil {
		names = slices.Concat(names, slices.Collect(f.names()), f.removed)
		sub.flight = nil
	}
	for _, name := range names {
		if sub.present(t, name, src) == nil {
			sub.tell(name, "") // it may be there
		} else {
			sub.force.set(name, struct{}{})
		}
		sub.dirty.set(name, struct{}{})
	}
}

// mark notes that a resource may have changed. It reports whether anybody cares.
func (s *session) mark(t Type, name string) bool {
	sub := s.of(t)
	if sub == nil {
		return false
	}
	if !sub.names.has(name) && !sub.wildcard {
		return false
	}
	sub.dirty.set(name, struct{}{})
	return true
}

// markAll notes that anything may have changed, as when a view appears.
func (s *session) markAll(src source) {
	for t, sub := range s.all() {
		sub.markAll(t, src)
	}
}

// next is the response to send now, or nil while there is nothing or the client
// owes an answer first. Make before break: routes, listeners and extensions wait
// until changed clusters are acknowledged (Envoy acknowledges when they are warm) and
// have endpoints: one that was told of none, when nothing led to it, is warm as well;
// clusters are removed only some time after routes and listeners have settled.
func (s *session) next(src source, now time.Time) *response {
	for i, sub := range s.subs {
		if sub == nil || sub.flight != nil || !sub.due() {
			continue
		}
		if r := s.assemble(Types[i], sub, src, now); r != nil {
			return r
		}
	}
	return nil
}

// restless reports whether there may be a response to send.
func (s *session) restless() bool {
	return slices.ContainsFunc(s.subs[:], func(sub *subscription) bool { return sub != nil && sub.flight == nil && sub.due() })
}

// due reports whether anything may have to be sent.
func (sub *subscription) due() bool { return sub.dirty.size()+len(sub.solo) > 0 || sub.empty }

func (s *session) assemble(t Type, sub *subscription, src source, now time.Time) *response {
	if (t == RouteType || t == ListenerType || t == ExtensionType) && (s.busy(ClusterType, src, false) || s.bare(src)) {
		return nil
	}
	for len(sub.solo) > 0 {
		alone := sub.solo[:1]
		sub.solo = sub.solo[1:]
		if r := s.collect(t, sub, src, alone, now); r != nil {
			return r
		}
	}
	return s.collect(t, sub, src, sub.dirty.names(), now)
}

// collect puts what the client lacks of the names into a response, or returns nil.
func (s *session) collect(t Type, sub *subscription, src source, names []string, now time.Time) *response {
	r := &response{typ: t}
	var removals []string
	for _, name := range names {
		res, gone := sub.want(t, name, src)
		if !gone && t == ClusterType {
			delete(s.leaving, name)
		}
		switch {
		case res != nil:
			r.resources = append(r.resources, res)
		case gone:
			removals = append(removals, name)
		default:
			sub.dirty.drop(name)
			sub.force.drop(name)
		}
	}
	switch {
	case len(removals) == 0:
	case t != ClusterType:
		r.removed = removals
	case len(r.resources) == 0 && !s.busy(ListenerType, src, true) && !s.busy(RouteType, src, true):
		r.removed = s.due(removals, now)
	}
	if len(r.resources) == 0 && len(r.removed) == 0 && (!sub.empty || src.all(t) == nil) {
		return nil
	}
	s.take(sub, r, src, now)
	return r
}

// due are those of the clusters that nothing refers to whose time has come.
func (s *session) due(clusters []string, now time.Time) (out []string) {
	for _, name := range clusters {
		if _, known := s.leaving[name]; !known {
			if s.leaving == nil {
				s.leaving = map[string]time.Time{}
			}
			s.leaving[name] = now.Add(s.linger)
		}
		if !s.leaving[name].After(now) {
			out = append(out, name)
		}
	}
	return out
}

// wakeup is when the next cluster goes after now; the zero time when none does.
func (s *session) wakeup(now time.Time) (at time.Time) {
	for _, t := range s.leaving {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// want says what the client lacks of a name: the resource to send, or that it
// must be told of its absence.
func (sub *subscription) want(t Type, name string, src source) (res *Resource, gone bool) {
	res = sub.present(t, name, src)
	named := sub.names.has(name)
	told, was := sub.told.look(name)
	forced := sub.force.has(name)
	if res == nil {
		return nil, (was || named) && told != absentVersion && src.absent(t, name)
	}
	if sub.acked(name) == "" {
		if good, _ := src.instead(res); good != nil {
			res = good
		}
	}
	if told == res.Version && !forced {
		return nil, false
	}
	return res, false
}

// present is the resource as it is now, or nil.
func (sub *subscription) present(t Type, name string, src source) (res *Resource) {
	if sub.wildcard {
		res = src.all(t).Get(name)
	}
	if res == nil && sub.names.has(name) {
		res = src.get(t, name)
	}
	return res
}

// absentVersion is what a client was "told" of a name that doesn't exist.
const absentVersion = "absent"

// take notes that r is being sent.
func (s *session) take(sub *subscription, r *response, src source, now time.Time) {
	s.nonce++
	r.nonce = strconv.FormatUint(s.nonce, 16)
	f := &flight{nonce: r.nonce, sent: now, members: r.resources, removed: r.removed}
	sub.empty = false
	sub.told.room(len(r.resources))
	sub.behind.room(len(r.resources))
	for _, res := range r.resources {
		if r.typ == ClusterType {
			s.resendEndpoints(res.endpoints)
		}
		if now := sub.present(r.typ, res.Name, src); now != nil && now.Version != res.Version {
			_, refusal := src.instead(now)
			if f.instead == nil {
				f.instead = map[string]Refusal{}
			}
			f.instead[res.Name] = refusal
		}
		sub.tell(res.Name, res.Version)
		sub.dirty.drop(res.Name)
		sub.force.drop(res.Name)
	}
	for _, name := range r.removed {
		if r.typ == ClusterType {
			delete(s.leaving, name)
		}
		if sub.names.has(name) {
			sub.tell(name, absentVersion)
		} else {
			sub.untell(name)
		}
		sub.dirty.drop(name)
		sub.force.drop(name)
	}
	sub.flight = f
}

// resendEndpoints makes the endpoints of a new or changed cluster due again: Envoy
// warms the cluster with them, and doesn't ask when it has asked before, for the
// cluster as it was or for another one with the same endpoints.
func (s *session) resendEndpoints(name string) {
	sub := s.of(EndpointType)
	if sub == nil {
		return
	}
	if sub.names.has(name) {
		sub.dirty.set(name, struct{}{})
		sub.force.set(name, struct{}{})
	}
}

// bare reports whether endpoints are due, or on their way, of which the client has
// none so far. Changes of those that it has are not waited for: they never end.
func (s *session) bare(src source) bool {
	sub := s.of(EndpointType)
	if sub == nil {
		return false
	}
	if sub.flight != nil {
		for name := range sub.flight.names() {
			if sub.acked(name) == "" {
				return true
			}
		}
	}
	for name := range sub.dirty.all() {
		if sub.acked(name) != "" {
			continue
		}
		if res, _ := sub.want(EndpointType, name, src); res != nil {
			return true
		}
	}
	return false
}

// busy reports whether the type has a response in flight or something to send
// (additions, and removals where asked for).
func (s *session) busy(t Type, src source, removals bool) bool {
	sub := s.of(t)
	if sub == nil {
		return false
	}
	if f := sub.flight; f != nil && (removals || len(f.members) > 0) {
		return true
	}
	for name := range sub.dirty.all() {
		res, gone := sub.want(t, name, src)
		if res != nil || gone && removals {
			return true
		}
	}
	return false
}
