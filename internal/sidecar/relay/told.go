package relay

import (
	"maps"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// Told is what the Envoy that is connected has acknowledged, and what it owes an answer to.
type Told struct {
	// Generation grows with each change of the rest.
	Generation uint64
	// Connected says that Envoy has its stream.
	Connected bool
	// Acked are the versions that Envoy says it has.
	Acked map[xds.Key]string
	// Pending is when the response of a type was sent that Envoy has not answered.
	Pending map[xds.Type]time.Time
}

// Told reports what Envoy was told, as far as it has answered.
func (r *Relay) Told() Told {
	pending := map[xds.Type]time.Time{}
	for _, st := range r.server.Status() {
		for short, of := range st.Types {
			if t, ok := xds.ParseShort(short); ok && of.Pending {
				pending[t] = of.PendingSince
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return Told{Generation: r.generation, Connected: r.status.EnvoyConnected, Acked: maps.Clone(r.acked), Pending: pending}
}

// Resource is the resource of that version if it is what Envoy is to have now, else nil.
func (r *Relay) Resource(k xds.Key, version string) *xds.Resource {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, res := range []*xds.Resource{r.overlayLocked(k), r.held[k.Type][k.Name]} {
		if res != nil && res.Version == version {
			return res
		}
	}
	return nil
}

// Resend sends resources to Envoy again, or removes them from it if there are none of that
// name any more. Of their types it gives up what Envoy has not answered, and sends it anew.
func (r *Relay) Resend(keys []xds.Key) { r.server.Resend(viewKey, keys) }

// Restart ends Envoy's stream. Envoy opens another, and says there what it has.
func (r *Relay) Restart(reason error) { r.server.Disconnect(viewKey, reason) }
