package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
	"github.com/crossfade-mesh/crossfade/internal/migrate"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// What servers that share a Consul remember beside entries, by the name of the state.
const (
	stateCA     = migrate.StateCA
	stateTokens = migrate.StateTokens
	stateLeaves = migrate.StateLeaves // and the hash of a leaf
)

// lockShifts is held by the one server that moves shares by time and evidence.
const lockShifts = "shifts"

// checkWithin is how long to ask a Consul whether it can be used.
const checkWithin = 10 * time.Second

// ConsulAccess says how to reach a Consul.
type ConsulAccess struct {
	Token string
	TLS   *tls.Config // nil: the system's roots
}

// Engine is the part of a server that keeps its state in a Consul; without one, nil.
func (o Options) engine() (*consulstore.Engine, error) {
	if o.Consul == "" {
		return nil, nil
	}
	client, err := consul.NewClient(consul.Options{Address: o.Consul, Token: o.ConsulAccess.Token, TLS: o.ConsulAccess.TLS, Datacenter: o.Datacenter, MaxQueries: 32})
	if err != nil {
		return nil, err
	}
	e := consulstore.New(consulstore.Options{Client: client, Address: o.Consul, Node: o.NodeName, Locks: []string{lockShifts}, Log: o.Log})
	ctx, cancel := context.WithTimeout(context.Background(), checkWithin)
	defer cancel()
	datacenter, problems, err := e.Check(ctx)
	switch {
	case errors.Is(err, store.ErrUnreachable):
		o.Log.Error("Consul cannot be asked for its version and the token's rights", "reason", err)
		return e, nil // the store knows whether it can start
	case err != nil:
		return nil, err
	case datacenter != "" && datacenter != o.Datacenter:
		return nil, fmt.Errorf("datacenter %q: the Consul at %s is in %q: set --datacenter %s", o.Datacenter, o.Consul, datacenter, datacenter)
	}
	for _, p := range problems {
		o.Log.Error("Consul does not let this server do all that it has to", "consul", o.Consul, "problem", p)
	}
	return e, nil
}

// openStore opens the embedded store or, with a Consul, the one that is shared.
func (s *Server) openStore() (*store.Store, error) {
	o := s.opts
	opts := store.Options{Dir: o.DataDir, Datacenter: o.Datacenter, NodeName: o.NodeName, NodeAddress: o.Advertise, Judge: s.judge, Log: o.Log}
	if s.engine != nil {
		opts.Shared = s.engine
	}
	return store.Open(opts)
}

// keepRoot is [ca.Options].Keep over the store: of servers that start at once one makes the root.
func (s *Server) keepRoot(make func() ([]byte, error)) (kept []byte, err error) {
	s.store.Read(context.Background(), 0, func(r *store.Reader) { kept = r.State(stateCA) })
	if kept != nil {
		return kept, nil
	}
	made, err := make()
	if err != nil {
		return nil, err
	}
	err = s.store.Update(func(w *store.Writer) error {
		if kept = w.State(stateCA); kept != nil {
			return nil
		}
		kept = made
		return w.PutState(stateCA, made)
	})
	return kept, err
}

// shelf is [tokens.Shelf] over the store.
type shelf struct{ store *store.Store }

// Update implements [tokens.Shelf].
func (s shelf) Update(change func(get func(string) []byte, put func(string, []byte) error) error) error {
	return s.store.Update(func(w *store.Writer) error {
		return change(func(accessor string) []byte { return w.State(stateTokens + accessor) }, func(accessor string, value []byte) error {
			if value == nil {
				return w.DeleteState(stateTokens + accessor)
			}
			return w.PutState(stateTokens+accessor, value)
		})
	})
}

// Follow implements [tokens.Shelf].
func (s shelf) Follow(ctx context.Context, take func(map[string][]byte)) {
	s.store.ReadUntil(ctx, func(r *store.Reader) bool {
		take(r.States(stateTokens))
		return ctx.Err() != nil
	})
}

// askedOfConsul are the paths of Consul's API whose answers are in that Consul, and nowhere else.
func askedOfConsul() []string {
	return append([]string{
		"/v1/catalog/", "/v1/health/", "/v1/agent/service/", "/v1/agent/services", "/v1/agent/check/", "/v1/agent/checks", "/v1/agent/health/",
		"/v1/agent/maintenance", "/v1/agent/members", "/v1/kv/", "/v1/session/", "/v1/txn", "/v1/acl/",
	}, consulapi.NotServed()...)
}

// askConsul answers for what a real Consul holds: writing it here would be lost on
// the mesh, and reading it here would find nothing.
func (s *Server) askConsul(w http.ResponseWriter, r *http.Request) {
	http.Error(w, fmt.Sprintf("%s %s: not served here: this server keeps its state in the Consul at %s, ask that", r.Method, r.URL.Path, s.opts.Consul), http.StatusNotImplemented)
}

// staleEngine is what keeps what servers share from being read or written.
func (s *Server) staleEngine() []api.Finding {
	err := s.store.Trouble()
	if s.engine == nil || err == nil {
		return nil
	}
	return []api.Finding{{Severity: api.Critical, Subject: "consul " + s.opts.Consul, Since: s.store.Since().UTC(), Text: "the state that servers share: " + oneLine(err)}}
}

// engineProblems are what is wrong with what servers share in a Consul.
func (s *Server) engineProblems(found findings) {
	if s.engine == nil {
		return
	}
	if err := s.store.Trouble(); err != nil {
		found.add(proxy.Problem{Subject: "consul " + s.opts.Consul, Reason: err.Error()}, "")
	}
	outside, _ := s.engine.Outside()
	for k, why := range outside.Unclear {
		found.add(proxy.Problem{Subject: string(k.Kind) + " " + strconv.Quote(k.Name), Reason: "not taken from Consul, it stays what it was when it was last right: " + oneLine(errors.New(why))}, "")
	}
}
