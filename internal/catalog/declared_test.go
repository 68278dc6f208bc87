package catalog

import "testing"

func TestDeclared(t *testing.T) {
	all := []Upstream{{DestinationName: "db", LocalBindPort: 7100}, {DestinationName: "*"}, {DestinationName: "queue", LocalBindSocketPath: "/run/q"}, {DestinationName: "web"}}
	got := Declared(all)
	if len(got) != 2 || got[0].DestinationName != "db" || got[1].DestinationName != "queue" {
		t.Errorf("declared are %+v", got)
	}
	if all[1].DestinationName != "*" {
		t.Error("what was given is changed")
	}
}
