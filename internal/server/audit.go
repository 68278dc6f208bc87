package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
)

// visit is what is known of an HTTP request beside the request.
type visit struct {
	caller access.Principal
	need   access.Need // what it took, once that was asked
	denied error
}

type visitKey struct{}

// authorize is the one way to a right over HTTP.
func authorize(r *http.Request, n access.Need) error {
	v, ok := r.Context().Value(visitKey{}).(*visit)
	if !ok {
		return errors.New("request did not come in by the door")
	}
	v.need, v.denied = n, access.Decide(v.caller, n)
	return v.denied
}

// author names who makes a request in the history of entries.
func (d *door) author(r *http.Request) string {
	v, ok := r.Context().Value(visitKey{}).(*visit)
	if d.open || !ok {
		return "dev"
	}
	return v.caller.String()
}

// enter finds out who makes each request, and keeps account of writes.
func (d *door) entrance(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _, err := d.who(bearer(r.Header), r.TLS)
		if err != nil {
			d.log.Warn("request refused", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr, "reason", err)
			http.Error(w, "Permission denied: "+err.Error(), http.StatusForbidden)
			return
		}
		v := &visit{caller: p}
		if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
			return
		}
		s := &seen{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(s, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
		d.account(v, r, s.status)
	})
}

// account enters a write into trail and log. Heartbeats go to the log alone, and so
// do strangers, who could otherwise push others out of the trail.
func (d *door) account(v *visit, r *http.Request, status int) {
	e := tokens.Entry{
		Time: time.Now().UTC(), Who: v.caller.String(), Role: string(v.caller.Role), Accessor: v.caller.Accessor, From: r.RemoteAddr,
		Action: r.Method + " " + clipped(r.URL.Path), Target: clipped(v.need.Target), Outcome: "done",
	}
	switch {
	case v.denied != nil:
		e.Outcome = "refused"
	case status >= 300:
		e.Outcome = fmt.Sprintf("failed, status %d", status)
	}
	switch {
	case v.caller.Role == access.Anonymous:
		d.log.Warn("audit", "who", e.Who, "from", e.From, "action", e.Action, "outcome", e.Outcome)
	case v.need.Pulse && v.denied == nil:
		d.log.Debug("audit", "who", e.Who, "from", e.From, "action", e.Action, "outcome", e.Outcome)
	default:
		d.note(e)
	}
}

// clipped bounds what a caller can make the trail hold.
func clipped(s string) string {
	const most = 512
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// seen remembers the status of an answer.
type seen struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (s *seen) WriteHeader(code int) {
	s.status = code
	s.ResponseWriter.WriteHeader(code)
}

// Unwrap is for [http.ResponseController].
func (s *seen) Unwrap() http.ResponseWriter { return s.ResponseWriter }
