//go:build peers

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

const (
	// deaths is how often a server is killed, deathEvery how soon after the one before.
	deaths     = 50
	deathEvery = 900 * time.Millisecond
	// longestGap is how long a sidecar may be without a stream.
	longestGap = 5 * time.Second
)

// mortal is a server that is killed and started again.
type mortal struct {
	t    *testing.T
	bin  string
	args []string
	http string
	grpc string
	log  string

	mu  sync.Mutex
	cmd *exec.Cmd // guarded by mu
}

func (p *mortal) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(p.bin, p.args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
}

func (p *mortal) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}

// servers starts three of one Consul.
func servers(t *testing.T, bin, consul string) (out []*mortal) {
	t.Helper()
	port := meshtest.FreePorts(t, 6)
	for i := range 3 {
		p := &mortal{t: t, bin: bin, log: filepath.Join(t.TempDir(), "log"), http: fmt.Sprintf("127.0.0.1:%d", port[2*i]), grpc: fmt.Sprintf("127.0.0.1:%d", port[2*i+1])}
		p.args = []string{"server", "--dev", "--consul", consul, "--node", fmt.Sprintf("s%d", i), "--http-port", fmt.Sprint(port[2*i]), "--grpc-port", fmt.Sprint(port[2*i+1])}
		t.Cleanup(func() {
			p.kill()
			if t.Failed() {
				text, _ := os.ReadFile(p.log)
				t.Logf("server %s:\n%s", p.http, text[max(0, len(text)-4000):])
			}
		})
		p.start()
		out = append(out, p)
	}
	for _, p := range out {
		answers(t, "http://"+p.http+"/v1/status/leader", "")
	}
	return out
}

// TestPeersServersAreKilled deaths one server of three again and again while requests pass two
// real Envoys and entries are written: no request fails, no acknowledged write is lost, no stream
// stays away for long.
func TestPeersServersAreKilled(t *testing.T) {
	// An agent holds the queries of a killed client until they end, and takes 200 of one address
	// unless it is told otherwise: fifty deaths a minute are not what that is made for.
	consul := consultest.NewReal(t, `{"limits":{"http_max_conns_per_client":5000}}`).URL()
	bin, dir := build(t), meshtest.RunDir(t)
	all := servers(t, bin, consul)
	var grpcAddrs []string
	for _, p := range all {
		grpcAddrs = append(grpcAddrs, p.grpc)
	}
	port := meshtest.FreePorts(t, 3)
	serve(t, port[0], "catalog")
	write(t, dir, "catalog.yaml", fmt.Sprintf("service: catalog\nport: %d\nprotocol: http\n", port[0]))
	write(t, dir, "web.yaml", fmt.Sprintf("service: web\nport: %d\nprotocol: http\nupstreams: [catalog:%d]\n", port[1], port[2]))
	putTo(t, all[0].http, `{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`)
	for _, name := range []string{"catalog", "web"} {
		run(t, nil, bin, "sidecar", "--service", filepath.Join(dir, name+".yaml"), "--node", "n1", "--http-addr", consul, "--grpc-addr", strings.Join(grpcAddrs, ","),
			"--state-dir", filepath.Join(dir, name), "--runtime-dir", filepath.Join(dir, name+"-run"))
	}
	upstream := fmt.Sprintf("http://127.0.0.1:%d/", port[2])
	answers(t, upstream, "hello from catalog")

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var sent, failed atomic.Int64
	client := &http.Client{Timeout: 10 * time.Second}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				sent.Add(1)
				if err := request(client, upstream, "hello from catalog"); err != nil {
					failed.Add(1)
					t.Errorf("a request: %v", err)
				}
				pause(ctx, 5*time.Millisecond)
			}
		})
	}
	acked := map[string]string{}
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			name, header := fmt.Sprintf("s%d", n%200), fmt.Sprintf("h%d", n)
			body := fmt.Sprintf(`{"Kind":"traffic-policy","Name":%q,"Sticky":{"Header":%q}}`, name, header)
			if n%2 == 0 {
				body = fmt.Sprintf(`{"Kind":"service-defaults","Name":%q,"Protocol":"http","Meta":{"h":%q}}`, name, header)
			}
			acked[name] = "" // unknown while it is under way
			if tryPut(client, all[rand.IntN(3)].http, body) == nil {
				acked[name] = header
			}
			pause(ctx, 10*time.Millisecond)
		}
	})
	var longest time.Duration
	var reconnects int
	wg.Go(func() { longest, reconnects = hold(ctx, t, grpcAddrs, "web-sidecar-proxy") })

	began := time.Now()
	for n := range deaths {
		p := all[rand.IntN(3)]
		p.kill()
		pause(ctx, deathEvery/2)
		p.start()
		if n == deaths/2 {
			pause(ctx, time.Second) // a moment with all three
		}
		pause(ctx, deathEvery/2)
	}
	took := time.Since(began)
	stop()
	wg.Wait()
	for _, p := range all {
		answers(t, "http://"+p.http+"/v1/status/leader", "")
	}
	known := 0
	for i, p := range all {
		meshtest.Eventually(t, fmt.Sprintf("server %d has every acknowledged write", i), func() error {
			_, policies, err := ask("http://"+p.http+"/v1/config/traffic-policy", "")
			_, defaults, err2 := ask("http://"+p.http+"/v1/config/service-defaults", "")
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			known = 0
			for name, header := range acked {
				if header == "" {
					continue
				}
				known++
				if !strings.Contains(policies+defaults, fmt.Sprintf("%q", header)) {
					return fmt.Errorf("%s: %s is lost", name, header)
				}
			}
			return nil
		})
	}
	revertWithoutTheHolder(t, bin, consul, all)
	t.Logf("%d deaths in %s: %d requests, %d failed; %d entries of %d checked; %d streams, longest gap %s", deaths, took.Round(time.Millisecond), sent.Load(), failed.Load(), known, len(acked), reconnects, longest.Round(time.Millisecond))
	if longest > longestGap {
		t.Errorf("a stream stayed away for %s", longest)
	}
	if sent.Load() < 1000 || known < 50 || reconnects < 3 {
		t.Errorf("too little happened to prove anything: %d requests, %d entries, %d streams", sent.Load(), known, reconnects)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func request(c *http.Client, url, want string) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(text), want)) {
		err = fmt.Errorf("%s %.200s", resp.Status, text)
	}
	return err
}

