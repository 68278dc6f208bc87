package config_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/config/configtest"
)

// Every entry of every kind reads back as it was written: by us, as YAML, and through
// Consul's own client.
func TestEntryRoundTrip(t *testing.T) {
	for _, kind := range config.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				want := configtest.Draw(t, kind, configtest.Names{})
				if err := want.Validate(); err != nil {
					t.Fatalf("before Normalize: %v", err)
				}
				want.Normalize()
				if err := want.Validate(); err != nil {
					t.Fatalf("after Normalize: %v", err)
				}
				body, err := config.EncodeEntry(want)
				if err != nil {
					t.Fatal(err)
				}
				same := func(how string, got config.Entry, err error) {
					if err != nil {
						t.Fatalf("%s: %v\n%s", how, err, body)
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%s: %s\n(-want +got)\n%s", how, body, diff)
					}
					if again, err := config.EncodeEntry(got); err != nil || string(again) != string(body) {
						t.Fatalf("%s: written again: %v\n%s\n%s", how, err, body, again)
					}
				}
				got, err := config.DecodeEntryJSON(body)
				same("JSON", got, err)
				got, err = config.DecodeEntry("a.yaml", body)
				same("YAML", got, err)
				if kind == config.KindTrafficPolicy || kind == config.KindTrafficShift || !clientKnows(want) {
					return
				}
				there, err := api.DecodeConfigEntryFromJSON(body)
				if err != nil {
					t.Fatalf("Consul's client: %v\n%s", err, body)
				}
				sent, err := json.Marshal(there)
				if err != nil {
					t.Fatal(err)
				}
				got, err = config.DecodeEntryJSON(sent)
				same("Consul's client", got, err)
				plain := reflect.New(reflect.TypeOf(there).Elem()).Interface()
				if err := json.Unmarshal(body, plain); err != nil {
					t.Fatalf("Consul's client, read as JSON: %v\n%s", err, body)
				}
				if diff := cmp.Diff(there, plain); diff != "" {
					t.Fatalf("Consul's client reads it in two ways (-decoded +JSON):\n%s", diff)
				}
			})
		})
	}
}

// clientKnows reports whether Consul's client has a place for all of e: it takes a
// MergeSlashes that is off for one that is not given.
func clientKnows(e config.Entry) bool {
	m, ok := e.(*config.Mesh)
	if !ok {
		return true
	}
	if m.HTTP == nil || m.HTTP.Incoming == nil || m.HTTP.Incoming.RequestNormalization == nil {
		return true
	}
	merge := m.HTTP.Incoming.RequestNormalization.MergeSlashes
	return merge == nil || *merge
}

// A field that the generator never sets would be in no test above.
func TestGeneratorSetsEveryField(t *testing.T) {
	set := map[string]bool{}
	for _, kind := range config.Kinds() {
		gen := rapid.Custom(func(t *rapid.T) config.Entry { return configtest.Draw(t, kind, configtest.Names{}) })
		for seed := range 1000 {
			configtest.Mark(reflect.ValueOf(gen.Example(seed)), set)
		}
		for _, field := range configtest.Fields(reflect.TypeOf(gen.Example(0))) {
			// Normalize sets the kind, and no share may be on the plain way yet.
			if !set[field] && !strings.HasSuffix(field, ".Kind") && field != "Shares.Plain" {
				t.Errorf("%s: %s is never set", kind, field)
			}
		}
	}
}
