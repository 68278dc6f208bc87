package api_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
)

// canned stands for a server.
func canned() *httptest.Server {
	mux := http.NewServeMux()
	answer := func(pattern, body string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	}
	answer("GET /v1/crossfade/pairs/storefront/catalog", `{"source":"storefront","destination":"catalog","shares":{"legacy":90,"mtls":10},"index":40,
		"revertible":{"state":"yes","way":"legacy","why":"legacy address 10.0.0.5:4140 takes connections"}}`)
	answer("POST /v1/crossfade/shift", `{"index":41,"pairs":[{"source":"storefront","destination":"catalog","before":{"legacy":90,"mtls":10},"after":{"legacy":75,"mtls":25},"entry":{}}]}`)
	answer("GET /v1/crossfade/applied", `{"index":41,"told":true,"sidecars":[{"sidecar":"storefront-sidecar-proxy","state":"acked"}]}`)
	return httptest.NewServer(mux)
}

// Shift a pair on, unless somebody else has changed it since it was looked at, and wait
// until its sidecars run that.
func Example() {
	server := canned()
	defer server.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := api.New(api.Options{Address: server.URL})
	if err != nil {
		log.Fatal(err)
	}
	pair, err := c.Pair(ctx, "storefront", "catalog")
	if err != nil {
		log.Fatal(err)
	}
	done, err := c.Shift(ctx, api.ShiftRequest{
		Pairs: []api.PairIndex{{PairName: pair.PairName, Index: &pair.Index}},
		Via:   map[string]float64{api.MTLS: 25},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range done.Pairs {
		fmt.Printf("%s: %s, then %s\n", p.PairName, p.Before, p.After)
	}
	applied, err := c.Applied(ctx, done.Index, 10*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	for _, sidecar := range applied.Sidecars {
		fmt.Println(sidecar.Sidecar, sidecar.State)
	}
	// Output:
	// storefront -> catalog: legacy 90%, mtls 10%, then legacy 75%, mtls 25%
	// storefront-sidecar-proxy acked
}
