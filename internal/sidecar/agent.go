package sidecar

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	agentTimeout  = 5 * time.Second
	agentBodySize = 1 << 20
)

var (
	// errUnknown means that the registry does not know the service or check.
	errUnknown = errors.New("not registered")
	// errRefused means that a server understood the request and will not do it.
	errRefused = errors.New("refused")
)

// agent speaks Consul's agent API to the servers, or to a Consul agent, one at a time:
// the last that answered until it fails, then the next.
type agent struct {
	addrs  []string // base URLs
	node   string
	addr   string // the node's
	client *http.Client
	cred   *credential
	bearer func() (string, error) // the token of each call; nil: the join token while there is no leaf

	mu      sync.Mutex
	current int
}

func newAgent(o Options, cred *credential) *agent {
	// Deregistration waits for callers; every call has a deadline of its own.
	t := &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}
	if cred.secure() {
		t.TLSClientConfig = cred.trust.TLS(cred.certificate)
	}
	return &agent{addrs: o.HTTPAddrs, node: o.Node, addr: o.NodeAddress, cred: cred, client: &http.Client{Transport: t}}
}

func (a *agent) close() { a.client.CloseIdleConnections() }

// answer is a server's response. Status is 2xx or 404.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call tries the servers in turn until one answers. An answer that refuses the
// request itself (4xx) is final: another server would refuse it too.
func (a *agent) call(ctx context.Context, timeout time.Duration, method, path string, query url.Values, body []byte) (answer, error) {
	a.mu.Lock()
	first := a.current
	a.mu.Unlock()
	var errs []error
	for i := range a.addrs {
		at := (first + i) % len(a.addrs)
		res, err := a.callAt(ctx, timeout, a.addrs[at], method, path, query, body)
		if err == nil && res.status < 500 {
			a.mu.Lock()
			a.current = at
			a.mu.Unlock()
			if res.status >= 400 && res.status != http.StatusNotFound {
				err := refused(a.addrs[at], method, path, res)
				if res.status != http.StatusTooManyRequests && res.status != http.StatusRequestTimeout {
					err = fmt.Errorf("%w by %w", errRefused, err)
				}
				return answer{}, err
			}
			return res, nil
		}
		if err == nil {
			err = refused(a.addrs[at], method, path, res)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return answer{}, errors.Join(errs...)
}

func refused(addr, method, path string, res answer) error {
	text, _, _ := strings.Cut(strings.TrimSpace(string(res.body)), "\n")
	return fmt.Errorf("server %s: %s %s: status %d: %.200s", addr, method, path, res.status, text)
}

func (a *agent) callAt(ctx context.Context, timeout time.Duration, addr, method, path string, query url.Values, body []byte) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	target := addr + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("server %s: %w", addr, err)
	}
	bearer := a.bearer
	if bearer == nil && a.cred.secure() && a.cred.certificate() == nil {
		bearer = a.cred.token
	}
	if bearer != nil {
		token, err := bearer()
		if err != nil {
			return answer{}, err
		}
		if token != "" {
			req.Header.Set(tokenHeader, token)
		}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return answer{}, fmt.Errorf("server %s: %w", addr, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, agentBodySize))
	if err != nil {
		return answer{}, fmt.Errorf("server %s: %s %s: %w", addr, method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, text}, nil
}

func (a *agent) nodeQuery() url.Values { return url.Values{"node": {a.node}} }

// serverSelf is what one server says of itself.
type serverSelf struct {
	datacenter string
	grpcAddr   string // gRPC, on the host that answered
}

// self asks one server.
func (a *agent) self(ctx context.Context, addr string) (serverSelf, error) {
	res, err := a.callAt(ctx, agentTimeout, addr, http.MethodGet, "/v1/agent/self", nil, nil)
	if err != nil {
		return serverSelf{}, err
	}
	if res.status != http.StatusOK {
		err := refused(addr, http.MethodGet, "/v1/agent/self", res)
		if res.status == http.StatusForbidden {
			err = fmt.Errorf("%w by %w", errRefused, err)
		}
		return serverSelf{}, err
	}
	var self struct {
		Config struct{ Datacenter string }
		XDS    struct {
			Port  int
			Ports struct{ Plaintext, TLS int }
		} `json:"xDS"`
	}
	if err := json.Unmarshal(res.body, &self); err != nil || self.Config.Datacenter == "" {
		return serverSelf{}, fmt.Errorf("server %s: /v1/agent/self: neither Consul's nor crossfade's answer: is it the HTTP port?", addr)
	}
	port, how := self.XDS.Ports.Plaintext, "plaintext gRPC"
	if a.cred.secure() {
		port, how = self.XDS.Ports.TLS, "gRPC over TLS"
	}
	if port <= 0 {
		return serverSelf{}, fmt.Errorf("server %s: it serves no %s: set --grpc-addr to where it serves xDS", addr, how)
	}
	u, err := url.Parse(addr)
	if err != nil {
		return serverSelf{}, fmt.Errorf("server %s: %w", addr, err)
	}
	return serverSelf{self.Config.Datacenter, net.JoinHostPort(u.Hostname(), strconv.Itoa(port))}, nil
}

// register puts the instance into the registry in place of what was there under its ID.
func (a *agent) register(ctx context.Context, body []byte) error {
	q := a.nodeQuery()
	q.Set("address", a.addr)
	q.Set("replace-existing-checks", "true")
	res, err := a.call(ctx, agentTimeout, http.MethodPut, "/v1/agent/service/register", q, body)
	return a.settled(res, err, http.MethodPut, "/v1/agent/service/register")
}

// settled turns an unexpected 404 into an error.
func (a *agent) settled(res answer, err error, method, path string) error {
	if err == nil && res.status == http.StatusNotFound {
		return fmt.Errorf("%w: %s %s: %.200s", errUnknown, method, path, strings.TrimSpace(string(res.body)))
	}
	return err
}

// registered is where the registry says that a service is.
type registered struct {
	Address string
	Port    int
}

// service looks one up by ID; an error wraps errUnknown when there is none.
func (a *agent) service(ctx context.Context, id string) (registered, error) {
	path := "/v1/agent/service/" + url.PathEscape(id)
	res, err := a.call(ctx, agentTimeout, http.MethodGet, path, a.nodeQuery(), nil)
	if err := a.settled(res, err, http.MethodGet, path); err != nil {
		return registered{}, err
	}
	var r registered
	if err := json.Unmarshal(res.body, &r); err != nil {
		return r, fmt.Errorf("GET %s: not a service: %w", path, err)
	}
	return r, nil
}

// pulse sets a TTL check; an error wraps errUnknown when there is none.
func (a *agent) pulse(ctx context.Context, checkID string, s checkState) error {
	body, err := json.Marshal(map[string]string{"Status": string(s.status), "Output": s.output})
	if err != nil {
		return err
	}
	path := "/v1/agent/check/update/" + url.PathEscape(checkID)
	res, err := a.call(ctx, agentTimeout, http.MethodPut, path, a.nodeQuery(), body)
	return a.settled(res, err, http.MethodPut, path)
}

// deregister takes the service and its sidecar out of the registry and returns
// when the callers have confirmed that, or after wait. waited is "<confirmed>/<asked>",
// or empty when the server cannot tell.
func (a *agent) deregister(ctx context.Context, id string, wait time.Duration) (waited string, err error) {
	q := a.nodeQuery()
	q.Set("wait", wait.String())
	path := "/v1/agent/service/deregister/" + url.PathEscape(id)
	res, err := a.call(ctx, wait+agentTimeout, http.MethodPut, path, q, nil)
	if err := a.settled(res, err, http.MethodPut, path); err != nil && !errors.Is(err, errUnknown) {
		return "", err
	}
	return res.header.Get("X-Crossfade-Waited"), nil
}

// connections tells a crossfade server how many connections the sidecar's listeners have open,
// and of drift, if there was any.
func (a *agent) connections(ctx context.Context, proxyID string, open map[string]int64, drift *api.Drift) error {
	body, err := json.Marshal(telemetry.Connections{Listeners: open, Drift: drift})
	if err != nil {
		return err
	}
	path := "/v1/crossfade/sidecars/" + url.PathEscape(proxyID) + "/connections"
	res, err := a.call(ctx, agentTimeout, http.MethodPut, path, a.nodeQuery(), body)
	return a.settled(res, err, http.MethodPut, path)
}

// protocol reads the service's service-defaults entry. known is false when there is none.
func (a *agent) protocol(ctx context.Context, service string) (protocol string, known bool, err error) {
	path := "/v1/config/service-defaults/" + url.PathEscape(service)
	res, err := a.call(ctx, agentTimeout, http.MethodGet, path, nil, nil)
	if err != nil || res.status == http.StatusNotFound {
		return "", false, err
	}
	var entry struct{ Protocol string }
	if err := json.Unmarshal(res.body, &entry); err != nil {
		return "", false, fmt.Errorf("GET %s: not an entry: %w", path, err)
	}
	return cmp.Or(entry.Protocol, "tcp"), true, nil
}

// createProtocol writes a service-defaults entry unless there is one by now.
func (a *agent) createProtocol(ctx context.Context, service, protocol string) error {
	body, err := json.Marshal(map[string]string{"Kind": "service-defaults", "Name": service, "Protocol": protocol})
	if err != nil {
		return err
	}
	res, err := a.call(ctx, agentTimeout, http.MethodPut, "/v1/config", url.Values{"cas": {"0"}}, body)
	return a.settled(res, err, http.MethodPut, "/v1/config")
}

// hosts lists the servers for log lines.
func hosts(addrs []string) string {
	out := slices.Clone(addrs)
	for i := range out {
		out[i] = strings.TrimPrefix(strings.TrimPrefix(out[i], "http://"), "https://")
	}
	return strings.Join(out, ", ")
}
