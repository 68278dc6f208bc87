package outages

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// kills is how often the server is killed amid writes.
const kills = 200

// operation is one that a client made.
type operation struct {
	kind    string // get, put or cas
	key     string // of KV, or "entry/" and the name of a configuration entry
	value   string // written, each but once
	instead string // of cas: the value that is to be there; empty: none
}

// result is what the client heard. A write whose answer never came may have been made at any time since.
type result struct {
	value   string // read
	done    bool   // of cas
	unknown bool
}

// register is one key: a value that is read, written, and written if it is still another.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(operation).key
				by[key] = append(by[key], op)
			}
			for _, list := range by {
				out = append(out, list)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			in, out := input.(operation), output.(result)
			switch {
			case in.kind == "get":
				return out.value == state, state
			case in.kind == "cas" && state != in.instead:
				return out.unknown || !out.done, state
			default:
				return out.unknown || out.done, in.value
			}
		},
		Equal: func(a, b any) bool { return a == b },
	}
}

// caller is a client of one server for a while.
type caller struct {
	base, token string
	http        *http.Client
}

func newCaller(addr, tokenFile string) (*caller, error) {
	token, err := os.ReadFile(tokenFile)
	return &caller{base: "https://" + addr, token: strings.TrimSpace(string(token)), http: &http.Client{
		// Whether it is the right server is not what this is about.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 8},
		Timeout:   10 * time.Second,
	}}, err
}

func (a *caller) close() { a.http.CloseIdleConnections() }

func (a *caller) call(method, path string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-Consul-Token", a.token)
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// get reads a key and the index of its last write.
func (a *caller) get(key string) (value string, index uint64, err error) {
	path := "/v1/kv/" + key
	name, entry := strings.CutPrefix(key, "entry/")
	if entry {
		path = "/v1/config/service-defaults/" + name
	}
	code, body, err := a.call(http.MethodGet, path, nil)
	if err != nil || code == http.StatusNotFound {
		return "", 0, err
	}
	var pairs []struct {
		Value       []byte
		ModifyIndex uint64
	}
	var one struct {
		Meta        map[string]string
		ModifyIndex uint64
	}
	switch {
	case code != http.StatusOK:
		return "", 0, fmt.Errorf("GET %s: %d: %s", path, code, body)
	case entry:
		err = json.Unmarshal(body, &one)
		return one.Meta["value"], one.ModifyIndex, err
	default:
		if err := json.Unmarshal(body, &pairs); err != nil || len(pairs) != 1 {
			return "", 0, fmt.Errorf("GET %s: %w: %s", path, err, body)
		}
		return string(pairs[0].Value), pairs[0].ModifyIndex, nil
	}
}

// put writes a key, with cas only if its last write has that index.
func (a *caller) put(key, value string, cas bool, index uint64) (done bool, err error) {
	path, body := "/v1/kv/"+key, []byte(value)
	if name, entry := strings.CutPrefix(key, "entry/"); entry {
		path = "/v1/config"
		if body, err = json.Marshal(map[string]any{"Kind": "service-defaults", "Name": name, "Protocol": "tcp", "Meta": map[string]string{"value": value}}); err != nil {
			return false, err
		}
	}
	if cas {
		path += fmt.Sprintf("?cas=%d", index)
	}
	code, answer, err := a.call(http.MethodPut, path, body)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("PUT %s: %d: %s", path, code, answer)
	}
	return strings.TrimSpace(string(answer)) == "true", err
}

// history is what clients did, in their own times.
type history struct {
	mu    sync.Mutex
	ops   []porcupine.Operation
	began time.Time
	acked int // writes
}

func (h *history) now() int64 { return time.Since(h.began).Nanoseconds() }

func (h *history) add(client int, in operation, call int64, out result) {
	back := h.now()
	if out.unknown {
		back = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.done {
		h.acked++
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: back})
}

// acknowledged waits until so many more writes are, or the server has ended.
func (h *history) acknowledged(s *child, n int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for from := h.writes(); h.writes() < from+n; {
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
	}
}

func (h *history) writes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked
}

// read reads a key. It is false when no answer came.
func (h *history) read(a *caller, client int, key string) (value string, index uint64, ok bool) {
	call := h.now()
	value, index, err := a.get(key)
	if err == nil {
		h.add(client, operation{kind: "get", key: key}, call, result{value: value})
	}
	return value, index, err == nil
}

