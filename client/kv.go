package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	wait     = time.Minute            // of a blocking query; Consul adds up to a sixteenth
	slack    = 10 * time.Second       // for an answer to arrive
	pace     = 200 * time.Millisecond // at least from one question to the next
	maxPause = 30 * time.Second       // after failures
	maxValue = 64                     // bytes; no percent is as long
)

// follow starts the goroutine that reads KV, and waits for its first answer or failure.
func (p *Pair) follow() {
	k, err := newKV(p.opts.Getenv, p.opts.HTTPClient, p.opts.Source, p.opts.Destination)
	if err != nil {
		p.report(Problem{KVUnreachable, p.key, err})
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	first := make(chan struct{})
	p.done.Go(func() {
		defer k.close()
		p.watch(ctx, k, first)
	})
	within := cmp.Or(p.opts.FirstRead, time.Second)
	if within < 0 {
		return
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-first:
	case <-timer.C:
	}
}

// watch asks until ctx ends, and closes first after the first try.
func (p *Pair) watch(ctx context.Context, k *kv, first chan struct{}) {
	var index uint64
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		begun := time.Now()
		a, err := k.ask(ctx, index)
		if ctx.Err() != nil {
			return
		}
		next := begun.Add(pace)
		switch {
		case err != nil:
			// Whoever answers next may count from elsewhere.
			index = 0
			p.report(Problem{KVUnreachable, p.key, err})
			next = time.Now().Add(pause(failures))
			failures++
		case a.index < index:
			// A restored or another server: what it says counts once it says so to a
			// question that holds no index.
			index, failures = 0, 0
		default:
			index, failures = a.index, 0
			p.answered(a)
		}
		if first != nil {
			close(first)
			first = nil
		}
		timer.Reset(time.Until(next))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// answered puts an answer of KV in force.
func (p *Pair) answered(a answer) {
	p.over(KVUnreachable, p.key)
	share, ok := p.env, true
	if a.found {
		share, ok = ParsePercent(a.value)
	}
	if !ok {
		p.report(Problem{BadPercent, p.key, notPercent(a.value)})
		return
	}
	p.over(BadPercent, p.key)
	p.set(share)
}

// pause is how long to wait after so many failures and one more: doubled each time, and
// at random between half and all of it, so that a fleet does not come back as one.
func pause(failures int) time.Duration {
	d := min(maxPause, pace<<min(failures, 10))
	return d/2 + rand.N(d/2)
}

// answer is what KV says of the key.
type answer struct {
	index uint64
	found bool
	value string
}

// kv reads one key by Consul's HTTP API.
type kv struct {
	client    *http.Client
	url       string
	token     string
	tokenFile string // read for each question: tokens are renewed
	close     func()
}

// newKV takes from the environment what Consul's own clients take from it.
func newKV(getenv func(string) string, client *http.Client, source, destination string) (*kv, error) {
	k := &kv{token: getenv("CONSUL_HTTP_TOKEN"), tokenFile: getenv("CONSUL_HTTP_TOKEN_FILE"), close: func() {}}
	base, socket, err := consulURL(getenv)
	if err != nil {
		return nil, err
	}
	k.url = base + "/v1/kv/crossfade/" + url.PathEscape(source) + "/" + url.PathEscape(destination) + "/mesh_percent"
	if client == nil {
		t, err := kvTransport(getenv, socket)
		if err != nil {
			return nil, err
		}
		client, k.close = &http.Client{Transport: t}, t.CloseIdleConnections
	}
	k.client = &http.Client{
		Transport: client.Transport,
		Jar:       client.Jar,
		// The token is not for whoever Consul would point at.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return k, nil
}

// consulURL reads CONSUL_HTTP_ADDR: host:port, http://…, https://… or unix://path.
func consulURL(getenv func(string) string) (base, socket string, err error) {
	addr := cmp.Or(getenv("CONSUL_HTTP_ADDR"), "127.0.0.1:8500")
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		return "http://localhost", path, nil
	}
	if !strings.Contains(addr, "://") {
		scheme := "http"
		if ssl, err := strconv.ParseBool(getenv("CONSUL_HTTP_SSL")); err == nil && ssl {
			scheme = "https"
		}
		addr = scheme + "://" + addr
	}
	u, err := url.Parse(addr)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("CONSUL_HTTP_ADDR is no address: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return "", "", fmt.Errorf("CONSUL_HTTP_ADDR %q is no address of Consul", u.Redacted())
	}
	return strings.TrimSuffix(u.String(), "/"), "", nil
}

func kvTransport(getenv func(string) string, socket string) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    5 * time.Second,
		TLSClientConfig:        &tls.Config{ServerName: getenv("CONSUL_TLS_SERVER_NAME")},
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	if file := getenv("CONSUL_CACERT"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("CONSUL_CACERT: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CONSUL_CACERT %q holds no certificate", file)
		}
	}
	return t, nil
}

// ask returns what KV says, at once if index is 0, else when it has grown beyond
// index or after about [wait].
func (k *kv) ask(ctx context.Context, index uint64) (answer, error) {
	query, within := "?raw", slack
	if index > 0 {
		query += "&index=" + strconv.FormatUint(index, 10) + "&wait=" + wait.String()
		within += wait + wait/16
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url+query, nil)
	if err != nil {
		return answer{}, err
	}
	if err := k.readToken(); err != nil {
		return answer{}, err
	}
	if k.token != "" {
		req.Header.Set("X-Consul-Token", k.token)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return answer{}, fmt.Errorf("consul: %s: %.200q", resp.Status, text)
	}
	a := answer{found: resp.StatusCode == http.StatusOK}
	// Anybody can say 404; only Consul says at which index.
	if a.index, err = strconv.ParseUint(resp.Header.Get("X-Consul-Index"), 10, 64); err != nil {
		return answer{}, errors.New("consul: an answer without X-Consul-Index: not Consul's")
	}
	// A query at 0 would not block.
	a.index = max(a.index, 1)
	if a.found {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxValue+1))
		if err != nil {
			return answer{}, fmt.Errorf("consul: %w", err)
		}
		a.value = string(text)
	}
	return a, nil
}

func (k *kv) readToken() error {
	if k.tokenFile == "" {
		return nil
	}
	text, err := os.ReadFile(k.tokenFile)
	if err != nil {
		return fmt.Errorf("CONSUL_HTTP_TOKEN_FILE: %w", err)
	}
	if token := strings.TrimSpace(string(text)); token != "" {
		k.token = token
	}
	return nil
}
