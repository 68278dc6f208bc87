//go:build peers

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

const (
	// partedFor is how long the partition lasts at least.
	partedFor = 15 * time.Second
	// staleWithin is how soon a server says that it cannot ask its Consul.
	staleWithin = 10 * time.Second
	// refusedWithin is how soon a write is refused for that.
	refusedWithin = 2 * time.Second
	// mendedWithin is how long a Consul may take to answer again after the partition.
	mendedWithin = 60 * time.Second
	// convergedWithin is how soon everything of ours follows then.
	convergedWithin = 5 * time.Second
)

// keepServers keeps Consul from taking a server that is cut off out of its cluster, which then comes back when
// gossip next tries those it has given up, every 30 s.
const keepServers = `autopilot { min_quorum = 3 }`

// sites are three hosts, each with a Consul server, a server of ours that asks no other Consul, and an
// instance of catalog. Consul's servers reach each other over a network of their own, which can be cut;
// requests, people and their tools take another.
type sites struct {
	t                *testing.T
	consul, bin, dir string
	data             string // of our first server
	token            string // an operator's
	all              []*site
}

type site struct {
	*meshtest.Host
	*sites
	name            string
	control, wire   *meshtest.Wire
	consulURL, ours string
	apps            int // that run
}

// newSites starts all but callers.
func newSites(t *testing.T) *sites {
	t.Helper()
	s := &sites{t: t, consul: consulBinary(t), bin: build(t), dir: meshtest.RunDir(t)}
	control, data := meshtest.NewNetwork(t, "control", 1), meshtest.NewNetwork(t, "data", 2)
	for i := range 3 {
		h := meshtest.NewBareHost(t)
		one := &site{Host: h, sites: s, name: fmt.Sprintf("s%d", i), control: control.Plug(h), wire: data.Plug(h)}
		one.consulURL, one.ours = "http://"+one.wire.Address+":8500", "https://"+one.wire.Address+":8510"
		s.all = append(s.all, one)
	}
	config := write(t, s.dir, "consul.json", gossipFast)
	for _, one := range s.all {
		args := []string{"agent", "-server", "-bootstrap-expect", "3", "-node", one.name, "-bind", one.control.Address, "-client", "0.0.0.0", "-log-level", "warn",
			"-config-file", config, "-hcl", keepServers, "-retry-interval", "200ms", "-data-dir", filepath.Join(s.dir, "consul-"+one.name)}
		for _, other := range s.all {
			args = append(args, "-retry-join", other.control.Address)
		}
		one.spawn(s.consul, args...)
	}
	for _, one := range s.all {
		meshtest.Within(s.t, 20*time.Second, one.name+" has a leader", one.leads)
	}
	s.data = filepath.Join(s.dir, "s0")
	for _, one := range s.all {
		one.spawn(s.bin, "server", "--data-dir", filepath.Join(s.dir, one.name), "--consul", "http://127.0.0.1:8500", "--node", one.name,
			"--bind", "0.0.0.0", "--advertise", one.wire.Address, "--dns-port", "-1")
		answers(t, one.ours+"/v1/status/leader", "")
	}
	secret, err := os.ReadFile(filepath.Join(s.data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(secret))
	s.all[0].mustWrite(`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`)
	for _, name := range []string{"web", "catalog"} {
		out, err := s.all[0].crossfade("token", "create", "--service", name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, s.dir, name+".token", out)
	}
	for _, one := range s.all {
		one.instance()
	}
	return s
}

func (s *site) spawn(name string, args ...string) *process {
	s.t.Helper()
	return spawnBy(s.t, s.Start, nil, name, args...)
}

// leads says why this site's Consul has no leader that it can reach.
func (s *site) leads() error {
	code, body, err := ask(s.consulURL+"/v1/catalog/node/"+s.name+"?consistent", "")
	if err == nil && (code != http.StatusOK || !strings.Contains(body, s.name)) {
		err = fmt.Errorf("%d %.200s", code, body)
	}
	return err
}

// crossfade runs a command that asks this site's server.
func (s *site) crossfade(args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), s.bin, args...)
	cmd.Env = append(os.Environ(), "CROSSFADE_HTTP_ADDR="+s.ours, "CROSSFADE_CACERT="+filepath.Join(s.data, "ca.pem"), "CROSSFADE_HTTP_TOKEN_FILE="+filepath.Join(s.data, "operator.token"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("crossfade %v: %w: %s%s", args, err, out.String(), errs.String())
	}
	return out.String(), nil
}

