//go:build peers

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// gossipFast is the part of a Consul's configuration that lets members find out within seconds
// who is silent, and servers who leads.
const gossipFast = `{"performance":{"raft_multiplier":1,"leave_drain_time":"10ms"},"ports":{"dns":-1,"grpc":-1,"grpc_tls":-1,"serf_wan":-1},"disable_update_check":true,
	"gossip_lan":{"gossip_interval":"50ms","probe_interval":"500ms","probe_timeout":"400ms","suspicion_mult":2}}`

// cluster is three Consul servers and three client agents. Our server and web are at the first
// client agent, instances of catalog at the two others.
type cluster struct {
	*guarded
	servers, clients []*consulAgent
}

// consulAgent is one of them.
type consulAgent struct {
	t          *testing.T
	binary     string
	node, http string
	rpc        string // of a server
	args       []string
	*process
}

func (a *consulAgent) start() {
	a.t.Helper()
	a.process = spawn(a.t, nil, a.binary, append([]string{"agent", "-node", a.node, "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn"}, a.args...)...)
	p := a.process
	a.t.Cleanup(func() { p.signal(syscall.SIGCONT) }) // before it is told to end
}

// restart ends it, and starts it again once it has ended.
func (a *consulAgent) restart(by syscall.Signal) {
	a.t.Helper()
	a.signal(by)
	<-a.ended
	a.start()
}

// passing waits until all its checks are. Those that Consul gives a sidecar by itself are critical
// until they are run, within 10 s of a start.
func (a *consulAgent) passing() {
	a.t.Helper()
	meshtest.Eventually(a.t, "all checks of "+a.node+" pass", func() error {
		_, body, err := ask(a.http+"/v1/agent/checks", "")
		if err != nil {
			return err
		}
		var checks map[string]struct{ Status, Output string }
		if err := json.Unmarshal([]byte(body), &checks); err != nil {
			return fmt.Errorf("%.200s: %w", body, err)
		}
		for id, check := range checks {
			if check.Status != "passing" {
				return fmt.Errorf("%s is %s: %s", id, check.Status, check.Output)
			}
		}
		if len(checks) == 0 {
			return errors.New("there are none")
		}
		return nil
	})
}

// startCluster starts the Consuls, our server and the Envoys, and returns when web reaches catalog.
func startCluster(t *testing.T, flags ...string) *cluster {
	t.Helper()
	c := &cluster{guarded: newGuarded(t)}
	config := write(t, c.dir, "consul.json", gossipFast)
	port := meshtest.FreePorts(t, 3*6)
	p := func(i int) string { return fmt.Sprint(port[i]) }
	var join []string
	for i := range 3 {
		join = append(join, "-retry-join", "127.0.0.1:"+p(3*i+1))
	}
	for i := range 6 {
		a := &consulAgent{t: t, binary: c.consul, http: "http://127.0.0.1:" + p(3*i)}
		a.args = append([]string{"-config-file", config, "-http-port", p(3 * i), "-serf-lan-port", p(3*i + 1), "-server-port", p(3*i + 2), "-retry-interval", "200ms"}, join...)
		if i < 3 {
			a.node, a.rpc = fmt.Sprintf("s%d", i), "127.0.0.1:"+p(3*i+2)
			a.args = append(a.args, "-server", "-bootstrap-expect", "3")
			c.servers = append(c.servers, a)
		} else {
			a.node = fmt.Sprintf("c%d", i-3)
			c.clients = append(c.clients, a)
		}
		a.args = append(a.args, "-data-dir", filepath.Join(c.dir, a.node))
		a.start()
	}
	c.consulURL = c.clients[0].http
	c.homes = [4]string{c.clients[1].http, c.clients[2].http, c.clients[2].http, c.clients[0].http}
	c.check = `{"Name":"up","TCP":"127.0.0.1:%d","Interval":"500ms"}`
	c.serf("all six are members", map[string]string{"s0": "passing", "s1": "passing", "s2": "passing", "c0": "passing", "c1": "passing", "c2": "passing"})
	for _, a := range c.clients {
		meshtest.ConsulSettled(t, a.http)
	}
	c.serve(c.clients[0].http, flags...)
	return c
}

// serf waits until Consul says that of its nodes.
func (c *cluster) serf(what string, want map[string]string) {
	c.t.Helper()
	meshtest.Eventually(c.t, what, func() error {
		_, body, err := ask(c.consulURL+"/v1/health/state/any", "")
		if err != nil {
			return err
		}
		var checks []struct{ Node, CheckID, Status string }
		if err := json.Unmarshal([]byte(body), &checks); err != nil {
			return fmt.Errorf("%.200s: %w", body, err)
		}
		got := map[string]string{}
		for _, check := range checks {
			if check.CheckID == "serfHealth" {
				got[check.Node] = check.Status
			}
		}
		for node, status := range want {
			if got[node] != status {
				return fmt.Errorf("%v", got)
			}
		}
		return nil
	})
}

