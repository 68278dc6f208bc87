package client

import (
	"cmp"
	"net/http"
)

// Transport is an [http.RoundTripper] for calls of one destination: it picks a way per
// request, and sends the request to that way's address.
//
// The new way speaks http where its address names no scheme, since a sidecar listens
// in plaintext on loopback; the old way keeps the request's scheme. Over https the
// certificate has to be of the address.
//
// A redirect to another host than that of the first request, or from http to https, is
// followed there, as without a Transport.
type Transport struct {
	Pair *Pair
	// Base sends the requests; [http.DefaultTransport] if nil.
	Base http.RoundTripper
	// Key returns what a request sticks to. Without it, or where it returns nothing,
	// that is [Key] of the request's context.
	Key func(*http.Request) string
	// OldHost and NewHost are the Host of requests on each way. Empty keeps the
	// request's own, so that both ways see the same.
	OldHost, NewHost string
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.leaves(r) {
		return t.base().RoundTrip(r)
	}
	key := ""
	if t.Key != nil {
		key = t.Key(r)
	}
	if key == "" {
		key = Key(r.Context())
	}
	c, err := t.Pair.Choose(key)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	resp, err := t.base().RoundTrip(t.rewrite(r, c))
	if resp != nil {
		// Whoever asked looks for what it asked.
		resp.Request = r
	}
	return resp, err
}

// rewrite returns the request as it is sent. It shares headers and body with r.
func (t *Transport) rewrite(r *http.Request, c Choice) *http.Request {
	host, scheme := t.OldHost, c.Scheme
	if c.Way == New {
		host, scheme = t.NewHost, cmp.Or(scheme, "http")
	}
	sent := r.WithContext(r.Context())
	u := *r.URL
	u.Host, u.Scheme = c.Addr, cmp.Or(scheme, u.Scheme)
	sent.URL = &u
	sent.Host = cmp.Or(host, r.Host, r.URL.Host)
	return sent
}

// leaves returns whether a redirect has led away from the destination.
func (t *Transport) leaves(r *http.Request) bool {
	if r.Response == nil {
		return false
	}
	first := r
	for first.Response != nil && first.Response.Request != nil {
		first = first.Response.Request
	}
	if first.URL.Scheme == "http" && r.URL.Scheme == "https" {
		return true // an address of plaintext does not speak it
	}
	switch r.URL.Host {
	case first.URL.Host, first.Host, t.OldHost, t.NewHost, t.Pair.old.Addr, t.Pair.new.Addr:
		return false
	}
	return true
}

func (t *Transport) base() http.RoundTripper {
	if t.Base != nil {
		return t.Base
	}
	return http.DefaultTransport
}

// CloseIdleConnections closes those of Base, as [http.Client] asks for.
func (t *Transport) CloseIdleConnections() {
	if b, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		b.CloseIdleConnections()
	}
}
