package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/envoybin"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// kills is how often the server dies, killWithin at most how long after a command or a restart.
const (
	kills      = 50
	killWithin = 1200 * time.Millisecond
)

// sighting is what somebody saw of a pair: in an entry, or in a caller's Envoy.
type sighting struct {
	who        string
	generation uint64
	shares     config.Shares
}

// memory holds the newest that was seen, and says what must never be seen after it.
type memory struct{ newest sighting }

func (m *memory) see(s sighting) error {
	switch {
	case s.generation < m.newest.generation:
		return fmt.Errorf("%s went back to generation %d, %+v, from %d, %+v, that %s had", s.who, s.generation, s.shares, m.newest.generation, m.newest.shares, m.newest.who)
	case s.generation == m.newest.generation && s.shares != m.newest.shares && m.newest.who != "":
		return fmt.Errorf("%s and %s differ about generation %d: %+v, %+v", s.who, m.newest.who, s.generation, s.shares, m.newest.shares)
	}
	m.newest = s
	return nil
}

// unfailing says which request failed.
func unfailing(r *load.Recorder) error {
	if failed := r.Failures(); len(failed) > 0 {
		return fmt.Errorf("%d of %d failed, such as %+v", len(failed), r.Totals().Requests, failed[0])
	}
	return nil
}

// The looks of the test below would find what it says does not happen.
func TestKillIsSeen(t *testing.T) {
	var m memory
	old := sighting{"the entry", 3, config.Shares{Legacy: 90, MTLS: 10}}
	for _, x := range []struct {
		s    sighting
		want string
	}{
		{old, ""}, {sighting{"Envoy", 4, config.Shares{MTLS: 100}}, ""}, {sighting{"Envoy", 4, config.Shares{MTLS: 100}}, ""},
		{old, "went back to generation 3"}, {sighting{"the entry", 4, config.Shares{Legacy: 100}}, "differ about generation 4"},
	} {
		if err := m.see(x.s); (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v, want %q", x.s, err, x.want)
		}
	}
	r := load.NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	g := load.Generator{Rate: 100, Timeout: time.Second, Outstanding: 1, Record: r, Call: func(n uint64, _ time.Time) (load.Answer, error) {
		if n == 5 {
			defer cancel()
			return load.Answer{}, errors.New("lost")
		}
		return load.Answer{}, nil
	}}
	g.Run(ctx)
	if err := unfailing(r); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("a failed request is not seen: %v", err)
	}
}

// killed is a server on its real data directory, a caller and a callee with real Envoys, and
// an old mesh.
type killed struct {
	*twoHosts // without another host
	args      []string
	server    *exec.Cmd
	log       *os.File
	client    *api.Client
	http      *http.Client
	base      string
	token     string
	admin     *http.Client // the caller's Envoy
	port      string       // of the caller for the callee
}

func newKilled(t *testing.T) *killed {
	dir := meshtest.RunDir(t)
	data := filepath.Join(dir, "mesh")
	path, err := envoybin.Find()
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	ports := meshtest.FreePorts(t, 7)
	text := func(i int) string { return fmt.Sprint(ports[i]) }
	s := &killed{twoHosts: &twoHosts{t: t, dir: dir}, port: text(2), base: "https://127.0.0.1:" + text(0)}
	s.env = append(os.Environ(), "CROSSFADE_HTTP_ADDR=127.0.0.1:"+text(0), "CROSSFADE_CACERT="+filepath.Join(data, "ca.pem"),
		"CROSSFADE_HTTP_TOKEN_FILE="+filepath.Join(data, "operator.token"), "XDG_RUNTIME_DIR="+dir, "ENVOY="+path)
	s.args = []string{"server", "--data-dir", data, "--http-port", text(0), "--grpc-port", text(1), "--dns-port", "-1"}
	if s.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.die()
		if b, _ := os.ReadFile(s.log.Name()); t.Failed() {
			t.Logf("%.*s", 20_000, b[max(0, len(b)-20_000):])
		}
		s.log.Close()
	})
	s.begin()
	meshtest.Eventually(t, "the server answers", func() error { _, err := s.try("crossfade", "catalog", "nodes"); return err })
	pem, err := os.ReadFile(filepath.Join(data, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	s.token = strings.TrimSpace(string(token))
	s.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	if s.client, err = api.New(api.Options{Address: s.base, Token: s.token, HTTPClient: s.http}); err != nil {
		t.Fatal(err)
	}

	app := func(answer http.HandlerFunc) string {
		a := httptest.NewServer(answer)
		t.Cleanup(a.Close)
		_, port, _ := net.SplitHostPort(a.Listener.Addr().String())
		return port
	}
	old := app(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, api.Legacy) })
	callee := app(func(w http.ResponseWriter, r *http.Request) {
		way := api.MTLS
		if r.Header.Get("x-forwarded-client-cert") == "" {
			way = api.Direct
		}
		io.WriteString(w, way)
	})
	s.run("crossfade", "config", "write", s.file("defaults.hcl", "Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"\n"))
	s.run("crossfade", "config", "write", s.file("shift.hcl", fmt.Sprintf(
		"Kind = \"traffic-shift\"\nSource = \"web\"\nDestination = \"catalog\"\nLegacy { Address = \"127.0.0.1:%s\" }\nShares { legacy = 100 }\nGeneration = 1\nGuard { Attempts = 1 }\n", old)))
	s.sidecar(false, "catalog", "127.0.0.1", fmt.Sprintf("service {\n  name = \"catalog\"\n  port = %s\n  connect { sidecar_service { port = %s } }\n}", callee, text(3)))
	s.sidecar(false, "web", "127.0.0.1", fmt.Sprintf("service {\n  name = \"web\"\n  port = %s\n  connect { sidecar_service {\n    port = %s\n    proxy { upstreams = [{ destination_name = \"catalog\", local_bind_port = %s }] }\n  } }\n}", text(4), text(5), s.port))
	var status struct {
		Envoy struct {
			AdminSocket string `json:"admin_socket"`
		} `json:"envoy"`
	}
	b, err := os.ReadFile(filepath.Join(dir, "web", "status.json"))
	if err == nil {
		err = json.Unmarshal(b, &status)
	}
	if err != nil || status.Envoy.AdminSocket == "" {
		t.Fatalf("%v: %s", err, b)
	}
	s.admin = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", status.Envoy.AdminSocket)
	}}}
	return s
}

