package catalog

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What was let through last, as it is kept over a restart: a line of JSON that says what
// follows, one for each service, and a last one by which a file that breaks off is told.
// What checks have put out is left behind, but for what [Check.Silent] goes by. A line of a service
// begins with a sum, by which it need not be read where the registry has the same.

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
	Sum       string          `json:"sum,omitempty"` // of the set; "" in files of earlier versions
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

// maxSavedLine bounds a line, in bytes.
const maxSavedLine = 1 << 28

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
	var line savedLine
	var checks savedChecks
	at := map[*Node]int{}
	for _, name := range names {
		set := s.Set(name)
		line.Name, line.Sum, line.Nodes, line.Instances = name, set.sum(), line.Nodes[:0], line.Instances[:0]
		clear(at)
		checks.room(set)
		for _, in := range set.Instances {
			if _, ok := at[in.Node]; !ok {
				at[in.Node] = len(line.Nodes)
				line.Nodes = append(line.Nodes, in.Node)
			}
			line.Instances = append(line.Instances, savedInstance{at[in.Node], in.Service, checks.of(in)})
		}
		if err := lines.Encode(&line); err != nil {
			return err
		}
	}
	n := len(names)
	if err := lines.Encode(savedLine{End: &n}); err != nil {
		return err
	}
	return w.Flush()
}

// savedChecks has the checks of one set after the other, as they are saved.
type savedChecks struct {
	short []Check
	refs  []*Check // to these
}

// room makes room for the checks of a set, in place of those before.
func (s *savedChecks) room(set *Set) {
	n := 0
	for _, in := range set.Instances {
		n += len(in.Checks)
	}
	s.short, s.refs = slices.Grow(s.short[:0], n), slices.Grow(s.refs[:0], n)
}

func (s *savedChecks) of(in Instance) []*Check {
	first := len(s.refs)
	for _, c := range in.Checks {
		short := *c
		short.Notes, short.ServiceTags = "", nil
		if short.Output = ""; strings.HasPrefix(c.Output, TTLExpired) {
			short.Output = TTLExpired
		}
		s.short = append(s.short, short)
		s.refs = append(s.refs, &s.short[len(s.short)-1])
	}
	return s.refs[first:]
}

// sum is the same for sets whose instances are the same, at the same addresses and in the same health.
func (s *Set) sum() string {
	if s == nil {
		return ""
	}
	h := sha256.New()
	var b []byte
	for _, in := range s.Instances {
		b = b[:0]
		for _, text := range []string{in.Node.Name, in.Node.Address, in.Service.ID, in.Service.Address} {
			b = append(append(b, text...), 0)
		}
		b = strconv.AppendInt(b, int64(in.Service.Port), 10)
		for _, c := range in.Checks {
			b = append(append(append(append(append(b, 0), c.CheckID...), 0), c.Status...), 0)
			b = strconv.AppendBool(strconv.AppendBool(b, c.Silent()), c.Unrun())
		}
		h.Write(append(b, '\n'))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// ReadSaved reads what [WriteSaved] wrote: all of it, or nothing and an error. Sets that are in have
// with the same instances in the same health are taken from there; it may be nil.
func ReadSaved(from io.Reader, have *Snapshot) (*Snapshot, []Held, error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxSavedLine)
	next := func() error {
		if !lines.Scan() {
			return cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
		}
		return nil
	}
	var head savedHead
	if err := next(); err != nil {
		return nil, nil, fmt.Errorf("no saved catalog: %w", err)
	}
	if err := json.Unmarshal(lines.Bytes(), &head); err != nil {
		return nil, nil, fmt.Errorf("no saved catalog: %w", err)
	}
	if head.Crossfade != savedFormat {
		return nil, nil, fmt.Errorf("saved catalog: format %q, want %q", head.Crossfade, savedFormat)
	}
	sets := map[string]*Set{}
	for {
		if err := next(); err != nil {
			return nil, nil, fmt.Errorf("saved catalog: breaks off after %d services: %w", len(sets), err)
		}
		if set := known(lines.Bytes(), have); set != nil {
			sets[set.Name] = set
			continue
		}
		var line savedLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
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

// known is the set of have that a line is of, if it has the line's sum.
func known(line []byte, have *Snapshot) *Set {
	if have == nil || len(line) == 0 || line[len(line)-1] != '}' {
		return nil
	}
	tokens := json.NewDecoder(bytes.NewReader(line))
	var begin [5]json.Token // {"name": NAME, "sum": SUM
	for i := range begin {
		t, err := tokens.Token()
		if err != nil {
			return nil
		}
		begin[i] = t
	}
	name, ok := begin[2].(string)
	if !ok || begin[1] != "name" || begin[3] != "sum" {
		return nil
	}
	if set := have.Set(name); set != nil && begin[4] == set.sum() {
		return set
	}
	return nil
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
