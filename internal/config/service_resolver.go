package config

import (
	"encoding/json"
	"strings"
)

// ServiceResolver is Consul's service-resolver entry: which instances answer for a
// service. See Consul's "Service resolver configuration entry reference".
type ServiceResolver struct {
	Kind           Kind                        `json:"Kind"`
	Name           string                      `json:"Name"`
	DefaultSubset  string                      `json:"DefaultSubset,omitempty"`
	Subsets        map[string]ResolverSubset   `json:"Subsets,omitempty"`
	Redirect       *ResolverRedirect           `json:"Redirect,omitempty"`
	Failover       map[string]ResolverFailover `json:"Failover,omitempty"` // by subset, or "*" for all
	ConnectTimeout Duration                    `json:"ConnectTimeout,omitempty"`
	RequestTimeout Duration                    `json:"RequestTimeout,omitempty"`
	LoadBalancer   *LoadBalancer               `json:"LoadBalancer,omitempty"`
	Meta           map[string]string           `json:"Meta,omitempty"`
}

// ResolverSubset is a named part of a service's instances.
type ResolverSubset struct {
	Filter      string `json:"Filter,omitempty"` // go-bexpr, on an instance as the health API shows it
	OnlyPassing bool   `json:"OnlyPassing,omitempty"`
}

// ResolverRedirect leads to another service, subset or datacenter in this one's place.
type ResolverRedirect struct {
	Service       string `json:"Service,omitempty"`
	ServiceSubset string `json:"ServiceSubset,omitempty"`
	Datacenter    string `json:"Datacenter,omitempty"`
}

// ResolverFailover is who answers when nobody of a subset can: Targets, or else
// Service and ServiceSubset in this datacenter or in each of Datacenters.
type ResolverFailover struct {
	Service       string           `json:"Service,omitempty"`
	ServiceSubset string           `json:"ServiceSubset,omitempty"`
	Datacenters   []string         `json:"Datacenters,omitempty"`
	Targets       []FailoverTarget `json:"Targets,omitempty"`
}

// FailoverTarget is one target, tried in order.
type FailoverTarget struct {
	Service       string `json:"Service,omitempty"`
	ServiceSubset string `json:"ServiceSubset,omitempty"`
	Datacenter    string `json:"Datacenter,omitempty"`
}

// LoadBalancer is how a caller chooses among instances.
type LoadBalancer struct {
	Policy             string              `json:"Policy,omitempty"` // "", random, round_robin, least_request, ring_hash, maglev
	RingHashConfig     *RingHashConfig     `json:"RingHashConfig,omitempty"`
	LeastRequestConfig *LeastRequestConfig `json:"LeastRequestConfig,omitempty"`
	HashPolicies       []HashPolicy        `json:"HashPolicies,omitempty"`
}

// RingHashConfig bounds the ring. Zero: Envoy's default.
type RingHashConfig struct {
	MinimumRingSize uint32 `json:"MinimumRingSize,omitempty"`
	MaximumRingSize uint32 `json:"MaximumRingSize,omitempty"`
}

// LeastRequestConfig sets among how many instances the least busy is chosen.
type LeastRequestConfig struct {
	ChoiceCount uint32 `json:"ChoiceCount,omitempty"`
}

// HashPolicy is what of a request chooses its instance. Either Field is set, or
// SourceIP.
type HashPolicy struct {
	Field        string        `json:"Field,omitempty"` // header, cookie or query_parameter
	FieldValue   string        `json:"FieldValue,omitempty"`
	CookieConfig *CookieConfig `json:"CookieConfig,omitempty"`
	SourceIP     bool          `json:"SourceIP,omitempty"`
	Terminal     bool          `json:"Terminal,omitempty"` // stop here when it gave a hash
}

