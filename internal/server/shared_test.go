package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// sharing starts servers over one Consul, with data directories; all are asked by the first
// one's operator.
func sharing(t *testing.T, url string, n int) []*servertest.Server {
	t.Helper()
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	return sharingIn(t, url, dirs...)
}

func sharingIn(t *testing.T, url string, dirs ...string) (out []*servertest.Server) {
	t.Helper()
	for i, dir := range dirs {
		if i > 0 {
			operator(t, dirs[0], dir)
		}
		out = append(out, servertest.Start(t, server.Options{DataDir: dir, Consul: url, DefaultAllow: true}))
	}
	return out
}

// consulCall asks a Consul itself.
func consulCall(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s %v", method, url, resp.Status, text, err)
	}
	return string(text)
}

// webCallsCatalog registers two services with sidecars and no checks in a Consul.
func webCallsCatalog(t *testing.T, url string) {
	t.Helper()
	for _, body := range webAndCatalog() {
		consulCall(t, http.MethodPut, url+"/v1/agent/service/register", body)
	}
}

// webAndCatalog are registrations of two services with sidecars, which say where these listen: in a
// Consul one that does not listens everywhere, as a sidecar of Consul's.
func webAndCatalog() []string {
	return []string{
		`{"Name":"catalog","Port":8081,"Connect":{"SidecarService":{"Address":"127.0.0.1","Port":21001,"Checks":[{"Name":"up","TTL":"1h","Status":"passing"}]}}}`,
		`{"Name":"web","Port":8080,"Connect":{"SidecarService":{"Address":"127.0.0.1","Port":21002,"Checks":[{"Name":"up","TTL":"1h","Status":"passing"}],
			"Proxy":{"Upstreams":[{"DestinationName":"catalog","LocalBindPort":7100}]}}}}`,
	}
}

// versions are those of all clusters and listeners that a sidecar is told of, and of their routes and endpoints.
func versions(t *testing.T, s *servertest.Server, id string) func() string {
	p := follow(t, s, id, true, xds.Key{Type: xds.RouteType, Name: "catalog"}, xds.Key{Type: xds.EndpointType, Name: "catalog.default.dc1.internal." + s.TrustDomain()})
	return func() string {
		for more := true; more; {
			select {
			case r := <-p.seen:
				for _, res := range r.Resources {
					p.held[xds.Key{Type: r.Type, Name: res.Name}] = res
				}
				for _, name := range r.Removed {
					delete(p.held, xds.Key{Type: r.Type, Name: name})
				}
			default:
				more = false
			}
		}
		var out []string
		for k, r := range p.held {
			out = append(out, fmt.Sprintf("%s %s %s", k.Type, k.Name, r.Version))
		}
		slices.Sort(out)
		return strings.Join(out, "\n")
	}
}

func TestServersOfOneConsul(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	s := sharing(t, f.URL, 3)
	for _, other := range s[1:] {
		if other.TrustDomain() != s[0].TrustDomain() || other.Fingerprint() != s[0].Fingerprint() {
			t.Fatalf("two servers of one Consul have CAs %s and %s", s[0].Fingerprint(), other.Fingerprint())
		}
	}
	s[1].Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http"})
	s[2].Write(shiftEntry(config.Shares{Direct: 50, MTLS: 50}))
	began := time.Now()
	for i, server := range s {
		meshtest.Eventually(t, fmt.Sprintf("server %d has what the others wrote", i), func() error {
			for _, path := range []string{"service-defaults", "traffic-shift"} {
				if _, body := server.Call(http.MethodGet, "/v1/config/"+path, nil); !strings.Contains(string(body), "catalog") {
					return fmt.Errorf("%s", body)
				}
			}
			return nil
		})
	}
	if took := time.Since(began); took > 5*time.Second { // a query waits for minutes
		t.Errorf("all servers have what two wrote after %s", took)
	}
	if body := consulCall(t, http.MethodGet, f.URL+"/v1/config/service-defaults/catalog", ""); !strings.Contains(body, `"http"`) {
		t.Errorf("the Consul has %s", body)
	}

	// A sidecar is told the same by each.
	told := make([]func() string, 3)
	for i := range s {
		told[i] = versions(t, s[i], "web-sidecar-proxy")
	}
	meshtest.Eventually(t, "all servers tell a sidecar the same", func() error {
		first := told[0]()
		if strings.Count(first, "\n") < 4 || told[1]() != first || told[2]() != first {
			return fmt.Errorf("%s\nand\n%s\nand\n%s", first, told[1](), told[2]())
		}
		return nil
	})

	// A token of one is known to all, and so is its end.
	accessor, secret := s[0].Token(`{"role":"reader"}`)
	ask := func(i int) error {
		c := s[i].HTTPClient(servertest.Caller{Token: secret})
		resp, err := c.Get(s[i].URL() + "/v1/crossfade/pairs")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("server %d: %s", i, resp.Status)
		}
		return nil
	}
	for i := range s {
		meshtest.Eventually(t, "a token is known to all servers", func() error { return ask(i) })
	}
	s[1].Call(http.MethodDelete, "/v1/crossfade/tokens/"+accessor, nil)
	for i := range s {
		meshtest.Eventually(t, "a token that is revoked is refused by all", func() error {
			if ask(i) == nil {
				return fmt.Errorf("server %d takes it", i)
			}
			return nil
		})
	}

	// What only the Consul can answer says where to ask.
	for _, path := range []string{"/v1/kv/a", "/v1/session/list", "/v1/txn", "/v1/agent/members", "/v1/catalog/nodes", "/v1/operator/raft/configuration", "/v1/acl/tokens"} {
		resp, err := s[0].OperatorClient().Get(s[0].URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotImplemented || !strings.Contains(string(text), f.URL) {
			t.Errorf("%s: %s %s; want 501 and the address of the Consul", path, resp.Status, text)
		}
	}
}

