package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

func TestVerdictOnAWrite(t *testing.T) {
	const refused = `"state":"refused","refused":[{"type":"RouteConfiguration","name":"catalog","message":"bad\n  regex"}]`
	many := make([]string, 12)
	for i := range many {
		many[i] = fmt.Sprintf(`{"sidecar":"s%02d",%s}`, i, refused)
	}
	back := "service-defaults/web: it is written all the same: to go back run crossfade config rollback service-defaults web"
	for _, tt := range []struct {
		name, answer, line string
		errs               []string
		open               bool
	}{
		{"nobody", `{"told":true,"sidecars":[]}`, "applied on 0/0 sidecars: it changes nothing for those that are connected", nil, false},
		{"all", `{"told":true,"sidecars":[{"sidecar":"a","state":"acked"},{"sidecar":"b","state":"acked"}]}`, "applied on 2/2 sidecars in 180 ms", nil, false},
		{"a server has not said it", `{"told":true,"unheard":["s2"],"sidecars":[{"sidecar":"a","state":"acked"}]}`, "applied on 1/1 sidecars in 180 ms",
			[]string{`server "s2" has not said within 180 ms what sidecars connected there made of it`, back}, true},
		{"none has said it", `{"told":true,"unheard":["s2","s3"],"sidecars":[]}`, "applied on 0/0 sidecars in 180 ms",
			[]string{`servers "s2", "s3" have not said within 180 ms what sidecars connected there made of it`, back}, true},
		{"not told", `{"told":false}`, "applied on no sidecar yet", []string{"service-defaults/web: written, but the server has not told any sidecar within 10 s: see its log"}, true},
		{"one refuses", `{"told":true,"sidecars":[{"sidecar":"a","state":"acked"},{"sidecar":"b",` + refused + `}]}`, "applied on 1/2 sidecars in 180 ms",
			[]string{`sidecar "b" refused Route "catalog": bad regex; it keeps the version before`, back}, false},
		{"many refuse", `{"told":true,"sidecars":[` + strings.Join(many, ",") + `]}`, "applied on 0/12 sidecars in 180 ms",
			[]string{`sidecars "s00", "s01", "s02", "s03", "s04", "s05", "s06", "s07", "s08", "s09" and 2 more refused Route "catalog": bad regex; it keeps the version before`, back}, false},
		{"late and gone", `{"told":true,"sidecars":[{"sidecar":"a","state":"waiting","waiting":["Cluster \"x\""]},{"sidecar":"b","state":"disconnected"}]}`, "applied on 0/2 sidecars in 180 ms",
			[]string{`sidecar "a" has not acknowledged Cluster "x" within 180 ms`, `sidecar "b" has lost its connection to the server: it gets the change when it is back`, back}, true},
	} {
		var a applied
		if err := json.Unmarshal([]byte(tt.answer), &a); err != nil {
			t.Fatal(err)
		}
		line, err := a.verdict(taken{key: config.Key{Kind: config.KindServiceDefaults, Name: "web"}, what: "written"}.awaited(), 10*time.Second, 180*time.Millisecond)
		var errs []string
		if err != nil {
			errs = strings.Split(err.Error(), "\n")
		}
		if line != tt.line || a.open() != tt.open {
			t.Errorf("%s: %q, open %v", tt.name, line, a.open())
		}
		if diff := cmp.Diff(tt.errs, errs); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 ms", 180 * time.Millisecond: "180 ms", 2100 * time.Millisecond: "2.1 s", 10 * time.Second: "10 s"} {
		if got := shortly(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
