package proxy

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Describe prints the decisions for people and for tests. What is as it is by
// default is left out.
func (p *Proxy) Describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "proxy %s on %s\n  is %s\n", p.ID, p.Node, p.Identity)
	n := p.Normalization
	fmt.Fprintf(&b, "  path %v, merge slashes %v, escaped slashes %s, underscores %s\n", n.Path, n.MergeSlashes, n.EscapedSlashesAction, cmp.Or(n.UnderscoresAction, "by protocol"))
	if in := p.Inbound; in != nil {
		in.describe(&b)
	}
	for _, u := range p.Upstreams {
		fmt.Fprintf(&b, "upstream %s %s -> %s%s\n", u.ListenerName, u.Protocol, u.Target, flag(u.ExactBalance, " exact_balance")+flag(u.ListenerJSON != "", " "+config.ListenerHatch)+flag(u.Unknown, " unknown"))
	}
	for _, r := range p.Routes {
		fmt.Fprintf(&b, "route %s: %s", r.Name, r.Chain.Describe())
		r.describe(&b)
	}
	for _, g := range p.Groups {
		fmt.Fprintf(&b, "group %s\n  %s\n", g.Name, strings.Join(g.Members, "\n  "))
	}
	for _, c := range p.Clusters {
		c.describe(&b)
	}
	b.WriteString("reads")
	for _, k := range p.Reads {
		b.WriteString(" " + k.String())
	}
	b.WriteString("\n")
	return b.String()
}

func (in *Inbound) describe(b *strings.Builder) {
	app := in.App
	where := fmt.Sprintf("%s port %d", app.Address, app.Port)
	if app.SocketPath != "" {
		where = app.SocketPath
	}
	fmt.Fprintf(b, "inbound %s %s%s\n  app %s, connect %v", in.ListenerName, in.Protocol,
		flag(in.ExactBalance, " exact_balance")+flag(in.ListenerJSON != "", " "+config.PublicListenerHatch)+flag(in.ClusterJSON != "", " "+config.LocalClusterHatch), where, app.ConnectTimeout)
	if app.RequestTimeout != 0 {
		fmt.Fprintf(b, ", request %v", app.RequestTimeout)
	}
	if app.IdleTimeout != 0 {
		fmt.Fprintf(b, ", idle %v", app.IdleTimeout)
	}
	b.WriteString("\n")
	if in.MaxConnections != 0 {
		fmt.Fprintf(b, "  at most %d connections\n", in.MaxConnections)
	}
	for _, c := range in.Intentions.Callers {
		c.describe(b, strings.TrimPrefix(c.URI, in.PeerURIPrefix))
	}
	in.Intentions.Otherwise.describe(b, "others")
	for _, p := range in.Intentions.Providers {
		p.describe(b)
	}
	if in.Admission != nil {
		b.WriteString("  decided before the app is connected to\n")
	}
	for _, e := range in.Exposed {
		fmt.Fprintf(b, "exposed %s on %s port %d -> %s %s\n", e.Path, e.Address, e.Port, e.App.Cluster, e.App.Protocol)
	}
}

// describe prints what the chain does not say: the clusters of the legs, where they
// are not those of the targets.
func (r Route) describe(b *strings.Builder) {
	for i, rule := range r.Rules {
		if len(r.Rules) == 1 && len(rule.Legs) == 1 && !rule.Sticky && !rule.RewriteHost && !rule.Retry.afterSending() || rule.Unreachable != "" {
			continue
		}
		fmt.Fprintf(b, "  rule %d%s%s%s%s, %d retries\n", i, flag(rule.Idempotent, " idempotent"), flag(rule.Sticky, " sticky"),
			flag(rule.Cookie != nil, " known"), flag(rule.RewriteHost, " host by instance")+flag(rule.NewCookie != nil, " stranger"), rule.Retry.Number)
		for j, l := range rule.Legs {
			if j == maxDescribed {
				fmt.Fprintf(b, "    and %d more\n", len(rule.Legs)-j)
				break
			}
			fmt.Fprintf(b, "    %5d %s\n", l.Weight, l.Cluster)
		}
	}
}

// maxDescribed legs are printed of a rule.
const maxDescribed = 10

func (c Cluster) describe(b *strings.Builder) {
	fmt.Fprintf(b, "cluster %s%s\n", c.Name, flag(c.Multiplexed, " h2")+flag(c.JSON != "", " "+config.ClusterHatch))
	switch {
	case c.Split != nil:
		for _, part := range c.Split {
			fmt.Fprintf(b, "  %5d %s%s\n", part.Weight, part.Name()+flag(part.Way == config.WayLegacy, " "+part.Legacy), flag(part.Priority > 0, fmt.Sprintf(" if nobody else, %d", part.Priority)))
		}
	case c.Way == config.WayLegacy:
		fmt.Fprintf(b, "  %s at %s%s\n", c.Protocol, c.Legacy, flag(c.Legacy.Host != "", " as "+c.Legacy.Host))
	case c.Way != "":
		fmt.Fprintf(b, "  %s to the instances of %s\n", c.Protocol, c.Target)
	case c.SNI != c.Name:
		fmt.Fprintf(b, "  of %s\n", c.SNI)
	}
	if c.Unreachable != "" {
		fmt.Fprintf(b, "  unreachable: %s\n", c.Unreachable)
	}
	if lb := c.LoadBalancer; lb != nil && lb.Policy != "" {
		fmt.Fprintf(b, "  %s\n", lb.Policy)
	}
	l, o := c.Limits, c.Outlier
	fmt.Fprintf(b, "  connect %v, at most %d connections, %d pending, %d requests%s\n", c.ConnectTimeout, l.MaxConnections, l.MaxPendingRequests, l.MaxRequests,
		flag(l.RetryBudget, ", retries by budget"))
	fmt.Fprintf(b, "  out for %v after %d gateway failures or %d 5xx (%d%%), every %v, at most %d%%%s\n", o.BaseEjection, o.GatewayFailures,
		o.Consecutive5xx, o.Enforcing5xx, o.Interval, o.MaxPercent, flag(o.AlwaysOne, " but always one"))
}

// String is host:port.
func (p Place) String() string {
	if strings.ContainsRune(p.Address, ':') {
		return fmt.Sprintf("[%s]:%d", p.Address, p.Port)
	}
	return fmt.Sprintf("%s:%d", p.Address, p.Port)
}

func flag(on bool, text string) string {
	if on {
		return text
	}
	return ""
}
