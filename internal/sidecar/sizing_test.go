package sidecar

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/envoy"
)

func TestSettleSizes(t *testing.T) {
	const mib = config.MiB
	for name, tt := range map[string]struct {
		want config.Sizing
		host hostSize
		is   SizingStatus
		note string
	}{
		"nothing said":      {config.Sizing{}, hostSize{files: 20000}, SizingStatus{Connections: 9936}, ""},
		"host does not say": {config.Sizing{}, hostSize{}, SizingStatus{Connections: 448}, ""},
		"no end of files":   {config.Sizing{}, hostSize{files: 1 << 62}, SizingStatus{Connections: 1<<20 - 64}, ""},
		"as asked":          {config.Sizing{CPU: 0.5, MemoryBytes: 256 * mib, MaxConnections: 3000}, hostSize{files: 20000}, SizingStatus{Connections: 3000, CPU: 0.5, Memory: 256 * mib, Heap: 192 * mib}, ""},
		"too little heap":   {config.Sizing{MemoryBytes: 128 * mib, MaxConnections: 5000}, hostSize{files: 20000}, SizingStatus{Connections: 1117, Memory: 128 * mib, Heap: 64 * mib}, "give the sidecar more memory"},
		"too few files":     {config.Sizing{MaxConnections: 50000}, hostSize{files: 20000}, SizingStatus{Connections: 9936}, "RLIMIT_NOFILE"},
		"its own cgroup":    {config.Sizing{}, hostSize{files: 20000, memory: int64(128 * mib)}, SizingStatus{Connections: 1117, Memory: 128 * mib, Heap: 64 * mib}, ""},
		"more than the cgroup": {config.Sizing{MemoryBytes: 512 * mib}, hostSize{files: 20000, memory: int64(128 * mib)},
			SizingStatus{Connections: 1117, Memory: 128 * mib, Heap: 64 * mib}, "512MiB asked for, the sidecar's cgroup allows 128MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			got := settleSizes(tt.want, 2, tt.host)
			if notes := strings.Join(got.Notes, ";"); tt.note == "" != (notes == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
			tt.is.Concurrency, tt.is.Notes = 2, got.Notes
			if fmt.Sprint(got) != fmt.Sprint(tt.is) {
				t.Errorf("sizes %+v, want %+v", got, tt.is)
			}
		})
	}
}

func TestDefaultConcurrency(t *testing.T) {
	for _, tt := range []struct {
		cpu   float64
		cores int
		want  int
	}{{0, 1, 1}, {0, 64, 2}, {0.25, 64, 1}, {1, 64, 1}, {1.5, 64, 2}, {16, 64, 2}} {
		if got := defaultConcurrency(tt.cpu, tt.cores); got != tt.want {
			t.Errorf("%v cores of %d: %d workers, want %d", tt.cpu, tt.cores, got, tt.want)
		}
	}
}

// resizable is a sidecar that was started with a sizing, with a fake kernel and Envoy.
func resizable(t *testing.T, size config.Sizing) (*sidecar, *fakeKernel, *fakeAdmin) {
	a := &fakeAdmin{}
	k := newFakeKernel("/unit", "cpu memory", strconv.Itoa(os.Getpid()))
	dir := runtimeDir(t.TempDir())
	s := &sidecar{log: slog.New(slog.DiscardHandler), admin: serveAdmin(t, a), sockets: dir, contact: &contact{}, proxy: &catalog.Service{ID: "web-sidecar-proxy"}}
	s.opts.Definition.Service = catalog.Service{Name: "web"}
	s.board = &board{log: s.log, write: func([]byte) error { return nil }}
	s.sizes, s.asked = settleSizes(size, 1, hostSize{files: 20000}), size
	var err error
	if s.group, err = openCgroup(k, "/sys/fs/cgroup/unit", "web", limits{cpu: size.CPU, memory: int64(size.MemoryBytes)}); err != nil {
		t.Fatal(err)
	}
	s.started.Store(true)
	return s, k, a
}

