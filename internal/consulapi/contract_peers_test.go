//go:build peers

package consulapi_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

func consulBinary(t *testing.T) string { return binary(t, "consul", "CROSSFADE_CONSUL") }

// binary is where a real program is: as a variable says, or in bin.
func binary(t *testing.T, name, variable string) string {
	t.Helper()
	path, err := filepath.Abs(cmp.Or(os.Getenv(variable), "../../bin/"+name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("a real %s is needed: build it with make bin/%s, or set %s: %v", name, name, variable, err)
	}
	return path
}

// loopback is an address that nobody else is likely to listen on.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 1+rand.IntN(254))
}

// startConsul runs a Consul whose node is called self, on a loopback address of its own.
func startConsul(t *testing.T) string {
	t.Helper()
	ip := loopback()
	cmd := exec.Command(consulBinary(t), "agent", "-dev", "-node", "self", "-bind", ip, "-client", ip, "-dns-port", "-1", "-grpc-tls-port", "-1",
		"-http-port", "18500", "-grpc-port", "18502", "-server-port", "18300", "-serf-lan-port", "18301", "-serf-wan-port", "18302", "-log-level", "err")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	url := "http://" + ip + ":18500"
	client := newClient(t, url)
	eventually(t, "Consul has registered itself", func() bool {
		list, _, err := client.Health().Service("consul", "", true, nil)
		return err == nil && len(list) == 1
	})
	meshtest.ConsulSettled(t, url)
	return url
}

func TestContractConsul(t *testing.T) { testContract(t, startConsul) }

// TestShapes registers the same on both and compares the fields of the answers.
func TestShapes(t *testing.T) {
	ours, _ := newServer(t, "")
	shapes := map[string]map[string][]string{}
	for name, url := range map[string]string{"crossfade": ours.URL, "consul": startConsul(t)} {
		c := newClient(t, url)
		must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
			Name: "web", Port: 80, Tags: []string{"v1"}, Meta: map[string]string{"a": "b"}, Check: &api.AgentServiceCheck{TTL: "1h"},
			Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{Proxy: &api.AgentServiceConnectProxyConfig{
				Config: map[string]any{"protocol": "http"}, Upstreams: []api.Upstream{{DestinationName: "db", LocalBindPort: 9191}},
				Expose: api.ExposeConfig{Checks: true, Paths: []api.ExposePath{{Path: "/m", ListenerPort: 21500, LocalPathPort: 81, Protocol: "http2"}}}}}}}))
		_, err := c.KV().Put(&api.KVPair{Key: "k", Value: []byte("v")}, nil)
		must(t, err)
		_, _, err = c.ConfigEntries().Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"}, nil)
		must(t, err)
		_, err = c.Connect().IntentionUpsert(&api.Intention{SourceName: "web", DestinationName: "db", Action: api.IntentionActionAllow}, nil)
		must(t, err)
		eventually(t, "the sidecar is in the catalog", func() bool {
			list, _, err := c.Catalog().Service("web-sidecar-proxy", "", nil)
			return err == nil && len(list) == 1
		})
		shapes[name] = map[string][]string{}
		for _, path := range []string{
			"/v1/agent/services", "/v1/agent/service/web", "/v1/agent/service/web-sidecar-proxy", "/v1/agent/checks", "/v1/agent/members",
			"/v1/catalog/nodes", "/v1/catalog/service/web", "/v1/catalog/connect/web", "/v1/catalog/node/self",
			"/v1/health/service/web", "/v1/health/connect/web", "/v1/health/checks/web", "/v1/health/node/self",
			"/v1/kv/k", "/v1/config/service-defaults/web", "/v1/connect/intentions",
		} {
			shapes[name][path] = fields(t, url+path)
		}
	}
	// What Consul shows besides: settings that are not served, its own service, what it derives for
	// transparent proxies, and its gossip.
	skip := []string{"Hash", "TransparentProxy", "consul", "TaggedAddresses", "ServiceTaggedAddresses", "consul-network-segment", "consul-version", "Mode", "Datacenter", "Tags.", "ID"}
	for path, want := range shapes["consul"] {
		drop := func(list []string) []string {
			return slices.DeleteFunc(slices.Clone(list), func(f string) bool {
				if strings.HasPrefix(path, "/v1/config/") && (f == ".Expose" || f == ".MeshGateway") {
					return true
				}
				return slices.ContainsFunc(skip, func(s string) bool {
					return strings.HasSuffix(f, "."+s) || strings.Contains(f, "."+s+".") || strings.HasSuffix(s, ".") && strings.Contains(f, "."+s)
				})
			})
		}
		if diff := gocmp.Diff(drop(want), drop(shapes["crossfade"][path])); diff != "" {
			t.Errorf("%s: fields (-consul +crossfade):\n%s", path, diff)
		}
	}
}