// write puts an entry by this site's server.
func (s *site) write(body string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.ours+"/v1/config", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", s.token)
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

func (s *site) mustWrite(body string) {
	s.t.Helper()
	if err := s.write(body); err != nil {
		s.t.Fatal(err)
	}
}

// read is what this site's server answers.
func (s *site) read(path string) (string, error) {
	code, body, err := ask(s.ours+path, s.token)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%s: %d %.200s", path, code, body)
	}
	return body, err
}

// instance runs an app of catalog and its sidecar.
func (s *site) instance() {
	s.t.Helper()
	s.apps++
	var l net.Listener
	if err := s.Do(func() (err error) { l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 8080+s.apps)); return err }); err != nil {
		s.t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "hello from catalog on %s\n", s.name) })}
	go app.Serve(l)
	s.t.Cleanup(func() { app.Close() })
	s.sidecar("catalog", fmt.Sprintf("catalog-%s-%d", s.name, s.apps), 8080+s.apps, 21080+s.apps, "")
}

// caller runs a sidecar of web, and returns its load.
func (s *site) caller() *caller {
	s.t.Helper()
	id := "web-" + s.name
	s.sidecar("web", id, 8080, 21080, `proxy { upstreams = [{ destination_name = "catalog", local_bind_port = 7100 }] }`)
	c := &caller{site: s, id: id, tr: &http.Transport{DialContext: s.Dial, MaxIdleConnsPerHost: 64}}
	s.t.Cleanup(c.tr.CloseIdleConnections)
	meshtest.Within(s.t, 20*time.Second, id+" reaches all of catalog", func() error { return c.reaches(3, "") })
	c.calls = callBy(s.t, &http.Transport{DialContext: s.Dial, MaxIdleConnsPerHost: 64}, 50, "http://127.0.0.1:7100/", "hello from catalog")
	return c
}

func (s *site) sidecar(service, id string, port, public int, more string) {
	s.t.Helper()
	definition := write(s.t, s.dir, id+".hcl", fmt.Sprintf(`
service {
  name = %q
  id = %q
  address = %q
  port = %d
  connect { sidecar_service {
    address = %q
    port = %d
    %s
  } }
}`, service, id, s.wire.Address, port, s.wire.Address, public, more))
	state := filepath.Join(s.dir, id)
	p := s.spawn(s.bin, "sidecar", "--consul", "http://127.0.0.1:8500", "--service", definition, "--http-addr", s.ours, "--ca-file", filepath.Join(s.data, "ca.pem"),
		"--join-token-file", filepath.Join(s.dir, service+".token"), "--state-dir", state, "--runtime-dir", state+"-run", "--concurrency", "1")
	s.t.Cleanup(func() { p.signal(syscall.SIGKILL) }) // nobody waits for it to drain
	meshtest.Within(s.t, 20*time.Second, "the sidecar of "+id+" is ready", func() error {
		st, err := readStatus(state)
		if err == nil && st.State != sidecar.Ready {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
}

// caller is web on a site, under load.
type caller struct {
	*site
	*calls
	id string
	tr *http.Transport
}

// reaches says why its Envoy has not so many instances that are well, or answers without the mark that a
// router sets.
func (c *caller) reaches(instances int, mark string) error {
	body, err := c.envoy("/clusters")
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "catalog.") && strings.Contains(line, "::health_flags::healthy") {
			n++
		}
	}
	if n != instances {
		return fmt.Errorf("%s has %d instances, want %d", c.id, n, instances)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "http://127.0.0.1:7100/", nil)
	if err != nil {
		return err
	}
	resp, err := c.tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if got := resp.Header.Get("X-Side"); resp.StatusCode != http.StatusOK || got != mark {
		return fmt.Errorf("%s is answered %s, of side %q, want %q", c.id, resp.Status, got, mark)
	}
	return nil
}

// envoy asks its Envoy's admin interface.
func (c *caller) envoy(path string) (string, error) {
	st, err := readStatus(filepath.Join(c.dir, c.id))
	if err != nil {
		return "", err
	}
	return envoyAnswers(c.t, st.Envoy.AdminSocket, path)
}

// written is a write that somebody tried.
type written struct {
	site        *site
	path, value string // where it is to be read, and what has to be in it
	began       time.Time
	took        time.Duration
	err         error
}

// writing tries a write by each server again and again until stop, which returns them.
func (s *sites) writing() (stop func() []written) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []written
	for _, one := range s.all {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("%s-%d", one.name, n)
				w := written{site: one, path: "/v1/config/traffic-policy/" + name, value: "h-" + name, began: time.Now()}
				body := fmt.Sprintf(`{"Kind":"traffic-policy","Name":%q,"Sticky":{"Header":%q}}`, name, w.value)
				if n%2 == 0 { // which is in Consul's own entries
					w.path = "/v1/config/service-defaults/" + name
					body = fmt.Sprintf(`{"Kind":"service-defaults","Name":%q,"Protocol":"http","Meta":{"h":%q}}`, name, w.value)
				}
				w.err = one.write(body)
				w.took = time.Since(w.began)
				mu.Lock()
				all = append(all, w)
				mu.Unlock()
				pause(ctx, 300*time.Millisecond)
			}
		})
	}
	return func() []written { cancel(); wg.Wait(); return all }
}

