package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
)

const (
	call = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	// dialTimeout bounds connecting and the handshake.
	dialTimeout = 20 * time.Second
)

// sidecar is one of the fleet.
type sidecar struct {
	Sidecar
	fleet *Fleet
	at    int
	leaf  atomic.Pointer[tls.Certificate]

	mu      sync.Mutex // guards the following; run alone changes held
	stop    context.CancelFunc
	done    chan struct{}
	conn    net.Conn // nil while there is none
	planned bool     // conn was closed by Redial
	held    []held
	synced  bool
	heard   [kinds]bool // types that were answered
}

// held is a resource that the sidecar has, or waits for.
type held struct {
	name    string
	version uint64
	typ     kind
	has     bool // false: asked for
	gone    bool // the server says that there is none
}

// run keeps a stream until ctx ends.
func (s *sidecar) run(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		admitted, err := s.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		planned := s.planned
		s.planned = false
		s.mu.Unlock()
		if planned {
			attempt = -1
			continue
		}
		s.fleet.broke(err)
		s.fleet.opts.Log.Debug("no stream", "sidecar", s.ID, "reason", err)
		if admitted {
			attempt = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(backOff(attempt)):
		}
	}
}

// stream runs one connection. admitted says that the server took it.
func (s *sidecar) stream(ctx context.Context) (admitted bool, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return false, err
	}
	// Closing the connection under the TLS ends a read; TLS's own goodbye would wait for a lock.
	end := context.AfterFunc(ctx, func() { conn.NetConn().Close() })
	defer func() {
		end()
		conn.NetConn().Close()
		s.mu.Lock()
		s.conn = nil
		s.mu.Unlock()
		if admitted {
			s.fleet.up.Add(-1)
		}
	}()
	s.fleet.connects.Add(1)
	w, err := open(conn, s.fleet.opts.Address, call, func() {
		admitted = true
		s.fleet.up.Add(1)
	})
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	s.conn = conn.NetConn()
	s.mu.Unlock()
	if err := s.greet(w); err != nil {
		return false, err
	}
	var r response
	for {
		message, err := w.next()
		if err != nil {
			return admitted, err
		}
		if err := s.take(w, &r, message); err != nil {
			return admitted, err
		}
	}
}

func (s *sidecar) dial(ctx context.Context) (*tls.Conn, error) {
	o := s.fleet.opts
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: -1}
	if o.From != nil {
		d.LocalAddr = &net.TCPAddr{IP: o.From(s.at)}
	}
	raw, err := d.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: ca.Curves, ServerName: o.Names, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, VerifyConnection: s.fleet.verify,
	}
	if leaf := s.leaf.Load(); leaf != nil {
		config.Certificates = []tls.Certificate{*leaf}
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// verify is what a client does with a server's certificate, once for all sidecars: ten thousand hosts
// would have processors of their own for that.
func (f *Fleet) verify(cs tls.ConnectionState) error {
	leaf := cs.PeerCertificates[0]
	if known := f.server.Load(); known != nil && leaf.Equal(known) {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: f.opts.Roots, Intermediates: between, DNSName: f.opts.Names}); err != nil {
		return err
	}
	f.server.Store(leaf)
	return nil
}

// greet sends the first requests: as the relay does, of all types at once, with what is held.
func (s *sidecar) greet(w *wire) error {
	meta, err := structpb.NewStruct(map[string]any{"node_name": s.Node, "crossfade_relay": true})
	if err != nil {
		return err
	}
	node, err := proto.Marshal(&corev3.Node{Id: s.ID, Cluster: s.Service, Metadata: meta})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 {
		s.held = append(s.held, held{name: envoy.RuntimeName, typ: runtimes})
	}
	for k := range kinds {
		var req []byte
		if node != nil {
			req = protowire.AppendBytes(protowire.AppendTag(req, requestNode, protowire.BytesType), node)
		}
		req = appendType(req, k)
		asked := k == clusters || k == listeners
		for _, h := range s.held {
			if h.typ != k {
				continue
			}
			asked = true
			if k != clusters && k != listeners {
				req = appendText(req, requestSubscribe, h.name)
			}
			if h.has {
				entry := appendText(nil, 1, h.name)
				entry = protowire.AppendTag(entry, 2, protowire.BytesType)
				entry = appendNumber(protowire.AppendVarint(entry, 16), h.version)
				req = protowire.AppendBytes(protowire.AppendTag(req, requestInitial, protowire.BytesType), entry)
			}
		}
		if !asked {
			continue
		}
		node = nil // on the first alone
		if err := w.send(req); err != nil {
			return err
		}
	}
	return w.flush()
}

