package shop

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// callerHeader is where Envoy writes the identity of the caller that it has
// authenticated.
const callerHeader = "X-Forwarded-Client-Cert"

// cameHeader of an answer says by which way its request came, as far as the app can tell:
// "legacy" by an old mesh's proxy, "mtls" from a sidecar that has shown who it is, else "plaintext".
const cameHeader = "X-Came-By"

func cameBy(h http.Header) string {
	switch {
	case strings.Contains(h.Get("Via"), "node-proxy"):
		return "legacy"
	case h.Get(callerHeader) != "":
		return "mtls"
	}
	return "plaintext"
}

// maxHold bounds how long a request may ask to be held.
const maxHold = 30 * time.Second

// serveCatalog answers, with one line of text each:
//
//	GET /items/{sku}?token=T           <instance> <token> <sku> <price>
//	GET /items/{sku}/assigned?token=T  <instance> <token> <sku> <price> <variant>, asking assignments
//	GET /held?token=T&hold=D           <instance> at once, then after D the token
//	GET /caller                        the caller's identity as Envoy wrote it
//	GET /healthz                       ok
func (a App) serveCatalog(ctx context.Context, ln net.Listener) error {
	assignments := NewAssignmentsBy(a.Upstreams["assignments"], 0)
	defer assignments.Close()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{sku}", func(w http.ResponseWriter, r *http.Request) {
		sku := r.PathValue("sku")
		w.Header().Set(cameHeader, cameBy(r.Header))
		fmt.Fprintf(w, "%s %s %s %d\n", a.Instance, r.URL.Query().Get("token"), sku, Price(sku))
	})
	mux.HandleFunc("GET /items/{sku}/assigned", func(w http.ResponseWriter, r *http.Request) {
		sku, token := r.PathValue("sku"), r.URL.Query().Get("token")
		variant, _, err := assignments.Assign(r.Context(), token)
		if err != nil {
			http.Error(w, fmt.Sprintf("assignments: %v", err), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "%s %s %s %d %s\n", a.Instance, token, sku, Price(sku), variant)
	})
	mux.HandleFunc("GET /held", a.held)
	mux.HandleFunc("GET /caller", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Header.Get(callerHeader))
	})
	mux.HandleFunc("GET /healthz", healthz)
	return serveHTTP(ctx, ln, mux)
}

func (a App) held(w http.ResponseWriter, r *http.Request) {
	hold, err := time.ParseDuration(r.URL.Query().Get("hold"))
	if err != nil || hold < 0 || hold > maxHold {
		http.Error(w, "hold: want a duration of at most "+maxHold.String(), http.StatusBadRequest)
		return
	}
	fmt.Fprintln(w, a.Instance)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	select {
	case <-time.After(hold):
		fmt.Fprintln(w, r.URL.Query().Get("token"))
	case <-r.Context().Done():
	}
}

func healthz(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
