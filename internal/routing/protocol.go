package routing

import (
	"fmt"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Protocol is what service speaks: what its service-defaults say, else what
// proxy-defaults say, else tcp. It also lists the entries it read, sorted.
func Protocol(set *config.Set, service string) (string, []config.Key, []Problem) {
	global := config.Key{Kind: config.KindProxyDefaults, Name: config.Global}
	own := config.Key{Kind: config.KindServiceDefaults, Name: service}
	reads := []config.Key{global, own}

	var problems []Problem
	accept := func(protocol string, from config.Key) bool {
		if protocol == "" {
			return false
		}
		if !KnownProtocol(protocol) {
			problems = append(problems, Problem{Service: service, Subject: from.String(), Reason: UnknownProtocol(protocol)})
			return false
		}
		return true
	}
	if e := set.ServiceDefaults(service); e != nil && accept(e.Protocol, own) {
		return e.Protocol, reads, problems
	}
	if e := set.ProxyDefaults(); e != nil {
		// A value that is no string is reported by who decodes the rest of Config.
		if p, _ := e.Config["protocol"].(string); accept(p, global) {
			return p, reads, problems
		}
	}
	return config.TCP, reads, problems
}

// KnownProtocol reports whether a service may speak protocol.
func KnownProtocol(protocol string) bool { return protocol == config.TCP || config.IsHTTP(protocol) }

// UnknownProtocol is the reason given for one that is not known.
func UnknownProtocol(protocol string) string {
	return fmt.Sprintf("protocol %q is unknown: want tcp, http, http2 or grpc", protocol)
}
