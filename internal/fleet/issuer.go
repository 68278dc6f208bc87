package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// Issuer gets leaves for sidecars from a server's CA, over few connections.
type Issuer struct {
	clients []*ca.Client
	conns   []*grpc.ClientConn
	tokens  map[string]string // join token by service
	base    identity.SPIFFE   // of everybody, without the service
}

// issuing is how many connections, and requests at a time, an issuer has.
const issuing = 16

// NewIssuer connects. base names trust domain and datacenter; tokens holds a join token for each service.
func NewIssuer(o Options, base identity.SPIFFE, tokens map[string]string) (*Issuer, error) {
	out := &Issuer{tokens: tokens, base: base}
	for range issuing {
		conn, err := grpc.NewClient("passthrough:///"+o.Address, grpc.WithTransportCredentials(credentials.NewTLS(
			&tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: ca.Curves, RootCAs: o.Roots, ServerName: o.Names})))
		if err != nil {
			out.Close()
			return nil, err
		}
		out.conns, out.clients = append(out.conns, conn), append(out.clients, ca.NewClient(conn))
	}
	return out, nil
}

// Close disconnects.
func (i *Issuer) Close() {
	for _, c := range i.conns {
		c.Close()
	}
}

// Leaf gets one for a service: a new key, signed.
func (i *Issuer) Leaf(ctx context.Context, client int, service string) (*tls.Certificate, error) {
	id := i.base
	id.Service = service
	key, csr, err := ca.NewKeyAndCSR(id)
	if err != nil {
		return nil, err
	}
	chain, err := i.clients[client%len(i.clients)].Sign(metadata.AppendToOutgoingContext(ctx, "x-consul-token", i.tokens[service]), csr)
	if err != nil {
		return nil, fmt.Errorf("leaf for %q: %w", service, err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, err
	}
	// Only what a handshake sends is kept.
	pair.Leaf = nil
	return &pair, nil
}

// Requests makes n signing requests beforehand, with one key: for measuring the CA alone.
func (i *Issuer) Requests(n int, service string) ([][]byte, error) {
	id := i.base
	id.Service = service
	out := make([][]byte, n)
	for k := range out {
		_, csr, err := ca.NewKeyAndCSR(id)
		if err != nil {
			return nil, err
		}
		out[k] = csr
	}
	return out, nil
}

// Sign has them signed, as fast as the server does it.
func (i *Issuer) Sign(ctx context.Context, service string, requests [][]byte) error {
	return each(len(requests), func(client, at int) error {
		_, err := i.clients[client].Sign(metadata.AppendToOutgoingContext(ctx, "x-consul-token", i.tokens[service]), requests[at])
		return err
	})
}

// Certify gives sidecars of a fleet a leaf each.
func (i *Issuer) Certify(ctx context.Context, f *Fleet) error {
	return each(f.Len(), func(client, at int) error {
		leaf, err := i.Leaf(ctx, client, f.sidecars[at].Service)
		if err == nil {
			f.Certify(at, leaf)
		}
		return err
	})
}

// each calls do for all n, from as many goroutines as an issuer has connections, and returns the first error.
func each(n int, do func(client, at int) error) error {
	var (
		wg    sync.WaitGroup
		once  sync.Once
		first error
	)
	for client := range issuing {
		wg.Go(func() {
			for at := client; at < n; at += issuing {
				if err := do(client, at); err != nil {
					once.Do(func() { first = err })
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// Pool is a certificate pool of a CA's file.
func Pool(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA certificate: none in PEM")
	}
	return pool, nil
}
