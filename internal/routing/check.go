package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// maxTold bounds how many services an error of [Check] names.
const maxTold = 5

// Check refuses a change after which the entries of some service no longer make a
// chain though they did before, or a traffic-shift can no longer be honoured. Entries that were broken already are no reason. It
// looks at the services alone that the change can concern.
func Check(before, after *config.Set, datacenter string) error {
	var errs []error
	for _, service := range concerned(before, after) {
		chain, _ := Compile(Request{Config: after, Service: service, Datacenter: datacenter})
		if chain.Broken == "" {
			continue
		}
		if was, _ := Compile(Request{Config: before, Service: service, Datacenter: datacenter}); was.Broken != "" {
			continue
		}
		if len(errs) == maxTold {
			errs = append(errs, errors.New("and more"))
			break
		}
		errs = append(errs, fmt.Errorf("service %q: %s", service, chain.Broken))
	}
	return errors.Join(append(errs, checkShifts(before, after))...)
}

// concerned lists the services with a router, splitter or resolver whose chain may
// read what differs between two sets, sorted. A chain reads entries of the services
// that it can lead to, and nothing else that could break it.
func concerned(before, after *config.Set) []string {
	roots, all := changedServices(before, after)
	if all {
		return Services(after)
	}
	if len(roots) == 0 {
		return nil
	}
	services := Services(after)
	leads := map[string][]string{} // from a service to those that name it
	for _, service := range services {
		for _, to := range named(after, service) {
			leads[to] = append(leads[to], service)
		}
	}
	found := map[string]bool{}
	for len(roots) > 0 {
		at := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		if !found[at] {
			found[at] = true
			roots = append(roots, leads[at]...)
		}
	}
	return slices.DeleteFunc(services, func(service string) bool { return !found[service] })
}

// changedServices lists the services of which something changed that chains are made
// of. all is that it changed for all services.
func changedServices(before, after *config.Set) (services []string, all bool) {
	for _, k := range config.Changed(before, after) {
		switch k.Kind {
		case config.KindServiceRouter, config.KindServiceSplitter, config.KindServiceResolver:
			services = append(services, k.Name)
		case config.KindServiceDefaults:
			if protocolOf(before, k.Name) != protocolOf(after, k.Name) {
				services = append(services, k.Name)
			}
		case config.KindProxyDefaults:
			all = all || protocolOf(before, "") != protocolOf(after, "")
		}
	}
	return services, all
}

func protocolOf(set *config.Set, service string) string {
	protocol, _, _ := Protocol(set, service)
	return protocol
}

// named lists the services that the entries of one name, with repetition.
func named(set *config.Set, service string) (out []string) {
	if e := set.Router(service); e != nil {
		for i := range e.Routes {
			if d := e.Routes[i].Destination; d != nil {
				out = append(out, d.Service)
			}
		}
	}
	if e := set.Splitter(service); e != nil {
		for i := range e.Splits {
			out = append(out, e.Splits[i].Service)
		}
	}
	if e := set.Resolver(service); e != nil {
		if e.Redirect != nil {
			out = append(out, e.Redirect.Service)
		}
		for _, f := range e.Failover {
			out = append(out, f.Service)
			for _, t := range f.Targets {
				out = append(out, t.Service)
			}
		}
	}
	return slices.DeleteFunc(out, func(to string) bool { return to == "" || to == service })
}

// Read reports whether the chain depends on an entry.
func (c Chain) Read(k config.Key) bool {
	_, found := slices.BinarySearchFunc(c.Reads, k, config.Key.Compare)
	return found
}

// Broken lists the services whose entries make no chain, with the reason, sorted.
func Broken(set *config.Set, datacenter string) []Problem {
	var out []Problem
	for _, service := range Services(set) {
		if chain, problems := Compile(Request{Config: set, Service: service, Datacenter: datacenter}); chain.Broken != "" {
			out = append(out, problems...)
		}
	}
	slices.SortFunc(out, Problem.Compare)
	return slices.Compact(out)
}

// Services lists the services that have a router, splitter or resolver, sorted.
func Services(set *config.Set) []string {
	out := map[string]bool{}
	for _, k := range set.Keys() {
		switch k.Kind {
		case config.KindServiceRouter, config.KindServiceSplitter, config.KindServiceResolver:
			out[k.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// CheckPermissions refuses a change after which intentions decide by request about a
// service that has connections only, though before they did not.
func CheckPermissions(before, after *config.Set) error {
	var errs []error
	for _, k := range config.Changed(before, after) {
		switch k.Kind {
		case config.KindServiceIntentions, config.KindServiceDefaults:
			errs = append(errs, permissions(before, after, k.Name))
		case config.KindProxyDefaults:
			for _, key := range after.Keys() {
				if key.Kind == config.KindServiceIntentions && len(errs) < maxTold {
					errs = append(errs, permissions(before, after, key.Name))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func permissions(before, after *config.Set, service string) error {
	if !byRequest(after, service) || byRequest(before, service) {
		return nil
	}
	return fmt.Errorf("service-intentions/%s: Permissions are for requests, and service %q has protocol tcp: set its protocol to http, http2 or grpc first", service, service)
}

// byRequest reports whether permissions stand where there are no requests.
func byRequest(set *config.Set, service string) bool {
	e := set.Intentions(service)
	if e == nil || service == config.Wildcard || !slices.ContainsFunc(e.Sources, func(s *config.SourceIntention) bool { return len(s.Permissions) > 0 }) {
		return false
	}
	protocol, _, _ := Protocol(set, service)
	return !config.IsHTTP(protocol)
}