// client reads and writes keys until the server is gone.
func (h *history) client(a *caller, id, round int, keys []string) {
	for n := 0; ; n++ {
		key := keys[rand.IntN(len(keys))]
		value, index, ok := h.read(a, id, key)
		if !ok {
			return
		}
		in := operation{kind: "put", key: key, value: fmt.Sprintf("%d.%d.%d", round, id, n)}
		cas := rand.IntN(2) == 0
		if cas {
			in.kind, in.instead = "cas", value
		}
		call := h.now()
		done, err := a.put(key, in.value, cas, index)
		h.add(id, in, call, result{done: done, unknown: err != nil})
		if err != nil {
			return
		}
	}
}

// A server that is killed amid writes, again and again, has each write that it acknowledged, in an order
// that agrees with what all clients saw.
func TestKilledAmidWrites(t *testing.T) {
	t.Parallel()
	dir := meshtest.RunDir(t)
	ports := meshtest.FreePorts(t, 2)
	data, addr := filepath.Join(dir, "data"), fmt.Sprintf("127.0.0.1:%d", ports[0])
	h := &history{began: time.Now()}
	const clients, keys = 3, 2
	var all, last []string
	run := func(round int) (*child, *caller) {
		s := start(t, dir, "server", nil, "server", "--data-dir", data, "--http-port", fmt.Sprint(ports[0]), "--grpc-port", fmt.Sprint(ports[1]), "--dns-port", "-1", "--log-level", "error")
		var a *caller
		meshtest.Eventually(t, "the server answers", func() (err error) {
			select {
			case <-s.done:
				t.Fatalf("round %d: the server has ended", round)
			default:
			}
			if a, err = newCaller(addr, filepath.Join(data, "operator.token")); err == nil {
				_, _, err = a.call(http.MethodGet, "/v1/status/leader", nil)
			}
			return err
		})
		return s, a
	}
	for round := range kills {
		s, a := run(round)
		for _, key := range last { // what the killed one left
			h.read(a, clients, key)
		}
		last = nil
		for i := range keys {
			last = append(last, fmt.Sprintf("k%d-%d", round, i), fmt.Sprintf("entry/e%d-%d", round, i))
		}
		all = append(all, last...)
		var wg sync.WaitGroup
		for id := range clients {
			wg.Go(func() { h.client(a, id, round, last) })
		}
		h.acknowledged(s, rand.IntN(2*clients))
		s.end(syscall.SIGKILL)
		wg.Wait()
		a.close()
	}
	s, a := run(kills)
	for _, key := range all {
		if _, _, ok := h.read(a, clients, key); !ok {
			t.Errorf("%q can't be read at the end", key)
		}
	}
	a.close()
	s.end(syscall.SIGTERM)

	unknown := 0
	for _, op := range h.ops {
		if op.Output.(result).unknown {
			unknown++
		}
	}
	t.Logf("%d kills: %d operations, %d writes acknowledged, %d not answered, %s", kills, len(h.ops), h.acked, unknown, time.Since(h.began).Round(time.Second))
	if h.acked < kills || unknown < kills/4 {
		t.Errorf("%d writes acknowledged and %d cut off prove nothing", h.acked, unknown)
	}
	if got := porcupine.CheckOperationsTimeout(register(), h.ops, time.Minute); got != porcupine.Ok {
		t.Errorf("what clients saw is not linearizable: %s", got)
	}
	if got := porcupine.CheckOperationsTimeout(register(), lose(t, h.ops), time.Minute); got != porcupine.Illegal {
		t.Errorf("a lost write is not found: %s", got)
	}
}

// lose is a history in which the last read of a key does not show its last write, which was acknowledged.
func lose(t *testing.T, ops []porcupine.Operation) []porcupine.Operation {
	t.Helper()
	out := slices.Clone(ops)
	for i := len(out) - 1; i >= 0; i-- {
		in, res := out[i].Input.(operation), out[i].Output.(result)
		if in.kind != "get" || res.value == "" {
			continue
		}
		for _, w := range out[:i] { // by one that was answered
			if w.Input.(operation).value == res.value && w.Output.(result).done {
				out[i].Output = result{}
				return out
			}
		}
	}
	t.Fatal("no write can be lost")
	return nil
}

// disk is a small file system of a server's own.
type disk struct {
	t    *testing.T
	dir  string
	sh   *child
	data string
}

// server is the process ID of the server that runs on it.
func (d *disk) server() (pid int, err error) {
	b, err := os.ReadFile(filepath.Join(d.dir, "pid"))
	if err == nil {
		_, err = fmt.Sscan(string(b), &pid)
	}
	return pid, err
}