// leader is the server that leads.
func (c *cluster) leader() *consulAgent {
	c.t.Helper()
	var found *consulAgent
	meshtest.Eventually(c.t, "there is a leader", func() error {
		_, body, err := ask(c.consulURL+"/v1/status/leader", "")
		if i := slices.IndexFunc(c.servers, func(a *consulAgent) bool { return err == nil && strings.Trim(body, "\"\n") == a.rpc }); i >= 0 {
			found = c.servers[i]
			return nil
		}
		return fmt.Errorf("%.100s %w", body, err)
	})
	return found
}

// whole waits until our server tells of three instances that are well, and Envoy has three.
func (c *cluster) whole() {
	c.t.Helper()
	// A minute: an agent that has just begun may tell its catalog how checks go 15 to 30 s later only.
	meshtest.Within(c.t, time.Minute, "web's Envoy has three instances that are well", func() error {
		_, body, err := ask("http://127.0.0.1:"+c.p(18)+"/clusters", "")
		n := 0
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "catalog.") && strings.Contains(line, "::health_flags::healthy") {
				n++
			}
		}
		if err == nil && n != 3 {
			_, says, _ := ask(c.consulURL+"/v1/health/checks/catalog-sidecar-proxy", "")
			err = fmt.Errorf("%d; Consul says %.2000s", n, says)
		}
		return err
	})
	c.holds(false)
}

func (c *cluster) none(after string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Logf("after %s: %d sent, %d failed", after, c.sent.Load(), c.failed.Load())
	if c.failed.Load() > 0 {
		c.t.Fatalf("after %s %d of %d requests failed: %v", after, c.failed.Load(), c.sent.Load(), c.reasons)
	}
}

// TestPeersConsulCluster kills the server that leads, restarts client agents in turn, and parts
// two of them from the others. No request fails.
func TestPeersConsulCluster(t *testing.T) {
	c := startCluster(t)
	c.whole()
	stop := c.load()
	defer stop()

	led := c.leader()
	led.signal(syscall.SIGKILL)
	<-led.ended
	meshtest.Eventually(t, "another leads", func() error {
		if now := c.leader(); now == led {
			return fmt.Errorf("%s does still", now.node)
		}
		return nil
	})
	entry := write(t, c.dir, "catalog.hcl", "Kind = \"service-defaults\"\nName = \"catalog\"\nProtocol = \"http\"\nMeta = { after = \"the leader\" }\n")
	meshtest.Eventually(t, "entries can be written", func() error {
		out, err := exec.CommandContext(t.Context(), c.binary, "config", "write", "--http-addr", c.ours, entry).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	led.start()
	c.whole()
	c.none("the leader was killed")

	for _, by := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} { // the first leaves, too
		for _, a := range c.clients[1:] {
			a.restart(by)
			c.serf(a.node+" is heard of", map[string]string{a.node: "passing"})
		}
		for _, a := range c.clients[1:] {
			a.passing()
		}
		c.whole()
		c.none(fmt.Sprintf("both were restarted by %v", by))
	}

	c.part()
	c.holds(true)
	waitFor(3 * time.Second)
	c.none("gossip was parted")
	began := time.Now()
	for _, a := range c.clients[1:] {
		a.signal(syscall.SIGCONT)
	}
	c.serf("those that were parted are back", map[string]string{"c1": "passing", "c2": "passing"})
	heard := time.Now()
	c.whole()
	t.Logf("heard of %v after they went on, all as it was %v after that", heard.Sub(began).Round(time.Millisecond), time.Since(heard).Round(time.Millisecond))
	if took := time.Since(heard); took > 5*time.Second {
		t.Errorf("all as it was %v after they were heard of", took)
	}
	c.none("gossip was whole again")
	stop()
	if c.sent.Load() < 500 {
		t.Errorf("only %d requests were sent", c.sent.Load())
	}
}

// part lets nobody hear of the agents that hold the instances.
func (c *cluster) part() {
	for _, a := range c.clients[1:] {
		a.signal(syscall.SIGSTOP)
	}
	c.serf("two are silent", map[string]string{"c1": "critical", "c2": "critical"})
}

// The control: without the guard nobody is left when gossip is parted.
func TestPeersConsulClusterGuardOff(t *testing.T) {
	c := startCluster(t, "--endpoint-guard", "off")
	c.whole()
	stop := c.load()
	defer stop()
	c.part()
	meshtest.Eventually(t, "requests fail", func() error {
		if c.failed.Load() == 0 {
			return fmt.Errorf("%d sent, none failed", c.sent.Load())
		}
		return nil
	})
}