// fields lists the paths of all fields in an answer, once each.
func fields(t *testing.T, url string) []string {
	t.Helper()
	resp, err := http.Get(url)
	must(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v: %s", url, err, raw)
	}
	set := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, inner := range v {
				set[path+"."+k] = true
				walk(path+"."+k, inner)
			}
		case []any:
			for _, inner := range v {
				walk(path, inner)
			}
		}
	}
	walk("", v)
	return slices.Sorted(maps.Keys(set))
}

// TestConsulCLI runs the real CLI against both.
func TestConsulCLI(t *testing.T) {
	ours, _ := newServer(t, "")
	for name, url := range map[string]string{"crossfade": ours.URL, "consul": startConsul(t)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "web.hcl"), []byte(`service {
				name = "web"
				port = 8080
				check { ttl = "1h" }
				connect { sidecar_service { proxy { upstreams = [{ destination_name = "db", local_bind_port = 9191 }] } } }
			}`), 0o600))
			must(t, os.WriteFile(filepath.Join(dir, "defaults.hcl"), []byte("Kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\n"), 0o600))
			for _, step := range []struct {
				args string
				fail bool
				want string
			}{
				{"services register web.hcl", false, "Registered service: web"},
				{"services register -name db -port 5432", false, "Registered service: db"},
				{"catalog datacenters", false, "dc1"},
				{"catalog nodes", false, "self"},
				{"members", false, "self"},
				{"kv put a/b hello", false, "Success! Data written to: a/b"},
				{"kv get a/b", false, "hello"},
				{"kv get -recurse", false, "a/b:hello"},
				{"kv get -keys a/", false, "a/b"},
				{"kv get nope", true, "Error! No key exists at: nope"},
				{"kv put -cas -modify-index=1 a/b x", true, "CAS failed"},
				{"kv export", false, `"key": "a/b"`},
				{"kv delete a/b", false, "Success! Deleted key: a/b"},
				{"config write defaults.hcl", false, "Config entry written: service-defaults/web"},
				{"config list -kind service-defaults", false, "web"},
				{"config read -kind service-defaults -name web", false, `"Protocol": "http"`},
				{"config delete -kind service-defaults -name web", false, "Config entry deleted: service-defaults/web"},
				{"config read -kind service-defaults -name web", true, "Config entry not found"},
				{"intention create -allow web db", false, "Created: web => db (allow)"},
				{"intention create -allow web db", true, "Error creating intention"},
				{"intention create -deny -replace web db", false, ""},
				{"intention list", false, "deny"},
				{"intention check web db", true, "Denied"},
				{"intention match db", false, "web => db (deny)"},
				{"intention delete web db", false, "Intention deleted"},
				{"maint -enable -service web -reason why", false, "Service maintenance is now enabled"},
				{"maint", false, "Reason: why"},
				{"maint -disable -service web", false, "disabled"},
				{"connect envoy -sidecar-for web -bootstrap -ignore-envoy-compatibility -envoy-version 1.35.3", false, `"id": "web-sidecar-proxy"`},
				{"catalog services", false, "web-sidecar-proxy"},
				{"services deregister -id web", false, "Deregistered service: web"},
				{"services deregister -id web", true, "Unknown service ID"},
			} {
				cmd := exec.CommandContext(t.Context(), consulBinary(t), strings.Fields(step.args)...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+url)
				if step.args == "catalog services" {
					eventually(t, "the agent has told the catalog", func() bool {
						list, _, err := newClient(t, url).Catalog().Service("web-sidecar-proxy", "", nil)
						return err == nil && len(list) == 1
					})
				}
				out, err := cmd.CombinedOutput()
				if (err != nil) != step.fail || !strings.Contains(string(out), step.want) {
					t.Errorf("consul %s: %v, want failure %v and %q:\n%s", step.args, err, step.fail, step.want, out)
				}
			}
		})
	}
}

func TestCompatibilityConsul(t *testing.T) {
	testDifferences(t, startConsul(t), func(d difference) string { return d.consul })
}
