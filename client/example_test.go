package client_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/crossfade-mesh/crossfade/client"
)

// An [http.Client] whose calls go the way that the pair picks.
func Example() {
	catalog := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Host, r.URL.Path)
	}))
	defer catalog.Close()
	os.Setenv("CROSSFADE_PERCENT_catalog", "100")                              // by whoever runs the service
	os.Setenv("NOMAD_UPSTREAM_ADDR_catalog", catalog.Listener.Addr().String()) // by Nomad, or the sidecar
	defer os.Unsetenv("CROSSFADE_PERCENT_catalog")
	defer os.Unsetenv("NOMAD_UPSTREAM_ADDR_catalog")

	pair, err := client.Open(client.Options{
		Source:      "web",
		Destination: "catalog",
		OldAddr:     "catalog.example:80",
		OnProblem:   func(p client.Problem) { log.Print(p) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer pair.Close()

	c := &http.Client{Transport: &client.Transport{Pair: pair}}
	resp, err := c.Get("http://catalog.example/items")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	// Output: catalog.example /items
}

// Anything else than HTTP and gRPC asks for the address itself.
func ExamplePair_Choose() {
	pair, err := client.Open(client.Options{Destination: "orders-db", OldAddr: "10.0.0.1:5432"})
	if err != nil {
		log.Fatal(err)
	}
	choice, err := pair.Choose("")
	fmt.Println(choice.Way, choice.Addr, err)
	// Output: old 10.0.0.1:5432 <nil>
}

// Requests of a user stick to the user's way, and the old mesh is asked by the name it routes by.
func ExampleTransport() {
	linkerd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Host, r.URL.Path)
	}))
	defer linkerd.Close()
	pair, err := client.Open(client.Options{Destination: "catalog", OldAddr: linkerd.URL})
	if err != nil {
		log.Fatal(err)
	}

	t := &client.Transport{
		Pair:    pair,
		Key:     func(r *http.Request) string { return r.Header.Get("X-User") },
		OldHost: "catalog.linkerd",
	}
	resp, err := (&http.Client{Transport: t}).Get("http://catalog/items")
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close()
	// Output: catalog.linkerd /items
}
