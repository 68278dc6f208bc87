package proxy

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Cluster is one target with the way in which this sidecar calls it.
type Cluster struct {
	Name    string
	SNI     string // also the name of its [Endpoints], unless Split is set
	Target  routing.Target
	PeerURI string // the only identity accepted from its instances
	// Way is set of a cluster whose instances are called in plaintext: config.WayLegacy
	// and WayDirect, which are no sidecars, or WayPlain. Protocol is then that of requests.
	Way      string
	Protocol string
	// Legacy is the one instance of the legacy way.
	Legacy Place
	// Split, when set, gives connections to parts in place of Target, SNI and PeerURI:
	// requests are divided by routes and stood in for by groups, connections have neither.
	Split []Part
	// Sharers, when set, are those whose weights the Split has: the instances of a
	// service, or one of them. Otherwise all callers have the same.
	Sharers string
	// Multiplexed says that requests share HTTP/2 connections to its sidecars,
	// whatever the app speaks. False for tcp.
	Multiplexed bool
	// Unreachable is why the target has no endpoints, ever; empty when it is reachable.
	Unreachable string

	ConnectTimeout time.Duration
	Limits         Limits
	Outlier        Outlier
	// LoadBalancer is how one instance is chosen; nil: the least busy of a few.
	LoadBalancer *config.LoadBalancer
	// JSON, when set, is a cluster to stand in place of this one.
	JSON string
}

// Part is one target among those of a cluster for connections.
type Part struct {
	Target  routing.Target
	SNI     string
	PeerURI string
	Weight  uint32 // of routing.TotalWeight, among the parts of one priority; 0 of several: none
	// Way is set where the instances are called in plaintext: config.WayDirect, the
	// target's own, WayPlain, their sidecars, or WayLegacy, the address.
	Way string
	// Legacy is the address of WayLegacy, host:port. Its host may be a name: see [Names].
	Legacy string
	// Priority above 0 is for targets that get something only while nobody of the
	// priorities below can take it.
	Priority uint32
}

// legacy is the address of WayLegacy in its parts; of other ways there is none.
func (p Part) legacy() (host string, port int) {
	if p.Way != config.WayLegacy {
		return "", 0
	}
	return (&config.LegacyWay{Address: p.Legacy}).HostPort()
}

// Group is a cluster of clusters for requests: attempt n goes to member n, and a
// member without a healthy instance is passed over. Whatever is in it is in its name
// too, so that a group never changes: routes go over to another one when that one's
// members are ready.
type Group struct {
	Name string
	// StatName names its stats: those of the cluster that is wanted.
	StatName string
	// Members in order; a cluster stands in the list as often as it is to be tried.
	Members []string
	Limits  Limits
}

// EndpointsRef names an endpoint resource and what it is made of.
type EndpointsRef struct {
	ClusterName string // of the resource, which the cluster refers to
	// Parts are its targets. A single one that stands for all has weight 0.
	Parts []Part
}

// EndpointsOf is the endpoints of a target by itself.
func EndpointsOf(t routing.Target, trustDomain string) EndpointsRef {
	sni := t.SNI(trustDomain)
	return EndpointsRef{ClusterName: sni, Parts: []Part{{Target: t, SNI: sni, PeerURI: t.Identity(trustDomain).URI()}}}
}

// Equal reports whether both are made alike.
func (r EndpointsRef) Equal(o EndpointsRef) bool { return reflect.DeepEqual(r, o) }

// Services lists the services that the resource is made of.
func (r EndpointsRef) Services() []string {
	var out []string
	for _, p := range r.Parts {
		if p.Way != config.WayLegacy {
			out = append(out, p.Target.Service)
		}
	}
	return out
}

// Reads reports whether the resource is made of what any of the names stand for.
func (r EndpointsRef) Reads(names []string) bool {
	return slices.ContainsFunc(r.Parts, func(p Part) bool {
		host, _ := p.legacy()
		return host != "" && slices.Contains(names, host)
	})
}

// EndpointsName is the name of the cluster's endpoint resource. Which parts a split
// has, and in what order they stand in, is in the name, unlike their weights: a
// cluster must not get endpoints of parts whose identities it does not know, and
// endpoints are changed before clusters are, and for all callers.
func (c Cluster) EndpointsName() string {
	switch {
	case c.Split == nil && c.Way != "":
		return c.Name
	case c.Split == nil:
		return c.SNI
	}
	var content strings.Builder
	for _, p := range c.Split {
		fmt.Fprintf(&content, "%q %d ", p.Name(), p.Priority)
	}
	if c.Sharers != "" {
		return fmt.Sprintf("%s%s~%s~%08x", sharePrefix, c.Sharers, c.Name, uint32(routing.Hash(content.String())))
	}
	return fmt.Sprintf("%s%s~%08x", splitPrefix, c.Name, uint32(routing.Hash(content.String())))
}

// splitPrefix begins names that exist only because of a split.
const splitPrefix = "split~"

// groupPrefix begins the names of groups; that of the target and a hash follow.
const groupPrefix = "group~"

// failoverPrefix begins the names of clusters that are members of a failover, as
// Consul's do; the position follows.
const failoverPrefix = "failover-target~"

// Cluster finds the cluster of that name.
func (p *Proxy) Cluster(name string) (Cluster, bool) {
	if c := p.cluster(name); c != nil {
		return *c, true
	}
	return Cluster{}, false
}

func (p *Proxy) cluster(name string) *Cluster {
	for i := range p.Clusters { // not by value: they are large, and many
		if p.Clusters[i].Name == name {
			return &p.Clusters[i]
		}
	}
	return nil
}

// Endpoints lists the endpoint resources that the sidecar needs, sorted, each once.
func (p *Proxy) Endpoints() []EndpointsRef {
	var out []EndpointsRef
	seen := map[string]bool{}
	for _, c := range p.Clusters {
		name := c.EndpointsName()
		if c.Unreachable != "" || c.Way == config.WayLegacy || seen[name] {
			continue
		}
		seen[name] = true
		parts := c.Split
		if parts == nil {
			parts = []Part{{Target: c.Target, SNI: c.SNI, PeerURI: c.PeerURI, Way: c.Way}}
		}
		out = append(out, EndpointsRef{name, parts})
	}
	slices.SortFunc(out, func(x, y EndpointsRef) int { return cmp.Compare(x.ClusterName, y.ClusterName) })
	return out
}
