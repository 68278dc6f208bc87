package routing

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
)

// refusals counts the sidecars that refused something and run another version.
func (w *world) refusals(words string) int {
	w.t.Helper()
	_, b := w.server.Call(http.MethodGet, "/v1/crossfade/sidecars", nil)
	var rows []struct {
		Types map[string]struct {
			Refused map[string]struct{ Message, Runs string }
		}
	}
	if err := json.Unmarshal(b, &rows); err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, row := range rows {
		for _, ts := range row.Types {
			for _, r := range ts.Refused {
				if strings.Contains(r.Message, words) && r.Runs != "" {
					n++
				}
			}
		}
	}
	return n
}

// While an entry is in place that Envoy refuses, new instances serve with the last good
// version; when it is mended, everybody gets the new one.
func TestNewInstancesStartFromTheLastGood(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.AllowEscapeHatches = true })
	const speaks = "Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"\n"
	w.write(speaks)
	old := w.http("catalog", "catalog-1", version(1))
	calls := func(id string) *caller { return w.caller("web", id, "catalog") }
	served := func(c *caller, id string) {
		t.Helper()
		c.eventually(id+" is served", "catalog", "/", by("catalog-"))
	}
	first := calls("web-1")
	served(first, "web-1")

	override := func(cluster string) string {
		return "Kind = \"service-defaults\"\nName = \"web\"\nUpstreamConfig { Overrides = [{ Name = \"catalog\", EnvoyClusterJSON = <<-END\n" + cluster + "\nEND\n}] }\n"
	}
	const refused = "no_such_cluster_type"
	index := w.write(override(`{"name": "catalog", "connect_timeout": "5s", "cluster_type": {"name": "no_such_cluster_type"}}`))
	_, b := w.server.Call(http.MethodGet, "/v1/crossfade/applied?wait=10s&index="+index, nil)
	if !strings.Contains(string(b), refused) {
		t.Errorf("applied: %s", b)
	}
	served(first, "web-1")
	second := calls("web-2")
	served(second, "web-2")
	meshtest.Eventually(t, "both run the version before", func() error {
		if n := w.refusals(refused); n != 2 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})

	// Meanwhile instances come and go as ever.
	w.http("catalog", "catalog-2", version(1))
	old.deregister()
	old.stop()
	for _, c := range []*caller{first, second, calls("web-3")} {
		c.eventually("the new instance answers", "catalog", "/", by("catalog-2"))
	}

	w.write("Kind = \"service-defaults\"\nName = \"web\"\nUpstreamConfig { Overrides = [{ Name = \"catalog\", ConnectTimeoutMs = 4321 }] }\n")
	meshtest.Eventually(t, "nobody refuses what is mended", func() error {
		if n := w.refusals(""); n != 0 {
			return fmt.Errorf("%d do", n)
		}
		for _, c := range []*caller{first, second} {
			if dump := c.admin(t, "/config_dump"); !strings.Contains(dump, `"4.321s"`) {
				return errors.New("an Envoy has not what is new")
			}
		}
		return nil
	})
	served(calls("web-4"), "web-4")
}
