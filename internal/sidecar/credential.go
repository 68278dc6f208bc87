package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

// tokenHeader is Consul's, and as metadata that of gRPC calls.
const tokenHeader = "X-Consul-Token"

// maxToken is in bytes; a token has less than a hundred.
const maxToken = 4096

// credential is what the sidecar shows of itself to servers, and by what it knows
// them: its leaf, or while it has none a join token. Without a trust it speaks
// plaintext and shows nothing. Safe for concurrent use.
type credential struct {
	trust     *ca.Trust // nil: plaintext
	given     []byte    // roots that the user named; PEM
	service   string
	tokenFile string

	leaf atomic.Pointer[tls.Certificate] // may be nil, or expired
}

// newCredential starts from the roots that the user named and those on disk.
func newCredential(o Options, disk []byte) (*credential, error) {
	c := &credential{given: o.CARoots, service: o.Definition.Service.Name, tokenFile: o.JoinTokenFile}
	if !strings.HasPrefix(o.HTTPAddrs[0], "https://") {
		return c, nil
	}
	known := bytes.Join([][]byte{disk, o.CARoots}, []byte("\n"))
	if len(disk)+len(o.CARoots) == 0 {
		known = nil
		if o.CAFingerprint == "" {
			return nil, fmt.Errorf("server %s: no CA is known to trust: set --ca-file, or --ca-fingerprint to what the server prints when it starts", o.HTTPAddrs[0])
		}
	}
	var err error
	c.trust, err = ca.NewTrust(known, o.CAFingerprint)
	return c, err
}

func (c *credential) secure() bool { return c.trust != nil }

// certificate is the leaf, or nil when there is none that is valid.
func (c *credential) certificate() *tls.Certificate {
	if own := c.leaf.Load(); own != nil && time.Now().Before(own.Leaf.NotAfter) {
		return own
	}
	return nil
}

// hold takes a new leaf in.
func (c *credential) hold(l *leaf) error {
	pair, err := tls.X509KeyPair(l.chain, l.key)
	if err != nil {
		return err
	}
	c.leaf.Store(&pair)
	return nil
}

// setRoots follows the CA.
func (c *credential) setRoots(bundle []byte) error {
	if !c.secure() {
		return nil
	}
	return c.trust.SetRoots(bytes.Join([][]byte{bundle, c.given}, []byte("\n")))
}

// fallBack gives up a leaf that a server has refused, if there is a token to join
// again with.
func (c *credential) fallBack() bool {
	if !c.secure() || c.certificate() == nil {
		return false
	}
	if _, err := c.token(); err != nil {
		return false
	}
	c.leaf.Store(nil)
	return true
}

// check reports early what would keep an instance from joining.
func (c *credential) check() error {
	if !c.secure() || c.certificate() != nil {
		return nil
	}
	_, err := c.token()
	return err
}

// token reads the join token. It is not kept in memory.
func (c *credential) token() (string, error) {
	if c.tokenFile == "" {
		have := "there is no certificate yet"
		if own := c.leaf.Load(); own != nil {
			have = "its certificate has expired at " + own.Leaf.NotAfter.UTC().Format(time.RFC3339)
		}
		return "", fmt.Errorf("service %q: %s, and no join token is given: make one with crossfade token create --service %s and name its file with --join-token-file", c.service, have, c.service)
	}
	return ReadToken(c.tokenFile)
}

// ReadToken reads a token from a file that only its owner may read.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("token file %q: %w", path, cause(err))
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("token file %q: %w", path, cause(err))
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("token file %q: mode %04o lets other users read it: run chmod 600 %s", path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("token file %q: %w", path, cause(err))
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(b) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", fmt.Errorf("token file %q: does not hold one token on one line", path)
	}
	return token, nil
}

// transport is how the connection to the servers is secured.
func (c *credential) transport() credentials.TransportCredentials {
	if !c.secure() {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(c.trust.TLS(c.certificate))
}

// joiner connects to a target of gRPC as one who has a join token and no leaf. The
// connection is the caller's to close.
func (c *credential) joiner(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, append(opts, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(c.trust.TLS(nil))),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return next(metadata.AppendToOutgoingContext(ctx, tokenHeader, token), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, tokenHeader, token), desc, cc, method, opts...)
		}))...)
}

// refusedToJoin reports whether a server has understood who wants to join, and won't have it.
func refusedToJoin(err error) bool {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return false
	}
	switch s.GRPCStatus().Code() {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return false
}
