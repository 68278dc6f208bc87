// Package shop is a small real shop: four services that call each other, and for
// each a client that checks its answers.
//
//	storefront (HTTP) ─▶ catalog (HTTP) ─▶ assignments (gRPC)
//	storefront        ─▶ payments (TCP, the server speaks first)
//
// In: where to listen, an instance's name, and the addresses of upstreams. Out:
// answers that name the instance, repeat the caller's token and follow from the
// request, so that a client can tell a right answer from any other.
//
// The services know nothing of a mesh: they listen on one loopback port and call
// the addresses they are given. Clients never repeat a request, and choose for
// each whether it goes over a new or a kept-alive connection.
package shop

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"time"
)

// App is one instance of one of the services.
type App struct {
	Service  string // storefront, catalog, assignments or payments
	Instance string // the name it answers under
	Listen   string // host:port
	// Upstreams are the roads to the services it calls, by name.
	Upstreams map[string]Road
}

// stopTimeout bounds how long an app that was told to stop waits for requests
// that it is still answering.
const stopTimeout = 10 * time.Second

// Serve answers until ctx ends, then finishes what it has begun to answer.
func (a App) Serve(ctx context.Context) error {
	serve, needs := a.server()
	if serve == nil {
		return fmt.Errorf("app %q: unknown service; want storefront, catalog, assignments or payments", a.Service)
	}
	for _, name := range needs {
		if a.Upstreams[name] == nil {
			return fmt.Errorf("app %q: upstream %q has no address", a.Service, name)
		}
	}
	ln, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("app %q: %w", a.Service, err)
	}
	if err := serve(ctx, ln); err != nil {
		return fmt.Errorf("app %q: %w", a.Service, err)
	}
	return nil
}

// Upstreams lists what the named service calls.
func Upstreams(service string) []string {
	_, needs := App{Service: service}.server()
	return needs
}

func (a App) server() (serve func(context.Context, net.Listener) error, needs []string) {
	switch a.Service {
	case "storefront":
		return a.serveStorefront, []string{"catalog", "payments"}
	case "catalog":
		return a.serveCatalog, []string{"assignments"}
	case "assignments":
		return a.serveAssignments, nil
	case "payments":
		return a.servePayments, nil
	}
	return nil, nil
}

// serveHTTP runs a handler on ln until ctx ends.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(errors.New("requests were still unanswered when the time to stop was over"), srv.Close())
	}
	return err
}

// Price is what an item costs, in cents. It follows from the item alone, so that
// every instance and every client agree.
func Price(sku string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(sku))
	return 100 + h.Sum32()%99_900
}

// Variant is the variant of the shop that a visitor is assigned to.
func Variant(visitor string) string {
	h := fnv.New32a()
	h.Write([]byte(visitor))
	return []string{"blue", "green", "plain"}[h.Sum32()%3]
}
