package demo

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// asParent is set for a copy of the test binary that starts a child and waits.
const asParent = "CROSSFADE_DEMO_TEST_PARENT"

func TestMain(m *testing.M) {
	if log := os.Getenv(asParent); log != "" {
		c, err := start("child", log, os.Environ(), "/bin/sleep", "600")
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strconv.Itoa(c.PID) + "\n")
		select {}
	}
	os.Exit(m.Run())
}

func TestChildrenDieWithAKilledDemo(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), asParent+"="+filepath.Join(t.TempDir(), "log"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || processGone(pid) {
		t.Fatalf("child %q, %v", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	if _, err := awaitGone(pid); err != nil {
		t.Error(err)
	}
}

func TestChildEndsAndSaysHow(t *testing.T) {
	dir := t.TempDir()
	mark := "CROSSFADE_DEMO_TEST_MARK=" + dir
	run := func(script string) *child {
		t.Helper()
		c, err := start("sh", filepath.Join(dir, "log"), append(os.Environ(), mark), "/bin/sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	failing := run("echo first; echo no such thing >&2; exit 3")
	if err := failing.waitEnd(t.Context(), 10*time.Second); err == nil || !strings.Contains(err.Error(), "sh: exit status 3") {
		t.Errorf("got %v", err)
	}
	if got := failing.tail(1); len(got) != 1 || got[0] != "no such thing" {
		t.Errorf("tail is %q", got)
	}
	living := run("exec sleep 600")
	if got := processesWith(mark); len(got) != 1 || got[0] != living.PID {
		t.Errorf("processes with the mark: %v, want %d", got, living.PID)
	}
	living.Signal(syscall.SIGKILL)
	<-living.Done()
	if got := processesWith(mark); len(got) != 0 || !processGone(living.PID) {
		t.Errorf("left: %v", got)
	}
	if _, err := start("x", filepath.Join(dir, "log"), nil, filepath.Join(dir, "missing")); err == nil || !strings.Contains(err.Error(), "x: cannot be started") {
		t.Errorf("got %v", err)
	}
}

func TestDefinitions(t *testing.T) {
	in := &instance{service: "storefront", id: "storefront-1", protocol: "http", appPort: 8080, upstreams: []upstream{{"catalog", 7100}, {"payments", 8101}}}
	want := `service: storefront
id: storefront-1
address: 127.0.0.1
port: 8080
protocol: http
upstreams:
  - catalog:7100
  - payments:8101
checks:
  - http: /healthz
    interval: 1s
`
	if got := in.definition(); got != want {
		t.Errorf("got:\n%s", got)
	}
	if got := in.upstreamAddr("payments"); got != "127.0.0.1:8101" {
		t.Errorf("payments is at %q", got)
	}
}

func TestSerialsAreWrittenOneWay(t *testing.T) {
	for in, want := range map[string]string{"0A:1B:ff": "0a:1b:ff", "a1bff": "0a:1b:ff", "000a1bff": "0a:1b:ff", "": ""} {
		if got := serial(in); got != want {
			t.Errorf("serial(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestProcAddr(t *testing.T) {
	got, err := procAddr("0100007F:5209")
	if want := netip.MustParseAddrPort("127.0.0.1:21001"); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestShares(t *testing.T) {
	total, worst, text := shares(map[string]uint64{"b": 240, "a": 260})
	if total != 500 || worst != 4 || text != "a 52.00 %, b 48.00 %" {
		t.Errorf("got %d, %v, %q", total, worst, text)
	}
}

func TestOnlyWhatWasUnderWayIsInFlight(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	killed, gone := at(100), at(110)
	for _, tc := range []struct {
		name        string
		sent, ended int
		want        bool
	}{
		{"open across the kill", 50, 115, true},
		{"sent while the process was going", 105, 112, true},
		{"sent after it was gone", 111, 112, false},
		{"ended before the kill", 50, 99, false},
	} {
		if got := inFlight(load.Failure{Sent: at(tc.sent), Ended: at(tc.ended)}, killed, gone); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestAwaitSaysWhatWasMissing(t *testing.T) {
	err := await(t.Context(), 30*time.Millisecond, "tea is ready", func() error { return errors.New("the water is cold") })
	if err == nil || err.Error() != "tea is ready: not within 30ms: the water is cold" {
		t.Errorf("got %v", err)
	}
	asked := 0
	err = await(t.Context(), time.Hour, "tea is ready", func() error { asked++; return final(errors.New("the pot is broken")) })
	if err == nil || err.Error() != "tea is ready: the pot is broken" || asked != 1 {
		t.Errorf("asked %d times, got %v", asked, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := await(ctx, time.Hour, "", func() error { return errors.New("no") }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestFreePortsAreDistinctAndOutOfTheKernelsWay(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] || p < 22_000 || p >= 32_000 {
			t.Errorf("port %d", p)
		}
		seen[p] = true
	}
}

func TestReasonsGroupFailures(t *testing.T) {
	p := &pair{from: &instance{service: "a"}, to: &instance{service: "b"}}
	now := time.Now()
	f := func(reason string) load.Failure {
		return load.Failure{Sent: now, Ended: now.Add(3 * time.Millisecond), Reason: reason}
	}
	got := reasons(map[*pair][]load.Failure{p: {f("rare"), f("often"), f("often")}})
	if len(got) != 2 || !strings.HasPrefix(got[0], "a → b: 2 × often (first sent ") || !strings.HasPrefix(got[1], "a → b: 1 × rare") {
		t.Errorf("got %q", got)
	}
}

func TestAppWantsAnAddress(t *testing.T) {
	for _, args := range [][]string{nil, {"catalog"}, {"catalog", "--listen", "127.0.0.1:0", "more"}} {
		if err := App(t.Context(), args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestOptionsAreCheckedBeforeAnythingStarts(t *testing.T) {
	err := Run(t.Context(), Options{Sabotage: []string{"drain", "brakes"}, Stdout: io.Discard, Stderr: io.Discard})
	if err == nil || err.Error() != `demo: sabotage "brakes": unknown; want one of share, guard, revert, strict, spread, drain, rotate, lastgood` {
		t.Errorf("got %v", err)
	}
	_, err = Options{Envoy: "/bin/true", Sabotage: []string{"drain"}}.withDefaults(t.Context())
	if err != nil {
		t.Error(err)
	}
}

func TestCallerURI(t *testing.T) {
	const uri = "spiffe://td/ns/default/dc/dc1/svc/web"
	for header, clean := range map[string]bool{
		"By=spiffe://td/x;Hash=abc;URI=" + uri:    true,
		"URI=" + uri:                              true,
		"Hash=abc;Cert=\"-----BEGIN\";URI=" + uri: false,
		"Hash=a;URI=" + uri + ",Hash=b;URI=other": false,
	} {
		got, ok := callerURI(header)
		if ok != clean || clean && got != uri {
			t.Errorf("%q: %q, %v", header, got, ok)
		}
	}
	if _, ok := callerURI(""); ok {
		t.Error("no header is no caller")
	}
}
