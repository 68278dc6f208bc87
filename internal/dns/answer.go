package dns

import (
	"cmp"
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// answer answers a question.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDPSize, false)
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
			return m
		}
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
		return m
	case len(q.Question) != 1:
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	switch {
	case question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeNotImplemented
		return m
	case !dns.IsSubDomain(Domain, strings.ToLower(question.Name)), question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY:
		m.Rcode = dns.RcodeRefused
		return m
	}
	m.Authoritative = true
	a := &answers{
		m: m, qname: question.Name, qtype: question.Qtype, datacenter: s.store.Datacenter(), server: s.store.Node(),
		serverAddr: s.store.NodeAddress(), seen: map[string]bool{},
	}
	n, ok := parse(question.Name)
	ok = ok && (n.datacenter == "" || strings.EqualFold(n.datacenter, a.datacenter))
	if ok {
		s.store.Read(context.Background(), 0, func(r *store.Reader) { ok = a.fill(r, n) })
	}
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, a.soa())
	}
	return m
}

// answers collects the records of one answer.
type answers struct {
	m          *dns.Msg
	qname      string
	qtype      uint16
	datacenter string
	server     string // this server's node
	serverAddr string
	seen       map[string]bool // addresses that are in already
}

// wants reports whether records of a type are asked for.
func (a *answers) wants(rrtype uint16) bool { return a.qtype == rrtype || a.qtype == dns.TypeANY }

func (a *answers) header(owner string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: owner, Rrtype: rrtype, Class: dns.ClassINET}
}

// fill adds the records of a name. It reports false when there is no such name.
func (a *answers) fill(r *store.Reader, n name) bool {
	if a.qtype == dns.TypeSOA || a.qtype == dns.TypeNS {
		a.authority()
		return true
	}
	switch n.kind {
	case emptyKind:
		return true
	case nodeKind:
		node := r.NodeFold(n.name)
		if node == nil {
			return false
		}
		a.host(a.qname, node.Address)
		a.texts(node)
		return true
	case addrKind:
		a.host(a.qname, n.addr.String())
		return true
	}
	instances := r.InstancesFold(n.name)
	if n.kind == connectKind {
		instances = r.ConnectFold(n.name)
	}
	var able []catalog.Instance
	for _, in := range instances {
		status := in.Status()
		if (status == catalog.Passing || status == catalog.Warning) && hasTag(in.Service.Tags, n.tag) {
			able = append(able, in)
		}
	}
	rand.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	for _, in := range able {
		if a.qtype == dns.TypeSRV {
			a.srv(in)
		} else {
			a.host(a.qname, cmp.Or(in.Service.Address, in.Node.Address))
		}
	}
	a.oneAlias()
	return len(able) > 0
}

func hasTag(tags []string, want string) bool {
	if want == "" {
		return true
	}
	for _, t := range tags {
		if strings.EqualFold(t, want) {
			return true
		}
	}
	return false
}

// host adds the records of an address, which may be a host name, once.
func (a *answers) host(owner, address string) {
	if a.seen[address] {
		return
	}
	a.seen[address] = true
	if rr := a.addressRecord(owner, address); rr != nil && (a.wants(rr.Header().Rrtype) || rr.Header().Rrtype == dns.TypeCNAME) {
		a.m.Answer = append(a.m.Answer, rr)
	}
}

// addressRecord is the A, AAAA or CNAME record for an address; nil for one that
// cannot be said in DNS.
func (a *answers) addressRecord(owner, address string) dns.RR {
	ip, err := netip.ParseAddr(address)
	switch ip = ip.Unmap().WithZone(""); {
	case err != nil:
		target := dns.Fqdn(address)
		if _, ok := dns.IsDomainName(target); !ok || address == "" {
			return nil
		}
		return &dns.CNAME{Hdr: a.header(owner, dns.TypeCNAME), Target: target}
	case ip.Is4():
		return &dns.A{Hdr: a.header(owner, dns.TypeA), A: ip.AsSlice()}
	default:
		return &dns.AAAA{Hdr: a.header(owner, dns.TypeAAAA), AAAA: ip.AsSlice()}
	}
}

// oneAlias leaves either addresses or a single alias: a name that has an alias must
// have nothing else.
func (a *answers) oneAlias() {
	var aliases, others []dns.RR
	for _, rr := range a.m.Answer {
		if rr.Header().Rrtype == dns.TypeCNAME {
			aliases = append(aliases, rr)
		} else {
			others = append(others, rr)
		}
	}
	if len(others) > 0 {
		a.m.Answer = others
	} else if len(aliases) > 1 {
		a.m.Answer = aliases[:1]
	}
}

// srv adds an instance's SRV record and, beside it, the address of its target.
func (a *answers) srv(in catalog.Instance) {
	address := cmp.Or(in.Service.Address, in.Node.Address)
	target := dns.Fqdn(address)
	ip, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		if _, ok := dns.IsDomainName(target); !ok {
			return
		}
	case in.Service.Address != "":
		target = hex.EncodeToString(ip.Unmap().AsSlice()) + ".addr." + a.datacenter + "." + Domain
	default:
		target = in.Node.Name + ".node." + a.datacenter + "." + Domain
		if _, ok := dns.IsDomainName(target); !ok {
			return
		}
	}
	weight := in.Service.Weights.Passing
	if in.Status() == catalog.Warning {
		weight = in.Service.Weights.Warning
	}
	a.m.Answer = append(a.m.Answer, &dns.SRV{
		Hdr: a.header(a.qname, dns.TypeSRV), Priority: 1, Weight: uint16(min(max(weight, 0), 65535)), Port: uint16(in.Service.Port), Target: target,
	})
	if err == nil && !a.seen[target] {
		a.seen[target] = true
		a.m.Extra = append(a.m.Extra, a.addressRecord(target, address))
	}
}

// texts adds a node's meta, for those who ask for it.
func (a *answers) texts(n *catalog.Node) {
	if !a.wants(dns.TypeTXT) {
		return
	}
	for key, value := range n.Meta {
		text := key + "=" + value
		if strings.HasPrefix(strings.ToLower(key), "rfc1035-") {
			text = value
		}
		a.m.Answer = append(a.m.Answer, &dns.TXT{Hdr: a.header(a.qname, dns.TypeTXT), Txt: pieces(text)})
	}
}

// pieces cuts a text where a TXT record must.
func pieces(text string) []string {
	const most = 255
	var out []string
	for len(text) > most {
		out, text = append(out, text[:most]), text[most:]
	}
	return append(out, text)
}

// authority answers who answers: this server.
func (a *answers) authority() {
	target := a.server + ".node." + a.datacenter + "." + Domain
	ns := &dns.NS{Hdr: a.header(Domain, dns.TypeNS), Ns: target}
	if a.qtype == dns.TypeSOA {
		a.m.Answer, a.m.Ns = append(a.m.Answer, a.soa()), append(a.m.Ns, ns)
	} else {
		a.m.Answer = append(a.m.Answer, ns)
	}
	if rr := a.addressRecord(target, a.serverAddr); rr != nil {
		a.m.Extra = append(a.m.Extra, rr)
	}
}

// soa describes the domain. Answers are kept by nobody: what is not there now may be
// in a second.
func (a *answers) soa() *dns.SOA {
	return &dns.SOA{
		Hdr: a.header(Domain, dns.TypeSOA), Ns: "ns." + Domain, Mbox: "hostmaster." + Domain,
		Serial: uint32(time.Now().Unix()), Refresh: 3600, Retry: 600, Expire: 86400, Minttl: 0,
	}
}
