// Package consul reads the catalog and the health of one datacenter from a real
// Consul. It never writes.
//
// In: the address of a Consul agent. Out: a [catalog.Source]: immutable snapshots
// in which services that did not change keep their set's pointer. It holds one
// blocking query for the names of all services and one for the health of each
// (connect-proxies are services of their own).
//
// What cannot be read or understood never changes a snapshot: errors, answers
// that are not Consul's, and answers whose index runs backwards are tried again
// with jittered back-off, while what was read last stays. One bad instance is
// left out alone ([Source.Bad]). The log says so once when it begins and once when it ends.
//
// It leaves deciding whether a service may lose its instances to the endpoint
// guard, which it tells why one may be gone ([Source.Explain]), and configuration, KV and
// writing to others.
package consul

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

const (
	// usualQueries stays below the 200 connections that a Consul agent accepts from one address unless it
	// is told otherwise (limits.http_max_conns_per_client). Of a limit that it tells, [queriesOf] are used.
	usualQueries = 128
	// manyQueries is for an agent without a limit, and for one that speaks HTTP/2, where 250 share a connection.
	manyQueries = 20_000
	// defaultWait is how long a query blocks: the longest that a change whose
	// wake-up got lost stays unseen. Consul's own default is 5 minutes.
	defaultWait = time.Minute
	// publishEvery is the least time between snapshots.
	publishEvery = 25 * time.Millisecond
)

// Options say which Consul to read.
type Options struct {
	// Address is host:port, http://…, https://… or unix:///path, as in CONSUL_HTTP_ADDR.
	Address string
	// Token is sent with each request. It needs service:read, node:read and, without
	// Datacenter, agent:read.
	Token string
	// Datacenter to read; empty: the agent's own.
	Datacenter string
	// TLS is for https addresses; nil: the system's roots.
	TLS *tls.Config
	// HTTPClient carries the requests, for instance with TLS roots; nil: a client
	// of its own. Its Timeout is not used, and redirects are refused, since they
	// would carry the token elsewhere. With it, Address cannot be a Unix socket.
	HTTPClient *http.Client
	// Log receives changes of state; nil discards them.
	Log *slog.Logger
	// MaxQueries is how many health queries may be open at once; 0: as many as the agent
	// allows. With more services than that, queries block briefly and take turns.
	MaxQueries int
	// Settle is how long nothing is explained after [Source.Doubt]; 0: 2 minutes.
	Settle time.Duration
}

// Source reads one Consul. See [New].
type Source struct {
	*Client
	log     *slog.Logger
	settle  time.Duration
	most    int // health queries at once; 0: as many as the agent allows
	trouble *trouble

	mu    sync.Mutex // guards what follows
	doubt time.Time  // until when the registry's history is not trusted; see [Source.Explain]
	kicks map[string]chan struct{}
	bad   map[string]map[string]bool // by service: which instances are left out, and why

	recovered chan struct{} // closed, and replaced, when the names can be read again
}

var _ catalog.Source = (*Source)(nil)

// New checks the options. It does not connect.
func New(o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Settle <= 0 {
		o.Settle = settleTime
	}
	client, err := NewClient(o)
	if err != nil {
		return nil, err
	}
	log := o.Log.With("consul", o.Address)
	return &Source{
		Client: client, log: log, most: max(o.MaxQueries, 0), trouble: newTrouble(log),
		settle: o.Settle, kicks: map[string]chan struct{}{}, bad: map[string]map[string]bool{}, recovered: make(chan struct{}),
	}, nil
}

func parseAddress(address string) (base *url.URL, socket string, err error) {
	if address == "" {
		return nil, "", errors.New("is empty: say host:port, http://…, https://… or unix:///path")
	}
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, "", errors.New("the path of a Unix socket starts with /")
		}
		return &url.URL{Scheme: "http", Host: "consul"}, path, nil
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	base, err = url.Parse(address)
	switch {
	case err != nil:
		return nil, "", err
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, "", fmt.Errorf("scheme %q is not http, https or unix", base.Scheme)
	case base.Hostname() == "" || base.RawQuery != "" || base.Fragment != "" || base.User != nil:
		return nil, "", errors.New("want host:port, http://…, https://… or unix:///path")
	}
	base.Path, base.RawPath = strings.TrimSuffix(base.Path, "/"), ""
	return base, "", nil
}

func newClient(socket string, queries int, secure *tls.Config) *http.Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       secure,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   queries + 1,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		ExpectContinueTimeout: time.Second,
	}
	if socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	return &http.Client{Transport: t}
}

// Run implements [catalog.Source]. The first snapshot follows when every service
// that Consul names has been read once. When ctx ends it returns nil.
func (s *Source) Run(ctx context.Context, publish func(*catalog.Snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{source: s, trouble: s.trouble, ctx: ctx, wake: make(chan struct{}, 1), watches: map[string]*watch{}, changed: map[string]*catalog.Set{}}
	defer func() {
		cancel()
		r.wg.Wait()
		s.client.CloseIdleConnections()
	}()
	datacenter, queries := r.learn()
	r.slots = make(chan struct{}, queries)
	r.wg.Go(r.watchNames)

	snapshot, published := catalog.NewSnapshot(datacenter, 0, nil), false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		changed, index, ready := r.take(published)
		if !ready || published && len(changed) == 0 {
			continue
		}
		snapshot = snapshot.With(max(index, snapshot.Index+1), changed)
		publish(snapshot)
		published = true
		if !pause(ctx, publishEvery) {
			return nil
		}
	}
}

// pause is false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
