package sidecar

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// adoptWithin is how long a start waits for the Consul agent where the state directory
	// does not hold what it said before; where it does, firstContact.
	adoptWithin = 10 * time.Second
	// maintenanceReason tells our maintenance mode from that of others.
	maintenanceReason = "crossfade sidecar stopped"
	// anyAddress is where Consul's sidecars listen unless told otherwise, and so ours that
	// a Consul holds.
	anyAddress = "0.0.0.0"
)

// adoption is what a Consul agent says of an instance: its node and, of one whose
// registration is not the sidecar's own, the registration.
type adoption struct {
	Node    string           `json:"node"`
	Address string           `json:"address"`
	Service *catalog.Service `json:"service,omitempty"` // nil: the agent has no such instance, only a proxy for it
	Proxy   *catalog.Service `json:"proxy,omitempty"`   // nil: the sidecar registers its own
}

// definition is the registration as the owner of an instance would have declared it.
func (a adoption) definition() config.Definition {
	p := a.Proxy.Proxy
	d := config.Definition{
		Service: catalog.Service{ID: cmp.Or(p.DestinationServiceID, p.DestinationServiceName), Name: p.DestinationServiceName},
		Sidecar: &config.Definition{Service: *a.Proxy},
	}
	if a.Service != nil {
		d.Service = *a.Service
		d.Service.Proxy = nil
	}
	return d
}

// adopts reports whether the registration is a Consul agent's.
func (o Options) adopts() bool { return o.SidecarFor != "" || o.ProxyID != "" }

// adopt settles what is Consul's to say. It is to run before the options are checked.
func (o Options) adopt(ctx context.Context) (Options, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Consul == "" {
		if o.adopts() {
			return o, errors.New("sidecar: --sidecar-for and --proxy-id take a registration from a Consul agent: name it with --consul")
		}
		return o, nil
	}
	base, err := baseURL(o.Consul, o.ConsulTLS != nil)
	if err != nil {
		return o, fmt.Errorf("Consul agent: %w", err)
	}
	o.Consul = base
	consul := newConsulAgent(o)
	defer consul.close()
	file := filepath.Join(o.StateDir, registrationFile)
	known, within := o.remembered(file), adoptWithin
	if known != nil {
		within = firstContact
	}
	found, err := consul.adoption(ctx, within, o.SidecarFor, o.ProxyID)
	switch {
	case err != nil && known != nil && !errors.Is(err, errUnknown) && !errors.Is(err, errRefused):
		o.Log.Warn("the Consul agent does not answer, the registration is taken from before", "consul", o.Consul, "error", err)
		found = *known
	case err != nil:
		return o, err
	}
	o.consul = &found
	o.Node, o.NodeAddress = found.Node, cmp.Or(o.NodeAddress, found.Address)
	if found.Proxy != nil {
		o.Definition = found.definition()
	}
	return o, nil
}

// remembered is what an earlier start of the same sidecar was told, or nil.
func (o Options) remembered(file string) *adoption {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var a adoption
	if json.Unmarshal(text, &a) != nil || a.Node == "" || o.adopts() != (a.Proxy != nil && a.Proxy.Proxy != nil) {
		return nil
	}
	if o.adopts() && a.Proxy.ID != o.ProxyID && a.Proxy.Proxy.DestinationServiceID != o.SidecarFor {
		return nil
	}
	return &a
}

// newConsulAgent speaks to the Consul agent of this host.
func newConsulAgent(o Options) *agent {
	t := &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, TLSClientConfig: o.ConsulTLS}
	return &agent{
		addrs: []string{o.Consul}, node: o.Node, addr: o.NodeAddress, cred: &credential{}, client: &http.Client{Transport: t},
		bearer: func() (string, error) {
			if o.ConsulTokenFile != "" {
				return ReadToken(o.ConsulTokenFile)
			}
			return o.ConsulToken, nil
		},
	}
}

// adoption asks until there is an answer, or for as long as given.
func (a *agent) adoption(ctx context.Context, within time.Duration, sidecarFor, proxyID string) (adoption, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for attempt := 0; ; attempt++ {
		found, err := a.adoptionNow(ctx, sidecarFor, proxyID)
		if err == nil || errors.Is(err, errUnknown) || errors.Is(err, errRefused) || !sleep(ctx, backOff(attempt, 100*time.Millisecond, time.Second, rand.Float64())) {
			return found, err
		}
	}
}

