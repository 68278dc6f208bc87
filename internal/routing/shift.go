package routing

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// checkShifts refuses a change after which a traffic-shift of a service cannot be
// honoured though it could before. One for all services is nobody's in particular.
func checkShifts(before, after *config.Set) error {
	concerns := false
	for _, k := range config.Changed(before, after) {
		switch k.Kind {
		case config.KindTrafficShift, config.KindServiceRouter, config.KindServiceDefaults, config.KindProxyDefaults:
			concerns = true
		}
	}
	if !concerns {
		return nil
	}
	var errs []error
	for _, k := range after.Keys() {
		e, ok := after.Get(k).(*config.TrafficShift)
		if !ok {
			continue
		}
		reason := unshiftable(after, e)
		if reason == "" {
			continue
		}
		if was, ok := before.Get(k).(*config.TrafficShift); ok && unshiftable(before, was) != "" {
			continue
		}
		if len(errs) == maxTold {
			errs = append(errs, errors.New("and more"))
			break
		}
		errs = append(errs, fmt.Errorf("%s: %s", k, reason))
	}
	return errors.Join(errs...)
}

// unshiftable is why requests or connections cannot be divided as the entry says, or "".
func unshiftable(set *config.Set, e *config.TrafficShift) string {
	if e.Destination == config.Wildcard || e.Shares.Hundredths(config.WayMTLS) == TotalWeight {
		return ""
	}
	switch mode := set.MutualTLSMode(e.Destination); {
	case mode == config.MutualTLSStrict:
		return fmt.Sprintf("Shares: %q is strict, it takes nothing but mtls: have all on mtls, or make it permissive first", e.Destination)
	case e.Shares.Plain > 0 && mode != config.MutualTLSPermissive:
		return fmt.Sprintf("Shares.plain: the sidecars of %q take no plaintext: write its service-defaults with MutualTLSMode = \"permissive\" first", e.Destination)
	}
	if config.IsHTTP(protocolOf(set, e.Destination)) {
		if set.Router(e.Destination) != nil {
			return fmt.Sprintf("service-router/%s: its rules are for the way between sidecars alone: have all on mtls, or delete it", e.Destination)
		}
		return ""
	}
	if e.Shares.Legacy > 0 && e.Legacy != nil {
		host, _ := e.Legacy.HostPort()
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Sprintf("Legacy.Address %q: %q speaks tcp, and connections are divided by IP address alone: give one", e.Legacy.Address, e.Destination)
		}
	}
	return ""
}
