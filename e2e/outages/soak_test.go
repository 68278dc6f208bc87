package outages

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/sidecar"
)

// soak is what a soak found, in a line.
type soak struct {
	Seconds   float64 `json:"seconds"` // without a server
	Deploys   int     `json:"deploys"` // of catalog, of two instances each
	Unchanged counted `json:"unchanged"`
	Deployed  counted `json:"deployed"`
	InSync    float64 `json:"in_sync_seconds"` // all sidecars, from when servers were started again
	// Resident sizes of the caller's processes, at the beginning and the end.
	Envoy   [2]int64 `json:"envoy_rss_bytes"`
	Sidecar [2]int64 `json:"sidecar_rss_bytes"`
}

type counted struct {
	Requests uint64 `json:"requests"`
	Failed   uint64 `json:"failed"`
}

// For as long as SOAK says there is no server and no registry, while one service is deployed up to ten
// times and another is let alone; by default for some seconds, with one deploy. make soak takes an hour.
func TestSoak(t *testing.T) {
	t.Parallel()
	length := 4 * time.Second
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil || length <= 0 {
			t.Fatalf("SOAK=%s: want a duration such as 1h: %v", text, err)
		}
	}
	deploys := min(10, 1+int(length/time.Minute))
	w := newWorld(t, 1)
	w.add("catalog", "catalog-1")
	w.add("catalog", "catalog-2")
	w.add("other", "other-1")
	web := w.add("web", "web-1", "catalog", "other")
	deployed, unchanged := web.load("catalog", 50), web.load("other", 50)
	out := soak{Deploys: deploys}
	out.Envoy[0], out.Sidecar[0] = web.sizes()

	for _, s := range append(slices.Clone(w.servers), w.registry) {
		s.end(syscall.SIGKILL)
	}
	began := time.Now()
	for n := range deploys {
		for _, id := range []string{"catalog-1", "catalog-2"} {
			in := w.sidecars[id]
			in.end(syscall.SIGTERM)
			in.start()
			in.ready()
			deployed.answersWithin(5*time.Minute, id) // or it would be the only one when the other goes
		}
		next := began.Add(length / time.Duration(deploys) * time.Duration(n+1))
		<-time.After(time.Until(next)) // it is time that is to pass
	}
	out.Seconds = time.Since(began).Seconds()
	out.Envoy[1], out.Sidecar[1] = web.sizes()

	began = time.Now()
	w.registry = w.startRegistry(portOf(t, w.httpAddr), 0)
	w.startServer(0, 0)
	for _, in := range w.sidecars {
		in.within(15*time.Second, "in sync", func(st sidecar.Status) bool { return st.XDS.Connected && !st.XDS.FromLastGood && st.Registered })
	}
	out.InSync = time.Since(began).Seconds()
	deployed.answersWithin(5*time.Minute, "catalog-1")
	deployed.answersWithin(5*time.Minute, "catalog-2")
	deployed.nothingFailed()
	unchanged.nothingFailed()
	for at, tr := range map[*counted]*traffic{&out.Deployed: deployed, &out.Unchanged: unchanged} {
		totals := tr.rec.Totals()
		at.Requests, at.Failed = totals.Requests, totals.Failed
	}
	line, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stdout, "soak: %s\n", line)
}

// sizes are those of Envoy and of the sidecar.
func (in *instance) sizes() (envoy, self int64) {
	in.w.t.Helper()
	st, err := in.status()
	if err == nil {
		if envoy, err = lab.ResidentSize(st.Envoy.PID); err == nil {
			self, err = lab.ResidentSize(st.PID)
		}
	}
	if err != nil {
		in.w.t.Fatal(err)
	}
	return envoy, self
}
