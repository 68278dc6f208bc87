package config

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-bexpr"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// Filter selects instances, in the language of Consul's filters. The zero value
// selects all. It may be used by several goroutines.
type Filter struct {
	evaluator *bexpr.Evaluator
}

// CompileFilter reads a filter whose selectors are those of an instance in Consul's
// health API: Node.Node, Node.Meta.x, Service.Tags, Service.Meta["x"], Checks.Status …
// "" selects all.
func CompileFilter(text string) (f Filter, err error) {
	if text == "" {
		return Filter{}, nil
	}
	if len(text) > maxText {
		return Filter{}, fmt.Errorf("longer than %d bytes", maxText)
	}
	if depth(text) > maxNesting {
		return Filter{}, fmt.Errorf("parentheses are nested more than %d deep", maxNesting)
	}
	defer func() {
		if recover() != nil {
			f, err = Filter{}, errors.New("not a filter expression")
		}
	}()
	evaluator, err := bexpr.CreateEvaluatorForType(text, &bexpr.EvaluatorConfig{MaxMatches: maxMatches}, filterInstance{})
	if err != nil {
		return Filter{}, errors.New("not a filter expression on an instance: " + shorten(oneLine(err.Error()), maxReason))
	}
	return Filter{evaluator}, nil
}

// Bounds of a filter: the parser's time grows with nesting, the evaluator's with matches.
const (
	maxNesting = 5
	maxMatches = 50
	maxReason  = 256
)

// depth is how deep the parentheses of text are nested, those in quotes included.
func depth(text string) int {
	now, most := 0, 0
	for i := range len(text) {
		switch text[i] {
		case '(':
			now++
			most = max(most, now)
		case ')':
			now--
		}
	}
	return most
}

// Match reports whether the filter selects the instance. An instance on which it
// cannot be evaluated is not selected.
func (f Filter) Match(i catalog.Instance) (ok bool) {
	if f.evaluator == nil {
		return true
	}
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	ok, err := f.evaluator.Evaluate(instanceFor(i))
	return ok && err == nil
}

// filterInstance is an instance as Consul's health API shows it: Go names are the
// selectors.
type filterInstance struct {
	Node    filterNode
	Service filterService
	Checks  []filterCheck
}

type filterNode struct {
	ID, Node, Address, Datacenter string
	TaggedAddresses               map[string]string
	Meta                          map[string]string
}

type filterService struct {
	Kind, ID, Service string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]catalog.Address
	Meta              map[string]string
	Port              int
	SocketPath        string
	Weights           catalog.Weights
	EnableTagOverride bool
	Proxy             filterProxy
	Connect           filterConnect
}

type filterProxy struct {
	DestinationServiceName, DestinationServiceID string
	LocalServiceAddress, LocalServiceSocketPath  string
	LocalServicePort                             int
	Mode                                         string
}

type filterConnect struct{ Native bool }

type filterCheck struct {
	Node, CheckID, Name, Status, Notes, Output, ServiceID, ServiceName string
	ServiceTags                                                        []string
	Type                                                               string
}

func instanceFor(i catalog.Instance) filterInstance {
	n, s := i.Node, i.Service
	out := filterInstance{
		Node: filterNode{ID: n.ID, Node: n.Name, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses, Meta: n.Meta},
		Service: filterService{
			Kind: string(s.Kind), ID: s.ID, Service: s.Name, Tags: s.Tags, Address: s.Address, TaggedAddresses: s.TaggedAddresses,
			Meta: s.Meta, Port: s.Port, SocketPath: s.SocketPath, Weights: s.Weights, EnableTagOverride: s.EnableTagOverride,
			Connect: filterConnect{Native: s.Connect.Native},
		},
		Checks: make([]filterCheck, 0, len(i.Checks)),
	}
	if p := s.Proxy; p != nil {
		out.Service.Proxy = filterProxy{
			DestinationServiceName: p.DestinationServiceName, DestinationServiceID: p.DestinationServiceID,
			LocalServiceAddress: p.LocalServiceAddress, LocalServiceSocketPath: p.LocalServiceSocketPath,
			LocalServicePort: p.LocalServicePort, Mode: p.Mode,
		}
	}
	for _, c := range i.Checks {
		out.Checks = append(out.Checks, filterCheck{
			Node: c.Node, CheckID: c.CheckID, Name: c.Name, Status: string(c.Status), Notes: c.Notes, Output: c.Output,
			ServiceID: c.ServiceID, ServiceName: c.ServiceName, ServiceTags: c.ServiceTags, Type: c.Type,
		})
	}
	return out
}
