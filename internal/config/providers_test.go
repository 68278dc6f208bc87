package config_test

import (
	"fmt"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

func TestCheckProviders(t *testing.T) {
	provider := &config.JWTProvider{Kind: config.KindJWTProvider, Name: "shop"}
	need := &config.JWTRequirement{Providers: []*config.JWTProviderRequirement{{Name: "shop"}}}
	plain := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "db"}
	asks := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "db", JWT: need}
	inside := &config.ServiceIntentions{Kind: config.KindServiceIntentions, Name: "db",
		Sources: []*config.SourceIntention{{Name: "web", Permissions: []*config.Permission{{Action: config.Allow, JWT: need}}}}}
	const missing = `service-intentions/db: jwt-provider "shop" does not exist: write it first`
	for _, tc := range []struct {
		name          string
		before, after *config.Set
		want          string
	}{
		{"nothing", nil, nil, ""},
		{"asks for none", nil, config.NewSet(plain), ""},
		{"of one that is not there", nil, config.NewSet(asks), missing},
		{"in a permission", nil, config.NewSet(inside), missing},
		{"of one that is there", config.NewSet(provider), config.NewSet(provider, asks), ""},
		{"both at once", nil, config.NewSet(provider, inside), ""},
		{"in use", config.NewSet(provider, asks), config.NewSet(asks), "jwt-provider/shop: service-intentions/db asks for its tokens: change that first"},
		{"in use by what changes too", config.NewSet(provider, asks), config.NewSet(inside), missing},
		{"no longer in use", config.NewSet(provider, asks), config.NewSet(plain), ""},
		{"gone with its user", config.NewSet(provider, asks), config.NewSet(), ""},
		{"amiss already", config.NewSet(asks), config.NewSet(inside), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if err := config.CheckProviders(tc.before, tc.after); err != nil {
				got = fmt.Sprint(err)
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