// inside is a file of the file system, which only its processes see.
func (d *disk) inside(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", d.sh.cmd.Process.Pid), d.data, name)
}

// kill ends the server; another is started on the same disk.
func (d *disk) kill() {
	d.t.Helper()
	pid, err := d.server()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	meshtest.Eventually(d.t, "another server is started", func() error {
		if now, err := d.server(); err != nil || now == pid {
			return fmt.Errorf("%d, %w", now, err)
		}
		return nil
	})
}

// A full disk refuses writes, in clear words, and nothing else; a disk that can't be written to at all
// refuses the start. When there is room again all is as it was, and goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := &disk{t: t, dir: meshtest.RunDir(t)}
	d.data = filepath.Join(d.dir, "data")
	if err := os.Mkdir(d.data, 0o700); err != nil {
		t.Fatal(err)
	}
	ports := meshtest.FreePorts(t, 2)
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	const script = `cd "$0" && mount -t tmpfs -o size=4m,mode=0700 none data || exit 1
while :; do
	if [ -e read-only ]; then mount -o remount,ro data; else mount -o remount,rw data; fi
	"$@" & echo $! > pid.new && mv pid.new pid
	wait
	sleep 0.1
done`
	d.sh = shell(t, d.dir, script, crossfade(t), "server", "--data-dir", d.data, "--http-port", fmt.Sprint(ports[0]), "--grpc-port", fmt.Sprint(ports[1]), "--dns-port", "-1")
	var a *caller
	answers := func() {
		t.Helper()
		meshtest.Eventually(t, "the server answers", func() (err error) {
			if a, err = newCaller(addr, d.inside("operator.token")); err == nil {
				_, _, err = a.call(http.MethodGet, "/v1/status/leader", nil)
			}
			return err
		})
	}
	answers()
	written := map[string]string{}
	put := func(size int) error {
		key := fmt.Sprint("k", len(written))
		value := strings.Repeat(key, size/len(key))
		_, err := a.put(key, value, false, 0)
		if err == nil {
			written[key] = value
		}
		return err
	}
	check := func(when string) {
		t.Helper()
		for key, value := range written {
			if got, _, err := a.get(key); err != nil || got != value {
				t.Fatalf("%s: %q has %d bytes in place of %d: %v", when, key, len(got), len(value), err)
			}
		}
		cmd := (&world{t: t, dir: d.dir}).command("xds", "web-sidecar-proxy", "--http-addr", addr)
		cmd.Env = append(cmd.Env, "CROSSFADE_CACERT="+d.inside("ca.pem"), "CROSSFADE_HTTP_TOKEN_FILE="+filepath.Join(d.dir, "operator.token"))
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "public_listener") {
			t.Fatalf("%s: xDS: %v\n%s", when, err, out)
		}
	}
	token, err := os.ReadFile(d.inside("operator.token"))
	if err == nil {
		err = os.WriteFile(filepath.Join(d.dir, "operator.token"), token, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	web := `{"Name":"web","Port":9,"Connect":{"SidecarService":{"Port":21999}}}`
	if code, body, err := a.call(http.MethodPut, "/v1/agent/service/register", []byte(web)); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s %v", code, body, err)
	}
	if err := put(1000); err != nil {
		t.Fatal(err)
	}
	check("at first")

	filler, err := os.Create(d.inside("filler"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(filler, io.LimitReader(zeros{}, 16<<20)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk did not fill: %v", err)
	}
	filler.Close()
	for n := 0; err == nil && n < 100; n++ {
		err = put(100_000)
	}
	if err == nil || !strings.Contains(err.Error(), "500") || !strings.Contains(err.Error(), "no space left") {
		t.Fatalf("a write to a full disk: %v", err)
	}
	check("full")
	d.kill()
	answers()
	check("started again, and full")
	if err := os.Remove(d.inside("filler")); err != nil {
		t.Fatal(err)
	}
	if err := put(100_000); err != nil {
		t.Fatalf("there is room again: %v", err)
	}
	check("room again")

	if err := os.WriteFile(filepath.Join(d.dir, "read-only"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.kill()
	meshtest.Eventually(t, "the server says that it can't write", func() error {
		b, err := os.ReadFile(d.sh.log)
		if err == nil && !strings.Contains(string(b), "read-only file system") {
			err = errors.New("it does not")
		}
		return err
	})
	if err := os.Remove(filepath.Join(d.dir, "read-only")); err != nil {
		t.Fatal(err)
	}
	answers()
	check("writable again")
	if err := put(1000); err != nil {
		t.Fatal(err)
	}
}

// zeros are without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
