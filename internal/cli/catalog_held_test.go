package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/api"
)

func TestShowHeld(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name string
		held api.CatalogHeld
		want string
	}{
		{"off", api.CatalogHeld{}, "The endpoint guard is off: nothing is held.\n"},
		{"nothing", api.CatalogHeld{Guard: api.GuardPolicy{On: true}}, "Nothing is held.\n"},
		{"some", api.CatalogHeld{
			Guard: api.GuardPolicy{On: true},
			Services: []api.HeldService{{Service: "catalog", Since: at, Why: "they are gone", KeptBy: "operator 7",
				Gone: []api.HeldInstance{{ID: "c-1", Node: "n1", Address: "10.0.0.1", Port: 80}}, Silent: []api.HeldInstance{{ID: "c-2", Node: "n2", Address: "10.0.0.2", Port: 81}}}},
			LeftOut: []api.LeftOut{{Service: "web", Reason: "port 0"}},
		}, "Service\tInstance\tNode\tAddress\tState\tSince\tKept by\n" +
			"catalog\tc-1\tn1\t10.0.0.1:80\tgone\t2026-01-01T12:00:00Z\toperator 7\n" +
			"catalog\tc-2\tn2\t10.0.0.2:81\tsilent\t2026-01-01T12:00:00Z\toperator 7\n" +
			"\nthey are gone.\n\nLeft out\tReason\nweb\tport 0\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			showHeld(&b, tt.held)
			if b.String() != tt.want {
				t.Errorf("shows\n%s\nwant\n%s", b.String(), tt.want)
			}
		})
	}
}
