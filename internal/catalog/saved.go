package catalog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// What was let through last, as it is kept over a restart: a line of JSON that says what
// follows, one for each service, and a last one by which a file that breaks off is told.
// What checks have put out is left behind, but for what [Check.Silent] goes by.

type savedHead struct {
	Crossfade  string      `json:"crossfade"` // savedFormat
	Datacenter string      `json:"datacenter"`
	Index      uint64      `json:"index"`
	Held       []savedHeld `json:"held,omitempty"`
}

type savedHeld struct {
	Service string    `json:"service"`
	Since   time.Time `json:"since"`
	Kept    *Decided  `json:"kept,omitempty"`
}

type savedLine struct {
	Name      string          `json:"name,omitempty"`
	Nodes     []*Node         `json:"nodes,omitempty"`
	Instances []savedInstance `json:"instances,omitempty"`
	End       *int            `json:"end,omitempty"` // how many services there were
}

type savedInstance struct {
	Node    int      `json:"node"` // of Nodes
	Service *Service `json:"service"`
	Checks  []*Check `json:"checks,omitempty"`
}

const savedFormat = "catalog 1"

// WriteSaved writes a snapshot, and of which services instances are held in it.
func WriteSaved(to io.Writer, s *Snapshot, held []Held) error {
	w := bufio.NewWriterSize(to, 1<<16)
	lines := json.NewEncoder(w)
	head := savedHead{Crossfade: savedFormat, Datacenter: s.Datacenter, Index: s.Index}
	for _, h := range held {
		if len(h.Instances) == 0 {
			continue
		}
		saved := savedHeld{Service: h.Service, Since: h.Since}
		if !h.Kept.Time.IsZero() {
			saved.Kept = &h.Kept
		}
		head.Held = append(head.Held, saved)
	}
	if err := lines.Encode(head); err != nil {
		return err
	}
	names := s.Services()
	for _, name := range names {
		line := savedLine{Name: name}
		at := map[*Node]int{}
		for _, in := range s.Set(name).Instances {
			if _, ok := at[in.Node]; !ok {
				at[in.Node] = len(line.Nodes)
				line.Nodes = append(line.Nodes, in.Node)
			}
			line.Instances = append(line.Instances, savedInstance{at[in.Node], in.Service, savedChecks(in.Checks)})
		}
		if err := lines.Encode(line); err != nil {
			return err
		}
	}
	n := len(names)
	if err := lines.Encode(savedLine{End: &n}); err != nil {
		return err
	}
	return w.Flush()
}

func savedChecks(checks []*Check) []*Check {
	out := make([]*Check, len(checks))
	for i, c := range checks {
		short := *c
		short.Notes, short.ServiceTags = "", nil
		if short.Output = ""; strings.HasPrefix(c.Output, TTLExpired) {
			short.Output = TTLExpired
		}
		out[i] = &short
	}
	return out
}

// ReadSaved reads what [WriteSaved] wrote: all of it, or nothing and an error.
func ReadSaved(from io.Reader) (*Snapshot, []Held, error) {
	lines := json.NewDecoder(bufio.NewReaderSize(from, 1<<16))
	var head savedHead
	if err := lines.Decode(&head); err != nil {
		return nil, nil, fmt.Errorf("no saved catalog: %w", err)
	}
	if head.Crossfade != savedFormat {
		return nil, nil, fmt.Errorf("saved catalog: format %q, want %q", head.Crossfade, savedFormat)
	}
	sets := map[string]*Set{}
	for {
		var line savedLine
		if err := lines.Decode(&line); err != nil {
			return nil, nil, fmt.Errorf("saved catalog: breaks off after %d services: %w", len(sets), err)
		}
		if line.End != nil {
			if *line.End != len(sets) {
				return nil, nil, fmt.Errorf("saved catalog: %d services, want %d", len(sets), *line.End)
			}
			break
		}
		set, err := line.set()
		if err != nil {
			return nil, nil, fmt.Errorf("saved catalog: service %q: %w", line.Name, err)
		}
		sets[line.Name] = set
	}
	var held []Held
	for _, h := range head.Held {
		back := Held{Service: h.Service, Since: h.Since}
		if h.Kept != nil {
			back.Kept = *h.Kept
		}
		held = append(held, back)
	}
	return NewSnapshot(head.Datacenter, head.Index, sets), held, nil
}

func (l savedLine) set() (*Set, error) {
	list := make([]Instance, 0, len(l.Instances))
	for _, in := range l.Instances {
		if in.Node < 0 || in.Node >= len(l.Nodes) || l.Nodes[in.Node] == nil || in.Service == nil || in.Service.Name != l.Name {
			return nil, errors.New("an instance without its node or service")
		}
		for _, c := range in.Checks {
			if c == nil {
				return nil, errors.New("a check that is none")
			}
		}
		list = append(list, Instance{Node: l.Nodes[in.Node], Service: in.Service, Checks: in.Checks})
	}
	return NewSet(l.Name, list), nil
}
