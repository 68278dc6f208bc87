package server

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"reflect"
	"runtime"
	"sync"
	"weak"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// memo keeps resources by what they are made of, so that what many sidecars are told alike is
// made, encoded and held once. What nobody holds any more is let go. Safe for concurrent use.
type memo struct {
	mu   sync.Mutex
	made map[fingerprint]weak.Pointer[xds.Resource]
	bufs sync.Pool // of *[]byte, for what fingerprints are of
}

// fingerprint is of a value with all that it refers to: equal for equal values, and for no others.
type fingerprint [16]byte

func newMemo() *memo { return &memo{made: map[fingerprint]weak.Pointer[xds.Resource]{}} }

func (m *memo) get(of fingerprint) *xds.Resource {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.made[of].Value()
}

// put keeps a resource, unless there is one already, and returns which one counts.
func (m *memo) put(of fingerprint, res *xds.Resource) *xds.Resource {
	m.mu.Lock()
	defer m.mu.Unlock()
	if was := m.made[of].Value(); was != nil {
		return was
	}
	m.made[of] = weak.Make(res)
	runtime.AddCleanup(res, m.drop, of)
	return res
}

func (m *memo) drop(of fingerprint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.made[of].Value() == nil {
		delete(m.made, of)
	}
}

// recall fills out with the resources of a proxy that are there already, and remembers under
// which fingerprints the others are to be put.
type recall struct {
	memo *memo
	out  map[xds.Type]map[string]*xds.Resource
	keys map[xds.Key]fingerprint
	buf  []byte
}

// has implements [envoy.BuildRest]'s question.
func (r *recall) has(p envoy.Part) bool {
	r.buf = appendValue(r.buf[:0], reflect.ValueOf(p))
	sum := sha256.Sum256(r.buf)
	of := fingerprint(sum[:len(fingerprint{})])
	if res := r.memo.get(of); res != nil {
		put(r.out, res)
		return true
	}
	switch part := p.Of.(type) {
	case proxy.Cluster:
		r.keys[xds.Key{Type: xds.ClusterType, Name: part.Name}] = of
	case proxy.Group:
		r.keys[xds.Key{Type: xds.ClusterType, Name: part.Name}] = of
	case proxy.Upstream:
		r.keys[xds.Key{Type: xds.ListenerType, Name: part.ListenerName}] = of
	case proxy.Route:
		r.keys[xds.Key{Type: xds.RouteType, Name: part.Name}] = of
	}
	return false
}

// keep takes in a resource that was made after all. What was not asked about, as it is made of the
// instance's own, may still be what others have.
func (r *recall) keep(res *xds.Resource) {
	of, ok := r.keys[xds.Key{Type: res.Type, Name: res.Name}]
	if !ok {
		r.buf = append(append(append(append(append(r.buf[:0], res.Type...), 0), res.Name...), 0), res.Version...)
		sum := sha256.Sum256(r.buf)
		of = fingerprint(sum[:len(of)])
	}
	put(r.out, r.memo.put(of, res))
}

func put(out map[xds.Type]map[string]*xds.Resource, res *xds.Resource) {
	if out[res.Type] == nil {
		out[res.Type] = map[string]*xds.Resource{}
	}
	out[res.Type][res.Name] = res
}

// appendValue appends what tells a value from others of its type, and from those of other types where
// an interface holds it. Values have no cycles, and hold no functions or channels.
func appendValue(b []byte, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Bool:
		if v.Bool() {
			return append(b, 1)
		}
		return append(b, 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.Float32, reflect.Float64:
		return binary.AppendUvarint(b, math.Float64bits(v.Float()))
	case reflect.String:
		return append(binary.AppendUvarint(b, uint64(v.Len())), v.String()...)
	case reflect.Struct:
		for i := range v.NumField() { //nolint:modernize // Fields looks up names and types, too
			b = appendValue(b, v.Field(i))
		}
		return b
	case reflect.Array:
		for i := range v.Len() {
			b = appendValue(b, v.Index(i))
		}
		return b
	}
	if v.IsNil() {
		return append(b, 0)
	}
	b = append(b, 1)
	switch v.Kind() {
	case reflect.Pointer:
		return appendValue(b, v.Elem())
	case reflect.Interface:
		b = appendValue(b, reflect.ValueOf(v.Elem().Type().String()))
		return appendValue(b, v.Elem())
	case reflect.Slice:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = appendValue(b, v.Index(i))
		}
		return b
	case reflect.Map: // in no order: what counts is the sum of its entries
		var sum [sha256.Size]byte
		for it := v.MapRange(); it.Next(); {
			entry := sha256.Sum256(appendValue(appendValue(nil, it.Key()), it.Value()))
			carry := uint16(0)
			for i, c := range entry {
				carry += uint16(sum[i]) + uint16(c)
				sum[i], carry = byte(carry), carry>>8
			}
		}
		return append(binary.AppendUvarint(b, uint64(v.Len())), sum[:]...)
	}
	panic("a value that has no fingerprint: " + v.Type().String())
}
