package config

// ServiceSplitter is Consul's service-splitter entry: how the requests for a
// service are divided. See Consul's "Service splitter configuration entry
// reference".
type ServiceSplitter struct {
	Kind   Kind              `json:"Kind"`
	Name   string            `json:"Name"`
	Splits []ServiceSplit    `json:"Splits,omitempty"`
	Meta   map[string]string `json:"Meta,omitempty"`
}

// ServiceSplit is one leg. Weights of an entry add up to 100.
type ServiceSplit struct {
	Weight          float64          `json:"Weight"`                  // percent, in steps of 0.01
	Service         string           `json:"Service,omitempty"`       // empty: the splitter's own
	ServiceSubset   string           `json:"ServiceSubset,omitempty"` // empty: as the resolver says
	RequestHeaders  *HeaderModifiers `json:"RequestHeaders,omitempty"`
	ResponseHeaders *HeaderModifiers `json:"ResponseHeaders,omitempty"`
}

// EntryKind implements [Entry].
func (e *ServiceSplitter) EntryKind() Kind { return KindServiceSplitter }

// EntryName implements [Entry].
func (e *ServiceSplitter) EntryName() string { return e.Name }

// Normalize implements [Entry].
func (e *ServiceSplitter) Normalize() {
	e.Kind = KindServiceSplitter
	for i := range e.Splits {
		s := &e.Splits[i]
		s.Weight = float64(s.Hundredths()) / 100
		s.RequestHeaders = s.RequestHeaders.normalize()
		s.ResponseHeaders = s.ResponseHeaders.normalize()
	}
}

// Hundredths is the weight in hundredths of a percent. Those of an entry add up to 10,000.
func (s ServiceSplit) Hundredths() int { return hundredths(s.Weight) }

// Validate implements [Entry].
func (e *ServiceSplitter) Validate() error { return validate(e) }

func (e *ServiceSplitter) check(r *report) {
	r.name("Name", e.Name)
	r.meta("Meta", e.Meta)
	if len(e.Splits) == 0 {
		r.addf("Splits", "at least one is needed; delete the entry to split nothing")
		return
	}
	if r.most("Splits", "splits", len(e.Splits), maxSplits) {
		return
	}
	type leg struct{ service, subset string }
	seen := map[leg]int{}
	sum, weighed := 0, true
	for i, s := range e.Splits {
		path := index("Splits", i)
		weighed = r.percentage(path+".Weight", s.Weight) && weighed
		if weighed {
			sum += s.Hundredths()
		}
		r.serviceName(path+".Service", s.Service)
		r.subset(path+".ServiceSubset", s.ServiceSubset)
		to := leg{s.Service, s.ServiceSubset}
		if to.service == "" {
			to.service = e.Name
		}
		if first, again := seen[to]; again {
			r.addf(path, "the same service and subset as Splits[%d]", first)
		} else {
			seen[to] = i
		}
		s.RequestHeaders.check(r, path+".RequestHeaders")
		s.ResponseHeaders.check(r, path+".ResponseHeaders")
	}
	if weighed && sum != 100_00 {
		r.addf("Splits", "weights must add up to 100, not %v", float64(sum)/100)
	}
}
