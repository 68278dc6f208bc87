package routing

import (
	"errors"
	"fmt"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Stays reports whether a route of a service's router leads to the service itself, so
// that a traffic-shift of the service has a say in it. Nil is the last route.
func Stays(service string, r *config.ServiceRoute) bool {
	return r == nil || r.Destination == nil || r.Destination.Service == "" || r.Destination.Service == service
}

// Rewrites reports whether a route cannot be divided among ways: it gives the service
// another path than the caller's, and the old mesh must get the caller's.
func Rewrites(service string, r *config.ServiceRoute) bool {
	return Stays(service, r) && r != nil && r.Destination != nil && r.Destination.PrefixRewrite != ""
}

// checkShifts refuses a change after which a traffic-shift cannot be honoured though it
// could before, or after which a service takes less than one sends.
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
	now, was := shiftsOf(after), shiftsOf(before)
	for _, k := range after.Keys() {
		e, ok := after.Get(k).(*config.TrafficShift)
		if !ok {
			continue
		}
		reasons := now.reasons(e)
		if len(reasons) == 0 {
			continue
		}
		known := map[string]bool{} // what was wrong already is no reason
		if old, ok := before.Get(k).(*config.TrafficShift); ok {
			for _, r := range was.reasons(old) {
				known[r.about] = true
			}
		}
		for _, r := range reasons {
			switch {
			case known[r.about]:
			case len(errs) == maxTold:
				return errors.Join(append(errs, errors.New("and more"))...)
			default:
				errs = append(errs, fmt.Errorf("%s: %s", k, r.text))
			}
		}
	}
	return errors.Join(errs...)
}

// shifts is a set of entries in which traffic-shifts are judged.
type shifts struct {
	*config.Set
	strict []string // services whose own service-defaults say so
}

func shiftsOf(set *config.Set) shifts {
	out := shifts{Set: set}
	for _, k := range set.Keys() {
		if e, ok := set.Get(k).(*config.ServiceDefaults); ok && e.MutualTLSMode == config.MutualTLSStrict {
			out.strict = append(out.strict, k.Name)
		}
	}
	return out
}

// reason is why a traffic-shift cannot be honoured. Two that are about the same are one.
type reason struct{ about, text string }

// reasons are why requests or connections cannot be divided as the entry says.
func (s shifts) reasons(e *config.TrafficShift) (out []reason) {
	if e.Shares.Hundredths(config.WayMTLS) == TotalWeight {
		return nil
	}
	add := func(about, format string, args ...any) {
		out = append(out, reason{about, fmt.Sprintf(format, args...)})
	}
	for _, service := range s.decidedBy(e) {
		mode, from := s.mode(service)
		who := fmt.Sprintf("%q", service)
		if service == otherServices {
			who = "services without service-defaults that say more"
		}
		switch way, percent := closedShare(e.Shares); {
		case mode == config.MutualTLSStrict:
			add("strict "+service, "Shares.%s: %v%% would not go by mtls, and %s takes nothing else (strict by %s): have all on mtls, or make it permissive first", way, percent, who, from)
		case e.Shares.Plain > 0 && mode != config.MutualTLSPermissive:
			what := "service-defaults/" + service
			if service == otherServices {
				what = globalDefaults().String()
			}
			add("plaintext "+service, "Shares.plain: the sidecars of %s take no plaintext: write %s with MutualTLSMode = \"permissive\" first, and have nothing on plain before that goes", who, what)
		}
	}
	if e.Destination == config.Wildcard {
		return out // for all services is for none in particular
	}
	if config.IsHTTP(protocolOf(s.Set, e.Destination)) {
		if router := s.Router(e.Destination); router != nil {
			for i := range router.Routes {
				if Rewrites(e.Destination, &router.Routes[i]) {
					add("router", "service-router/%s: Routes[%d].Destination.PrefixRewrite: the path is changed before a way is chosen, and the old mesh must get the caller's: have all on mtls, or take the rewrite out", e.Destination, i)
					break
				}
			}
		}
	}
	return out
}

// closedShare is the first share that a strict service takes nothing of.
func closedShare(s config.Shares) (way string, percent float64) {
	for _, way := range []string{config.WayLegacy, config.WayDirect, config.WayPlain} {
		if n := s.Hundredths(way); n > 0 {
			return way, float64(n) / 100
		}
	}
	return "", 0
}

// otherServices stands for all services that no entry names.
const otherServices = ""

func globalDefaults() config.Key {
	return config.Key{Kind: config.KindProxyDefaults, Name: config.Global}
}

// mode is the MutualTLSMode of a service and the entry that says so.
func (s shifts) mode(service string) (mode string, from config.Key) {
	own := config.Key{Kind: config.KindServiceDefaults, Name: service}
	if e, ok := s.Get(own).(*config.ServiceDefaults); ok && e.MutualTLSMode != "" {
		return e.MutualTLSMode, own
	}
	return s.MutualTLSMode(service), globalDefaults()
}

// decidedBy lists services that the entry decides for some pair of, so that all that their
// modes can have against it is found.
func (s shifts) decidedBy(e *config.TrafficShift) []string {
	if e.Destination != config.Wildcard {
		return []string{e.Destination}
	}
	out := []string{otherServices}
	for _, service := range s.strict {
		if s.TrafficShift(e.Source, service) == e {
			out = append(out, service)
		}
	}
	return out
}
