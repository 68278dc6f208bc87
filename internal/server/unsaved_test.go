package server_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// A revert is in force though the disk takes nothing, says so, and is saved once it does
// again. It runs in a process of its own, whose files may not be written.
func TestRevertWithoutADisk(t *testing.T) {
	const child = "CROSSFADE_TEST_DISK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRevertWithoutADisk$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestRevertWithoutADisk") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s := servertest.Start(t, server.Options{DataDir: t.TempDir(), DefaultAllow: true})
	_, operator := s.Token(`{"role":"operator"}`)
	c := apiOf(t, s, operator)
	s.Register("web.yaml", "service: web\nport: 8080\nprotocol: http\nupstreams: [\"catalog:7100\"]\n")
	s.Register("catalog.yaml", "service: catalog\nport: 8081\nprotocol: http\n")
	s.Write(shiftEntry(config.Shares{Direct: 50, MTLS: 50}))
	meshtest.Eventually(t, "the pair is known", func() error { return shares(t, c, api.Shares{Direct: 50, MTLS: 50}) })

	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	full := was
	full.Cur = 1
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	done, err := c.Revert(t.Context(), api.RevertRequest{Pairs: []api.PairName{pairOf("web", "catalog")}, Force: true})
	if err != nil || done.Unsaved == "" || done.Pairs[0].After != (api.Shares{Direct: 100}) || done.Index == 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if p, err := c.Pair(t.Context(), "web", "catalog"); err != nil || p.Shares != (api.Shares{Direct: 100}) || p.Unsaved == "" {
		t.Errorf("%+v, %v", p, err)
	}
	if a, err := c.Applied(t.Context(), done.Index, 0); err != nil || !a.Told && a.Index == 0 {
		t.Errorf("%+v, %v", a, err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "it is saved", func() error {
		p, err := c.Pair(t.Context(), "web", "catalog")
		if err != nil || p.Unsaved != "" || len(p.History) == 0 || p.History[0].What != "reverted" || p.Shares != (api.Shares{Direct: 100}) {
			return fmt.Errorf("%+v, %v", p, err)
		}
		return nil
	})
}

func shiftEntry(shares config.Shares) *config.TrafficShift {
	e := &config.TrafficShift{Source: "web", Destination: "catalog", Shares: shares}
	e.Normalize()
	return e
}

func shares(t *testing.T, c *api.Client, want api.Shares) error {
	t.Helper()
	p, err := c.Pair(t.Context(), "web", "catalog")
	if err != nil || p.Shares != want {
		return fmt.Errorf("%+v, %v; want %v", p, err, want)
	}
	return nil
}

// A server that has lost the newest shares takes them from the first sidecar that has them,
// and never takes older ones, others' pairs or nonsense.
func TestSharesAreAdopted(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	c := apiOf(t, s, "")
	s.Register("web.yaml", "service: web\nport: 8080\nprotocol: http\nupstreams: [\"catalog:7100\"]\n")
	s.Register("catalog.yaml", "service: catalog\nport: 8081\nprotocol: http\n")
	s.Write(shiftEntry(config.Shares{Direct: 50, MTLS: 50}))
	s.Write(shiftEntry(config.Shares{Direct: 40, MTLS: 60}))
	s.Write(shiftEntry(config.Shares{Direct: 30, MTLS: 70})) // generation 2
	connect := func(held map[string]any) {
		t.Helper()
		meta, err := structpb.NewStruct(map[string]any{"crossfade_relay": true, "crossfade_shifts": held})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := xds.Connect(t.Context(), s.Conn(), &corev3.Node{Id: "web-sidecar-proxy", Metadata: meta})
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(xds.Request{Type: xds.ClusterType}); err != nil {
			t.Fatal(err)
		}
		if err := stream.Admitted(); err != nil {
			t.Fatal(err)
		}
	}
	unchanged := api.Shares{Direct: 30, MTLS: 70}
	for _, held := range []map[string]any{
		{"catalog": "1 legacy=0 direct=10000 plain=0 mtls=0"},
		{"catalog": "2 legacy=0 direct=10000 plain=0 mtls=0"},
		{"catalog": "nonsense"}, {"catalog": 7.0},
		{"catalog": "9 legacy=0 direct=1 plain=0 mtls=0"},
		{"catalog": "18446744073709551615 legacy=0 direct=10000 plain=0 mtls=0"},
		{"other": "9 legacy=0 direct=10000 plain=0 mtls=0"},
	} {
		connect(held)
		if err := shares(t, c, unchanged); err != nil {
			t.Errorf("%v: %v", held, err)
		}
	}
	connect(map[string]any{"catalog": "7 legacy=0 direct=10000 plain=0 mtls=0"})
	if err := shares(t, c, api.Shares{Direct: 100}); err != nil {
		t.Error(err)
	}
	_, body := s.Call(http.MethodGet, "/v1/config/traffic-shift/web~catalog", nil)
	if !strings.Contains(string(body), `"Generation":7`) {
		t.Errorf("%s", body)
	}
}
