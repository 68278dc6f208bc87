package server

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"sync"
	"weak"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// memo keeps resources by what they are made of, so that what many sidecars are told alike is
// made, encoded and held once: whole resources, and of listeners all but where they listen, in which those of
// a service's callers, and of its instances, differ. What nobody holds any more is let go. Safe for concurrent use.
type memo struct {
	whole kept[xds.Resource]
	rests kept[xds.Rest]
	bufs  sync.Pool // of *[]byte, for what fingerprints are of
}

// fingerprint is of a value with all that it refers to: equal for equal values, and for no others.
type fingerprint [16]byte

func newMemo() *memo { return &memo{} }

// kept is a map that holds nothing. What nobody holds any more leaves a place empty, and empty places go when there are as
// many as others, at the latest: a cleanup for each value would be two more objects, and work for each collection.
type kept[T any] struct {
	mu   sync.Mutex
	made map[fingerprint]weak.Pointer[T]
	most int // places before empty ones go
}

// fewest is how many places are not worth going through.
const fewest = 1024

func (k *kept[T]) get(of fingerprint) *T {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.made[of].Value()
}

// put keeps a value, unless there is one already, and returns which one counts.
func (k *kept[T]) put(of fingerprint, v *T) *T {
	k.mu.Lock()
	defer k.mu.Unlock()
	if was := k.made[of].Value(); was != nil {
		return was
	}
	if k.made == nil {
		k.made, k.most = map[fingerprint]weak.Pointer[T]{}, fewest
	}
	if len(k.made) >= k.most {
		maps.DeleteFunc(k.made, func(_ fingerprint, p weak.Pointer[T]) bool { return p.Value() == nil })
		k.most = max(2*len(k.made), fewest)
	}
	k.made[of] = weak.Make(v)
	return v
}

// recall fills out with the resources of a proxy that are there already, and remembers under
// which fingerprints the others are to be put.
type recall struct {
	memo  *memo
	out   []*xds.Resource
	keys  map[xds.Key]fingerprint
	rests map[string]fingerprint // by listener name: what it has in common with others
	buf   []byte
	err   error
}

func (m *memo) recall() *recall {
	r := &recall{memo: m, keys: map[xds.Key]fingerprint{}, rests: map[string]fingerprint{}}
	if buf, _ := m.bufs.Get().(*[]byte); buf != nil {
		r.buf = *buf
	}
	return r
}

// done leaves the buffer, and nothing else, to the next.
func (r *recall) done() {
	buf := r.buf
	r.memo.bufs.Put(&buf)
}

// fingerprint is of what buf has.
func (r *recall) fingerprint() (of fingerprint) {
	sum := sha256.Sum256(r.buf)
	return fingerprint(sum[:len(of)])
}

// has implements [envoy.BuildRest]'s question.
func (r *recall) has(p envoy.Part) bool {
	if u, ok := p.Of.(proxy.Upstream); ok {
		return r.hasUpstream(u, p.Normalization)
	}
	r.buf = appendValue(r.buf[:0], reflect.ValueOf(p))
	of := r.fingerprint()
	if res := r.memo.whole.get(of); res != nil {
		r.out = append(r.out, res)
		return true
	}
	switch part := p.Of.(type) {
	case proxy.Cluster:
		r.keys[xds.Key{Type: xds.ClusterType, Name: part.Name}] = of
	case proxy.Group:
		r.keys[xds.Key{Type: xds.ClusterType, Name: part.Name}] = of
	case proxy.Route:
		r.keys[xds.Key{Type: xds.RouteType, Name: part.Name}] = of
	}
	return false
}

// hasUpstream is has for a listener, which is made here when only the place is new.
func (r *recall) hasUpstream(u proxy.Upstream, n proxy.Normalization) bool {
	common := u
	common.ListenerName, common.SocketPath, common.SocketMode, common.Address, common.Port = "", "", 0, "", 0
	r.buf = appendValue(r.buf[:0], reflect.ValueOf(envoy.Part{Of: common, Normalization: n}))
	restOf := r.fingerprint()
	r.buf = append(r.buf[:0], restOf[:]...)
	for _, own := range []any{u.ListenerName, u.SocketPath, u.SocketMode, u.Address, u.Port} {
		r.buf = appendValue(r.buf, reflect.ValueOf(own))
	}
	of := r.fingerprint()
	if res := r.memo.whole.get(of); res != nil {
		r.out = append(r.out, res)
		return true
	}
	r.keys[xds.Key{Type: xds.ListenerType, Name: u.ListenerName}] = of
	r.rests[u.ListenerName] = restOf
	if rest := r.memo.rests.get(restOf); rest != nil {
		r.keepListener(u.ListenerName, envoy.UpstreamAddress(u), rest)
		return true
	}
	return false
}

// listener takes in a listener that was made after all. It is taken apart.
func (r *recall) listener(l *listenerv3.Listener) {
	name, address := l.GetName(), l.GetAddress()
	l.Name, l.Address = "", nil
	rest, err := xds.NewRest(l)
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("listener %q: %w", name, err))
		return
	}
	of, ok := r.rests[name]
	if !ok {
		r.buf = append(r.buf[:0], rest.Bytes()...)
		of = r.fingerprint()
	}
	r.keepListener(name, address, r.memo.rests.put(of, rest))
}

func (r *recall) keepListener(name string, address *corev3.Address, rest *xds.Rest) {
	res, err := xds.NewResourceOf(xds.ListenerType, name, &listenerv3.Listener{Name: name, Address: address}, rest)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return
	}
	r.keep(res)
}

// keep takes in a resource that was made after all. What was not asked about, as it is made of the
// instance's own, may still be what others have.
func (r *recall) keep(res *xds.Resource) {
	of, ok := r.keys[xds.Key{Type: res.Type, Name: res.Name}]
	if !ok {
		r.buf = append(append(append(append(append(r.buf[:0], res.Type...), 0), res.Name...), 0), res.Version...)
		of = r.fingerprint()
	}
	r.out = append(r.out, r.memo.whole.put(of, res))
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

// encode makes wire resources of a sidecar's Envoy resources. Beside them stands
// what could not be read of what somebody wrote in Envoy's own words.
func (m *memo) encode(p *proxy.Proxy) (map[xds.Type]xds.Resources, []proxy.Problem, error) {
	r := m.recall()
	defer r.done()
	made, err := envoy.BuildRest(p, r.has)
	if err != nil {
		return nil, nil, err
	}
	add := func(t xds.Type, name string, m proto.Message) {
		res, err := xds.NewResource(t, name, m)
		if err != nil {
			r.err = errors.Join(r.err, err)
			return
		}
		r.keep(res)
	}
	for _, c := range made.Clusters {
		add(xds.ClusterType, c.GetName(), c)
	}
	for _, l := range made.Listeners {
		r.listener(l)
	}
	for _, rt := range made.Routes {
		add(xds.RouteType, rt.GetName(), rt)
	}
	for _, e := range made.Extensions {
		add(xds.ExtensionType, e.GetName(), e)
	}
	for _, rt := range made.Runtimes {
		add(xds.RuntimeType, rt.GetName(), rt)
	}
	return xds.Own(r.out...), made.Problems, r.err
}
