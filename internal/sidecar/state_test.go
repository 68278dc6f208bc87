package sidecar

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has more than one line", err)
	}
}

// tempState is a locked state directory.
func tempState(t *testing.T) *stateDir {
	t.Helper()
	d, err := openStateDir(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

func TestStateDir(t *testing.T) {
	d := tempState(t)
	_, err := openStateDir(d.path)
	wantError(t, err, d.path, "in use by another crossfade sidecar (pid "+strconv.Itoa(os.Getpid())+")", "--state-dir")

	if err := d.writeJSON(portsFile, ports{ID: "a", PublicPort: 7}); err != nil {
		t.Fatal(err)
	}
	var p ports
	if err := d.readJSON(portsFile, &p); err != nil || p.PublicPort != 7 {
		t.Errorf("ports = %+v, %v", p, err)
	}
	if st, err := os.Stat(d.file(portsFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of %s = %v, %v", portsFile, st.Mode(), err)
	}
	if err := d.write(portsFile, []byte("{")); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.readJSON(portsFile, &p), portsFile, "delete it")
	d.close()
	again, err := openStateDir(d.path)
	if err != nil {
		t.Fatalf("opening after close: %v", err)
	}
	again.close()
}

func TestDirectoriesOfOthers(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := openStateDir(open)
	wantError(t, err, "0755", "chmod 700")
	_, err = openRuntimeDir(open)
	wantError(t, err, "0700", "--runtime-dir")

	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	_, err = openRuntimeDir(link)
	wantError(t, err, link)
	_, err = openRuntimeDir("/tmp/" + strings.Repeat("x", 100))
	wantError(t, err, "107", "--runtime-dir")
	if got := defaultRuntimeDir("/var/lib/x", ""); !strings.HasPrefix(got, "/tmp/cf-") || len(got) > 25 {
		t.Errorf("default runtime directory = %q", got)
	}
}

func listen(t *testing.T) (address string, port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String(), l.Addr().(*net.TCPAddr).Port
}

// Two services of a host begin at places far apart, one always at the same, and come by all
// ports.
func TestPortsFrom(t *testing.T) {
	web, again, catalog := slices.Collect(portsFrom(minPublicPort, maxPublicPort, "web-1")), slices.Collect(portsFrom(minPublicPort, maxPublicPort, "web-1")), slices.Collect(portsFrom(minPublicPort, maxPublicPort, "catalog-1"))
	if !slices.Equal(web, again) {
		t.Error("a service begins at another place each time")
	}
	if web[0] == catalog[0] {
		t.Errorf("both begin at %d", web[0])
	}
	if i := slices.Index(web, maxPublicPort); web[(i+1)%len(web)] != minPublicPort {
		t.Errorf("after %d comes %d", maxPublicPort, web[(i+1)%len(web)])
	}
	slices.Sort(web)
	if len(slices.Compact(web)) != 256 || web[0] != minPublicPort || web[255] != maxPublicPort {
		t.Errorf("%d ports from %d to %d", len(web), web[0], web[len(web)-1])
	}
}

func TestChoosePlaintextPort(t *testing.T) {
	const host = "127.0.0.78"
	order := slices.Collect(portsFrom(minPlaintextPort, maxPlaintextPort, "db"))
	first, held := choosePlaintextPort(host, "db", 0, []int{order[0]})
	if first != order[1] {
		t.Errorf("chose %d, want the first that the registration does not use", first)
	}
	if second, other := choosePlaintextPort(host, "db", first, nil); second != order[0] {
		t.Errorf("a second sidecar that remembers the first one's chose %d", second)
	} else {
		other.release()
	}
	held.release()
	if got, r := choosePlaintextPort(host, "db", order[9], nil); got != order[9] {
		t.Errorf("remembered port: got %d", got)
	} else {
		r.release()
	}
	if got, r := choosePlaintextPort(host, "db", order[9], []int{order[9]}); got != order[0] {
		t.Errorf("a remembered port that the registration uses now: got %d", got)
	} else {
		r.release()
	}
	if got, r := choosePlaintextPort("203.0.113.9", "db", 0, nil); got != 0 || r != nil {
		t.Errorf("of an address of another host: %d", got)
	}
}

func TestChoosePort(t *testing.T) {
	ctx := context.Background()
	const host = "127.0.0.77"
	order := slices.Collect(portsFrom(minPublicPort, maxPublicPort, "web"))
	first, held, err := choosePort(ctx, host, wantedPort{id: "web"})
	if err != nil || first != order[0] {
		t.Fatalf("first port = %d, %v", first, err)
	}
	second, other, err := choosePort(ctx, host, wantedPort{id: "web"})
	if err != nil || second != order[1] {
		t.Errorf("a second sidecar chose %d, %v; want %d", second, err, order[1])
	}
	other.release()
	held.release()
	if got, r, err := choosePort(ctx, host, wantedPort{id: "web", remembered: order[9]}); err != nil || got != order[9] {
		t.Errorf("remembered port: got %d, %v", got, err)
	} else {
		r.release()
	}

	_, taken := listen(t)
	// What is in use may just be ending, so the wait is cut short here.
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = choosePort(done, "127.0.0.1", wantedPort{id: "web", fixed: taken})
	wantError(t, err, strconv.Itoa(taken), "address already in use", "connect.sidecar_service.port")
	if got, r, err := choosePort(done, "127.0.0.1", wantedPort{id: "web", remembered: taken}); err != nil || got == taken {
		t.Errorf("a remembered port in use: got %d, %v; want another", got, err)
	} else {
		r.release()
	}
	_, _, err = choosePort(ctx, "203.0.113.9", wantedPort{id: "web"})
	wantError(t, err, "203.0.113.9", "not an address of this host")

	err = checkUpstreamPorts(done, []localUpstream{{"catalog", "127.0.0.1", taken}})
	wantError(t, err, `upstream "catalog"`, strconv.Itoa(taken))
}
