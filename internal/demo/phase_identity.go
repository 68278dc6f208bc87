package demo

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Identity is one end of a pair.
type Identity struct {
	URI    string `json:"uri"`
	Serial string `json:"serial"` // of the leaf in force when it was last looked at
}

// identity asks each end of each pair who the other one is.
func (d *demo) identity(ctx context.Context, p *Proof) error {
	m := d.traffic.mark()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	trustDomain, roots, err := d.mesh.api.roots(ctx)
	if err != nil {
		return err
	}
	d.report.TrustDomain = trustDomain
	for _, pr := range d.traffic.pairs {
		if err := pr.identify(ctx, roots); err != nil {
			return err
		}
		wantFrom, wantTo := serviceURI(trustDomain, pr.from.service), serviceURI(trustDomain, pr.to.service)
		p.check(pr.caller.URI == wantFrom && pr.callee.URI == wantTo, "%s over mTLS: caller %s, callee %s", pr.key(), path(pr.caller.URI), path(pr.callee.URI))
		if !config.IsHTTP(pr.to.protocol) {
			continue
		}
		told, err := d.toldCaller(ctx, pr)
		if err != nil {
			return fmt.Errorf("%s: asking the callee who called: %w", pr.key(), err)
		}
		uri, clean := callerURI(told)
		p.check(clean && uri == wantFrom, "%s: the callee's Envoy tells its app who called: %s%s", pr.key(), path(uri), unclean(clean, told))
	}
	if err := d.strangers(p); err != nil {
		return err
	}
	return d.nothingFailed(ctx, p, m)
}

// identify reads who is at the ends of a pair: the caller as its Envoy has loaded
// it, the callee as its public port shows it.
func (p *pair) identify(ctx context.Context, roots string) error {
	caller, err := p.from.status()
	if err != nil {
		return err
	}
	callee, err := p.to.status()
	if err != nil {
		return err
	}
	loaded, err := loadedSerial(ctx, caller.Envoy.AdminSocket, caller.Certificate.URI)
	if err != nil {
		return fmt.Errorf("%s: caller: %w", p.key(), err)
	}
	shown, err := dialServed(callee.PublicAddress, roots)
	if err != nil {
		return fmt.Errorf("%s: callee: %w", p.key(), err)
	}
	if shown.TLS != "TLS 1.3" {
		return fmt.Errorf("%s: callee %s speaks %s, want TLS 1.3", p.key(), callee.PublicAddress, shown.TLS)
	}
	p.caller = Identity{URI: caller.Certificate.URI, Serial: loaded}
	p.callee = Identity{URI: shown.URI, Serial: shown.Serial}
	return nil
}

// toldCaller is what the callee's Envoy told its app about the caller.
func (d *demo) toldCaller(ctx context.Context, pr *pair) (string, error) {
	if pr.to.protocol == config.HTTP {
		return d.traffic.catalog.Caller(time.Now().Add(requestTimeout))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return d.traffic.assignments.Caller(ctx)
}

// callerURI reads an x-forwarded-client-cert header. It is clean when it tells of
// one caller, and no more of its certificate than the URI and a hash.
func callerURI(header string) (uri string, clean bool) {
	clean = header != "" && !strings.Contains(header, ",")
	for field := range strings.SplitSeq(header, ";") {
		switch key, value, _ := strings.Cut(field, "="); key {
		case "URI":
			uri = value
		case "By", "Hash":
		default:
			clean = false
		}
	}
	return uri, clean
}

func unclean(clean bool, header string) string {
	if clean {
		return ""
	}
	return fmt.Sprintf(", in a header that says more: %q", header)
}

// strangers checks that no public port serves a caller without a certificate.
func (d *demo) strangers(p *Proof) error {
	var served []string
	for _, in := range d.mesh.running() {
		s, err := in.status()
		if err != nil {
			return err
		}
		for _, plaintext := range []bool{true, false} {
			ok, err := answersWithoutCertificate(s.PublicAddress, plaintext)
			if err != nil {
				return err
			}
			if ok {
				served = append(served, in.id)
			}
		}
	}
	served = slices.Compact(served)
	text := "refused by all"
	if len(served) > 0 {
		text = "served by " + strings.Join(served, ", ")
	}
	p.check(len(served) == 0, "callers in plaintext, or without a certificate: %s", text)
	return nil
}

// serviceURI is the SPIFFE ID that the demo expects of a service.
func serviceURI(trustDomain, service string) string {
	return "spiffe://" + trustDomain + "/ns/default/dc/dc1/svc/" + service
}

// path is a SPIFFE ID without the trust domain, which is the same for all.
func path(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "spiffe" {
		return fmt.Sprintf("%q", uri)
	}
	return u.Path
}