// lost are those that a server does not have.
func lost(s *site, all []written) (out []written, err error) {
	text := map[string]string{}
	for _, kind := range []string{"/v1/config/traffic-policy", "/v1/config/service-defaults"} {
		if text[kind], err = s.read(kind); err != nil {
			return nil, err
		}
	}
	for _, w := range all {
		if !strings.Contains(text[w.path[:strings.LastIndexByte(w.path, '/')]], fmt.Sprintf("%q", w.value)) {
			out = append(out, w)
		}
	}
	return out, nil
}

// stale is what a server finds of its Consul.
func (s *site) stale() (out []api.Finding, err error) {
	text, err := s.crossfade("check", "--server", "-o", "json") // fails when there is something
	var c struct{ Findings []api.Finding }
	if json.Unmarshal([]byte(text), &c) != nil {
		return nil, err
	}
	return slices.DeleteFunc(c.Findings, func(f api.Finding) bool { return !strings.Contains(f.Subject, "consul") }), nil
}

// router marks what catalog answers.
func router(side string) string {
	return fmt.Sprintf(`{"Kind":"service-router","Name":"catalog","Routes":[{"Match":{"HTTP":{"PathPrefix":"/"}},"Destination":{"ResponseHeaders":{"Set":{"x-side":%q}}}}]}`, side)
}

// agentHas registers a service that nobody calls with a site's Consul.
func (s *site) agentHas(name string) {
	s.t.Helper()
	put(s.t, s.consulURL+"/v1/agent/service/register", fmt.Sprintf(`{"Name":%q,"Port":9000}`, name))
}

// knows says which service a site's Consul does not know.
func (s *site) knows(services ...string) error {
	_, theirs, err := ask(s.consulURL+"/v1/catalog/services?stale", "")
	if err != nil {
		return err
	}
	for _, name := range services {
		if !strings.Contains(theirs, fmt.Sprintf("%q", name)) {
			return fmt.Errorf("%s does not know %s", s.name, name)
		}
	}
	return nil
}

