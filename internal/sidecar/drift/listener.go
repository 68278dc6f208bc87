package drift

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// sift drops faults of listeners that run what they are to run: Envoy goes on showing the
// version before when it has changed nothing but a listener's filter chains. Of those whose
// version is another the content is compared.
func sift(ctx context.Context, admin *envoyadmin.Client, found []Fault, resource func(xds.Key, string) *xds.Resource) ([]Fault, error) {
	var names []string
	for _, f := range found {
		if f.inQuestion() {
			names = append(names, regexp.QuoteMeta(f.Key.Name))
		}
	}
	if len(names) == 0 {
		return found, nil
	}
	path := dumpPath + "resource=dynamic_listeners&name_regex=" + url.QueryEscape(strings.Join(names, "|"))
	body, err := admin.Get(ctx, path)
	if err != nil {
		return nil, err
	}
	type state struct {
		Listener json.RawMessage `json:"listener"`
	}
	var answer struct {
		Configs []struct {
			Name    string `json:"name"`
			Active  state  `json:"active_state"`
			Warming state  `json:"warming_state"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("envoy admin %s: %w", path, err)
	}
	runs := map[string][]string{}
	for _, c := range answer.Configs {
		for _, s := range []state{c.Active, c.Warming} {
			if len(s.Listener) > 0 {
				runs[c.Name] = append(runs[c.Name], canonical(s.Listener))
			}
		}
	}
	var out []Fault
	for _, f := range found {
		if f.inQuestion() && same(resource(f.Key, f.Told), runs[f.Key.Name]) {
			continue
		}
		out = append(out, f)
	}
	return out, nil
}

func (f Fault) inQuestion() bool {
	return f.Key.Type == xds.ListenerType && f.Key.Name != "" && f.Told != "" && f.Runs != ""
}

// same reports whether any of the listeners that run is the resource. One that can't be
// compared is not held against Envoy.
func same(res *xds.Resource, runs []string) bool {
	if res == nil {
		return true
	}
	body, err := res.Body()
	if err != nil {
		return true
	}
	var l listenerv3.Listener
	if err := proto.Unmarshal(body, &l); err != nil {
		return true
	}
	text, err := protojson.Marshal(&l)
	if err != nil {
		return true
	}
	want := canonical(text)
	for _, r := range runs {
		if r == want || r == "" {
			return true
		}
	}
	return want == ""
}

// canonical is the same text for the same listener; empty for one that can't be read.
func canonical(text []byte) string {
	var l listenerv3.Listener
	// Envoy says of which type the message is, which is no field of it.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return ""
	}
	delete(fields, "@type")
	text, err := json.Marshal(fields)
	if err != nil {
		return ""
	}
	if err := protojson.Unmarshal(text, &l); err != nil {
		return ""
	}
	if text, err = protojson.Marshal(&l); err != nil {
		return ""
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		return ""
	}
	return out.String()
}
