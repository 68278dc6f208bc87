package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// lastGoodFile is in the data directory. It has the services of which sidecars refuse
// something: a server that starts would take what they run for what nobody needs, and
// give newcomers what is known not to work.
const lastGoodFile = "lastgood.json"

// keptService is what the file has of a service.
type keptService struct {
	Good    []byte                        `json:"good"` // records of package xds
	Refused []keptRefusal                 `json:"refused"`
	Refs    map[string]proxy.EndpointsRef `json:"refs"`
}

type keptRefusal struct {
	Type xds.Type `json:"type"`
	Name string   `json:"name"`
	xds.Refusal
}

// keepGood writes what is known of services of which sidecars refuse something, if it
// is not what the file has. Only run calls it.
func (m *mesh) keepGood() {
	if m.lastGood.path == "" || !m.lastGood.stale {
		return
	}
	m.lastGood.stale = false
	refuses := map[string]bool{} // whether a service that was connected lately does
	for service := range m.lastGood.seen {
		refuses[service] = true // nobody has said otherwise
	}
	for _, s := range m.sidecars {
		refuses[s.of()] = false
	}
	for _, s := range m.sidecars {
		refuses[s.of()] = refuses[s.of()] || s.refuses
	}
	all := map[string]keptService{}
	for service, does := range refuses {
		if !does {
			continue
		}
		good, refused := m.xds.Remembered(service)
		if len(refused) == 0 {
			continue
		}
		kept := keptService{Refs: m.lastGood.refs[service]}
		for _, res := range good {
			kept.Good = xds.AppendRecord(kept.Good, res.Type, []*xds.Resource{res})
		}
		for k, r := range refused {
			kept.Refused = append(kept.Refused, keptRefusal{k.Type, k.Name, r})
		}
		slices.SortFunc(kept.Refused, func(a, b keptRefusal) int { return strings.Compare(string(a.Type)+a.Name, string(b.Type)+b.Name) })
		all[service] = kept
	}
	b, err := json.Marshal(all)
	if err == nil && !bytes.Equal(b, m.lastGood.kept) {
		if err = atomicfile.Write(m.lastGood.path, b); err == nil {
			m.lastGood.kept = b
		}
	}
	if err != nil {
		m.log.Error("what sidecars run in place of what they refuse is not saved: a restart of this server forgets it", "file", m.lastGood.path, "reason", err)
	}
}

// recallGood reads what another start kept. What can't be read is as if it weren't there.
func (m *mesh) recallGood(path string, now time.Time) {
	m.lastGood.path = path
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		m.lastGood.kept = []byte("{}") // as good as none
		return
	}
	all := map[string]keptService{}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		m.log.Error("what sidecars run in place of what they refuse is lost", "file", path, "reason", err)
		return
	}
	m.lastGood.kept = b
	for service, kept := range all {
		good, err := xds.ParseRecords(kept.Good)
		if err != nil {
			m.log.Error("what sidecars run in place of what they refuse is lost", "file", path, "reason", fmt.Errorf("service %q: %w", service, err))
			continue
		}
		refused := map[xds.Key]xds.Refusal{}
		for _, r := range kept.Refused {
			refused[xds.Key{Type: r.Type, Name: r.Name}] = r.Refusal
		}
		m.xds.Remember(service, good, refused)
		m.lastGood.seen[service] = now
		if kept.Refs != nil {
			m.lastGood.refs[service] = kept.Refs
		}
	}
}
