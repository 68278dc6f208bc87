// Package config holds configuration entries and service definitions: one file
// per kind with its type, defaults, validation and decoding from HCL, JSON and YAML.
//
// In: bytes of a file or a request body. Out: an [Entry] or a [Definition] with
// nothing unknown in it, or an error of one line for each problem, which names
// file, line and field. Kinds and fields are Consul's, in both of its spellings
// (MaxConnections, max_connections); a field that would have no effect is refused
// unless it is off, so that nobody believes in a setting that does nothing. Only
// the opaque Config maps of a registration keep keys that mean nothing: proxy
// learns them from [DecodeProxyConfig] and [DecodeUpstreamSettings].
//
// All three languages become one tree of positioned nodes, which one strict decoder
// reads. Documents are literal: no functions, variables, templates or aliases.
//
// It leaves keeping entries to catalog/store and their meaning to routing and
// proxy. Pure: no I/O, no clock, no log.
package config

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// Kind names a kind of configuration entry as Consul spells it.
type Kind string

// The kinds served.
const (
	KindProxyDefaults     Kind = "proxy-defaults"
	KindServiceDefaults   Kind = "service-defaults"
	KindServiceIntentions Kind = "service-intentions"
	KindServiceRouter     Kind = "service-router"
	KindServiceSplitter   Kind = "service-splitter"
	KindServiceResolver   Kind = "service-resolver"
	KindJWTProvider       Kind = "jwt-provider"
	KindMesh              Kind = "mesh"
	// These are our own.
	KindTrafficPolicy Kind = "traffic-policy"
	KindTrafficShift  Kind = "traffic-shift"
)

// Entry is one configuration entry. Implementations are pointers to the kinds'
// structs; values reached from a [Set] are never changed.
type Entry interface {
	EntryKind() Kind
	EntryName() string
	// Normalize fills defaults in place.
	Normalize()
	// Validate reports the first thing wrong with a normalized entry, by field path.
	Validate() error
}

// Key identifies an entry.
type Key struct {
	Kind Kind
	Name string
}

// KeyOf is the key of e.
func KeyOf(e Entry) Key { return Key{e.EntryKind(), e.EntryName()} }

// Compare orders keys by kind, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Name, o.Name))
}

// String is "kind/name", as the API's path has it.
func (k Key) String() string { return string(k.Kind) + "/" + k.Name }

// Set is all entries at one moment. Immutable; the zero value is empty. An entry
// that did not change keeps its pointer from Set to Set.
type Set struct {
	entries map[Key]Entry
}

// NewSet holds the given entries; of two with one key the later wins.
func NewSet(entries ...Entry) *Set {
	s := &Set{entries: make(map[Key]Entry, len(entries))}
	for _, e := range entries {
		s.entries[KeyOf(e)] = e
	}
	return s
}

// With is a set in which put replaces entries of the same key and drop is gone.
func (s *Set) With(put []Entry, drop []Key) *Set {
	n := &Set{entries: maps.Clone(s.all())}
	if n.entries == nil {
		n.entries = map[Key]Entry{}
	}
	for _, e := range put {
		n.entries[KeyOf(e)] = e
	}
	for _, k := range drop {
		delete(n.entries, k)
	}
	return n
}

func (s *Set) all() map[Key]Entry {
	if s == nil {
		return nil
	}
	return s.entries
}

// Get is the entry with that key, or nil.
func (s *Set) Get(k Key) Entry { return s.all()[k] }

// Keys lists all keys, sorted.
func (s *Set) Keys() []Key { return slices.SortedFunc(maps.Keys(s.all()), Key.Compare) }

// ServiceDefaults is the service's entry, or nil.
func (s *Set) ServiceDefaults(service string) *ServiceDefaults {
	e, _ := s.Get(Key{KindServiceDefaults, service}).(*ServiceDefaults)
	return e
}

// ProxyDefaults is the one global entry, or nil.
func (s *Set) ProxyDefaults() *ProxyDefaults {
	e, _ := s.Get(Key{KindProxyDefaults, Global}).(*ProxyDefaults)
	return e
}

// Intentions is the service's entry, or nil. Name "*" is the entry for all services.
func (s *Set) Intentions(service string) *ServiceIntentions {
	e, _ := s.Get(Key{KindServiceIntentions, service}).(*ServiceIntentions)
	return e
}

// Router is the service's service-router entry, or nil.
func (s *Set) Router(service string) *ServiceRouter {
	e, _ := s.Get(Key{KindServiceRouter, service}).(*ServiceRouter)
	return e
}

// Splitter is the service's service-splitter entry, or nil.
func (s *Set) Splitter(service string) *ServiceSplitter {
	e, _ := s.Get(Key{KindServiceSplitter, service}).(*ServiceSplitter)
	return e
}

// Resolver is the service's service-resolver entry, or nil.
func (s *Set) Resolver(service string) *ServiceResolver {
	e, _ := s.Get(Key{KindServiceResolver, service}).(*ServiceResolver)
	return e
}

// JWTProvider is the entry of that name, or nil.
func (s *Set) JWTProvider(name string) *JWTProvider {
	e, _ := s.Get(Key{KindJWTProvider, name}).(*JWTProvider)
	return e
}

// TrafficPolicy is the service's own entry, or nil. Name "*" is the entry for all others.
func (s *Set) TrafficPolicy(service string) *TrafficPolicy {
	e, _ := s.Get(Key{KindTrafficPolicy, service}).(*TrafficPolicy)
	return e
}

// Mesh is the one mesh entry, or nil.
func (s *Set) Mesh() *Mesh {
	e, _ := s.Get(Key{KindMesh, MeshName}).(*Mesh)
	return e
}

// Changed lists the keys under which two sets differ, sorted. Equality is by pointer.
func Changed(old, new *Set) []Key {
	if old == new {
		return nil
	}
	var out []Key
	for k, e := range new.all() {
		if old.all()[k] != e {
			out = append(out, k)
		}
	}
	for k := range old.all() {
		if _, ok := new.all()[k]; !ok {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, Key.Compare)
	return out
}

// Protocols a service can speak, Consul's words. TCP is the default.
const (
	TCP   = "tcp"
	HTTP  = "http"
	HTTP2 = "http2"
	GRPC  = "grpc"
)

// IsHTTP reports whether protocol is routed by request rather than by connection.
func IsHTTP(protocol string) bool { return protocol == HTTP || protocol == HTTP2 || protocol == GRPC }

// Duration is a time.Duration that is written "10s" in files and JSON; a bare
// number is nanoseconds, as in Consul's API.
type Duration time.Duration

// Std is the duration as package time has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is the duration as Go writes it: "10s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes "10s".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads "10s" or nanoseconds.
func (d *Duration) UnmarshalJSON(data []byte) error {
	r := &report{}
	n := parseJSON(data, r)
	if n != nil {
		decode(r, n, d)
	}
	return r.err()
}
