package store

import (
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Services and checks are read as encoding/json reads them, whatever is in them and though a byte of
// them is another.
func TestRowsAreReadAsJSON(t *testing.T) {
	word := rapid.OneOf(rapid.SampledFrom([]string{"", "web", "a b", `"`, `\`, "<&>", "ü", "\x7f", "{", "},", "[1]", "null", "\n"}), rapid.String())
	words := rapid.SliceOfN(word, 0, 3)
	pairs := rapid.MapOfN(word, word, 0, 3)
	number := rapid.OneOf(rapid.IntRange(-2, 70_000), rapid.Int())
	once := newAlike()
	var before, asBefore any
	rapid.Check(t, func(t *rapid.T) {
		s := serviceRow{word.Draw(t, "node"), catalog.Service{
			Kind: catalog.Kind(word.Draw(t, "kind")), ID: word.Draw(t, "id"), Name: word.Draw(t, "name"), Tags: words.Draw(t, "tags"), Address: word.Draw(t, "address"),
			Port: number.Draw(t, "port"), SocketPath: word.Draw(t, "socket"), Meta: pairs.Draw(t, "meta"), Weights: catalog.Weights{Passing: number.Draw(t, "weight")},
			EnableTagOverride: rapid.Bool().Draw(t, "override"), Connect: catalog.Connect{Native: rapid.Bool().Draw(t, "native")},
			CreateIndex: rapid.Uint64().Draw(t, "create"), ModifyIndex: 7,
		}}
		if rapid.Bool().Draw(t, "tagged") {
			s.Service.TaggedAddresses = map[string]catalog.Address{"lan": {Address: word.Draw(t, "lan"), Port: 1}}
		}
		if rapid.Bool().Draw(t, "proxy") {
			s.Service.Proxy = &catalog.Proxy{
				DestinationServiceName: word.Draw(t, "callee"), DestinationServiceID: word.Draw(t, "of"), LocalServicePort: number.Draw(t, "local"), Mode: word.Draw(t, "mode"),
				LocalServiceAddress: word.Draw(t, "host"), LocalServiceSocketPath: word.Draw(t, "path"), Expose: catalog.Expose{Checks: rapid.Bool().Draw(t, "expose")},
			}
			if rapid.Bool().Draw(t, "more") {
				s.Service.Proxy.Config = map[string]any{word.Draw(t, "key"): word.Draw(t, "value"), "n": 1.5}
				s.Service.Proxy.Upstreams = []catalog.Upstream{{DestinationName: word.Draw(t, "upstream"), LocalBindPort: number.Draw(t, "bind")}}
			}
		}
		c := checkRow{Check: catalog.Check{
			Node: word.Draw(t, "node"), CheckID: word.Draw(t, "id"), Name: word.Draw(t, "name"), Status: catalog.Status(word.Draw(t, "status")), Notes: word.Draw(t, "notes"),
			Output: word.Draw(t, "output"), ServiceID: word.Draw(t, "of"), ServiceName: word.Draw(t, "service"), ServiceTags: words.Draw(t, "tags"), Type: word.Draw(t, "type"),
			Interval: word.Draw(t, "interval"), Timeout: word.Draw(t, "timeout"), CreateIndex: 3, ModifyIndex: rapid.Uint64().Draw(t, "modify"),
		}}
		if rapid.Bool().Draw(t, "definition") {
			c.Definition = &config.CheckDefinition{ID: c.Check.CheckID, HTTP: word.Draw(t, "url")}
		}
		at, with := rapid.IntRange(-1, 400).Draw(t, "at"), rapid.Byte().Draw(t, "with")
		same := func(row, want any, decode func([]byte, *alike) (any, error)) {
			t.Helper()
			b, err := encode(row)
			if err != nil {
				t.Fatal(err)
			}
			if at >= 0 && at < len(b) {
				b[at] = with
			}
			wrong := json.Unmarshal(b, want)
			for _, a := range []*alike{nil, once, once} {
				got, err := decode(b, a)
				if (err == nil) != (wrong == nil) || err == nil && !reflect.DeepEqual(got, want) {
					t.Fatalf("%s:\n%+v, %v, want\n%+v, %v", b, got, err, want, wrong)
				}
				if !reflect.DeepEqual(before, asBefore) {
					t.Fatalf("another row was read, and that before it is\n%+v, and was\n%+v", before, asBefore)
				}
				if a == once && err == nil {
					before, asBefore = got, want
				}
			}
		}
		same(&s, &serviceRow{}, decodeService)
		same(&c, &checkRow{}, decodeCheck)
	})
}

// What most rows are is read without encoding/json, and what they have alike is held once.
func TestRowsAreReadQuickly(t *testing.T) {
	once := newAlike()
	var rows [2]*serviceRow
	for i := range rows {
		b, err := encode(&serviceRow{"n1", catalog.Service{
			Kind: catalog.ConnectProxy, ID: "web-sidecar-proxy", Name: "web", Tags: []string{"v1"}, Port: 1, Weights: catalog.Weights{Passing: 1, Warning: 1},
			Proxy: &catalog.Proxy{DestinationServiceName: "web", Upstreams: []catalog.Upstream{{DestinationName: "db", LocalBindPort: 7}}, Config: map[string]any{"a": 1}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		var ok bool
		if rows[i], ok = once.serviceRow(b); !ok {
			t.Fatalf("not read: %s", b)
		}
	}
	if a, b := rows[0].Service.Proxy, rows[1].Service.Proxy; &a.Upstreams[0] != &b.Upstreams[0] || reflect.ValueOf(a.Config).Pointer() != reflect.ValueOf(b.Config).Pointer() {
		t.Error("two rows hold the same twice")
	}
	b, err := encode(&checkRow{Check: catalog.Check{Node: "n1", CheckID: "alive", Status: catalog.Passing, ServiceTags: []string{}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := once.checkRow(b); !ok {
		t.Errorf("not read: %s", b)
	}
}
