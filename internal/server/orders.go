package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// stateOrder begins the names of commands that one server leaves to that which moves shares.
const stateOrder = "order/"

const (
	// obeyedWithin is how long a command waits for the server that moves shares.
	obeyedWithin = 5 * time.Second
	// orderKept is how long one stays that nobody asks for any more.
	orderKept = time.Minute
)

// order is commands on their way, and what became of them.
type order struct {
	At       time.Time         `json:"at"`
	Commands []shift.Command   `json:"commands"`
	Done     bool              `json:"done,omitempty"`
	Refused  map[string]string `json:"refused,omitempty"` // by pair
}

// tick looks at shifts, if this server is to.
func (p *stepper) tick(now time.Time) {
	if p.s.store.Holds(lockShifts) {
		p.obey(now)
		p.step(now, nil, true)
		return
	}
	p.s.mesh.book.Drain() // it is for who compares; what is old then is no evidence
	p.s.saveUnsaved()
	over := p.follow()
	if len(over) > 0 {
		if _, err := p.leave(over); err != nil {
			p.log.Warn("the server that moves shares cannot be told of a revert, it sees it by the shares", "reason", err)
		}
	}
}

// follow goes on from what another server has done, and returns what that one is to be told.
func (p *stepper) follow() []shift.Command {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	p.refresh()
	return p.overruled()
}

// kept is what the store has of the shifts.
func (p *stepper) kept() (raw []byte) {
	p.s.store.Read(context.Background(), 0, func(r *store.Reader) { raw = r.State(stateName) })
	return raw
}

// sight is what is so last: here, or where another server moves shares, there.
func (p *stepper) sight() *sight {
	s := p.seen.Load()
	if p.s.store.Holds(lockShifts) {
		return s
	}
	raw := p.kept()
	var now remembered
	if bytes.Equal(raw, s.row) || json.Unmarshal(raw, &now) != nil {
		return s
	}
	next := *s
	next.shifts, next.watches, next.row = now.State.Shifts, now.Watches, raw
	p.seen.CompareAndSwap(s, &next)
	return &next
}

// refresh goes on from what another server has put in the store. The caller has the turn.
func (p *stepper) refresh() {
	raw := p.kept()
	if bytes.Equal(raw, p.row) {
		return
	}
	if err := p.recall(raw); err != nil {
		p.log.Error("shifts that another server moves can't be read", "reason", err)
	}
}

// leave puts commands where the server that moves shares finds them.
func (p *stepper) leave(list []shift.Command) (name string, err error) {
	name = stateOrder + rand.Text()
	value, err := json.Marshal(order{At: time.Now().UTC(), Commands: list})
	if err != nil {
		return "", err
	}
	return name, p.s.store.Update(func(w *store.Writer) error { return w.PutState(name, value) })
}

// forward leaves commands to the server that moves shares, and waits for what becomes of them.
func (p *stepper) forward(list []shift.Command) map[shift.Pair]string {
	refused := map[shift.Pair]string{}
	all := func(why string) map[shift.Pair]string {
		for _, c := range list {
			refused[c.Pair] = why
		}
		return refused
	}
	name, err := p.leave(list)
	if err != nil {
		return all(err.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), obeyedWithin)
	defer cancel()
	var now order
	p.s.store.ReadUntil(ctx, func(r *store.Reader) bool {
		err = json.Unmarshal(r.States(name)[""], &now)
		return err != nil || now.Done || ctx.Err() != nil
	})
	if e := p.s.store.Update(func(w *store.Writer) error { return w.DeleteState(name) }); e != nil {
		p.log.Debug("a command that is obeyed is not removed yet", "reason", e)
	}
	switch {
	case err != nil:
		return all(err.Error())
	case !now.Done:
		return all("no server moves shares at present: when one has died another does within 20 s: try again; a revert does not wait for it")
	}
	for _, c := range list {
		if why, ok := now.Refused[c.Pair.String()]; ok {
			refused[c.Pair] = why
		}
	}
	return refused
}

// obey does what other servers have left.
func (p *stepper) obey(now time.Time) {
	if !p.s.store.Holds(lockShifts) {
		return
	}
	var rows map[string][]byte
	p.s.store.Read(context.Background(), 0, func(r *store.Reader) { rows = r.States(stateOrder) })
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		var o order
		err := json.Unmarshal(rows[name], &o)
		if err != nil || now.Sub(o.At) > orderKept {
			err = p.s.store.Update(func(w *store.Writer) error { return w.DeleteState(stateOrder + name) })
		} else if !o.Done {
			o.Done, o.Refused = true, map[string]string{}
			for _, a := range p.step(now, o.Commands, false) {
				if a.Kind == shift.Refused {
					o.Refused[a.Pair.String()] = a.Reason
				}
			}
			err = p.s.store.Update(func(w *store.Writer) error {
				if w.State(stateOrder+name) == nil {
					return nil
				}
				value, err := json.Marshal(o)
				if err != nil {
					return err
				}
				return w.PutState(stateOrder+name, value)
			})
		}
		if err != nil {
			p.log.Warn("a command of another server can't be answered", "reason", err)
		}
	}
}

// hear wakes run when another server leaves commands, until ctx ends.
func (p *stepper) hear(ctx context.Context) {
	p.s.store.ReadUntil(ctx, func(r *store.Reader) bool {
		if len(r.States(stateOrder)) > 0 {
			select {
			case p.ordered <- struct{}{}:
			default:
			}
		}
		return ctx.Err() != nil
	})
}
