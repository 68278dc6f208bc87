package demo

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata")

func sample(held bool) *Report {
	end := func(service, serial string) Identity {
		return Identity{URI: serviceURI("11111111-2222-3333-4444-555555555555.consul", service), Serial: serial}
	}
	r := &Report{
		Held: held, Seconds: 71.26, Envoy: "1.40.0", TrustDomain: "11111111-2222-3333-4444-555555555555.consul",
		Pairs: []Pair{
			{From: "storefront", To: "catalog", Protocol: "http", Requests: 34567, KilledInFlight: 12, NewConnections: 6913, PerSecond: 219.9, P50: 1.23, P99: 7.5, Max: 80,
				Caller: end("storefront", "0a:1b"), Callee: end("catalog", "2c:3d")},
			{From: "catalog", To: "assignments", Protocol: "grpc", Requests: 14000, NewConnections: 2800, PerSecond: 220, P50: 1.5, P99: 9, Max: 70,
				Caller: end("catalog", "2c:3d"), Callee: end("assignments", "4e:5f")},
			{From: "visitor", To: "storefront", Protocol: "http", Requests: 320, PerSecond: 5, P50: 4, P99: 20, Max: 40},
		},
		Proofs: []*Proof{
			{Name: "start", Claim: "a server and sidecars", Held: true, Seconds: 6.5, Checks: []Check{{true, "ready"}}},
			{Name: "drain", Claim: "an instance stopped loses nothing", Held: held, Seconds: 3, Figures: map[string]any{"failed": 0}},
		},
	}
	if !held {
		r.LateMS = 1234
	}
	return r
}

func TestReportGolden(t *testing.T) {
	for name, r := range map[string]*Report{"held.txt": sample(true), "failed.txt": sample(false)} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := r.write(Options{Stdout: &got}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.String()); d != "" {
				t.Errorf("report (-want +got):\n%s", d)
			}
		})
	}
}

func TestReportForMachines(t *testing.T) {
	var got bytes.Buffer
	if err := sample(true).write(Options{Stdout: &got, JSON: true}); err != nil {
		t.Fatal(err)
	}
	var r struct {
		Held  bool
		Pairs []struct {
			Requests, Failed uint64
			KilledInFlight   uint64 `json:"killed_in_flight"`
			Caller           struct{ URI, Serial string }
		}
		Proofs []struct {
			Name    string
			Held    bool
			Figures map[string]any
		}
	}
	d := json.NewDecoder(&got)
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if d.More() {
		t.Error("more than one JSON value")
	}
	if !r.Held || len(r.Pairs) != 3 || r.Pairs[0].KilledInFlight != 12 || r.Pairs[0].Caller.Serial != "0a:1b" || r.Proofs[1].Figures["failed"] != 0.0 {
		t.Errorf("decoded: %+v", r)
	}
}