func TestResize(t *testing.T) {
	const mib = config.MiB
	base := config.Sizing{CPU: 1, MemoryBytes: 128 * mib, Concurrency: 1, MaxConnections: 1000}
	s, k, a := resizable(t, base)
	reread := base
	s.opts.Reread = func() (config.Definition, error) {
		return config.Definition{Service: catalog.Service{Name: "web", Kind: catalog.ConnectProxy, Proxy: &catalog.Proxy{Config: map[string]any{
			"crossfade_sizing": map[string]any{
				"cpu": reread.CPU, "memory": reread.MemoryBytes.String(), "concurrency": float64(reread.Concurrency), "connections": float64(reread.MaxConnections),
			},
		}}}}, nil
	}
	for _, step := range []struct {
		name    string
		to      config.Sizing
		cpu     string
		memory  config.Bytes
		pending string
		posts   int
	}{
		{"unchanged", base, "100000 100000", 128 * mib, "", 0},
		{"more cpu", config.Sizing{CPU: 1.5, MemoryBytes: 128 * mib, Concurrency: 1, MaxConnections: 1000}, "150000 100000", 128 * mib, "", 0},
		{"more memory", config.Sizing{CPU: 1.5, MemoryBytes: 256 * mib, Concurrency: 1, MaxConnections: 1000}, "150000 100000", 256 * mib, "", 1},
		{"what needs a restart", config.Sizing{CPU: 1.5, MemoryBytes: 256 * mib, Concurrency: 2, MaxConnections: 2000}, "150000 100000", 256 * mib, "concurrency connections", 1},
		{"back", base, "100000 100000", 128 * mib, "", 2},
	} {
		reread = step.to
		s.resize(t.Context())
		st := s.board.status.Sizing
		if step.posts == 0 && step.name == "unchanged" {
			st = s.sizes
		}
		if got := strings.Join(st.Pending, " "); st.Memory != step.memory || st.CPU != step.to.CPU || got != step.pending {
			t.Errorf("%s: %+v", step.name, st)
		}
		if got := k.files[s.group.path+"/cpu.max"]; got != step.cpu {
			t.Errorf("%s: cpu.max %q, want %q", step.name, got, step.cpu)
		}
		if got := k.files[s.group.path+"/memory.max"]; got != strconv.FormatInt(int64(step.memory), 10) {
			t.Errorf("%s: memory.max %q", step.name, got)
		}
		if len(a.calls) != step.posts {
			t.Fatalf("%s: Envoy was told %q", step.name, a.calls)
		}
		if step.posts > 0 {
			heap := envoy.HeapLimit(int64(step.memory))
			if want := fmt.Sprintf("/runtime_modify?%s=%d", envoy.HeapLimitKey, heap); a.calls[step.posts-1] != want {
				t.Errorf("%s: Envoy was told %q, want %q", step.name, a.calls[step.posts-1], want)
			}
			// An Envoy that is started again begins with it.
			boot, err := os.ReadFile(s.sockets.bootstrap())
			if err != nil || !bytes.Contains(boot, []byte(strconv.FormatInt(heap, 10))) {
				t.Errorf("%s: bootstrap %v lacks %d", step.name, err, heap)
			}
		}
	}
}

func TestLook(t *testing.T) {
	a := &fakeAdmin{gauges: map[string]int64{
		"overload.envoy.resource_monitors.fixed_heap.pressure": 42, "overload.envoy.resource_monitors.global_downstream_max_connections.pressure": 7,
	}, runtime: `{"entries":{"envoy.resource_limits.listener.public_listener:127.0.0.1:21000.connection_limit":{"final_value":"77"},"other":{"final_value":"1"}}}`}
	w := &watch{admin: serveAdmin(t, a)}
	l, err := w.look(t.Context(), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if l.heap != 42 || l.conns != 7 || l.inbound != 77 || l.memory <= 0 || l.files <= 0 || l.limit <= 0 || w.lastRSS() < l.memory {
		t.Errorf("look = %+v, rss %d", l, w.lastRSS())
	}
	if _, err := w.look(t.Context(), 1<<30); err == nil {
		t.Error("a process that is not there was looked at")
	}
}
