package consulapi_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
)

// What the API for single intentions changes leaves the rest of the entry as it was.
func TestSingleIntentionsKeepTheirEntry(t *testing.T) {
	s, _ := newServer(t, "")
	c := newClient(t, s.URL)
	entry := &api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "db", Meta: map[string]string{"team": "stock"},
		JWT:     &api.IntentionJWTRequirement{Providers: []*api.IntentionJWTProvider{{Name: "shop"}}},
		Sources: []*api.SourceIntention{{Name: "web", Action: api.IntentionActionAllow}},
	}
	_, _, err := c.ConfigEntries().Set(entry, nil)
	must(t, err)
	rule := []*api.IntentionPermission{{Action: api.IntentionActionAllow, HTTP: &api.IntentionHTTPPermission{PathPrefix: "/read", Methods: []string{"GET"}}}}
	_, err = c.Connect().IntentionUpsert(&api.Intention{SourceName: "api", DestinationName: "db", SourceType: api.IntentionSourceConsul, Permissions: rule}, nil)
	must(t, err)

	got, _, err := c.Connect().IntentionGetExact("api", "db", nil)
	must(t, err)
	if diff := cmp.Diff(rule, got.Permissions); diff != "" || got.Action != "" {
		t.Errorf("action %q, permissions (-want +got)\n%s", got.Action, diff)
	}
	if allowed, _, err := c.Connect().IntentionCheck(&api.IntentionCheck{Source: "api", Destination: "db"}, nil); err != nil || allowed {
		t.Errorf("a connection is allowed where requests are judged: %v, %v", allowed, err)
	}
	if _, err := c.Connect().IntentionDeleteExact("web", "db", nil); err != nil {
		t.Fatal(err)
	}
	kept, _, err := c.ConfigEntries().Get(api.ServiceIntentions, "db", nil)
	must(t, err)
	if e := kept.(*api.ServiceIntentionsConfigEntry); e.JWT == nil || e.Meta["team"] != "stock" || len(e.Sources) != 1 || e.Sources[0].Name != "api" {
		t.Errorf("the entry is now %+v", e)
	}
	_, err = c.Connect().IntentionUpsert(&api.Intention{SourceName: "api", DestinationName: "db", Action: api.IntentionActionAllow, Permissions: rule}, nil)
	if err == nil || !strings.Contains(err.Error(), "Action must be omitted if Permissions are specified") {
		t.Errorf("both: %v", err)
	}
}
