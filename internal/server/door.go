package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// tokenHeader is Consul's, for HTTP and as gRPC metadata.
const tokenHeader = "X-Consul-Token"

// door finds out who a caller is, by a token or by its own certificate, and puts
// out those who may stay no longer. A token that was shown decides alone: a wrong one
// is refused, whatever else the caller has.
type door struct {
	open   bool // development mode: everybody is an operator
	ca     *ca.CA
	tokens *tokens.Tokens
	log    *slog.Logger

	mu     sync.Mutex
	inside map[*guest]struct{} // open gRPC streams; guarded by mu
}

// guest is an open stream.
type guest struct {
	accessor string
	leave    context.CancelCauseFunc
}

func newDoor(open bool, log *slog.Logger) *door {
	return &door{open: open, log: log, inside: map[*guest]struct{}{}}
}

// shown is what a caller has shown of itself: a token, or its leaf, or nothing.
type shown struct {
	token string
	leaf  ca.Peer // zero: none
}

// look reads what a caller shows; leaf verifies its certificate, and is nil where it has shown none. An error
// is a leaf that is none of this authority's.
func (d *door) look(token string, leaf func(now time.Time) (ca.Peer, error)) (s shown, err error) {
	switch {
	case d.open:
	case token != "":
		s.token = token
	case leaf != nil:
		s.leaf, err = leaf(time.Now())
	}
	return s, err
}

// judge says who a caller is by what it has shown, and until when that counts (zero: for ever).
func (d *door) judge(s shown) (access.Principal, time.Time, error) {
	switch {
	case d.open:
		return access.Principal{Role: access.Operator}, time.Time{}, nil
	case s.token != "":
		return d.tokens.Bearer(s.token)
	case s.leaf == ca.Peer{}:
		return access.Principal{}, time.Time{}, nil
	}
	p, err := d.tokens.Instance(s.leaf.ID.Service, s.leaf.Through)
	return p, s.leaf.NotAfter, err
}

// who is the caller, and until when what it has shown counts (zero: for ever).
func (d *door) who(token string, conn *tls.ConnectionState) (access.Principal, time.Time, error) {
	var leaf func(time.Time) (ca.Peer, error)
	if conn != nil && len(conn.PeerCertificates) > 0 {
		leaf = func(now time.Time) (ca.Peer, error) { return d.ca.Verify(conn.PeerCertificates, now) }
	}
	s, err := d.look(token, leaf)
	if err != nil {
		return access.Principal{}, time.Time{}, err
	}
	return d.judge(s)
}

// bearer is the token of an HTTP request, in either of Consul's headers.
func bearer(h http.Header) string {
	if t := h.Get(tokenHeader); t != "" {
		return t
	}
	scheme, t, _ := strings.Cut(h.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(t)
	}
	return ""
}

// rpcShown is what the caller of a gRPC call has shown.
func (d *door) rpcShown(ctx context.Context) (shown, error) {
	token := ""
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		token = strings.Join(md.Get(tokenHeader), "")
	}
	var leaf func(time.Time) (ca.Peer, error)
	if v := visitorOf(ctx); len(v.chain) > 0 {
		leaf = func(now time.Time) (ca.Peer, error) { return d.ca.VerifyAgain(v.leaf, v.chain, now) }
	}
	s, err := d.look(token, leaf)
	if err != nil {
		return s, status.Error(codes.Unauthenticated, err.Error())
	}
	return s, nil
}

// rpcCaller is who makes a gRPC call. Nobody is anonymous there.
func (d *door) rpcCaller(s shown) (access.Principal, time.Time, error) {
	p, until, err := d.judge(s)
	if err == nil && p.Role == access.Anonymous {
		err = errors.New("caller unknown: show a join token or this service's own certificate")
	}
	if err != nil {
		return p, until, status.Error(codes.Unauthenticated, err.Error())
	}
	return p, until, nil
}

type callerKey struct{}

// callerOf is who [door.unary] or [door.stream] have let in.
func callerOf(ctx context.Context) access.Principal {
	p, _ := ctx.Value(callerKey{}).(access.Principal)
	return p
}

// unary lets a gRPC call in, and enters it into the trail.
func (d *door) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	visitorOf(ctx).conn.settled() // it wants no stream, or not first
	var p access.Principal
	s, err := d.rpcShown(ctx)
	if err == nil {
		p, _, err = d.rpcCaller(s)
	}
	if err != nil {
		d.log.Warn("call refused", "call", info.FullMethod, "from", fromOf(ctx), "reason", status.Convert(err).Message())
		return nil, err
	}
	return handle(context.WithValue(ctx, callerKey{}, p), req)
}

// stream lets a gRPC stream in for as long as its caller may stay.
func (d *door) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	let, leave, err := d.admit(ss, info.FullMethod)
	if err != nil {
		return err
	}
	defer leave()
	err = handle(srv, let)
	if cause := context.Cause(let.ctx); cause != nil && ss.Context().Err() == nil {
		return cause
	}
	return err
}