// operatorOf is an operator's token.
func operatorOf(t *testing.T, s *servertest.Server) string {
	t.Helper()
	_, secret := s.Token(`{"role":"operator"}`)
	return secret
}

func TestKeysOfTheConventionInAConsul(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	s := sharing(t, f.URL, 2)
	s[0].Write(shiftEntry(config.Shares{Direct: 100}))
	consulCall(t, http.MethodPut, f.URL+"/v1/kv/crossfade/web/catalog/mesh_percent", "30")
	for _, one := range s {
		c := apiOf(t, one, operatorOf(t, one))
		meshtest.Eventually(t, "the pair follows the key", func() error { return shares(t, c, api.Shares{Direct: 70, MTLS: 30}) })
	}
}

func TestRevertWithoutTheConsul(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	s := sharing(t, f.URL, 2)
	s[0].Write(shiftEntry(config.Shares{Direct: 50, MTLS: 50}))
	c := apiOf(t, s[1], operatorOf(t, s[1]))
	meshtest.Eventually(t, "the pair is known", func() error { return shares(t, c, api.Shares{Direct: 50, MTLS: 50}) })
	f.Down()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	meshtest.Eventually(t, "config check says so", func() error {
		for _, path := range []string{"config/check", "health"} {
			if _, body := s[1].Call(http.MethodGet, "/v1/crossfade/"+path, nil); !strings.Contains(string(body), "cannot be reached") {
				return fmt.Errorf("%s", body)
			}
		}
		return nil
	})
	_, err := c.Shift(ctx, api.ShiftRequest{Pairs: only(pairOf("web", "catalog")), Via: map[string]float64{api.MTLS: 60}, Force: true})
	if err == nil || !strings.Contains(err.Error(), f.URL) {
		t.Errorf("a shift without the Consul: %v", err)
	}
	done, err := c.Revert(ctx, api.RevertRequest{Pairs: []api.PairName{pairOf("web", "catalog")}, Force: true})
	if err != nil || done.Unsaved == "" || done.Pairs[0].After != (api.Shares{Direct: 100}) {
		t.Errorf("a revert without the Consul: %+v, %v", done, err)
	}
	f.Spoil(nil)
	other := apiOf(t, s[0], operatorOfEventually(t, s[0]))
	meshtest.Eventually(t, "the revert is saved, and in force everywhere", func() error { return shares(t, other, api.Shares{Direct: 100}) })
}

// operatorOfEventually is operatorOf of a server whose Consul has just come back.
func operatorOfEventually(t *testing.T, s *servertest.Server) (secret string) {
	t.Helper()
	meshtest.Eventually(t, "tokens can be made", func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL()+"/v1/crossfade/tokens", strings.NewReader(`{"role":"operator"}`))
		if err != nil {
			return err
		}
		resp, err := s.OperatorClient().Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s %w", resp.Status, text, err)
		}
		_, secret, _ = strings.Cut(string(text), `"secret":"`)
		secret, _, _ = strings.Cut(secret, `"`)
		return nil
	})
	return secret
}