func (s *killed) begin() {
	s.t.Helper()
	s.server = exec.Command("crossfade", s.args...)
	s.server.Env, s.server.Dir, s.server.Stdout, s.server.Stderr = s.env, s.dir, s.log, s.log
	if err := s.server.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// die kills the server.
func (s *killed) die() {
	if s.server.Process.Kill() == nil {
		s.server.Wait()
	}
}

// entry is the pair's traffic-shift as the server has it.
func (s *killed) entry() (sighting, error) {
	req, err := http.NewRequest(http.MethodGet, s.base+"/v1/config/traffic-shift/web~catalog", nil)
	if err != nil {
		return sighting{}, err
	}
	req.Header.Set("X-Consul-Token", s.token)
	resp, err := s.http.Do(req)
	if err != nil {
		return sighting{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return sighting{}, fmt.Errorf("status %d: %.200s, %w", resp.StatusCode, b, err)
	}
	var e config.TrafficShift
	if err := json.Unmarshal(b, &e); err != nil {
		return sighting{}, err
	}
	return sighting{"the entry", e.Generation, e.Shares}, nil
}

// envoys is what the caller's Envoy runs: by the word of its runtime layer, which has the
// generation, and of its routes.
func (s *killed) envoys() (said sighting, routed map[string]float64, err error) {
	body, err := s.ask("/runtime")
	if err != nil {
		return said, nil, err
	}
	var layers struct {
		Entries map[string]struct {
			Final string `json:"final_value"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(body, &layers); err != nil {
		return said, nil, err
	}
	said.who = "the caller's Envoy"
	if text := layers.Entries["crossfade.shift.catalog"].Final; text != "" {
		if said.generation, said.shares, err = envoy.ParseShift(text); err != nil {
			return said, nil, err
		}
	}
	if body, err = s.ask("/config_dump?resource=dynamic_route_configs&name_regex=^catalog$"); err != nil {
		return said, nil, err
	}
	var dump struct {
		Configs []struct {
			Route struct {
				Hosts []struct {
					Routes []struct {
						Route struct {
							Cluster  string
							Weighted struct {
								Clusters []struct {
									Name   string
									Weight float64
								}
							} `json:"weighted_clusters"`
						}
					}
				} `json:"virtual_hosts"`
			} `json:"route_config"`
		}
	}
	if err := json.Unmarshal(body, &dump); err != nil || len(dump.Configs) != 1 {
		return said, nil, fmt.Errorf("%d routes of Envoy: %w", len(dump.Configs), err)
	}
	routed, sum := map[string]float64{}, 0.0
	way := func(cluster string) string {
		before, _, _ := strings.Cut(strings.TrimPrefix(cluster, "group~"), "~")
		if before != api.Legacy && before != api.Direct {
			before = api.MTLS
		}
		return before
	}
	route := dump.Configs[0].Route.Hosts[0].Routes[0].Route
	if route.Cluster != "" {
		return said, map[string]float64{way(route.Cluster): 100}, nil
	}
	for _, c := range route.Weighted.Clusters {
		routed[way(c.Name)] += c.Weight
		sum += c.Weight
	}
	for w := range routed {
		if routed[w] *= 100 / sum; routed[w] == 0 {
			delete(routed, w)
		}
	}
	return said, routed, nil
}

func (s *killed) ask(path string) ([]byte, error) {
	resp, err := s.admin.Get("http://envoy" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// A server that is killed fifty times, at random moments of shifts that step by themselves,
// of reverts and of its own start, loses nothing that it had answered or that a sidecar had;
// afterwards Envoy runs what the ledger says, never an older share; and no request fails.
func TestKillTheServer(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := newKilled(t)
	record := load.NewRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	g := load.Generator{Rate: 60, Timeout: 10 * time.Second, Outstanding: 600, Record: record, Call: func(uint64, time.Time) (load.Answer, error) {
		resp, err := client.Post("http://127.0.0.1:"+s.port+"/", "text/plain", strings.NewReader("once"))
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d: %.200s", resp.StatusCode, b)
		}
		return load.Answer{Way: string(b)}, err
	}}
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	defer running.Wait()
	defer cancel()

	var all, envoys memory
	// look takes in what was seen, in that order. An Envoy may have less than the ledger for a
	// while, and never less than it had; the ledger may have less than neither.
	look := func(entry, envoy sighting) {
		t.Helper()
		var err error
		if entry.who != "" {
			err = all.see(entry)
		}
		if envoy.who != "" {
			err = errors.Join(err, envoys.see(envoy))
			if envoy.generation >= all.newest.generation {
				err = errors.Join(err, all.see(envoy))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	settled := func() (ledger sighting) {
		t.Helper()
		meshtest.Eventually(t, "Envoy runs what the ledger says", func() error {
			before, err := s.entry()
			if err != nil {
				return err
			}
			said, routed, err := s.envoys()
			if err != nil {
				return err
			}
			look(before, said)
			pair, err := s.client.Pair(t.Context(), "web", "catalog")
			if err != nil {
				return err
			}
			if ledger, err = s.entry(); err != nil || ledger != before {
				return fmt.Errorf("it goes on: %+v: %w", ledger, err)
			}
			for _, way := range api.Ways() {
				if want := pair.Shares.Of(way); routed[way] != want || said.generation != ledger.generation || said.shares != ledger.shares {
					return fmt.Errorf("ledger %+v, entry %+v, Envoy %+v, routes %v", pair.Shares, ledger, said, routed)
				}
			}
			return nil
		})
		return ledger
	}
	settled()
	began := time.Now()
	steps, starts, reverts := 0, 0, 0
	last := all.newest.generation
	for range kills {
		command := []string{"crossfade", "pairs"}
		switch pair, err := s.client.Pair(t.Context(), "web", "catalog"); {
		case err != nil:
			t.Fatal(err)
		case pair.Shift == nil || pair.Shift.Status != "running" && pair.Shift.Status != "queued":
			command = []string{"crossfade", "shift", "web", "catalog", "--to", "mtls", "--steps", fmt.Sprintf("%d,50,100", 1+random.IntN(40)), "--dwell", "30s"}
			starts++
		case pair.Shares.MTLS > 0:
			command = []string{"crossfade", "revert", "web", "catalog"}
			reverts++
		}
		var meanwhile sync.WaitGroup
		meanwhile.Go(func() { _, _ = s.try(command...) }) // the server may die before it answers
		<-time.After(time.Duration(random.Int64N(int64(killWithin))))
		entry, _ := s.entry() // what was answered may not be lost
		s.die()
		said, _, err := s.envoys()
		if err != nil {
			t.Fatal(err)
		}
		look(entry, said)
		s.begin()
		meanwhile.Wait()
		if now := settled(); now.generation > last {
			steps, last = steps+1, now.generation
		}
	}
	cancel()
	running.Wait()
	got := record.Totals()
	t.Logf("%d kills in %v: %d starts, %d reverts, %d times with newer shares, generation %d; %d requests, %v", kills, time.Since(began).Round(time.Second), starts, reverts, steps, last, got.Requests, got.Ways)
	if err := unfailing(record); err != nil {
		t.Error(err)
	}
	if steps < kills/10 || starts < 3 || got.Ways[api.MTLS] == 0 || got.Ways[api.Legacy] == 0 {
		t.Error("hardly anything was moving: this proves nothing")
	}
	if log, err := os.ReadFile(s.log.Name()); err != nil || bytes.Contains(log, []byte("panic")) {
		t.Errorf("the server's log: %v: %.2000s", err, log)
	}
}
