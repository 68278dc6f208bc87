package routing

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const (
	protocols      = "Kind = \"service-defaults\"\nName = %q\nProtocol = %q\nMutualTLSMode = \"permissive\"\n"
	allowPlaintext = "Kind = \"mesh\"\nAllowEnablingPermissiveMutualTLS = true\n"
)

// speak declares what the services speak, and that they take plaintext as well.
func (w *world) speak() {
	w.write(allowPlaintext)
	for service, protocol := range map[string]string{"catalog": "http", "chat": "grpc", "payments": "tcp", "news": "http"} {
		w.write(fmt.Sprintf(protocols, service, protocol))
	}
}

// wayNames are in the order of shares.
var wayNames = []string{"legacy", "direct", "plain", "mtls"}

// shift is an entry for web's way to a service. Shares are legacy's, direct's, plain's and
// that of mtls; more is any other field.
func (s ways) shift(service string, shares [4]float64, more string) string {
	return shiftText(service, fmt.Sprintf("127.0.0.1:%d", s.legacy.port), "", shares, more)
}

func shiftText(service, address, host string, shares [4]float64, more string) string {
	return fmt.Sprintf("Kind = \"traffic-shift\"\nSource = \"web\"\nDestination = %q\nLegacy { Address = %q, Host = %q }\nShares { legacy = %v, direct = %v, plain = %v, mtls = %v }\n%s\n",
		service, address, host, shares[0], shares[1], shares[2], shares[3], more)
}

// healthy counts the instances in service on each way of web's calls.
func (w *world) healthy(service string) (map[string]int, error) {
	_, body := w.server.Call(http.MethodGet, "/v1/crossfade/chain/"+service+"?source=web", nil)
	var view struct {
		Pair struct {
			Ways []struct {
				Way     string
				Healthy int
			}
		}
	}
	if err := json.Unmarshal(body, &view); err != nil {
		return nil, fmt.Errorf("%w: %s", err, body)
	}
	got := map[string]int{}
	for _, way := range view.Pair.Ways {
		got[way.Way] = way.Healthy
	}
	return got, nil
}

// reachable waits until so many instances are in service on the ways of web's calls.
func (w *world) reachable(service string, want map[string]int) {
	w.t.Helper()
	e := shiftText(service, "127.0.0.1:1", "", [4]float64{0, 0, 0, 100}, "")
	w.write(e)
	meshtest.Eventually(w.t, service+" is reachable", func() error {
		got, err := w.healthy(service)
		if err != nil {
			return err
		}
		for way, n := range want {
			if got[way] != n {
				return fmt.Errorf("%v, want %v", got, want)
			}
		}
		return nil
	})
}

// calls are one call each to catalog, payments, chat and news.
func (c *caller) calls() map[string]func() (string, error) {
	conn := c.grpc()
	return map[string]func() (string, error){
		"catalog": func() (string, error) { a := c.get("catalog", "/"); return a.instance, a.ok() },
		"chat":    func() (string, error) { id, _, err := c.stream(conn); return id, err },
		"news":    func() (string, error) { return c.socket("news") },
		"payments": func() (string, error) {
			conn, id, err := c.dial("payments")
			if err == nil {
				conn.Close()
			}
			return id, err
		},
	}
}

// socket opens a WebSocket, says a line, and tells who answered it.
func (c *caller) socket(upstream string) (string, error) {
	conn, err := dialWire(c.ports[upstream], time.Now().Add(patience))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	fmt.Fprint(conn.Conn, "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(conn.in, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.Header.Get("x-instance"), conn.line(1, time.Now().Add(patience))
}

// stream is one to chat, and tells who answers. It ends by itself: Envoy hangs up on
// whoever resets most of many young ones.
func (c *caller) stream(conn *grpc.ClientConn) (id, authority string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var md metadata.MD
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&md))
	return strings.Join(md.Get("x-instance"), ""), strings.Join(md.Get("x-authority"), ""), err
}

func (c *caller) grpc() *grpc.ClientConn {
	c.w.t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", c.ports["chat"]), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		c.w.t.Fatal(err)
	}
	c.w.t.Cleanup(func() { conn.Close() })
	return conn
}
