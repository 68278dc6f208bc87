package sidecar

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
)

// Files in the state directory. All are 0600.
const (
	lockFile  = "lock"
	portsFile = "ports.json"
	// registrationFile is what a Consul agent said last.
	registrationFile = "registration.json"
	// LocalFile, while it is in a sidecar's state directory, makes it hold old ways. Whoever
	// makes or removes it sends the sidecar SIGUSR1.
	LocalFile    = "revert.local"
	serversFile  = "servers.json"
	keyFile      = "leaf.key"
	leafFile     = "leaf.pem"
	rootsFile    = "roots.pem"
	lastGoodFile = "lastgood.pb"
	StatusFile   = "status.json"
	// plaintextFile is who sent plaintext, and for how long that was watched.
	plaintextFile = "plaintext.json"
)

// maxSocketPath is the longest path that fits sockaddr_un with its final zero byte.
const maxSocketPath = 107

// stateDir is the locked directory of one sidecar.
type stateDir struct {
	path string
	lock *os.File
}

// ports is what ports.json holds: the sidecar's ports, and whose they are.
type ports struct {
	Service    string `json:"service"`
	ID         string `json:"id"`
	PublicPort int    `json:"public_port"`
	// PlaintextPort is of a listener for plaintext alone; 0: none.
	PlaintextPort int `json:"plaintext_port,omitempty"`
}

// servers is what servers.json holds: what the servers last said of themselves.
type servers struct {
	Datacenter string            `json:"datacenter"`
	GRPC       map[string]string `json:"grpc"` // by HTTP address
}

// openStateDir makes and locks the directory. The lock ends with the process.
func openStateDir(path string) (*stateDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("state directory %q: cannot be made: %w", path, cause(err))
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", path, cause(err))
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("state directory %q: mode %04o lets other users in, and a private key will be kept there: run chmod 700 %s",
			path, st.Mode().Perm(), path)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		owner := "another crossfade sidecar"
		if pid, rerr := io.ReadAll(io.LimitReader(f, 20)); rerr == nil && len(pid) > 0 {
			owner += " (pid " + strings.TrimSpace(string(pid)) + ")"
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %q: in use by %s: stop it or give this one its own --state-dir", path, owner)
		}
		return nil, fmt.Errorf("state directory %q: cannot be locked: %w", path, err)
	}
	d := &stateDir{path: path, lock: f}
	_ = os.Remove(d.file(StatusFile)) // it spoke of a sidecar that is gone
	// The pid is for people; a full disk must not keep an instance from starting.
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	return d, nil
}

// close gives up the lock.
func (d *stateDir) close() { _ = d.lock.Close() }

func (d *stateDir) file(name string) string { return filepath.Join(d.path, name) }

// read is a file's content, or nil when there is none.
func (d *stateDir) read(name string) ([]byte, error) {
	b, err := os.ReadFile(d.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write replaces a file atomically and durably.
func (d *stateDir) write(name string, data []byte) error { return atomicfile.Write(d.file(name), data) }

// readJSON leaves v alone when the file is absent. What a crash or a hand left
// unreadable is reported, never guessed at.
func (d *stateDir) readJSON(name string, v any) error {
	b, err := d.read(name)
	if err != nil {
		return fmt.Errorf("state file %q: %w", d.file(name), cause(err))
	}
	if b == nil {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("state file %q: not readable, delete it to start afresh: %w", d.file(name), err)
	}
	return nil
}

func (d *stateDir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return d.write(name, append(b, '\n'))
}

// runtimeDir is where one sidecar's sockets and Envoy's bootstrap are.
type runtimeDir string

func (d runtimeDir) xdsSocket() string   { return filepath.Join(string(d), "xds.sock") }
func (d runtimeDir) adminSocket() string { return filepath.Join(string(d), "admin.sock") }
func (d runtimeDir) bootstrap() string   { return filepath.Join(string(d), "bootstrap.json") }

// defaultRuntimeDir derives a short directory from the state directory, so that
// a restarted sidecar finds, and clears, what its predecessor left.
func defaultRuntimeDir(stateDir, xdgRuntimeDir string) string {
	base := xdgRuntimeDir
	if base == "" {
		base = "/tmp"
	}
	sum := sha256.Sum256([]byte(stateDir))
	return filepath.Join(base, "cf-"+hex.EncodeToString(sum[:6]))
}

// openRuntimeDir makes the directory, or takes over one that is ours alone. The
// caller holds the lock of the state directory, so nobody else uses it.
func openRuntimeDir(path string) (runtimeDir, error) {
	d := runtimeDir(path)
	if n := len(d.adminSocket()); n > maxSocketPath {
		return "", fmt.Errorf("runtime directory %q: socket paths in it are %d bytes long, the limit is %d: set a shorter --runtime-dir", path, n, maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("runtime directory %q: cannot be made: %w", path, cause(err))
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("runtime directory %q: cannot be made: %w", path, cause(err))
	}
	st, err := os.Lstat(path)
	if err != nil {
		return "", fmt.Errorf("runtime directory %q: %w", path, cause(err))
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() || !ok || int(sys.Uid) != os.Getuid() || st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("runtime directory %q: is not a directory of this user alone (mode 0700): remove it or set another --runtime-dir", path)
	}
	d.clear()
	return d, nil
}

// clear removes what a sidecar puts there.
func (d runtimeDir) clear() {
	for _, f := range []string{d.xdsSocket(), d.adminSocket(), d.bootstrap()} {
		_ = os.Remove(f)
	}
}

// remove clears the directory and removes it unless somebody else put something there.
func (d runtimeDir) remove() {
	d.clear()
	_ = os.Remove(string(d))
}

// cause strips the path that an *fs.PathError repeats.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
