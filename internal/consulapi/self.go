package consulapi

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// leader is an address at which this server, its own leader, can be reached.
func (a *api) leader() string {
	for _, addr := range []string{a.GRPCTLSAddr, a.GRPCAddr, a.HTTPSAddr, a.HTTPAddr} {
		if addr != "" {
			return addr
		}
	}
	return net.JoinHostPort(a.store.NodeAddress(), "0")
}

func statusLeader(c *call) (any, error) { return c.api.leader(), nil }

func statusPeers(c *call) (any, error) { return []string{c.api.leader()}, nil }

func agentVersion(*call) (any, error) {
	return map[string]string{"SHA": "", "BuildDate": "1970-01-01T00:00:01Z", "HumanVersion": ConsulVersion, "FIPS": ""}, nil
}

// memberShape is a member of the cluster; here there is only this server.
type memberShape struct {
	Name                                  string
	Addr                                  string
	Port                                  int
	Tags                                  map[string]string
	Status                                int
	ProtocolMin, ProtocolMax, ProtocolCur int
	DelegateMin, DelegateMax, DelegateCur int
}

func (a *api) member(id string) memberShape {
	const alive = 1
	return memberShape{
		Name: a.store.Node(), Addr: a.store.NodeAddress(), Port: max(0, port(a.leader())),
		Tags: map[string]string{
			"acls": "0", "build": ConsulVersion + ":", "dc": a.store.Datacenter(), "id": id, "role": "consul", "segment": "",
			"port": strconv.Itoa(max(0, port(a.leader()))), "grpc_port": strconv.Itoa(port(a.GRPCAddr)),
			"vsn": "2", "vsn_min": "2", "vsn_max": "3", "raft_vsn": "3",
		},
		Status:      alive,
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2,
		DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

// ownNode is the server's own node.
func (a *api) ownNode() *catalog.Node {
	n := &catalog.Node{Name: a.store.Node(), Address: a.store.NodeAddress()}
	a.store.Read(context.Background(), 0, func(r *store.Reader) {
		if own := r.Node(a.store.Node()); own != nil {
			n = own
		}
	})
	return n
}

func agentMembers(c *call) (any, error) {
	return filter(c, []memberShape{c.api.member(c.api.ownNode().ID)})
}

func agentSelf(c *call) (any, error) {
	a := c.api
	own := a.ownNode()
	listener := func(addr string) []string {
		if addr == "" {
			return []string{}
		}
		return []string{"tcp://" + addr}
	}
	plain, tls := port(a.GRPCAddr), port(a.GRPCTLSAddr)
	return map[string]any{
		// Crossfade tells our own tools that this is no plain Consul.
		"Crossfade": map[string]any{"Version": a.Version},
		"Config": map[string]any{
			"Datacenter": a.store.Datacenter(), "PrimaryDatacenter": a.store.Datacenter(),
			"NodeName": own.Name, "NodeID": own.ID, "Server": true, "BindAddr": own.Address,
			"Revision": "", "Version": ConsulVersion, "BuildDate": "1970-01-01T00:00:01Z",
		},
		"DebugConfig": map[string]any{
			"Datacenter": a.store.Datacenter(), "PrimaryDatacenter": a.store.Datacenter(),
			"NodeName": own.Name, "NodeID": own.ID, "ServerMode": true, "BindAddr": own.Address,
			"AdvertiseAddrLAN": own.Address, "TaggedAddresses": own.TaggedAddresses,
			"ACLsEnabled": false, "ConnectEnabled": true, "PeeringEnabled": false,
			"ConnectSidecarMinPort": sidecarMinPort, "ConnectSidecarMaxPort": sidecarMaxPort,
			"HTTPAddrs": listener(a.HTTPAddr), "HTTPPort": port(a.HTTPAddr), "HTTPSAddrs": listener(a.HTTPSAddr), "HTTPSPort": port(a.HTTPSAddr),
			"GRPCAddrs": listener(a.GRPCAddr), "GRPCPort": plain,
			"GRPCTLSAddrs": listener(a.GRPCTLSAddr), "GRPCTLSPort": tls,
			"KVMaxValueSize": maxKVValue, "DefaultQueryTime": defaultWait.String(), "MaxQueryTime": maxWait.String(),
			"UIConfig": map[string]any{"Enabled": false, "MetricsProvider": ""},
			"Version":  ConsulVersion,
		},
		"Coord":  nil,
		"Member": a.member(own.ID),
		"Stats": map[string]any{
			"build":  map[string]string{"version": ConsulVersion, "revision": "", "prerelease": ""},
			"consul": map[string]string{"acl": "disabled", "known_datacenters": "1", "leader": "true", "leader_addr": a.leader(), "server": "true"},
		},
		"Meta": own.Meta,
		"xDS": map[string]any{
			"SupportedProxies": map[string][]string{"envoy": a.EnvoyVersions},
			"Port":             plain,
			"Ports":            map[string]int{"Plaintext": plain, "TLS": tls},
		},
	}, nil
}

func caRoots(c *call) (any, error) {
	if c.api.Roots == nil {
		return nil, internal("Connect must be enabled in order to use this endpoint")
	}
	w, err := c.wait()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), w.limit)
	defer cancel()
	var floor uint64
	c.api.store.Read(ctx, 0, func(r *store.Reader) { floor = r.Index() })
	for {
		roots, outdated := c.api.Roots()
		index := c.api.roots.at(outdated, floor)
		// An index from the future is left over from another server, see store.Read.
		if w.index == 0 || index > w.index || w.index > max(index, floor) {
			c.meta(index)
			return c.showRoots(roots)
		}
		select {
		case <-outdated:
		case <-ctx.Done():
			c.meta(index)
			return c.showRoots(roots)
		}
	}
}

// showRoots answers the roots, with pem=true only their certificates.
func (c *call) showRoots(roots any) (any, error) {
	wanted, err := strconv.ParseBool(cmp.Or(c.query.Get("pem"), "false"))
	if err != nil {
		return nil, badRequest("The 'pem' query parameter must be a boolean value")
	}
	if !wanted {
		return roots, nil
	}
	raw, err := json.Marshal(roots)
	if err != nil {
		return nil, err
	}
	var list struct{ Roots []struct{ RootCert string } }
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	c.w.Header().Set("Content-Type", "application/pem-certificate-chain")
	for _, r := range list.Roots {
		io.WriteString(c.w, r.RootCert)
	}
	return done{}, nil
}

func nodeMaintenance(c *call) (any, error) {
	enable, err := c.enable()
	if err != nil {
		return nil, err
	}
	h := c.host()
	return empty{}, c.api.agent.maintain(h, "", enable, c.query.Get("reason"))
}

// enable is the parameter of the maintenance endpoints.
func (c *call) enable() (bool, error) {
	raw := c.query.Get("enable")
	if raw == "" {
		return false, badRequest("Missing value for enable")
	}
	v, err := strconv.ParseBool(raw)
	if err != nil {
		return false, badRequest("Invalid value for enable: %q", raw)
	}
	return v, nil
}

// host is the node that the call speaks for: the server's own, or the one named.
func (c *call) host() host {
	if name := c.query.Get("node"); name != "" && name != c.api.store.Node() {
		return host{name, c.query.Get("address")}
	}
	return host{c.api.store.Node(), c.api.store.NodeAddress()}
}

func statusOf(s catalog.Status) int {
	switch s {
	case catalog.Passing:
		return http.StatusOK
	case catalog.Warning:
		return http.StatusTooManyRequests
	default:
		return http.StatusServiceUnavailable
	}
}