// CookieConfig is of a cookie that Envoy makes when there is none.
type CookieConfig struct {
	Session bool     `json:"Session,omitempty"` // without an end; excludes TTL
	TTL     Duration `json:"TTL,omitempty"`
	Path    string   `json:"Path,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceResolver) EntryKind() Kind { return KindServiceResolver }

// EntryName implements [Entry].
func (e *ServiceResolver) EntryName() string { return e.Name }

// MarshalJSON writes the duration in nanoseconds: Consul's Go client reads nothing else here.
func (c CookieConfig) MarshalJSON() ([]byte, error) {
	type plain CookieConfig
	return json.Marshal(struct {
		plain
		TTL int64 `json:"TTL,omitempty"`
	}{plain(c), int64(c.TTL)})
}

// Normalize implements [Entry].
func (e *ServiceResolver) Normalize() {
	e.Kind = KindServiceResolver
	if e.Redirect != nil {
		lower(&e.Redirect.Datacenter)
	}
	for _, f := range e.Failover {
		for i := range f.Datacenters {
			lower(&f.Datacenters[i])
		}
		for i := range f.Targets {
			lower(&f.Targets[i].Datacenter)
		}
	}
	if l := e.LoadBalancer; l != nil {
		l.RingHashConfig = orNil(l.RingHashConfig)
		l.LeastRequestConfig = orNil(l.LeastRequestConfig)
		for i := range l.HashPolicies {
			l.HashPolicies[i].CookieConfig = orNil(l.HashPolicies[i].CookieConfig)
		}
		if l.Policy == "" && l.RingHashConfig == nil && l.LeastRequestConfig == nil && len(l.HashPolicies) == 0 {
			e.LoadBalancer = nil
		}
	}
}

// Validate implements [Entry].
func (e *ServiceResolver) Validate() error { return validate(e) }

func (e *ServiceResolver) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
	r.notNegative("ConnectTimeout", e.ConnectTimeout)
	r.notNegative("RequestTimeout", e.RequestTimeout)
	e.checkSubsets(r)
	e.checkRedirect(r)
	e.checkFailover(r)
	e.LoadBalancer.check(r, "LoadBalancer")
}

func (e *ServiceResolver) checkSubsets(r *report) {
	if r.most("Subsets", "subsets", len(e.Subsets), maxSubsets) {
		return
	}
	for _, name := range sortedKeys(e.Subsets) {
		path := "Subsets[" + shown(name) + "]"
		if name == "" {
			r.addf("Subsets", "a name is empty")
		}
		r.subset(path, name)
		if filter := e.Subsets[name].Filter; filter != "" && !r.full() {
			if _, err := CompileFilter(filter); err != nil {
				r.addf(path+".Filter", "%s", err)
			}
		}
	}
	r.ownSubset("DefaultSubset", e.DefaultSubset, e.Subsets)
}

// ownSubset checks that a subset of the resolver's own service exists; "" is none.
func (r *report) ownSubset(path, name string, subsets map[string]ResolverSubset) {
	if _, ok := subsets[name]; !ok && name != "" {
		r.addf(path, "%q: no such subset in Subsets", cut(name))
	}
}

func (e *ServiceResolver) checkRedirect(r *report) {
	to := e.Redirect
	if to == nil {
		return
	}
	switch {
	case *to == ResolverRedirect{}:
		r.addf("Redirect", "is empty: want Service or Datacenter")
	case to.ServiceSubset != "" && to.Service == "":
		r.addf("Redirect.ServiceSubset", "needs the Service that has the subset")
	}
	r.serviceName("Redirect.Service", to.Service)
	r.subset("Redirect.ServiceSubset", to.ServiceSubset)
	r.datacenter("Redirect.Datacenter", to.Datacenter)
	if len(e.Failover) > 0 {
		r.addf("Failover", "cannot be set beside Redirect")
	}
}

func (e *ServiceResolver) checkFailover(r *report) {
	if r.most("Failover", "subsets", len(e.Failover), maxSubsets+1) {
		return
	}
	for _, name := range sortedKeys(e.Failover) {
		path := "Failover[" + shown(name) + "]"
		if _, ok := e.Subsets[name]; !ok && name != Wildcard {
			r.addf(path, `no such subset in Subsets; "*" is for all`)
		}
		e.checkFailoverOf(r, path, e.Failover[name])
	}
}

func (e *ServiceResolver) checkFailoverOf(r *report, path string, f ResolverFailover) {
	switch {
	case f.Service+f.ServiceSubset == "" && len(f.Datacenters)+len(f.Targets) == 0:
		r.addf(path, "names nothing: want Service, ServiceSubset, Datacenters or Targets")
	case len(f.Targets) > 0 && (f.Service+f.ServiceSubset != "" || len(f.Datacenters) > 0):
		r.addf(path+".Targets", "cannot be set beside Service, ServiceSubset or Datacenters")
	}
	r.serviceName(path+".Service", f.Service)
	e.checkTargetSubset(r, path+".ServiceSubset", f.Service, f.ServiceSubset)
	if !r.most(path+".Datacenters", "datacenters", len(f.Datacenters), maxTargets) {
		seen := map[string]bool{}
		for i, dc := range f.Datacenters {
			at := index(path+".Datacenters", i)
			if dc == "" {
				r.addf(at, "must not be empty")
			}
			r.datacenter(at, dc)
			if seen[strings.ToLower(dc)] {
				r.addf(at, "%q is given more than once", cut(dc))
			}
			seen[strings.ToLower(dc)] = true
		}
	}
	if r.most(path+".Targets", "targets", len(f.Targets), maxTargets) {
		return
	}
	seen := map[FailoverTarget]int{}
	for i, t := range f.Targets {
		at := index(path+".Targets", i)
		if (t == FailoverTarget{}) {
			r.addf(at, "names nothing: want Service, ServiceSubset or Datacenter")
		}
		r.serviceName(at+".Service", t.Service)
		e.checkTargetSubset(r, at+".ServiceSubset", t.Service, t.ServiceSubset)
		r.datacenter(at+".Datacenter", t.Datacenter)
		lower(&t.Datacenter)
		if first, again := seen[t]; again {
			r.addf(at, "the same as Targets[%d]", first)
		} else {
			seen[t] = i
		}
	}
}

// checkTargetSubset checks a subset of another service by its form, and of one's own by its being there.
func (e *ServiceResolver) checkTargetSubset(r *report, path, service, subset string) {
	if service == "" || service == e.Name {
		r.ownSubset(path, subset, e.Subsets)
	} else {
		r.subset(path, subset)
	}
}