// take takes a response in and answers it.
func (s *sidecar) take(w *wire, r *response, message []byte) error {
	f := s.fleet
	f.bytes.Add(int64(len(message)))
	f.responses.Add(1)
	if err := r.parse(message); err != nil {
		return err
	}
	if !r.known {
		return fmt.Errorf("response of a type that was not asked for")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := r.kind == endpoints && s.synced && f.opts.Refuse > 0 && rand.Float64() < f.opts.Refuse
	var asked [kinds][]string
	for _, b := range r.resources {
		name, version, body, err := resource(b)
		if err != nil {
			return err
		}
		h := s.find(r.kind, name)
		if w, ok := f.watches.Load(watched{r.kind, h.name}); ok {
			w.(*Watch).note(s.at)
		}
		if refuse {
			continue
		}
		h.version, h.has, h.gone = version, true, false
		referred(r.kind, name, body, func(k kind, name []byte) {
			if n := len(s.held); s.find(k, name) != nil && len(s.held) > n {
				asked[k] = append(asked[k], s.held[n].name)
			}
		})
	}
	var given []string
	for _, name := range r.removed {
		h := s.find(r.kind, name)
		h.has, h.gone = false, true
		if e := s.find(endpoints, name); r.kind == clusters && e.has {
			given = append(given, e.name)
			e.has, e.gone = false, true
		}
	}
	if len(given) > 0 {
		req := appendType(nil, endpoints)
		for _, name := range given {
			req = appendText(req, requestUnsubscribe, name)
		}
		if err := w.send(req); err != nil {
			return err
		}
	}
	f.latest.Store(time.Now().UnixNano())
	s.heard[r.kind] = true
	for k, names := range asked {
		if len(names) == 0 {
			continue
		}
		req := appendType(nil, kind(k))
		for _, name := range names {
			req = appendText(req, requestSubscribe, name)
		}
		if err := w.send(req); err != nil {
			return err
		}
	}
	answer := appendType(make([]byte, 0, 128), r.kind)
	answer = protowire.AppendBytes(protowire.AppendTag(answer, requestNonce, protowire.BytesType), r.nonce)
	if refuse {
		f.nacks.Add(1)
		status := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(codes.InvalidArgument))
		status = appendText(status, 2, "refused, as one in so many is")
		answer = protowire.AppendBytes(protowire.AppendTag(answer, requestError, protowire.BytesType), status)
	}
	if err := w.send(answer); err != nil {
		return err
	}
	if !s.synced && s.whole() {
		s.synced = true
		f.synced.Add(1)
	}
	return w.flush()
}

// find is what is held under a name, entered as asked for if need be. It holds until the next call.
func (s *sidecar) find(k kind, name []byte) *held {
	for i := range s.held {
		if h := &s.held[i]; h.typ == k && h.name == string(name) {
			return h
		}
	}
	s.held = append(s.held, held{name: s.fleet.names.of(name), typ: k})
	return &s.held[len(s.held)-1]
}

// whole reports whether the sidecar has everything that it asked for.
func (s *sidecar) whole() bool {
	for _, h := range s.held {
		if !h.has && !h.gone {
			return false
		}
	}
	return s.heard[clusters] && s.heard[listeners]
}

func (s *sidecar) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced {
		s.fleet.synced.Add(-1)
	}
	s.held, s.synced, s.heard = nil, false, [kinds]bool{}
}

// Numbers of the fields of a DeltaDiscoveryRequest.
const (
	requestNode, requestType, requestSubscribe, requestUnsubscribe, requestInitial, requestNonce, requestError = 1, 2, 3, 4, 5, 6, 7
)

func appendType(b []byte, k kind) []byte { return appendText(b, requestType, string(typeOf[k])) }

func appendText(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}
