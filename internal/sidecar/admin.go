package sidecar

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// adminTimeout bounds one call to Envoy's admin socket.
const adminTimeout = 2 * time.Second

// admin speaks to Envoy's admin interface on its Unix socket.
type admin struct {
	client *http.Client
}

func newAdmin(socket string) *admin {
	var d net.Dialer
	return &admin{client: &http.Client{
		Timeout: adminTimeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", socket)
			},
			MaxIdleConnsPerHost: 1,
		},
	}}
}

func (a *admin) close() { a.client.CloseIdleConnections() }

func (a *admin) call(ctx context.Context, method, path string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	return resp.StatusCode, body, nil
}

// ready is Envoy's own word: LIVE, or why not.
func (a *admin) ready(ctx context.Context) (bool, string, error) {
	code, body, err := a.call(ctx, http.MethodGet, "/ready")
	return code == http.StatusOK, strings.TrimSpace(string(body)), err
}

// listeners are the names of the active listeners.
func (a *admin) listeners(ctx context.Context) (map[string]bool, error) {
	code, body, err := a.call(ctx, http.MethodGet, "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Statuses []struct {
			Name string `json:"name"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &list); err != nil || code != http.StatusOK {
		return nil, fmt.Errorf("envoy admin /listeners: status %d, %d bytes that are no list of listeners", code, len(body))
	}
	names := make(map[string]bool, len(list.Statuses))
	for _, l := range list.Statuses {
		names[l.Name] = true
	}
	return names, nil
}

// connections is how many connections each listener at a TCP address has open.
func (a *admin) connections(ctx context.Context) (map[string]int64, error) {
	code, body, err := a.call(ctx, http.MethodGet, "/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Statuses []struct {
			Name  string `json:"name"`
			Local struct {
				Socket struct {
					Address string `json:"address"`
					Port    int    `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal(body, &list); err != nil || code != http.StatusOK {
		return nil, fmt.Errorf("envoy admin /listeners: status %d, %d bytes that are no list of listeners", code, len(body))
	}
	stats, err := a.gauges(ctx, `^listener\..*\.downstream_cx_active$`)
	if err != nil {
		return nil, err
	}
	open := map[string]int64{}
	for _, l := range list.Statuses {
		at := net.JoinHostPort(l.Local.Socket.Address, strconv.Itoa(l.Local.Socket.Port))
		// Envoy names a listener's gauges after its address: listener.127.0.0.1_21000.
		if n, ok := stats["listener."+strings.ReplaceAll(at, ":", "_")+".downstream_cx_active"]; ok {
			open[l.Name] = n
		}
	}
	return open, nil
}

// gauges are the counters and gauges whose names match the regular expression.
func (a *admin) gauges(ctx context.Context, filter string) (map[string]int64, error) {
	code, body, err := a.call(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("envoy admin /stats: status %d", code)
	}
	stats := map[string]int64{}
	for sc := bufio.NewScanner(strings.NewReader(string(body))); sc.Scan(); {
		name, value, ok := strings.Cut(sc.Text(), ": ")
		if n, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			stats[name] = n
		}
	}
	return stats, nil
}

// drainListeners starts a drain of the inbound listeners: connections are told to
// end, new ones are still taken.
func (a *admin) drainListeners(ctx context.Context) error {
	return a.post(ctx, "/drain_listeners?graceful&skip_exit&inboundonly")
}

// closeListeners stops listening inbound. Connections that exist go on.
func (a *admin) closeListeners(ctx context.Context) error {
	return a.post(ctx, "/drain_listeners?inboundonly")
}

func (a *admin) post(ctx context.Context, path string) error {
	code, body, err := a.call(ctx, http.MethodPost, path)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("envoy admin %s: status %d: %s", path, code, strings.TrimSpace(string(body)))
	}
	return err
}
