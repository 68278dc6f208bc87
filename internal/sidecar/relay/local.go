package relay

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Local is what the relay holds on old ways by itself, whatever servers say.
type Local struct {
	Since        time.Time `json:"since"`
	Destinations []string  `json:"destinations"` // sorted
	Waiting      int       `json:"waiting"`      // resources that Envoy has not acknowledged yet
}

// LookLocal looks whether the file is there that says to go back to old ways, and does so,
// or lets them go. It is there over restarts, and no server is needed for it.
func (r *Relay) LookLocal() {
	st, err := os.Stat(r.opts.LocalFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.opts.Log.Error("it can't be said whether to go back to old ways, nothing is changed", "file", r.opts.LocalFile, "reason", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.local
	r.local = time.Time{}
	if err == nil {
		r.local = st.ModTime()
	}
	switch {
	case was.IsZero() == r.local.IsZero():
		return
	case !r.local.IsZero():
		r.opts.Log.Warn("back on old ways by order on this host, until released", "destinations", r.localLocked().Destinations)
	default:
		r.opts.Log.Warn("old ways are released, servers decide again")
		if r.cut != nil {
			r.cut() // so that a server hears what Envoy runs
		}
	}
	r.publishLocked(xds.Types[:]...)
	r.announceLocked()
}

// overlayLocked is what stands in a resource's place while old ways are held, or nil.
func (r *Relay) overlayLocked(k xds.Key) *xds.Resource {
	if r.local.IsZero() || r.held[k.Type][k.Name] == nil {
		return nil
	}
	spare := r.held[k.Type][xds.SparePrefix+k.Name]
	if spare == nil {
		return nil
	}
	out, err := instead(spare, k)
	if err != nil {
		r.opts.Log.Error("an old way can't be held", "resource", k.String(), "reason", err)
		return nil
	}
	return out
}

// instead is a spare resource under the name of that which it replaces. Endpoints have their
// name inside as well.
func instead(spare *xds.Resource, k xds.Key) (*xds.Resource, error) {
	if k.Type != xds.EndpointType {
		return spare.Renamed(k.Name)
	}
	body, err := spare.Body()
	if err != nil {
		return nil, err
	}
	var e endpointv3.ClusterLoadAssignment
	if err := proto.Unmarshal(body, &e); err != nil {
		return nil, err
	}
	e.ClusterName = k.Name
	return xds.NewResource(k.Type, k.Name, &e)
}

// spares are the names that are asked for beside those that Envoy asks for.
func spares(t xds.Type, names []string) (out []string) {
	for _, name := range names {
		if t == xds.RouteType && !strings.HasPrefix(name, publicListener) || t == xds.EndpointType && strings.HasPrefix(name, sharedWays) {
			out = append(out, xds.SparePrefix+name)
		}
	}
	return out
}

// sharedWays begins the names of endpoints that are divided among ways; package proxy makes them.
const sharedWays = "ways~"

func isSpare(name string) bool { return strings.HasPrefix(name, xds.SparePrefix) }

// localLocked is what is held on old ways.
func (r *Relay) localLocked() *Local {
	if r.local.IsZero() {
		return nil
	}
	out := &Local{Since: r.local.UTC(), Destinations: []string{}}
	for _, t := range []xds.Type{xds.RouteType, xds.EndpointType} {
		for name := range r.held[t] {
			k := xds.Key{Type: t, Name: name}
			over := r.overlayLocked(k)
			if over == nil {
				continue
			}
			out.Destinations = append(out.Destinations, destinationOf(k))
			if _, asked := r.wanted[t][name]; !asked || r.acked[k] != over.Version {
				out.Waiting++
			}
		}
	}
	slices.Sort(out.Destinations)
	out.Destinations = slices.Compact(out.Destinations)
	return out
}

// destinationOf is the service that routes, or endpoints "ways~<source>~<SNI>~<hash>", lead to.
func destinationOf(k xds.Key) string {
	if k.Type == xds.RouteType {
		return k.Name
	}
	parts := strings.Split(k.Name, "~")
	if len(parts) < 4 {
		return k.Name
	}
	service, _, _ := strings.Cut(parts[len(parts)-2], ".default.")
	return service
}

// heldHere is what a server is told of a resource that it may not change now.
func heldHere(k xds.Key) string {
	return fmt.Sprintf("%s: held on its old way on this host: crossfade revert --local --release lets it go", k)
}
