package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const (
	// settleTime is the default of [Options.Settle].
	settleTime = 2 * time.Minute
	// maxNodes are looked at by one [Source.Explain]; askAtOnce are asked for at a time.
	maxNodes  = 256
	askAtOnce = 8
)

// Bad is an instance that is left out.
type Bad struct{ Service, Reason string }

// Bad lists the instances that are left out now, sorted.
func (s *Source) Bad() (out []Bad) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, service := range slices.Sorted(maps.Keys(s.bad)) {
		for _, reason := range slices.Sorted(maps.Keys(s.bad[service])) {
			out = append(out, Bad{service, reason})
		}
	}
	return out
}

func (s *Source) leftOut(service string, bad map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(bad) == 0 {
		delete(s.bad, service)
	} else {
		s.bad[service] = bad
	}
}

func (s *Source) unkick(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kicks, path)
}

// Doubt says that Consul may have been restored or rebuilt, as an index that runs backwards
// does by itself. Its agents get the time to register again what they run: until then
// nothing is explained.
func (s *Source) Doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubt = time.Now().Add(s.settle)
}

func (s *Source) doubted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.doubt)
}

// Explain looks why instances are gone that Consul had before. It is explained when a quorum
// agrees that the node is in the catalog, as it was, and passing serfHealth, that neither its services nor
// its checks mention the instance, and that something about the node was written after the
// instance was. What cannot be read explains nothing, nor does anything while there is [Source.Doubt].
func (s *Source) Explain(ctx context.Context, gone []catalog.Instance) map[catalog.InstanceKey]string {
	out := map[catalog.InstanceKey]string{}
	if s.doubted() {
		return out
	}
	byNode := map[string][]catalog.Instance{}
	for _, in := range gone {
		if _, ok := byNode[in.Node.Name]; ok || len(byNode) < maxNodes {
			byNode[in.Node.Name] = append(byNode[in.Node.Name], in)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, askAtOnce)
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			found, err := s.explainNode(ctx, node, byNode[node])
			if err != nil {
				s.log.Debug("no evidence", "node", node, "err", err)
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(out, found)
		})
	}
	wg.Wait()
	if s.doubted() {
		clear(out) // an index ran backwards meanwhile
	}
	return out
}

func (s *Source) explainNode(ctx context.Context, node string, gone []catalog.Instance) (map[catalog.InstanceKey]string, error) {
	var runs struct {
		Node     *catalog.Node
		Services json.RawMessage // null when there are none
	}
	var services []*catalog.Service
	listed, err := s.get(ctx, "/v1/catalog/node-services/"+url.PathEscape(node), quorum, 0)
	if err == nil {
		err = decode(listed.body, &runs)
	}
	if err == nil && runs.Services != nil {
		err = decode(runs.Services, &services)
	}
	if err != nil || runs.Node == nil || runs.Node.Name != node || runs.Services == nil {
		return nil, err
	}
	var checks []*catalog.Check
	a, err := s.get(ctx, "/v1/health/node/"+url.PathEscape(node), quorum, 0)
	if err == nil {
		err = decode(a.body, &checks)
	}
	if err != nil {
		return nil, err
	}
	reachable, mentioned := false, map[string]string{} // name by ID
	for _, c := range checks {
		switch {
		case c == nil || c.Node != node:
			return nil, fmt.Errorf("node %q: a check is another node's", node)
		case c.CheckID == catalog.SerfHealth && c.ServiceID == "":
			reachable = c.Status == catalog.Passing
		case c.ServiceID != "":
			mentioned[c.ServiceID] = c.ServiceName
		}
	}
	if !reachable {
		return nil, nil
	}
	for _, svc := range services {
		if svc == nil || svc.ID == "" {
			return nil, fmt.Errorf("node %q: a service without an ID", node)
		}
		mentioned[svc.ID] = svc.Name
	}
	out := map[catalog.InstanceKey]string{}
	for _, in := range gone {
		name, there := mentioned[in.Service.ID]
		switch {
		case listed.index <= in.Service.ModifyIndex || listed.filtered || a.filtered:
			// From before it was registered, or only a part of what there is.
		case runs.Node.CreateIndex > in.Service.ModifyIndex:
			// The node was gone as a whole, and its agent may not have registered all again.
		case !there:
			out[catalog.KeyOf(in)] = "its node is there, reachable, and without it"
		case name != "" && name != in.Service.Name:
			out[catalog.KeyOf(in)] = "its ID is registered for service " + name + " now"
		}
	}
	return out, nil
}
