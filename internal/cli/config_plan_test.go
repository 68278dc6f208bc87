package cli

import (
	"fmt"
	"strings"
	"testing"
)

func TestPlanInWords(t *testing.T) {
	for _, tt := range []struct {
		p    planned
		want string
	}{
		{planned{Sidecars: 12}, "0 of 12 sidecars change; no listener changes, no connection drains"},
		{planned{Sidecars: 12, Changing: 1, Listeners: 1, Connections: 1}, "1 of 12 sidecars changes; 1 listener changes and drains 1 open connection"},
		{planned{Sidecars: 12, Changing: 3, Listeners: 2, Connections: 40}, "3 of 12 sidecars change; 2 listeners change and drain 40 open connections"},
		{planned{Sidecars: 12, Changing: 3, Listeners: 2, Unknown: 2}, "3 of 12 sidecars change; 2 listeners change and drain an unknown number of open connections"},
		{planned{Sidecars: 12, Changing: 3, Listeners: 2, Connections: 4, Unknown: 1}, "3 of 12 sidecars change; 2 listeners change and drain 4 open connections and an unknown number on 1 of them"},
	} {
		if got := tt.p.summary(); got != tt.want {
			t.Errorf("%s\nwant %s", got, tt.want)
		}
	}

	p := planned{Sidecars: 20, Changing: 15}
	for i := range 15 {
		p.Changes = append(p.Changes, plannedChange{Type: "Listener", Name: fmt.Sprintf("public_listener:127.0.0.1:%d", 21000+i), Action: "changed",
			Sidecars: []string{fmt.Sprintf("web-%02d", i)}, Drains: true, Diff: "+x\n"})
	}
	p.Changes = append(p.Changes, plannedChange{Type: "Listener", Name: "public_listener:127.0.0.1:1", Action: "removed", Sidecars: []string{"a", "b"}, More: 3, Diff: "-x\n"})
	var out strings.Builder
	p.print(&out)
	for _, want := range []string{
		"\nListener \"public_listener:127.0.0.1:21001\" changed on web-01, its connections drain\n+x\n",
		"\nListener \"public_listener:127.0.0.1:1\" removed on a, b and 3 more\n-x\n",
		"\nListener \"public_listener:…\" changed, much as above, on sidecars \"web-02\", \"web-03\", ",
		"\"web-11\" and 3 more: -o json shows each\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "21002") {
		t.Error("what is alike is shown again and again")
	}
}
