package routing

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// stat is a counter or gauge of the caller's Envoy.
func (c *caller) stat(name string) int {
	c.w.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, "status.json"))
	if err != nil {
		c.w.t.Fatal(err)
	}
	var status struct {
		Envoy struct {
			AdminSocket string `json:"admin_socket"`
		} `json:"envoy"`
	}
	if err := json.Unmarshal(raw, &status); err != nil {
		c.w.t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", status.Envoy.AdminSocket)
	}}
	resp, err := (&http.Client{Transport: tr}).Get("http://envoy/stats")
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				c.w.t.Fatal(err)
			}
			return n
		}
	}
	c.w.t.Fatalf("no stat %s", name)
	return 0
}

// Stats stay under the name of the cluster that was wanted, whatever stands in for it.
func TestStatsKeepTheirNames(t *testing.T) {
	w := newWorld(t)
	w.write(allHTTP)
	w.write(versions)
	w.http("catalog", "v1-a", version(1))
	w.http("catalog", "v1-b", version(1))
	v2 := w.http("catalog", "v2-a", version(2))
	web := w.caller("web", "web-1", "catalog")
	w.apply(splitter(90, 10))
	name := func(v int, stat string) string {
		return fmt.Sprintf("cluster.v%d.catalog.default.dc1.internal.%s.%s", v, w.server.TrustDomain(), stat)
	}
	web.shares(300, "catalog", "/")
	if got := web.stat(name(1, "upstream_rq_total")) + web.stat(name(2, "upstream_rq_total")); got != 300 {
		t.Errorf("%d requests are counted, want 300", got)
	}
	if one, two := web.stat(name(1, "membership_healthy")), web.stat(name(2, "membership_healthy")); one != 2 || two != 1 {
		t.Errorf("%d and %d instances, want 2 and 1", one, two)
	}
	v2.stop()
	web.shares(100, "catalog", "/")
	if web.stat(name(2, "upstream_rq_retry")) == 0 {
		t.Error("what another leg stood in for is not counted as a retry of the one that was wanted")
	}
}

// What is counted for the control plane can be left out of a scrape, as docs/telemetry.md says.
func TestScrapeWithoutAttempts(t *testing.T) {
	doc, err := os.ReadFile("../../docs/telemetry.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "GET /stats/prometheus?")
	query, _, ok := strings.Cut(rest, "\n")
	if !ok {
		t.Fatal("docs/telemetry.md says nothing of /stats/prometheus")
	}
	w := newWorld(t)
	w.write(allHTTP)
	w.http("catalog", "v1-a", version(1))
	web := w.caller("web", "web-1", "catalog")
	web.shares(50, "catalog", "/")
	for _, c := range []struct {
		path     string
		attempts bool
	}{{"/stats/prometheus", true}, {"/stats/prometheus?" + query, false}} {
		text := web.admin(t, c.path)
		for _, want := range []string{"envoy_cluster_upstream_rq_total{", "envoy_http_catalog_default_default_dc1_downstream_rq_total{", "envoy_server_live{", "envoy_control_plane_connected_state{"} {
			if !strings.Contains(text, "\n"+want) {
				t.Errorf("%s: no %s", c.path, want)
			}
		}
		if got := strings.Contains(text, "\nenvoy_cf_attempt{"); got != c.attempts {
			t.Errorf("%s: attempts %v, want %v", c.path, got, c.attempts)
		}
	}
}