func TestCommandsReachTheServerThatMovesShares(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	s := sharing(t, f.URL, 2)
	s[0].Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "catalog", Protocol: "http"})
	s[0].Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: "web", Protocol: "http"})
	s[0].Write(shiftEntry(config.Shares{Direct: 100}))
	pair := only(pairOf("web", "catalog"))
	clients := []*api.Client{apiOf(t, s[0], operatorOf(t, s[0])), apiOf(t, s[1], operatorOf(t, s[1]))}
	ask := func(c *api.Client, r api.ShiftRequest, want string) {
		t.Helper()
		r.Pairs = pair
		meshtest.Eventually(t, "the pair is "+want, func() error {
			done, err := c.Shift(t.Context(), r)
			if err == nil && (done.Pairs[0].Refused != "" || done.Pairs[0].Status != want) {
				err = fmt.Errorf("%+v", done.Pairs[0])
			}
			return err
		})
		for i, c := range clients {
			meshtest.Eventually(t, fmt.Sprintf("server %d knows it", i), func() error {
				p, err := c.Pair(t.Context(), "web", "catalog")
				if err == nil && (p.Shift == nil || p.Shift.Status != want) {
					err = fmt.Errorf("%+v", p.Shift)
				}
				return err
			})
		}
	}
	ask(clients[0], api.ShiftRequest{To: api.MTLS, Plan: &api.Plan{Steps: []float64{10, 100}, Dwell: "1m"}}, "running")
	for _, c := range clients {
		ask(c, api.ShiftRequest{Do: api.Pause}, "paused")
		ask(c, api.ShiftRequest{Do: api.Resume}, "running")
	}
}

// Sidecars are connected to one server, and another one moves the shares: it steps when they run
// what they were told, sees what they report, and goes back when the new way is worse.
func TestSharesMoveByWhatOtherServersSee(t *testing.T) {
	f := consultest.NewFake(t)
	webCallsCatalog(t, f.URL)
	s := []*servertest.Server{servertest.Start(t, server.Options{Consul: f.URL, DefaultAllow: true, NodeName: "first"})}
	holder := apiOf(t, s[0], "")
	meshtest.Eventually(t, "the first server has the lock", func() error {
		resp, err := http.Get(f.URL + "/v1/kv/crossfade-store/lock/shifts")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		held, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(held), `"Session"`) {
			err = fmt.Errorf("%s", held)
		}
		return err
	})
	s = append(s, servertest.Start(t, server.Options{Consul: f.URL, DefaultAllow: true, NodeName: "second"}))
	other := apiOf(t, s[1], "")
	for _, name := range []string{"web", "catalog"} {
		s[1].Write(&config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: name, Protocol: "http"})
	}
	s[1].Write(shiftEntry(config.Shares{Direct: 100}))
	versions(t, s[1], "web-sidecar-proxy") // acknowledges all
	versions(t, s[1], "catalog-sidecar-proxy")
	meshtest.Eventually(t, "the first server knows the sidecars of the second", func() error {
		p, err := holder.Pair(t.Context(), "web", "catalog")
		if err == nil && (p.Sidecars.Connected != 1 || p.Sidecars.Acknowledged != 1) {
			err = fmt.Errorf("%+v", p.Sidecars)
		}
		return err
	})
	_, err := other.Shift(t.Context(), api.ShiftRequest{Pairs: only(pairOf("web", "catalog")), To: api.MTLS, Plan: &api.Plan{Steps: []float64{50, 100}, Dwell: "30s"}})
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "the first step is taken", func() error { return shares(t, other, api.Shares{Direct: 50, MTLS: 50}) })

	// The new way fails, as sidecars tell the second server alone.
	seq := uint64(0)
	reports, err := telemetry.Connect(t.Context(), s[1].Conn(), "n1", "web-sidecar-proxy")
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "the pair goes back", func() error {
		seq++
		way := func(w shift.Way, failed uint64) shift.WayTelemetry {
			return shift.WayTelemetry{Way: w, Telemetry: shift.Telemetry{Attempts: 500, First: 500, Failed: failed, Latency: shift.Of(2, 2, 500)}}
		}
		ways := []shift.WayTelemetry{way(shift.Direct, 0), way(shift.MTLS, 250)}
		if err := reports.Send(telemetry.Report{Session: 1, Seq: seq, At: time.Now(), Over: time.Second, Outbound: []telemetry.Outbound{{Destination: "catalog", Ways: ways}}}); err != nil {
			return err
		}
		<-time.After(200 * time.Millisecond)
		return shares(t, other, api.Shares{Direct: 100})
	})
	p, err := holder.Pair(t.Context(), "web", "catalog")
	if err != nil || p.Changed == nil || p.Changed.Who != "shift guard" {
		t.Errorf("the last change: %+v, %v", p.Changed, err)
	}
}
