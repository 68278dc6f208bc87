package routing_test

import (
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// Permissions need requests, whichever entry comes first.
func TestCheckPermissions(t *testing.T) {
	rule := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "db", Sources: []*config.SourceIntention{
		{Name: "web", Permissions: []*config.Permission{{Action: config.Allow, HTTP: &config.HTTPPermission{PathPrefix: "/"}}}},
	}}
	plain := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "db", Sources: []*config.SourceIntention{{Name: "web", Action: config.Allow}}}
	const want = `service-intentions/db: Permissions are for requests, and service "db" has protocol tcp`
	for _, tt := range []struct {
		name          string
		before, after *config.Set
		refused       bool
	}{
		{"on tcp", config.NewSet(), config.NewSet(rule), true},
		{"on http", config.NewSet(defaults("db", "http")), config.NewSet(defaults("db", "http"), rule), false},
		{"by action", config.NewSet(), config.NewSet(plain), false},
		{"http goes", config.NewSet(defaults("db", "http"), rule), config.NewSet(rule), true},
		{"http goes for all", config.NewSet(global(map[string]any{"protocol": "http"}), rule), config.NewSet(rule), true},
		{"wrong already", config.NewSet(rule), config.NewSet(rule, defaults("db", "tcp")), false},
		{"rule goes", config.NewSet(rule), config.NewSet(), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := routing.CheckPermissions(tt.before, tt.after)
			if (err != nil) != tt.refused || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, refused %v", err, tt.refused)
			}
		})
	}
}
