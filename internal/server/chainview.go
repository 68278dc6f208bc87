package server

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// chain shows what becomes of requests for a service, as the entries say and as its
// instances let it, and for a caller by which ways they go.
func (s *Server) chain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	req := routing.Request{Service: r.PathValue("service"), Datacenter: cmp.Or(q.Get("dc"), s.mesh.datacenter), Protocol: q.Get("protocol")}
	if req.Protocol != "" && !routing.KnownProtocol(req.Protocol) {
		http.Error(w, "chain: "+routing.UnknownProtocol(req.Protocol), http.StatusBadRequest)
		return
	}
	var view routing.View
	err := isolated(func() (err error) { view, err = s.mesh.view(req, q.Get("source")); return err })
	if err != nil {
		http.Error(w, fmt.Sprintf("chain of %q: %v", req.Service, err), http.StatusServiceUnavailable)
		return
	}
	s.answer(w, view)
}

func (m *mesh) view(req routing.Request, source string) (routing.View, error) {
	m.mu.Lock()
	snap, entries, inForce := m.catalog, m.entries, m.inForce
	m.mu.Unlock()
	if snap == nil || entries == nil {
		return routing.View{}, errNoCatalog
	}
	req.Config = entries
	chain, _ := routing.Compile(req)
	broken := chain.Broken
	good, old := lastChain(inForce, req)
	if old = old && broken != ""; old {
		chain = good
	}
	filters := &proxy.Filters{}
	count := func(p proxy.Part) int {
		n := 0
		for _, g := range proxy.BuildEndpoints(snap, proxy.EndpointsRef{Parts: []proxy.Part{p}}, nil, filters).Groups {
			n += len(g.Endpoints)
		}
		return n
	}
	healthy := func(t routing.Target) int {
		if t.Datacenter != m.datacenter {
			return 0 // there is no way to another one
		}
		return count(proxy.Part{Target: t})
	}
	view := chain.View(healthy)
	if old {
		view.LastGood, view.Broken = true, broken
	}
	if source == "" {
		return view, nil
	}
	var e *config.TrafficShift
	if req.Datacenter == m.datacenter {
		e = entries.TrafficShift(source, req.Service)
	}
	straight := routing.Target{Service: req.Service, Datacenter: m.datacenter}
	view.Pair = chain.PairOf(source, e, func(way string) int {
		if way != config.WayMTLS {
			return count(proxy.Part{Target: straight, Way: way})
		}
		n := 0
		last := chain.Routes[len(chain.Routes)-1]
		for _, l := range last.Legs {
			n += healthy(l.Target)
			for _, t := range l.Failover {
				n += healthy(t)
			}
		}
		return n
	})
	return view, nil
}

// lastChain is the chain that callers of a service have while its entries make none: of
// those who see its protocol as asked, or else of anybody.
func lastChain(inForce map[chainKey]routing.Chain, req routing.Request) (routing.Chain, bool) {
	for _, protocol := range []string{req.Protocol, "", config.HTTP, config.HTTP2, config.GRPC, config.TCP} {
		if chain, ok := inForce[chainKey{req.Service, req.Datacenter, protocol}]; ok {
			return chain, true
		}
	}
	return routing.Chain{}, false
}