func (a *agent) adoptionNow(ctx context.Context, sidecarFor, proxyID string) (out adoption, err error) {
	var self struct {
		Config struct{ NodeName string }
		Member struct{ Addr string }
	}
	if err := a.get(ctx, "/v1/agent/self", nil, &self); err != nil {
		return out, err
	}
	if self.Config.NodeName == "" {
		return out, fmt.Errorf("%w: %s names no node of its own: is it the HTTP port of a Consul agent?", errUnknown, a.addrs[0])
	}
	out.Node, out.Address = self.Config.NodeName, self.Member.Addr
	if sidecarFor == "" && proxyID == "" {
		return out, nil
	}
	filter := "Kind == `connect-proxy` and Proxy.DestinationServiceID == " + strconv.Quote(sidecarFor)
	subject := fmt.Sprintf("service %q", sidecarFor)
	if proxyID != "" {
		filter = "Kind == `connect-proxy` and ID == " + strconv.Quote(proxyID)
		subject = fmt.Sprintf("proxy %q", proxyID)
	}
	var proxies map[string]*catalog.Service
	if err := a.get(ctx, "/v1/agent/services", url.Values{"filter": {filter}}, &proxies); err != nil {
		return out, err
	}
	if len(proxies) != 1 {
		why := "no sidecar is registered for it: its definition needs connect { sidecar_service {} }"
		switch {
		case len(proxies) > 1:
			why = fmt.Sprintf("%d sidecars are registered for it: name one with --proxy-id", len(proxies))
		case proxyID != "":
			why = "no such connect-proxy is registered"
		}
		return out, fmt.Errorf("%s: %w with the Consul agent at %s: %s", subject, errUnknown, a.addrs[0], why)
	}
	for _, out.Proxy = range proxies {
	}
	if out.Proxy.Proxy == nil || out.Proxy.Proxy.DestinationServiceName == "" {
		return out, fmt.Errorf("%s: %w: its proxy stands for no service", subject, errUnknown)
	}
	if id := out.Proxy.Proxy.DestinationServiceID; id != "" {
		var service catalog.Service
		switch err := a.get(ctx, "/v1/agent/service/"+url.PathEscape(id), nil, &service); {
		case err == nil:
			out.Service = &service
		case !errors.Is(err, errUnknown):
			return out, err
		}
	}
	return out, nil
}

func (a *agent) get(ctx context.Context, path string, query url.Values, into any) error {
	res, err := a.call(ctx, agentTimeout, http.MethodGet, path, query, nil)
	if err := a.settled(res, err, http.MethodGet, path); err != nil {
		return err
	}
	if err := json.Unmarshal(res.body, into); err != nil {
		return fmt.Errorf("GET %s: not Consul's answer: %w", path, err)
	}
	return nil
}

// maintenance takes a registration out of service, or puts one back that we took out.
func (a *agent) maintenance(ctx context.Context, id string, on bool) error {
	if !on {
		var checks map[string]struct{ Notes string }
		checkID := catalog.ServiceMaintenancePrefix + id
		if err := a.get(ctx, "/v1/agent/checks", url.Values{"filter": {"CheckID == " + strconv.Quote(checkID)}}, &checks); err != nil {
			return err
		}
		if checks[checkID].Notes != maintenanceReason {
			return nil // not under maintenance, or not by us
		}
	}
	path := "/v1/agent/service/maintenance/" + url.PathEscape(id)
	q := url.Values{"enable": {strconv.FormatBool(on)}, "reason": {maintenanceReason}}
	res, err := a.call(ctx, agentTimeout, http.MethodPut, path, q, nil)
	return a.settled(res, err, http.MethodPut, path)
}

// openAdopted settles where the sidecar of an adopted registration listens. Its ports may
// be those of a running Envoy that it takes over from: both have them for a while.
func (s *sidecar) openAdopted(was ports) error {
	d, p := &s.opts.Definition, s.opts.consul.Proxy
	bind, port := listensAt(p)
	s.proxy = p
	s.upstreams = localUpstreams(p.Proxy)
	s.publicAddress = net.JoinHostPort(cmp.Or(p.Address, s.opts.NodeAddress), strconv.Itoa(p.Port))
	var err error
	if s.port, err = hold(net.JoinHostPort(bind, strconv.Itoa(port))); err != nil {
		return fmt.Errorf("service %q: %w", d.Service.ID, err)
	}
	places := []string{net.JoinHostPort(bind, strconv.Itoa(port))}
	for _, u := range s.upstreams {
		places = append(places, u.bind())
	}
	for _, at := range places {
		if err := shareable(at); err != nil {
			return fmt.Errorf("service %q: %s cannot be listened on: %w: an Envoy that is to be taken over from runs as the same user, and with enable_reuse_port", d.Service.ID, at, err)
		}
	}
	if now := (ports{Service: d.Service.Name, ID: d.Service.ID, PublicPort: p.Port}); now != was {
		if err := s.dir.writeJSON(portsFile, now); err != nil {
			return fmt.Errorf("state directory %q: cannot be written: %w", s.dir.path, cause(err))
		}
	}
	return nil
}

// listensAt is the address and port of a registered proxy's public listener.
func listensAt(p *catalog.Service) (address string, port int) {
	c, _, _ := config.DecodeProxyConfig(p.Proxy.Config)
	return cmp.Or(c.BindAddress, p.Address, anyAddress), cmp.Or(c.BindPort, p.Port)
}