// admit lets a stream in, until leave is called. It is apart from [door.stream], on whose stack a stream waits.
func (d *door) admit(ss grpc.ServerStream, method string) (let *letIn, leave func(), err error) {
	// A stream of ADS waits for its client for years, which only its own context ends.
	ctx, end, done := ss.Context(), xds.Ending(ss), func() {}
	if end == nil {
		ctx, end = context.WithCancelCause(ctx)
		done = func() { end(nil) }
	}
	var p access.Principal
	var until time.Time
	var g *guest
	s, err := d.rpcShown(ctx)
	if err == nil {
		p, until, err = d.rpcCaller(s)
	}
	if err == nil {
		g = d.enter(p, end)
		_, _, err = d.rpcCaller(s) // what was revoked before enter
	}
	if err != nil {
		d.left(g)
		done()
		d.log.Warn("stream refused", "call", method, "from", fromOf(ctx), "reason", status.Convert(err).Message())
		return nil, nil, err
	}
	stop := func() bool { return true }
	if !until.IsZero() {
		stop = time.AfterFunc(time.Until(until), func() {
			end(status.Error(codes.Unauthenticated, "what this stream was opened with has expired: connect again"))
		}).Stop
	}
	return &letIn{ss, context.WithValue(ctx, callerKey{}, p)}, func() { stop(); d.left(g); done() }, nil
}

// letIn is a stream whose context ends when its caller may stay no longer.
type letIn struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements [grpc.ServerStream].
func (l *letIn) Context() context.Context { return l.ctx }

func (d *door) enter(p access.Principal, leave context.CancelCauseFunc) *guest {
	g := &guest{p.Accessor, leave}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inside[g] = struct{}{}
	return g
}

func (d *door) left(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.inside, g)
}

// revoked ends every stream that was opened with the token, or with a leaf that came
// through it.
func (d *door) revoked(t tokens.Token) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for g := range d.inside {
		if g.accessor == t.Accessor {
			g.leave(status.Errorf(codes.Unauthenticated, "token %s: revoked at %s", t.Accessor, t.Revoked.Format(time.RFC3339)))
		}
	}
}

// mayHave decides about a leaf: an instance gets its own service's, through the
// token that it has joined with.
func (d *door) mayHave(ctx context.Context, id identity.SPIFFE) (through string, err error) {
	if d.open {
		return "", nil
	}
	p := callerOf(ctx)
	e := tokens.Entry{
		Who: p.String(), Role: string(p.Role), Accessor: p.Accessor, From: fromOf(ctx), Action: "sign a certificate", Target: id.URI(), Outcome: "done",
	}
	if !p.IsInstance(id.Service) {
		err = fmt.Errorf("%s may not have it: want a join token for service %q, or a certificate of it", p, id.Service)
		e.Outcome = "refused"
	}
	d.note(e)
	return p.Accessor, err
}

// note enters a write into trail and log.
func (d *door) note(e tokens.Entry) {
	d.tokens.Record(e)
	d.log.Info("audit", "who", e.Who, "from", e.From, "action", e.Action, "target", e.Target, "outcome", e.Outcome)
}

func fromOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// passing are transport credentials whose connections end with the certificate that
// the client has shown, so that it comes back with its new one.
type passing struct {
	credentials.TransportCredentials
	ca *ca.CA
}

// ServerHandshake implements [credentials.TransportCredentials].
func (c passing) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	in := &entering{Conn: raw}
	conn, info, err := c.TransportCredentials.ServerHandshake(in)
	in.place.leave()
	t, ok := info.(credentials.TLSInfo)
	if err != nil || !ok {
		in.settled()
		return conn, info, err
	}
	v := visitor{CommonAuthInfo: t.CommonAuthInfo, conn: in}
	if certs := t.State.PeerCertificates; len(certs) > 0 {
		v.leaf, _ = c.ca.Verify(certs, time.Now()) // none, if it is nobody's
		if left := time.Until(certs[0].NotAfter); left > 0 {
			conn = &bounded{conn, time.AfterFunc(left, func() { raw.Close() })}
		}
		v.chain = take(certs)
	}
	if v.leaf == (ca.Peer{}) {
		in.settled()
	} else {
		in.arrived()
	}
	return conn, v, nil // whose leaf is nobody's is told so when it asks for something
}

// taken stands where a connection has had the certificates of its client.
var taken = &x509.Certificate{}

// take takes a connection's certificates away from it, and returns what they are made of. What crypto/tls has parsed it
// keeps for as long as the connection lasts, 3.4 KB in two dozen objects, to answer who asks for it: here nobody does.
// Its documentation says not to change what it hands out. The certificates, which others may have, are not changed; the list is
// this connection's own, and of the handshake nothing reads it any more, as no session is to be resumed.
func take(certs []*x509.Certificate) [][]byte {
	chain := make([][]byte, len(certs))
	for i, cert := range certs {
		chain[i], certs[i] = bytes.Clone(cert.Raw), taken
	}
	return chain
}

// Clone implements [credentials.TransportCredentials].
func (c passing) Clone() credentials.TransportCredentials {
	return passing{c.TransportCredentials.Clone(), c.ca}
}

type bounded struct {
	net.Conn
	end *time.Timer
}

// Close implements [net.Conn].
func (b *bounded) Close() error {
	b.end.Stop()
	return b.Conn.Close()
}
