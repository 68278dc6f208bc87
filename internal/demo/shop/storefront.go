package shop

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// callTimeout bounds each call that the storefront makes for a page.
const callTimeout = 5 * time.Second

// serveStorefront answers, with one line of text each:
//
//	GET /page/{sku}?token=T  <token> <sku> <price> <variant> paid <catalog instance> <payments instance>
//	GET /healthz             ok
//
// A page asks catalog, which asks assignments, and then payments.
func (a App) serveStorefront(ctx context.Context, ln net.Listener) error {
	catalog := NewHTTPBy(a.Upstreams["catalog"], 0)
	defer catalog.Close()
	payments := NewPaymentsBy(a.Upstreams["payments"], 0)
	defer payments.Close()
	go func() {
		tick := time.NewTicker(maxAge)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				payments.Prune()
			}
		}
	}()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /page/{sku}", func(w http.ResponseWriter, r *http.Request) {
		sku, token := r.PathValue("sku"), r.URL.Query().Get("token")
		item, err := catalog.AssignedItem(sku, token, time.Now().Add(callTimeout))
		if err != nil {
			http.Error(w, fmt.Sprintf("catalog: %v", err), http.StatusBadGateway)
			return
		}
		cashier, err := payments.Pay(token, Price(sku), time.Now().Add(callTimeout))
		if err != nil {
			http.Error(w, fmt.Sprintf("payments: %v", err), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "%s %s %d %s paid %s %s\n", token, sku, Price(sku), Variant(token), item, cashier)
	})
	mux.HandleFunc("GET /healthz", healthz)
	return serveHTTP(ctx, ln, mux)
}