func tryPut(c *http.Client, server, body string) error {
	req, err := http.NewRequest(http.MethodPut, "http://"+server+"/v1/config", bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || strings.TrimSpace(string(text)) != "true") {
		err = fmt.Errorf("%s %.200s", resp.Status, text)
	}
	return err
}

func putTo(t *testing.T, server, body string) {
	t.Helper()
	if err := tryPut(http.DefaultClient, server, body); err != nil {
		t.Fatal(err)
	}
}

// hold keeps a stream to one of the servers, going on to the next when it ends, and says how
// long it was without one at most.
func hold(ctx context.Context, t *testing.T, addrs []string, id string) (longest time.Duration, streams int) {
	meta, err := structpb.NewStruct(map[string]any{"crossfade_relay": true})
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	without := time.Now() // since when there is no stream
	for at := 0; ctx.Err() == nil; at++ {
		conn, err := grpc.NewClient("passthrough:///"+addrs[at%len(addrs)], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Error(err)
			return longest, streams
		}
		one, cancel := context.WithCancel(ctx)
		c, err := xds.Connect(one, conn, &corev3.Node{Id: id, Metadata: meta})
		if err == nil {
			err = c.Send(xds.Request{Type: xds.ClusterType})
		}
		for served := false; err == nil; {
			var r xds.Response
			if r, err = c.Recv(); err != nil {
				if served {
					without = time.Now()
				}
				break
			}
			if !served {
				longest, streams, served = max(longest, time.Since(without)), streams+1, true
			}
			err = c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce})
		}
		cancel()
		conn.Close()
		pause(ctx, 50*time.Millisecond)
	}
	return longest, streams
}

// revertWithoutTheHolder deaths the server that moves shares: a revert does not wait for another
// to do so, which comes by itself.
func revertWithoutTheHolder(t *testing.T, bin, consul string, all []*mortal) {
	t.Helper()
	holder := func() (*mortal, error) {
		_, name, err := ask(consul+"/v1/kv/crossfade-store/lock/shifts?raw", "")
		_, row, err2 := ask(consul+"/v1/kv/crossfade-store/lock/shifts", "")
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
		if !strings.Contains(row, `"Session"`) || len(name) != 2 {
			return nil, fmt.Errorf("nobody holds the lock: %s", row)
		}
		return all[name[1]-'0'], nil
	}
	var first *mortal
	meshtest.Eventually(t, "a server moves shares", func() (err error) { first, err = holder(); return err })
	other := all[0]
	if other == first {
		other = all[1]
	}
	putTo(t, other.http, `{"Kind":"traffic-shift","Source":"web","Destination":"catalog","Shares":{"Direct":50,"MTLS":50}}`)
	first.kill()
	began := time.Now()
	out, err := exec.CommandContext(t.Context(), bin, "revert", "web", "catalog", "--force", "--http-addr", other.http).CombinedOutput()
	took := time.Since(began)
	if err != nil || took > 5*time.Second {
		t.Errorf("a revert after %s: %v\n%s", took, err, out)
	}
	if _, entry, err := ask("http://"+other.http+"/v1/config/traffic-shift/web~catalog", ""); err != nil || !strings.Contains(entry, `"direct":100`) {
		t.Errorf("after the revert the entry is %s, %v", entry, err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		next, err := holder()
		if err == nil && next != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no other server moves shares: %v", err)
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Logf("revert with the holder of the lock dead: %s; another holds it after %s", took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}
