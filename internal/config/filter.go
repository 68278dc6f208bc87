package config

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"

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
	defer func() {
		if recover() != nil {
			f, err = Filter{}, errors.New("not a filter expression")
		}
	}()
	// The parser takes time that grows exponentially with nesting: count first.
	tree, err := bexpr.Parse("", []byte(text), bexpr.MaxExpressions(maxSteps))
	if err != nil {
		if strings.Contains(err.Error(), "max number of") {
			return Filter{}, errors.New("too much is nested in parentheses")
		}
		return Filter{}, notFilter(err)
	}
	if err := checkMatches(tree); err != nil {
		return Filter{}, err
	}
	evaluator, err := bexpr.CreateEvaluatorForType(text, &bexpr.EvaluatorConfig{MaxMatches: maxMatches}, filterInstance{})
	if err != nil {
		return Filter{}, notFilter(err)
	}
	return Filter{evaluator}, nil
}

func notFilter(err error) error {
	return fmt.Errorf("not a filter on an instance: %s", shorten(oneLine(err.Error()), maxReason))
}

// checkMatches bounds the regular expressions of a parsed filter.
func checkMatches(tree any) error {
	switch t := tree.(type) {
	case *bexpr.UnaryExpression:
		return checkMatches(t.Operand)
	case *bexpr.BinaryExpression:
		if err := checkMatches(t.Left); err != nil {
			return err
		}
		return checkMatches(t.Right)
	case *bexpr.MatchExpression:
		if t.Operator != bexpr.MatchMatches && t.Operator != bexpr.MatchNotMatches {
			return nil
		}
		re, err := syntax.Parse(t.Value.Raw, syntax.Perl)
		if err != nil {
			return notFilter(err)
		}
		if n := programSize(re); n > maxFilterRegex {
			return fmt.Errorf("a regular expression compiles to some %d instructions, more than %d", n, maxFilterRegex)
		}
	}
	return nil
}

// Bounds of a filter.
const (
	maxSteps       = 20_000 // of the parser, a few milliseconds
	maxMatches     = 50
	maxFilterRegex = 1000
	maxReason      = 256
)

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
