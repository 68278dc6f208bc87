// Package xds tells Envoys what to run, over delta ADS.
//
// In: encoded resources ([NewResource]) as one [View] per node and a set of
// endpoints that nodes share. Out: streams, on each of which a change is sent once,
// in an order that never breaks a request, with what became of it: acknowledged,
// or refused, in Envoy's words. [Client] is the other end of the same protocol,
// for a relay or a tool; it passes bytes through without decoding them.
//
// The cost of a change follows the streams that it concerns: a resource is encoded
// and hashed once, its bytes are shared by all responses, and an inverted index
// leads from a resource to its streams. A stream keeps name and version only; a
// slow one holds the newest of each name and never delays others.
//
// It leaves what the resources say to package envoy, and who may have them to the
// view's maker. See Envoy's "xDS REST and gRPC protocol", incremental variant.
package xds

import (
	"cmp"
	"strconv"
)

// Key names a resource among all types.
type Key struct {
	Type Type
	Name string
}

// String is `Listener "public_listener"`.
func (k Key) String() string { return k.Type.Short() + " " + strconv.Quote(k.Name) }

// Compare orders keys by type, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Type, o.Type), cmp.Compare(k.Name, o.Name))
}

// View is what one node may have. Immutable once handed over.
type View struct {
	// Own is the node's resources by type. See [Own].
	Own map[Type]Resources
	// Shared names the endpoints, of all that are shared, that the node may subscribe to.
	Shared map[string]struct{}
	// Group, when set, is shared by nodes that are told the same under the same names: what
	// one of them refuses, another that starts anew is not given first. See [Options.Alike].
	Group string
	// Growing says that a resource asked for by name and not in the view may still
	// come, so that its absence is not reported to the client.
	Growing bool
	// Removed are resources that a growing view knows not to exist.
	Removed map[Key]struct{}
}

// Update is a change of what is served. Everything in it becomes visible at once.
type Update struct {
	Views  map[string]*View  // by node key
	Shared map[Key]*Resource // nil: gone
}
