package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	wire "github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

// api is the server's HTTP API, which is Consul's.
type api struct {
	base   string
	server string // the server's data directory: its CA's certificate and the operator's token are there
	client *http.Client
	token  string
}

const apiTimeout = 5 * time.Second

// call makes one request. in and out are JSON and may be nil.
func (a *api) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	if err := a.open(); err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", a.token)
	b, err := read(a.client.Do(req))
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (a *api) operatorFile() string { return filepath.Join(a.server, "operator.token") }

func (a *api) caFile() string { return filepath.Join(a.server, "ca.pem") }

// open takes what the server wrote at its first start.
func (a *api) open() error {
	if a.client != nil {
		return nil
	}
	roots, err := os.ReadFile(a.caFile())
	if err != nil {
		return err
	}
	token, err := os.ReadFile(a.operatorFile())
	if err != nil {
		return err
	}
	trust, err := ca.NewTrust(roots, "")
	if err != nil {
		return err
	}
	a.token = strings.TrimSpace(string(token))
	a.client = &http.Client{Transport: &http.Transport{TLSClientConfig: trust.TLS(nil)}}
	return nil
}

// joinToken puts a token into the file with which an instance of the service joins.
func (a *api) joinToken(service, file string) error {
	return a.makeToken(file, map[string]any{"role": "join", "services": []string{service}})
}

// readerToken puts a token into the file for those who only read.
func (a *api) readerToken(file string) error {
	return a.makeToken(file, map[string]any{"role": "reader"})
}

func (a *api) makeToken(file string, in any) error {
	var made struct{ Secret string }
	if err := a.call(context.Background(), "PUT", "/v1/crossfade/tokens", in, &made); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(made.Secret+"\n"), 0o600)
}

// read is the body of an answer, which has to be 200.
func read(resp *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.300s", resp.StatusCode, strings.TrimSpace(string(b)))
	}
	return b, err
}

// leader fails unless the server is ready.
func (a *api) leader(ctx context.Context) error {
	var leader string
	if err := a.call(ctx, "GET", "/v1/status/leader", nil, &leader); err != nil {
		return err
	}
	if leader == "" {
		return fmt.Errorf("no leader yet")
	}
	return nil
}

// setDefaults writes a service's service-defaults: its protocol.
func (a *api) setDefaults(ctx context.Context, service, protocol string) error {
	return a.call(ctx, "PUT", "/v1/config", map[string]any{"Kind": "service-defaults", "Name": service, "Protocol": protocol}, nil)
}

// register registers a service on the shop's node, as that node's agent.
func (a *api) register(ctx context.Context, service map[string]any) error {
	return a.call(ctx, "PUT", "/v1/agent/service/register?node="+nodeName+"&address=127.0.0.1", service, nil)
}

func (a *api) deregister(ctx context.Context, id string) error {
	return a.call(ctx, "PUT", "/v1/agent/service/deregister/"+id+"?node="+nodeName+"&address=127.0.0.1", nil, nil)
}

// put writes a key of KV.
func (a *api) put(ctx context.Context, key, value string) error {
	return a.call(ctx, "PUT", "/v1/kv/"+key, json.RawMessage(value), nil)
}

// ledger is what "crossfade pairs" shows of a pair.
func (a *api) ledger(ctx context.Context, source, destination string) (wire.Pair, error) {
	var out []wire.Pair
	err := a.call(ctx, "GET", wire.Filter{Source: source, Destination: destination}.Path(), nil, &out)
	if err == nil && len(out) != 1 {
		err = fmt.Errorf("the ledger has %d rows of %s → %s", len(out), source, destination)
	}
	if err != nil {
		return wire.Pair{}, err
	}
	return out[0], nil
}

// roots are the certificates that leaves chain up to, and the trust domain.
func (a *api) roots(ctx context.Context) (trustDomain, pem string, err error) {
	var r struct {
		TrustDomain string
		Roots       []struct{ RootCert string }
	}
	if err := a.call(ctx, "GET", "/v1/connect/ca/roots", nil, &r); err != nil {
		return "", "", err
	}
	for _, root := range r.Roots {
		pem += root.RootCert + "\n"
	}
	return r.TrustDomain, pem, nil
}

// healthy are the addresses at which callers may reach the service in the mesh, sorted.
func (a *api) healthy(ctx context.Context, service string) ([]string, error) {
	var rows []struct {
		Node    struct{ Address string }
		Service struct {
			Address string
			Port    int
		}
	}
	if err := a.call(ctx, "GET", "/v1/health/connect/"+service+"?passing", nil, &rows); err != nil {
		return nil, err
	}
	out := make([]string, len(rows))
	for i, r := range rows {
		host := r.Service.Address
		if host == "" {
			host = r.Node.Address
		}
		out[i] = net.JoinHostPort(host, strconv.Itoa(r.Service.Port))
	}
	slices.Sort(out)
	return out, nil
}

// admin asks an Envoy's admin interface.
func admin(ctx context.Context, socket, path string, out any) error {
	c := envoyadmin.New(socket, apiTimeout)
	defer c.Close()
	if err := c.JSON(ctx, path, out); err != nil {
		return fmt.Errorf("Envoy at %s: %w", socket, err)
	}
	return nil
}

// loadedSerial is the serial of the leaf that an Envoy has loaded for uri.
func loadedSerial(ctx context.Context, socket, uri string) (string, error) {
	var certs struct {
		Certificates []struct {
			CertChain []struct {
				SerialNumber string `json:"serial_number"`
				Names        []struct {
					URI string `json:"uri"`
				} `json:"subject_alt_names"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := admin(ctx, socket, "/certs", &certs); err != nil {
		return "", err
	}
	var found []string
	for _, c := range certs.Certificates {
		for _, leaf := range c.CertChain {
			if len(leaf.Names) == 1 && leaf.Names[0].URI == uri {
				found = append(found, serial(leaf.SerialNumber))
			}
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) != 1 {
		return "", fmt.Errorf("Envoy has loaded %d leaves for %s, want 1", len(found), uri)
	}
	return found[0], nil
}

// endpoints are the addresses that an Envoy has for a service, sorted. Their
// cluster is named <service>.default.<datacenter>.internal.<trust domain>.
func endpoints(ctx context.Context, socket, service string) ([]string, error) {
	var clusters struct {
		Statuses []struct {
			Name  string `json:"name"`
			Hosts []struct {
				Address struct {
					Socket struct {
						Address string `json:"address"`
						Port    int    `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := admin(ctx, socket, "/clusters?format=json", &clusters); err != nil {
		return nil, err
	}
	var out []string
	for _, c := range clusters.Statuses {
		if !strings.HasPrefix(c.Name, service+".default.") {
			continue
		}
		for _, h := range c.Hosts {
			out = append(out, net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(h.Address.Socket.Port)))
		}
	}
	slices.Sort(out)
	return out, nil
}

// counted are an Envoy's counters and gauges whose names match a regular expression.
func counted(ctx context.Context, socket, filter string) (map[string]int64, error) {
	c := envoyadmin.New(socket, apiTimeout)
	defer c.Close()
	return c.Stats(ctx, filter)
}

// attempts is how many attempts, or connections, a caller's Envoy counted by way.
func attempts(ctx context.Context, socket, destination string) (map[string]uint64, error) {
	c := envoyadmin.New(socket, apiTimeout)
	defer c.Close()
	body, err := c.Get(ctx, telemetry.AttemptsPath)
	if err != nil {
		return nil, err
	}
	stats, err := telemetry.ParseStats(body)
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for way, n := range stats.Attempts()[destination] {
		out[string(way)] = n
	}
	return out, nil
}
