package server

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
)

// A sidecar is named once, by the server that it is connected to; a server that has not said
// anything of the change yet is named itself.
func TestEverywhere(t *testing.T) {
	row := func(text string) appliedSidecar {
		id, state, _ := strings.Cut(text, " ")
		return appliedSidecar{Sidecar: id, Node: "n1", State: state}
	}
	rows := func(list ...string) (out []appliedSidecar) {
		for _, text := range list {
			out = append(out, row(text))
		}
		return out
	}
	streams := func(list ...string) (out []told) {
		for _, id := range list {
			out = append(out, told{Node: "n1", Sidecar: id})
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		here    []appliedSidecar
		moments []moment
		want    string
		unheard string
	}{
		{"nobody else", rows("a acked"), nil, "a acked", ""},
		{"others have their own", rows("b acked"), []moment{
			{Node: "s2", Done: 7, Streams: streams("c"), Became: []became{{7, rows("c waiting")}}},
			{Node: "s3", Done: 9, Streams: streams("a"), Became: []became{{6, rows("a refused")}, {8, rows("a acked")}, {9, rows("a waiting")}}},
		}, "a acked; b acked; c waiting", ""},
		{"one has not been told yet", rows("b acked"), []moment{{Node: "s2", Done: 6, Streams: streams("c"), Became: []became{{6, rows("c acked")}}}}, "b acked", "s2"},
		{"one without sidecars is not waited for", rows("b acked"), []moment{{Node: "s2", Done: 6}}, "b acked", ""},
		{"one that tells nothing of changes is not waited for", rows("b acked"), []moment{{Node: "old", Streams: streams("c")}}, "b acked", ""},
		{"what is not remembered there is not taken for another", nil, []moment{{Node: "s2", Done: 9, Floor: 7, Streams: streams("c"), Became: []became{{8, rows("c refused")}}}}, "", ""},
		{"one has moved, and was told there", rows("a disconnected"), []moment{{Node: "s2", Done: 7, Streams: streams("a"), Became: []became{{7, rows("a acked")}}}}, "a acked", ""},
		{"one has come there after it", rows("a disconnected"), []moment{{Node: "s2", Done: 7, Streams: streams("a")}}, "a acked", ""},
		{"one has moved here", rows("a acked"), []moment{{Node: "s2", Done: 7, Became: []became{{7, rows("a disconnected")}}}}, "a acked", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all, unheard := everywhere(tt.here, tt.moments, 7)
			var got []string
			for _, r := range all {
				got = append(got, r.Sidecar+" "+r.State)
			}
			if strings.Join(got, "; ") != tt.want || strings.Join(unheard, " ") != tt.unheard {
				t.Errorf("%s, unheard %q; want %s, %q", fmt.Sprint(got), unheard, tt.want, tt.unheard)
			}
		})
	}
	if r := briefly([]appliedSidecar{{Waiting: make([]string, 9), Refused: []refusedResource{{Message: strings.Repeat("x", 5000)}}}})[0]; len(r.Waiting) != maxWaiting || len(r.Refused[0].Message) != maxRefusal || r.State == api.Acked {
		t.Errorf("%+v", r)
	}
}
