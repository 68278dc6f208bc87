package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"

	"github.com/crossfade-mesh/crossfade/internal/identity"
)

// NewKeyAndCSR makes a P-256 key (PKCS #8, PEM) and a request for a leaf for id.
func NewKeyAndCSR(id identity.SPIFFE) (keyPEM, csrPEM []byte, err error) {
	uri, err := url.Parse(id.URI())
	if err != nil {
		return nil, nil, fmt.Errorf("CSR for %q: %w", id, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("CSR for %q: generate key: %w", id, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("CSR for %q: encode key: %w", id, err)
	}
	csrDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("CSR for %q: %w", id, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typePrivateKey, Bytes: keyDER}),
		pem.EncodeToMemory(&pem.Block{Type: typeCSR, Bytes: csrDER}), nil
}

// Client asks a ConnectCAService, ours or Consul's.
type Client struct {
	rpc pbconnectca.ConnectCAServiceClient
}

// NewClient uses conn, which stays its owner's to close.
func NewClient(conn *grpc.ClientConn) *Client {
	return &Client{rpc: pbconnectca.NewConnectCAServiceClient(conn)}
}

// Sign returns a leaf for the request, PEM, with the authority's intermediates
// after it if there are any. An answer that does not fit the request is an error.
func (c *Client) Sign(ctx context.Context, csrPEM []byte) ([]byte, error) {
	csr, err := decodeCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("CSR: %w", err)
	}
	res, err := c.rpc.Sign(ctx, &pbconnectca.SignRequest{Csr: string(csrPEM)})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	leaf, err := parseCertificate(res.GetCertPem())
	if err != nil {
		return nil, fmt.Errorf("sign: the answer: %w", err)
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
		return nil, errors.New("sign: the answer is a leaf for another key")
	}
	if len(csr.URIs) != 1 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != csr.URIs[0].String() {
		return nil, fmt.Errorf("sign: the answer is a leaf for %v, asked for %v", leaf.URIs, csr.URIs)
	}
	return []byte(res.GetCertPem()), nil
}

// WatchRoots calls update with the roots now and after each change. It returns when
// ctx ends or the stream breaks, always with an error; whoever calls it tries again.
// An answer without a usable root is such an error: update gets no empty set.
func (c *Client) WatchRoots(ctx context.Context, update func(Roots)) error {
	stream, err := c.rpc.WatchRoots(ctx, &pbconnectca.WatchRootsRequest{})
	if err != nil {
		return fmt.Errorf("watch roots: %w", err)
	}
	for {
		res, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watch roots: %w", err)
		}
		roots, err := fromProto(res)
		if err != nil {
			return fmt.Errorf("watch roots: the answer: %w", err)
		}
		update(roots)
	}
}

func fromProto(in *pbconnectca.WatchRootsResponse) (Roots, error) {
	out := Roots{ActiveRootID: in.GetActiveRootId(), TrustDomain: in.GetTrustDomain()}
	if out.TrustDomain == "" {
		return Roots{}, errors.New("no trust domain")
	}
	for _, r := range in.GetRoots() {
		cert, err := parseCertificate(r.GetRootCert())
		if err != nil {
			return Roots{}, fmt.Errorf("root %q: %w", r.GetId(), err)
		}
		if !cert.IsCA {
			return Roots{}, fmt.Errorf("root %q: not a CA", r.GetId())
		}
		root := describe(cert, r.GetActive())
		// The server's words for it, which may differ when it has intermediates.
		root.ID, root.Name, root.SerialNumber, root.SigningKeyID = r.GetId(), r.GetName(), r.GetSerialNumber(), r.GetSigningKeyId()
		root.RootCert = strings.TrimSpace(r.GetRootCert()) + "\n"
		root.IntermediateCerts = r.GetIntermediateCerts()
		out.Roots = append(out.Roots, root)
	}
	if len(out.Roots) == 0 {
		return Roots{}, errors.New("no roots")
	}
	return out, nil
}

// parseCertificate reads the first certificate of a PEM text.
func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != typeCertificate {
		return nil, errors.New("not a certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
