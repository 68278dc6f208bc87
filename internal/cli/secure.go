package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// tokenHeader is Consul's, and as metadata that of gRPC calls.
const tokenHeader = "X-Consul-Token"

// anchors are the flags by which a verb knows a server outside development mode.
type anchors struct {
	caFile, fingerprint string
	beside              bool // what $CONSUL_CACERT says is of a Consul that is spoken to as well
	s                   streams
}

func addAnchors(cmd *cobra.Command, s streams) *anchors {
	a := &anchors{s: s}
	cmd.Flags().StringVar(&a.caFile, "ca-file", "", "certificate of the servers' CA (default $CROSSFADE_CACERT, then $CONSUL_CACERT); without a CA servers are spoken to in plaintext")
	cmd.Flags().StringVar(&a.fingerprint, "ca-fingerprint", "", "SHA-256 of it, as a server prints it when it starts (default $CROSSFADE_CA_FINGERPRINT)")
	complete(cmd, "ca-file", files())
	return a
}

// given reports whether there is a CA to trust, so that addresses are https by default.
func (a *anchors) given() bool { return a.file() != "" || a.pin() != "" }

func (a *anchors) file() string {
	if a.caFile == "" && a.fingerprint != "" {
		return ""
	}
	file := firstSet(a.caFile, a.s.env("CROSSFADE_CACERT"))
	if file == "" && !a.beside {
		file = a.s.env("CONSUL_CACERT")
	}
	return file
}

func (a *anchors) pin() string { return firstSet(a.fingerprint, a.s.env("CROSSFADE_CA_FINGERPRINT")) }

// roots are the CA's certificate in PEM, or nil.
func (a *anchors) roots() ([]byte, error) {
	file := a.file()
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("CA certificate %q: holds none in PEM: a server has it in its data directory, as ca.pem", file)
	}
	return b, nil
}

// tls is a client's configuration.
func (a *anchors) tls() (*tls.Config, error) {
	if !a.given() {
		return nil, errors.New("server: it speaks TLS, and no CA is known to trust: set --ca-file or CROSSFADE_CACERT, or --ca-fingerprint")
	}
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	trust, err := ca.NewTrust(roots, a.pin())
	if err != nil {
		return nil, err
	}
	return trust.TLS(nil), nil
}

// credential is that of a verb's user: a token, never given as an argument.
type credential struct {
	tokenFile string
	s         streams
}

func addCredential(cmd *cobra.Command, s streams) *credential {
	c := &credential{s: s}
	cmd.Flags().StringVar(&c.tokenFile, "token-file", "", "file that holds a token (default $CROSSFADE_HTTP_TOKEN or $CROSSFADE_HTTP_TOKEN_FILE, then $CONSUL_HTTP_TOKEN or $CONSUL_HTTP_TOKEN_FILE)")
	complete(cmd, "token-file", files())
	return c
}

// token is the user's, or empty.
func (c *credential) token() (string, error) {
	if c.tokenFile != "" {
		return sidecar.ReadToken(c.tokenFile)
	}
	for _, prefix := range []string{"CROSSFADE", "CONSUL"} {
		if t := c.s.env(prefix + "_HTTP_TOKEN"); t != "" {
			return strings.TrimSpace(t), nil
		}
		if file := c.s.env(prefix + "_HTTP_TOKEN_FILE"); file != "" {
			return sidecar.ReadToken(file)
		}
	}
	return "", nil
}

// client speaks HTTP to the server, as the user.
func (t *target) client() (*http.Client, string, error) {
	token, err := t.token()
	if err != nil {
		return nil, "", err
	}
	base, err := t.baseURL()
	if err != nil || strings.HasPrefix(base, "http://") {
		return http.DefaultClient, token, err
	}
	conf, err := t.tls()
	if err != nil {
		return nil, "", err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, DisableKeepAlives: true}}, token, nil
}

// lasting is a client for many requests to the server, nil for a plain one, and the user's token.
func (t *target) lasting() (*http.Client, string, error) {
	client, token, err := t.client()
	if err != nil || client == http.DefaultClient {
		return nil, token, err
	}
	conf, err := t.tls()
	if err != nil {
		return nil, "", err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}, token, nil
}

// dial connects to the server's gRPC port, as the user.
func (t *target) dial(addr string) (*grpc.ClientConn, error) {
	token, err := t.token()
	if err != nil {
		return nil, err
	}
	base, err := t.baseURL()
	if err != nil {
		return nil, err
	}
	how := insecure.NewCredentials()
	if strings.HasPrefix(base, "https://") {
		conf, err := t.tls()
		if err != nil {
			return nil, err
		}
		how = credentials.NewTLS(conf)
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(how)}
	if token != "" {
		opts = append(opts, grpc.WithStreamInterceptor(
			func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
				return next(metadata.AppendToOutgoingContext(ctx, tokenHeader, token), d, cc, method, o...)
			}))
	}
	return grpc.NewClient("passthrough:///"+addr, opts...)
}
