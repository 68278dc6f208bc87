package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
)

// Fleet is what a datacenter holds, as package connectfleet looks at it.
type Fleet struct {
	Datacenter  string
	TrustDomain string
	Node        string // of the agent that was asked
	// DefaultAllow is what Consul does with a caller that no intention mentions.
	DefaultAllow bool
	// Entries are configuration entries and Instances elements of /v1/health/service/:name,
	// as JSON.
	Entries   []json.RawMessage
	Instances []json.RawMessage
}

// entryKinds are all that Consul has.
var entryKinds = []string{
	"api-gateway", "bound-api-gateway", "exported-services", "file-system-certificate", "http-route",
	"ingress-gateway", "inline-certificate", "jwt-provider", "mesh", "proxy-defaults", "sameness-group", "service-defaults", "service-intentions",
	"service-resolver", "service-router", "service-splitter", "tcp-route", "terminating-gateway",
}

// Fleet reads the entries and registrations of the datacenter once.
func (s *Source) Fleet(ctx context.Context) (out Fleet, err error) {
	var self struct {
		Config      struct{ Datacenter, NodeName string }
		DebugConfig struct {
			DefaultIntentionPolicy string
			ACLsEnabled            bool
			ACLResolverSettings    struct{ ACLDefaultPolicy string }
		}
	}
	if err := s.read(ctx, "/v1/agent/self", &self); err != nil {
		return out, err
	}
	out.Datacenter, out.Node = self.Config.Datacenter, self.Config.NodeName
	if s.datacenter != "" {
		out.Datacenter = s.datacenter
	}
	switch policy := self.DebugConfig.DefaultIntentionPolicy; {
	case policy != "":
		out.DefaultAllow = policy == "allow"
	default:
		out.DefaultAllow = !self.DebugConfig.ACLsEnabled || self.DebugConfig.ACLResolverSettings.ACLDefaultPolicy == "allow"
	}
	var roots struct{ TrustDomain string }
	if err := s.read(ctx, "/v1/connect/ca/roots", &roots); err != nil {
		return out, fmt.Errorf("is Connect enabled there? %w", err)
	}
	out.TrustDomain = roots.TrustDomain
	for _, kind := range entryKinds {
		var list []json.RawMessage
		if err := s.read(ctx, "/v1/config/"+kind, &list); err != nil {
			return out, err
		}
		out.Entries = append(out.Entries, list...)
	}
	var services map[string][]string
	if err := s.read(ctx, pathServices, &services); err != nil {
		return out, err
	}
	names := make([]string, 0, len(services))
	for name := range services {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		var list []json.RawMessage
		if err := s.read(ctx, "/v1/health/service/"+url.PathEscape(name), &list); err != nil {
			return out, err
		}
		out.Instances = append(out.Instances, list...)
	}
	return out, nil
}

func (s *Source) read(ctx context.Context, path string, into any) error {
	a, err := s.get(ctx, path, 0, 0)
	if err == nil {
		err = decode(a.body, into)
	}
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}