// TestPeersConsulPartition cuts the Consul server that leads off from the two others, while requests and
// writes go on at all sites. The minority's server refuses writes, serves what it knows and says that it is
// stale; the others go on. When the network is mended what they wrote is in force everywhere, and no
// request has failed.
func TestPeersConsulPartition(t *testing.T) {
	if !meshtest.OwnHost(t) {
		return
	}
	began := time.Now()
	s := newSites(t)
	minority := s.leading()
	i := slices.Index(s.all, minority)
	majority, third := s.all[(i+1)%3], s.all[(i+2)%3]
	inside, outside := minority.caller(), majority.caller()
	stop := s.writing()
	inside.more(t, 100)
	outside.more(t, 100)
	t.Logf("all is up after %s, and %s leads", time.Since(began).Round(time.Millisecond), minority.name)

	cut := time.Now()
	minority.control.Cut()
	stale := meshtest.Within(s.t, staleWithin, "the minority's server says that it is stale", func() error {
		found, err := minority.stale()
		if err == nil && (len(found) == 0 || found[0].Severity != api.Critical || found[0].Since.Before(cut)) {
			err = fmt.Errorf("%+v", found)
		}
		return err
	})
	elects := meshtest.Within(s.t, 20*time.Second, "the majority takes writes", func() error { return majority.write(router("majority")) })
	at := time.Now()
	refusal := minority.write(router("minority"))
	if took := time.Since(at); refusal == nil || took > refusedWithin || !strings.Contains(refusal.Error(), "nothing was written: Consul at http://127.0.0.1:8500: it has no leader") {
		t.Errorf("the minority answers after %s: %v; want a refusal that says that its Consul has no leader", took, refusal)
	}
	t.Logf("the minority is stale after %s, the majority takes writes %s after that; a write in the minority is refused: %v", stale.Round(time.Millisecond), elects.Round(time.Millisecond), refusal)
	minority.agentHas("of-the-minority")
	majority.agentHas("of-the-majority")
	third.instance()
	meshtest.Within(s.t, 15*time.Second, "the majority has the new instance, and none of a site that is silent", func() error {
		return errors.Join(outside.reaches(3, "majority"), majority.knows("of-the-majority"))
	})

	// What the minority knows it serves, to those who are connected and to those who come.
	if err := inside.reaches(3, ""); err != nil {
		t.Error(err)
	}
	if text, err := minority.read("/v1/config/proxy-defaults"); err != nil || !strings.Contains(text, "global") {
		t.Errorf("the minority is asked for entries: %v: %s", err, text)
	}
	if out, err := minority.crossfade("xds", inside.id+"-sidecar-proxy"); err != nil || !strings.Contains(out, "catalog.default.dc1.internal") {
		t.Errorf("the minority is asked for what a sidecar is told: %v: %s", err, out)
	}
	waitFor(time.Until(cut.Add(partedFor)))
	mended := time.Now()
	minority.control.Mend()
	answered := meshtest.Within(s.t, mendedWithin, "the minority's Consul answers", minority.leads)
	ours := meshtest.Within(s.t, convergedWithin, "the majority's entry is in force everywhere, and nobody is stale", func() error {
		for _, one := range s.all {
			text, err := one.read("/v1/config/service-router/catalog")
			if err == nil && !strings.Contains(text, `"majority"`) {
				err = fmt.Errorf("%s has %s", one.name, text)
			}
			if err != nil {
				return err
			}
		}
		found, err := minority.stale()
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("%+v", found)
		}
		return err
	})
	whole := meshtest.Within(s.t, mendedWithin, "Consul has all instances, and those of both sides", func() error {
		for _, one := range s.all {
			if err := one.knows("of-the-minority", "of-the-majority"); err != nil {
				return err
			}
			_, body, err := ask(one.consulURL+"/v1/health/connect/catalog?passing&stale", "")
			if n := strings.Count(body, `"Node":{`); err == nil && n != 4 {
				err = fmt.Errorf("%s has %d instances", one.name, n)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	sidecars := meshtest.Within(s.t, convergedWithin, "all sidecars have them", func() error {
		return errors.Join(inside.reaches(4, "majority"), outside.reaches(4, "majority"))
	})
	t.Logf("mended after %s: the minority's Consul answers %s later, what was written is in force %s after that; Consul has all instances %s later, sidecars %s after that",
		mended.Sub(cut).Round(time.Millisecond), answered.Round(time.Millisecond), ours.Round(time.Millisecond), whole.Round(time.Millisecond), sidecars.Round(time.Millisecond))

	all := stop()
	var acked, refused []written
	for _, w := range all {
		parted := w.site == minority && w.began.After(cut.Add(stale)) && w.began.Add(w.took).Before(mended)
		switch {
		case w.err == nil && parted:
			t.Errorf("the minority took a write %s after the cut: %s", w.began.Sub(cut), w.value)
		case w.err == nil:
			acked = append(acked, w)
		case parted && strings.Contains(w.err.Error(), "nothing was written"):
			refused = append(refused, w)
		}
	}
	if len(acked) < 50 || len(refused) < 10 {
		t.Fatalf("too little happened to prove anything: %d writes were acknowledged, %d refused", len(acked), len(refused))
	}
	for _, one := range s.all {
		meshtest.Within(s.t, convergedWithin, "no write is lost", func() error {
			gone, err := lost(one, acked)
			if err == nil && len(gone) > 0 {
				err = fmt.Errorf("%s lacks %d of %d that were acknowledged, such as %s of %s", one.name, len(gone), len(acked), gone[0].value, gone[0].site.name)
			}
			return err
		})
		// The control: what was refused is missed, had it been acknowledged.
		if gone, err := lost(one, refused); err != nil || len(gone) != len(refused) {
			t.Errorf("of %d writes that were refused %s has some, or the look for what is lost finds nothing: %d, %v", len(refused), one.name, len(gone), err)
		}
	}
	inside.stop()
	outside.stop()
	inside.unharmed(t, "web of the minority")
	outside.unharmed(t, "web of the majority")
	t.Logf("%d writes tried, %d acknowledged and none lost, %d refused; %s in all", len(all), len(acked), len(refused), time.Since(began).Round(time.Second))
}

// leading is the site whose Consul server leads.
func (s *sites) leading() *site {
	s.t.Helper()
	_, body, err := ask(s.all[0].consulURL+"/v1/status/leader", "")
	i := slices.IndexFunc(s.all, func(one *site) bool { return strings.Contains(body, `"`+one.control.Address+":") })
	if err != nil || i < 0 {
		s.t.Fatalf("nobody leads: %s, %v", body, err)
	}
	return s.all[i]
}
