package sidecar

import (
	"context"
	"net"
	"os"
	"path/filepath"
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

func TestChoosePlaintextPort(t *testing.T) {
	const host = "127.0.0.78"
	first, held := choosePlaintextPort(host, 0, []int{minPlaintextPort})
	if first != minPlaintextPort+1 {
		t.Errorf("chose %d, want the first that the registration does not use", first)
	}
	if second, other := choosePlaintextPort(host, first, nil); second != minPlaintextPort {
		t.Errorf("a second sidecar that remembers the first one's chose %d", second)
	} else {
		other.release()
	}
	held.release()
	if got, r := choosePlaintextPort(host, first+9, nil); got != first+9 {
		t.Errorf("remembered port: got %d", got)
	} else {
		r.release()
	}
	if got, r := choosePlaintextPort(host, first+9, []int{first + 9}); got != minPlaintextPort {
		t.Errorf("a remembered port that the registration uses now: got %d", got)
	} else {
		r.release()
	}
	if got, r := choosePlaintextPort("203.0.113.9", 0, nil); got != 0 || r != nil {
		t.Errorf("of an address of another host: %d", got)
	}
}

func TestChoosePort(t *testing.T) {
	ctx := context.Background()
	const host = "127.0.0.77"
	first, held, err := choosePort(ctx, host, 0, 0)
	if err != nil || first != minPublicPort {
		t.Fatalf("first port = %d, %v", first, err)
	}
	second, other, err := choosePort(ctx, host, 0, 0)
	if err != nil || second != first+1 {
		t.Errorf("a second sidecar chose %d, %v; want %d", second, err, first+1)
	}
	other.release()
	held.release()
	if got, r, err := choosePort(ctx, host, 0, first+9); err != nil || got != first+9 {
		t.Errorf("remembered port: got %d, %v", got, err)
	} else {
		r.release()
	}

	_, taken := listen(t)
	// What is in use may just be ending, so the wait is cut short here.
	done, cancel := context.WithCancel(ctx)
	cancel()
	_, _, err = choosePort(done, "127.0.0.1", taken, 0)
	wantError(t, err, strconv.Itoa(taken), "address already in use", "connect.sidecar_service.port")
	if got, r, err := choosePort(done, "127.0.0.1", 0, taken); err != nil || got == taken {
		t.Errorf("a remembered port in use: got %d, %v; want another", got, err)
	} else {
		r.release()
	}
	_, _, err = choosePort(ctx, "203.0.113.9", 0, 0)
	wantError(t, err, "203.0.113.9", "not an address of this host")

	err = checkUpstreamPorts(done, []localUpstream{{"catalog", "127.0.0.1", taken}})
	wantError(t, err, `upstream "catalog"`, strconv.Itoa(taken))
}
