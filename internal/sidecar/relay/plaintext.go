package relay

import (
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// What only a listener that takes plaintext asks for: of requests, or of connections. The
// names are those of packages proxy and envoy.
var plaintextRules = []xds.Key{{Type: xds.RouteType, Name: "public_listener_plaintext"}, {Type: xds.ExtensionType, Name: "plaintext_intentions"}}

const publicListener = "public_listener"

// plaintextLocked brings [Status.PlaintextPort] up to what is known now, and announces a
// change.
//
// Plaintext is taken once Envoy has acknowledged its listeners and the rules of plaintext,
// which it asks for only with such a listener. From then on it goes on being taken while a
// listener is changed in other ways, and no longer as soon as the newest configuration has
// no such rules: before Envoy knows of that.
func (r *Relay) plaintextLocked() {
	port, settled := r.publicPortLocked()
	if !r.plaintextRulesLocked() || !settled && r.status.PlaintextPort == 0 {
		port = 0
	}
	if port != r.status.PlaintextPort {
		r.status.PlaintextPort = port
		r.announceLocked()
	}
}

// publicPortLocked is where plaintext comes in if it does: the port of the listener for it
// alone, else the public one. settled says that Envoy has acknowledged what it was last told
// of these listeners.
func (r *Relay) publicPortLocked() (port int, settled bool) {
	alone := false
	settled = true
	for name, res := range r.held[xds.ListenerType] {
		rest, public := strings.CutPrefix(name, publicListener)
		own := strings.HasPrefix(rest, "_plaintext:")
		if !public || !own && !strings.HasPrefix(rest, ":") {
			continue
		}
		acked := r.acked[xds.Key{Type: xds.ListenerType, Name: name}]
		settled = settled && acked == res.Version
		if own && acked == "" {
			continue // not there yet, and the public one may be
		}
		if n, err := strconv.Atoi(name[strings.LastIndexByte(name, ':')+1:]); err == nil && !alone {
			port, alone = n, own
		}
	}
	return port, settled
}

// plaintextRulesLocked reports whether the newest configuration has rules of plaintext, and
// Envoy some of these in force.
func (r *Relay) plaintextRulesLocked() bool {
	for _, k := range plaintextRules {
		_, asked := r.wanted[k.Type][k.Name]
		if asked && r.acked[k] != "" && r.held[k.Type][k.Name] != nil {
			return true
		}
	}
	return false
}
