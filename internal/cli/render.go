package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
)

// rendering is the offline pipeline: files in, one sidecar's resources out.
type rendering struct {
	services, entries []string
	proxyID, sidecar  string
	datacenter        string
	trustDomain       string
	policy            string
	static            bool
	hatches           bool
}

func newRender(s streams) *cobra.Command {
	var r rendering
	cmd := &cobra.Command{
		Use:   "render (-sidecar-for ID | -proxy-id ID) --service FILE... [--config FILE...]",
		Short: "Show what a sidecar would be told, from files alone",
		Long: `Run the pipeline offline: service definitions and configuration entries in, the Envoy
resources of one sidecar out. With --static it is one bootstrap that needs no control
plane, with throw-away certificates, as "envoy --mode validate" takes it.`,
		Example: `  crossfade render -sidecar-for web --service web.yaml --service catalog.yaml --config catalog.hcl
  crossfade render -sidecar-for web --service web.yaml --static > web.json && envoy --mode validate -c web.json`,
		Args: exactly(),
	}
	f := cmd.Flags()
	f.StringArrayVar(&r.services, "service", nil, "file of service definitions; may be given several times")
	f.StringArrayVar(&r.entries, "config", nil, "file of a configuration entry; may be given several times")
	f.StringVar(&r.sidecar, "sidecar-for", "", "ID of the service instance whose sidecar to render")
	f.StringVar(&r.proxyID, "proxy-id", "", "ID of the connect-proxy to render")
	f.StringVar(&r.datacenter, "datacenter", "dc1", "name of the datacenter")
	f.StringVar(&r.trustDomain, "trust-domain", "11111111-2222-3333-4444-555555555555.consul", "trust domain; with --static that of the throw-away CA is used")
	addChoice(cmd, &r.policy, "default-intention-policy", "", "allow", "allow or deny callers that no intention mentions", "allow", "deny")
	f.BoolVar(&r.hatches, "allow-escape-hatches", false, "honour listeners and clusters written in Envoy's own words, as servers with that flag do")
	f.BoolVar(&r.static, "static", false, "print one static bootstrap instead of resources")
	complete(cmd, "service", written())
	complete(cmd, "config", written())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (r.proxyID == "") == (r.sidecar == "") || len(r.services) == 0 {
			return usageError{errors.New("render: give one of -sidecar-for and -proxy-id, and at least one --service FILE"), "crossfade render --help"}
		}
		if err := checkDatacenter(r.datacenter); err != nil {
			return usageError{err, "crossfade render --help"}
		}
		return r.run(s)
	}
	return cmd
}

func (r rendering) run(s streams) error {
	defs, err := readDefinitions(s, r.services)
	if err != nil {
		return err
	}
	var entries []config.Entry
	var errs []error
	for _, file := range r.entries {
		b, err := readFile(s, file)
		if err == nil {
			var e config.Entry
			if e, err = config.DecodeEntry(file, b); err == nil {
				entries = append(entries, e)
			}
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var authority *ca.BuiltIn
	if r.static {
		if authority, err = ca.Open(ca.Options{Datacenter: r.datacenter}); err != nil {
			return err
		}
		defer authority.Close()
		r.trustDomain = authority.TrustDomain()
	}

	snap := snapshotOf(r.datacenter, defs)
	in, ok := snap.Proxy(r.proxyID, "")
	if r.sidecar != "" {
		in, ok = snap.ProxyFor(r.sidecar, "")
	}
	if !ok {
		return fmt.Errorf("sidecar %q: no definition in the files gives it", cmp.Or(r.proxyID, r.sidecar))
	}
	p, problems := proxy.Build(proxy.Input{Instance: in, Config: config.NewSet(entries...), Datacenter: r.datacenter, TrustDomain: r.trustDomain, DefaultAllow: r.policy == "allow", AllowEscapeHatches: r.hatches})
	made, err := envoy.Build(p)
	if err != nil {
		return err
	}
	for _, pr := range append(problems, made.Problems...) {
		fmt.Fprintf(s.err, "warning: %s\n", pr)
	}
	var endpoints []*endpointv3.ClusterLoadAssignment
	for _, ref := range p.Endpoints() {
		endpoints = append(endpoints, envoy.Endpoints(proxy.BuildEndpoints(snap, ref, nil, nil)))
	}
	if !r.static {
		return printResources(s.out, made, endpoints)
	}
	key, csr, err := ca.NewKeyAndCSR(p.Identity)
	if err != nil {
		return err
	}
	leaf, err := authority.Sign(context.Background(), csr, time.Now())
	if err != nil {
		return err
	}
	b, err := envoy.StaticBootstrap(envoy.BootstrapOptions{
		NodeID: p.ID, NodeName: p.Node, Service: p.Identity.Service, Datacenter: r.datacenter, StatsTags: config.Definition{Service: *in.Service}.StatsTags(),
	}, made, endpoints, envoy.LeafSecret(leaf, key), envoy.RootsSecret(authority.Roots().PEM()))
	if err != nil {
		return err
	}
	_, err = s.out.Write(b)
	return err
}

// snapshotOf is the catalog in which the definitions are registered on one node,
// all healthy. Sidecars without a port get those from 21000 on, in order.
func snapshotOf(datacenter string, defs []config.Definition) *catalog.Snapshot {
	node := &catalog.Node{Name: "localhost", Address: "127.0.0.1", Datacenter: datacenter}
	byName := map[string][]catalog.Instance{}
	add := func(svc *catalog.Service) {
		byName[svc.Name] = append(byName[svc.Name], catalog.Instance{Node: node, Service: svc})
	}
	port := 21000
	for _, d := range defs {
		svc := d.Service
		add(&svc)
		if side := d.SidecarService(); side != nil {
			if side.Port == 0 {
				side.Port = port
				port++
			}
			add(side)
		}
	}
	sets := map[string]*catalog.Set{}
	for name, list := range byName {
		sets[name] = catalog.NewSet(name, slices.Clone(list))
	}
	return catalog.NewSnapshot(datacenter, 1, sets)
}

// printResources writes the resources by type, in the order in which they are sent.
func printResources(w io.Writer, made envoy.Resources, endpoints []*endpointv3.ClusterLoadAssignment) error {
	b, err := envoy.ResourcesJSON(made, endpoints)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
