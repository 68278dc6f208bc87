// Package envoyadmin is a client of the admin interface of one Envoy.
//
// In: where that is, and for how long to wait. Out: answers as they are ([Client.Get]), or read
// ([Client.Listeners], [Client.Stats]), and Envoy told to drain. Any answer but 200 is an error.
//
// It decides nothing, polls nothing and tries nothing again: that is left to the caller.
package envoyadmin

import (
	"bytes"
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

// maxBody bounds an answer.
const maxBody = 512 << 20

// Client may be used by several goroutines.
type Client struct{ http *http.Client }

// New is a client of the Envoy whose admin interface is at a Unix socket (a path) or at
// ip:port. Each call takes at most so long. Close it after use.
func New(address string, timeout time.Duration) *Client {
	network := "tcp"
	if strings.Contains(address, "/") {
		network = "unix"
	}
	var d net.Dialer
	return &Client{&http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, network, address)
			},
			MaxIdleConnsPerHost: 1,
		},
	}}
}

// Close closes the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) call(ctx context.Context, method, path string) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("more than %d bytes", maxBody)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	return resp.StatusCode, body, nil
}

// ok is call, with any other status than 200 as an error.
func (c *Client) ok(ctx context.Context, method, path string) ([]byte, error) {
	code, body, err := c.call(ctx, method, path)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("envoy admin %s: status %d: %.300s", path, code, bytes.TrimSpace(body))
	}
	if err != nil {
		return nil, err
	}
	return body, nil
}

// Get is the answer to a path.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	return c.ok(ctx, http.MethodGet, path)
}

// JSON decodes the answer to a path.
func (c *Client) JSON(ctx context.Context, path string, into any) error {
	body, err := c.Get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("envoy admin %s: %d bytes: %w", path, len(body), err)
	}
	return nil
}

// Post changes something.
func (c *Client) Post(ctx context.Context, path string) error {
	_, err := c.ok(ctx, http.MethodPost, path)
	return err
}

// Ready is Envoy's own word: LIVE, or why not.
func (c *Client) Ready(ctx context.Context) (bool, string, error) {
	code, body, err := c.call(ctx, http.MethodGet, "/ready")
	return code == http.StatusOK, strings.TrimSpace(string(body)), err
}

// Listener is an active one.
type Listener struct {
	Name string
	Port int // 0: not at a TCP address

	gauges string // what names of its gauges begin with
}

// Listeners are the active listeners, in Envoy's order.
func (c *Client) Listeners(ctx context.Context) ([]Listener, error) {
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
	if err := c.JSON(ctx, "/listeners?format=json", &list); err != nil {
		return nil, err
	}
	out := make([]Listener, 0, len(list.Statuses))
	for _, l := range list.Statuses {
		at := net.JoinHostPort(l.Local.Socket.Address, strconv.Itoa(l.Local.Socket.Port))
		// Envoy names a listener's gauges after its address: listener.127.0.0.1_21000.
		out = append(out, Listener{Name: l.Name, Port: l.Local.Socket.Port, gauges: "listener." + strings.ReplaceAll(at, ":", "_") + "."})
	}
	return out, nil
}

// Connections is how many connections each listener at a TCP address has open.
func (c *Client) Connections(ctx context.Context) (map[string]int64, error) {
	listeners, err := c.Listeners(ctx)
	if err != nil {
		return nil, err
	}
	stats, err := c.Gauges(ctx, `^listener\..*\.downstream_cx_active$`)
	if err != nil {
		return nil, err
	}
	open := map[string]int64{}
	for _, l := range listeners {
		if n, ok := stats[l.gauges+"downstream_cx_active"]; ok {
			open[l.Name] = n
		}
	}
	return open, nil
}

// Stats are the counters and gauges whose names match the regular expression.
func (c *Client) Stats(ctx context.Context, filter string) (map[string]int64, error) {
	return c.stats(ctx, "/stats?filter="+url.QueryEscape(filter))
}

// Gauges are [Client.Stats] that are gauges: with many upstreams Envoy has far fewer of these to
// look through.
func (c *Client) Gauges(ctx context.Context, filter string) (map[string]int64, error) {
	return c.stats(ctx, "/stats?type=Gauges&filter="+url.QueryEscape(filter))
}

func (c *Client) stats(ctx context.Context, path string) (map[string]int64, error) {
	body, err := c.Get(ctx, path)
	if err != nil {
		return nil, err
	}
	stats := map[string]int64{}
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if n, err := strconv.ParseInt(value, 10, 64); ok && err == nil {
			stats[name] = n
		}
	}
	return stats, nil
}

// Runtime are the values that Envoy's runtime has in force, by key.
func (c *Client) Runtime(ctx context.Context) (map[string]string, error) {
	var answer struct {
		Entries map[string]struct {
			Final string `json:"final_value"`
		} `json:"entries"`
	}
	if err := c.JSON(ctx, "/runtime?format=json", &answer); err != nil {
		return nil, err
	}
	out := make(map[string]string, len(answer.Entries))
	for key, entry := range answer.Entries {
		out[key] = entry.Final
	}
	return out, nil
}

// Drain tells clients of all listeners to end their connections. New ones are still taken.
func (c *Client) Drain(ctx context.Context) error {
	return c.Post(ctx, "/drain_listeners?graceful&skip_exit")
}

// DrainInbound is [Client.Drain] of the inbound listeners alone.
func (c *Client) DrainInbound(ctx context.Context) error {
	return c.Post(ctx, "/drain_listeners?graceful&skip_exit&inboundonly")
}

// CloseListeners stops listening. Connections that exist go on.
func (c *Client) CloseListeners(ctx context.Context) error { return c.Post(ctx, "/drain_listeners") }

// CloseInbound stops listening inbound. Connections that exist go on.
func (c *Client) CloseInbound(ctx context.Context) error {
	return c.Post(ctx, "/drain_listeners?inboundonly")
}
