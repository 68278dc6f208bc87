package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

const (
	// tellEvery is how often servers tell each other of the moment.
	tellEvery = time.Second
	// hasteEvery is how often it is looked whether somebody may wait for what sidecars here made
	// of a change: that is told at once.
	hasteEvery = tellEvery / 5
	// retold is for how long a report is told: one note may be overtaken by the next.
	retold = 5 * time.Second
	// maxRetold bounds the reports in a note.
	maxRetold = 5000
	// maxMoment bounds what is read of one.
	maxMoment = 64 << 20
)

// moment is what one server of several tells the others: how far the sidecars are that are connected
// to it, and what they report.
type moment struct {
	Node string `json:"node"`
	// Streams are the connected sidecars, and why one does not run all that it was told.
	Streams []told `json:"streams,omitempty"`
	// Runs is by service up to which index of the entries all of its sidecars here run them.
	Runs map[string]uint64 `json:"runs,omitempty"`
	// Done is up to which index of the entries sidecars here were told, and Became what they
	// made of the newest changes after Floor; Done is 0 when nothing is told of that.
	Done    uint64      `json:"done,omitempty"`
	Floor   uint64      `json:"floor,omitempty"`
	Became  []became    `json:"became,omitempty"`
	Reports []retelling `json:"reports,omitempty"`
}

type told struct {
	Node    string `json:"node"`
	Sidecar string `json:"sidecar"`
	Behind  string `json:"behind,omitempty"`
}

// retelling is a report, which whoever hears it twice knows again.
type retelling struct {
	Key    telemetry.Key    `json:"key"`
	Report telemetry.Report `json:"report"`

	at time.Time
}

// others is what servers of one Consul know of each other's sidecars.
type others struct {
	mu     sync.Mutex
	recent []retelling       // guarded by mu
	heard  map[string]moment // by session; guarded by mu
	newer  chan struct{}     // closed when something is heard; guarded by mu
}

// keep remembers a report, to be told to others.
func (o *others) keep(key telemetry.Key, r telemetry.Report, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recent = append(o.recent, retelling{key, r, now})
	o.recent = o.recent[max(0, len(o.recent)-maxRetold):]
}

// newest are the reports to be told now.
func (o *others) newest(now time.Time) []retelling {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recent = slices.DeleteFunc(o.recent, func(r retelling) bool { return now.Sub(r.at) > retold })
	return slices.Clone(o.recent)
}

// moments is what is known, and a channel that closes when there is something newer.
func (o *others) moments() (out []moment, newer <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range o.heard {
		out = append(out, m)
	}
	if o.newer == nil {
		o.newer = make(chan struct{})
	}
	return out, o.newer
}

// tell tells other servers of the moment, and hears them, until ctx ends.
func (s *Server) tell(ctx context.Context, e *consulstore.Engine) {
	tick := time.NewTicker(hasteEvery)
	defer tick.Stop()
	var said time.Time
	var b becoming
	for {
		heard, newer := e.Heard()
		s.hear(heard)
		select {
		case <-ctx.Done():
			return
		case <-newer:
		case now := <-tick.C:
			if news := b.look(s.mesh, now); !news && now.Sub(said) < tellEvery {
				continue
			}
			said = now
			m := s.moment(now)
			m.Done, m.Floor, m.Became = b.done, b.floor, b.list
			note, err := packMoment(m)
			if err == nil && len(note) > consulstore.MaxNote && len(m.Became) > 0 {
				s.opts.Log.Warn("what sidecars here made of changes is too much to be told to other servers: whoever writes there does not hear of it", "changes", len(m.Became), "bytes", len(note))
				m.Done, m.Floor, m.Became = 0, 0, nil
				note, err = packMoment(m)
			}
			if err == nil && len(note) > consulstore.MaxNote && len(m.Reports) > 0 {
				s.opts.Log.Warn("what sidecars here report is too much to be told to other servers: the shift guard does not see it", "reports", len(m.Reports), "bytes", len(note))
				m.Reports = nil
				note, err = packMoment(m)
			}
			if err != nil || len(note) > consulstore.MaxNote {
				s.opts.Log.Error("other servers can't be told of sidecars here: shifts of their services stand still", "bytes", len(note), "reason", err)
				continue
			}
			e.Say(note)
		}
	}
}

// moment is what there is to tell. While nothing is shifted there is no need of reports.
func (s *Server) moment(now time.Time) moment {
	out := moment{Node: s.opts.NodeName, Runs: map[string]uint64{}}
	snap := s.mesh.snapshot()
	shifts := false
	s.store.Read(context.Background(), 0, func(r *store.Reader) { shifts = len(r.Entries(config.KindTrafficShift)) > 0 })
	standing := s.mesh.standing(snap)
	for _, in := range snap.Proxies() {
		service := in.Service.Proxy.DestinationServiceName
		st, ok := standing[in.Service]
		if !ok {
			continue
		}
		out.Streams = append(out.Streams, told{in.Node.Name, in.Service.ID, st.behind})
		if _, done := out.Runs[service]; !done && shifts {
			out.Runs[service] = s.mesh.runsUpTo(service)
		}
	}
	if shifts {
		out.Reports = s.others.newest(now)
	}
	return out
}

// runsUpTo is the index of the entries up to which all connected sidecars of a service run them.
func (m *mesh) runsUpTo(service string) uint64 {
	m.mu.Lock()
	done, list := m.changes.done, slices.Clone(m.changes.list)
	m.mu.Unlock()
	for _, c := range list {
		if !m.answered(c, service) {
			return c.index - 1
		}
	}
	return done
}

// hear takes in what other servers have told.
func (s *Server) hear(notes map[string][]byte) {
	heard := map[string]moment{}
	for id, note := range notes {
		m, err := unpackMoment(note)
		if err != nil {
			s.opts.Log.Debug("another server can't be understood", "reason", err)
			continue
		}
		heard[id] = m
		for _, r := range m.Reports {
			s.mesh.report(r.Key, r.Report, time.Now())
		}
	}
	s.others.mu.Lock()
	defer s.others.mu.Unlock()
	s.others.heard = heard
	if s.others.newer != nil {
		close(s.others.newer)
		s.others.newer = nil
	}
}

func packMoment(m moment) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	err := errors.Join(json.NewEncoder(z).Encode(m), z.Close())
	return b.Bytes(), err
}

func unpackMoment(note []byte) (m moment, err error) {
	z, err := gzip.NewReader(bytes.NewReader(note))
	if err != nil {
		return m, err
	}
	return m, json.NewDecoder(io.LimitReader(z, maxMoment)).Decode(&m)
}

// elsewhere adds sidecars that are connected to other servers.
func (b *books) elsewhere(list []moment) {
	b.runsThere = map[*catalog.Service]map[string]uint64{}
	for _, m := range list {
		for _, t := range m.Streams {
			in, ok := b.snap.Proxy(t.Sidecar, t.Node)
			if _, here := b.streams[in.Service]; !ok || here {
				continue
			}
			b.streams[in.Service] = stream{t.Behind}
			b.runsThere[in.Service] = m.Runs
		}
	}
}
