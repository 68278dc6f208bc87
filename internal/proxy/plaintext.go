package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// PlaintextListener is the stat prefix, and the name of the routes, of what comes to the
// public listener without TLS.
const PlaintextListener = PublicListener + "_plaintext"

// Plaintext is what a permissive service's port takes from callers without a certificate.
// Who they are is known by their address alone: that proves a host, and no more.
type Plaintext struct {
	// Hosts holds the addresses from which a caller with an intention of its own may come,
	// sorted, each once. Of several callers at one the most is allowed.
	Hosts []Host
	// Intentions are those of the service, by caller; Callers are in Hosts.
	Intentions
	// Admission is set for tcp when the app has an IP.
	Admission *PlainAdmission
	// ListenerName and Port, when set, are of a listener for plaintext alone, beside the
	// public one: of tcp, so that a caller may divide connections between it and mTLS, and
	// need not wait where the app speaks first.
	ListenerName string
	Port         int
	// Apart says that Port takes all of it, and the public port none.
	Apart bool
}

// Host is one address with the verdict for what comes from it.
type Host struct {
	Address netip.Addr
	Verdict
}

// PlainAdmission is [Admission] by address.
type PlainAdmission struct {
	Address    netip.AddrPort // of the app
	Exceptions []netip.Addr   // to which Otherwise does not apply, sorted
	Otherwise  bool           // whether others are let through
}

// permissive reports whether the sidecar's port takes plaintext.
func (b *builder) permissive() bool {
	b.read(config.Key{Kind: config.KindProxyDefaults, Name: config.Global})
	return b.in.Config.MutualTLSMode(b.service) == config.MutualTLSPermissive
}

// plaintext says whose plaintext is let in; nil when nobody's is.
func (b *builder) plaintext(in *Inbound, settings config.ProxyConfig) *Plaintext {
	if !b.permissive() {
		return nil
	}
	if in.ListenerJSON != "" {
		b.problem(PublicListener, "MutualTLSMode permissive has no effect beside %s: that listener says what it takes", config.PublicListenerHatch)
		return nil
	}
	out := &Plaintext{Intentions: in.Intentions}
	verdicts := map[netip.Addr]Verdict{}
	prefix := peerURIPrefix(b.in.TrustDomain, b.in.Datacenter)
	for _, c := range in.Intentions.Callers {
		source := strings.TrimPrefix(c.URI, prefix)
		b.proxy.Sources = append(b.proxy.Sources, source)
		if b.in.Addresses == nil {
			continue
		}
		for _, at := range b.in.Addresses(source) {
			if v, taken := verdicts[at]; !taken || c.allows() > v.allows() {
				verdicts[at] = c.Verdict
			}
		}
	}
	slices.Sort(b.proxy.Sources)
	for at, v := range verdicts {
		out.Hosts = append(out.Hosts, Host{at, v})
	}
	slices.SortFunc(out.Hosts, func(x, y Host) int { return x.Address.Compare(y.Address) })
	if !config.IsHTTP(in.Protocol) {
		b.plaintextPort(in, out, settings)
	}
	if a := in.Admission; a != nil {
		out.Admission = &PlainAdmission{Address: a.Address, Otherwise: out.Otherwise.Allow || out.Otherwise.Audit}
		size := 0
		for _, h := range out.Hosts {
			if (h.Allow || h.Audit) != out.Admission.Otherwise {
				out.Admission.Exceptions = append(out.Admission.Exceptions, h.Address)
				size += len(h.Address.String()) + len(` || source.address.startsWith("[]:")`)
			}
		}
		if size > maxAdmission {
			b.problem("service-intentions/"+b.service, "%d hosts are more than can be refused before the app is connected to: denied ones are refused at their first byte", len(out.Admission.Exceptions))
			out.Admission.Exceptions, out.Admission.Otherwise = nil, true
		}
	}
	return out
}

// plaintextPort settles where plaintext of tcp is taken.
func (b *builder) plaintextPort(in *Inbound, out *Plaintext, settings config.ProxyConfig) {
	if port := settings.PlaintextPort; port != 0 {
		addr := netip.MustParseAddr(in.Address)
		if holder, ok := b.claim(bind{addr: addr, port: port}, PlaintextListener); ok {
			out.ListenerName, out.Port = fmt.Sprintf("%s:%s:%d", PlaintextListener, addr, port), port
		} else {
			b.problem(PlaintextListener, "%s is taken by %s: plaintext is taken on the public port alone", netip.AddrPortFrom(addr, uint16(port)), holder)
		}
	}
	out.Apart = settings.ServerFirst && out.Port != 0
	if settings.ServerFirst && !out.Apart {
		b.problem("proxy config", "server_first: without a plaintext_port plaintext is taken on the public port, where callers that wait for the app wait longer")
	}
}

// allows orders verdicts by how much they let through.
func (v Verdict) allows() int {
	switch {
	case v.Audit || v.Allow && !v.Conditional():
		return 2
	case v.Conditional():
		return 1
	}
	return 0
}

// Enforced is [Intentions.Enforced], by address.
func (p *Plaintext) Enforced() *Plaintext {
	return p.each(p.Intentions.Enforced(), func(v Verdict) Verdict {
		if v.Audit {
			return Verdict{Allow: true, Because: v.Because}
		}
		return v
	})
}

// Watched is [Intentions.Watched], by address.
func (p *Plaintext) Watched() (*Plaintext, bool) {
	watched, audited := p.Intentions.Watched()
	return p.each(watched, func(v Verdict) Verdict {
		if !v.Audit {
			return Verdict{Allow: true, Because: v.Because}
		}
		return v
	}), audited
}

// Connections is [Intentions.Connections], by address.
func (p *Plaintext) Connections() *Plaintext {
	return p.each(p.Intentions.Connections(), func(v Verdict) Verdict {
		if v.Conditional() {
			return Verdict{Because: v.Because, Audit: v.Audit}
		}
		return v
	})
}

func (p *Plaintext) each(in Intentions, change func(Verdict) Verdict) *Plaintext {
	out := &Plaintext{Intentions: in, Admission: p.Admission, ListenerName: p.ListenerName, Port: p.Port, Apart: p.Apart}
	for _, h := range p.Hosts {
		out.Hosts = append(out.Hosts, Host{h.Address, change(h.Verdict)})
	}
	return out
}
