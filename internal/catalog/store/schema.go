package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// The names are those of the tables in memory and of the buckets on disk.
const (
	tableNodes    = "nodes"
	tableServices = "services"
	tableChecks   = "checks"
	tableKV       = "kv"
	tableGraves   = "kv-graves"
	tableEntries  = "entries"
	tableHistory  = "entry-history"
	tableSessions = "sessions"
	tableIndex    = "index"
	tableStates   = "states"
	tableLeft     = "departures"
)

// tableDelays is in memory only.
const tableDelays = "lock-delays"

// serviceRow is a service on its node.
type serviceRow struct {
	Node    string
	Service catalog.Service
}

// checkRow is a check and, when the server runs it, how.
type checkRow struct {
	Check      catalog.Check
	Definition *config.CheckDefinition `json:",omitempty"`
}

// KV is one pair of the key-value store.
type KV struct {
	Key         string
	Value       []byte
	Flags       uint64
	LockIndex   uint64 // how often it was acquired
	Session     string `json:",omitempty"` // that holds it
	CreateIndex uint64
	ModifyIndex uint64
}

// grave remembers when a key was deleted, so that the index of a prefix never falls.
type grave struct {
	Key   string
	Index uint64
}

// Entry is a configuration entry with its place in the history.
type Entry struct {
	config.Entry
	CreateIndex uint64
	ModifyIndex uint64
}

// storedEntry is [Entry] on disk.
type storedEntry struct {
	Entry       json.RawMessage
	CreateIndex uint64
	ModifyIndex uint64
}

// stateRow is what a part of the server remembers.
type stateRow struct {
	Name  string
	Value []byte
}

// indexRow is the index of a subject's last change.
type indexRow struct {
	Subject string
	Index   uint64
}

// table says how one kind of row is kept.
type table struct {
	name   string
	id     func(row any) []byte
	decode func(value []byte, alike *alike) (any, error)
	// graves is how much a row counts towards [maxGraves] when it is loaded.
	graves  int
	indexes []*memdb.IndexSchema // besides the id
	// orders, where set, says that rows are kept in trees, and in which: the first is that of the id.
	// Nobody can wait for such a row. Tables with many rows are kept so: a tree takes a
	// twentieth of what an index of memdb's takes, which has two channels for each row.
	orders []order
}

func tables() []*table {
	return []*table{
		{name: tableNodes, decode: decodeAs[catalog.Node],
			id: func(row any) []byte { return key(row.(*catalog.Node).Name) },
			orders: []order{
				{"id", func(row any) (path, bool) { return path{row.(*catalog.Node).Name}, true }},
				{"folded", func(row any) (path, bool) {
					name := row.(*catalog.Node).Name
					return path{strings.ToLower(name), name}, true
				}},
			}},
		{name: tableServices, decode: decodeService,
			id: func(row any) []byte { r := row.(*serviceRow); return key(r.Node, r.Service.ID) },
			orders: []order{
				{"id", func(row any) (path, bool) { r := row.(*serviceRow); return path{r.Node, r.Service.ID}, true }},
				{"name", func(row any) (path, bool) {
					r := row.(*serviceRow)
					return path{strings.ToLower(r.Service.Name), r.Service.Name, r.Node, r.Service.ID}, true
				}},
				{"connect", func(row any) (path, bool) {
					r := row.(*serviceRow)
					name := meshName(&r.Service)
					return path{strings.ToLower(name), name, r.Node, r.Service.ID}, name != ""
				}},
			}},
		{name: tableChecks, decode: decodeCheck,
			id: func(row any) []byte { r := row.(*checkRow); return key(r.Check.Node, r.Check.CheckID) },
			orders: []order{
				{"id", func(row any) (path, bool) { c := &row.(*checkRow).Check; return path{c.Node, c.CheckID}, true }},
				{"service", func(row any) (path, bool) {
					c := &row.(*checkRow).Check
					return path{c.Node, c.ServiceID, c.CheckID}, true
				}},
			}},
		{name: tableLeft, decode: decodeAs[departure],
			id: func(row any) []byte { d := row.(*departure); return key(d.Node, d.ID) },
			indexes: []*memdb.IndexSchema{
				secondary("written", func(row any) []byte { return binary.BigEndian.AppendUint64(nil, row.(*departure).Index) }),
			}},
		{name: tableStates, decode: decodeAs[stateRow], id: func(row any) []byte { return key(row.(*stateRow).Name) }},
		{name: tableKV, decode: decodeAs[KV],
			id: func(row any) []byte { return key(row.(*KV).Key) },
			indexes: []*memdb.IndexSchema{
				secondary("session", func(row any) []byte {
					if session := row.(*KV).Session; session != "" {
						return key(session)
					}
					return nil
				}),
			}},
		{name: tableGraves, decode: decodeAs[grave], graves: 1,
			id: func(row any) []byte { return key(row.(*grave).Key) }},
		{name: tableEntries, decode: decodeEntry,
			id: func(row any) []byte { e := row.(*Entry); return key(string(e.EntryKind()), e.EntryName()) }},
		{name: tableHistory, decode: decodeAs[Version],
			id: func(row any) []byte { return row.(*Version).id() },
			indexes: []*memdb.IndexSchema{
				secondary("written", func(row any) []byte { return binary.BigEndian.AppendUint64(nil, row.(*Version).Index) }),
			}},
		{name: tableSessions, decode: decodeAs[Session],
			id: func(row any) []byte { return key(row.(*Session).ID) },
			indexes: []*memdb.IndexSchema{
				secondary("node", func(row any) []byte { return key(row.(*Session).Node) }),
			}},
		{name: tableIndex, decode: decodeAs[indexRow], graves: 1,
			id: func(row any) []byte { return key(row.(*indexRow).Subject) },
			indexes: []*memdb.IndexSchema{
				secondary("changed", func(row any) []byte {
					r := row.(*indexRow)
					if !strings.HasPrefix(r.Subject, subjectService("")) {
						return nil
					}
					return binary.BigEndian.AppendUint64(nil, r.Index)
				}),
			}},
	}
}

// meshName is the service that callers in the mesh reach through s, or "".
func meshName(s *catalog.Service) string {
	switch {
	case s.Kind == catalog.ConnectProxy && s.Proxy != nil:
		return s.Proxy.DestinationServiceName
	case s.Connect.Native:
		return s.Name
	}
	return ""
}

// named is where an index has a name: below that without regard to case, which is a prefix of it.
func named(name string) []byte { return key(strings.ToLower(name), name) }

func schema() *memdb.DBSchema {
	out := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables() {
		if t.orders != nil {
			continue
		}
		indexes := map[string]*memdb.IndexSchema{
			"id": {Name: "id", Unique: true, Indexer: indexer{t.id}},
		}
		for _, ix := range t.indexes {
			indexes[ix.Name] = ix
		}
		out.Tables[t.name] = &memdb.TableSchema{Name: t.name, Indexes: indexes}
	}
	out.Tables[tableForest] = &memdb.TableSchema{Name: tableForest, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: indexer{func(any) []byte { return key("") }}},
	}}
	out.Tables[tableDelays] = &memdb.TableSchema{Name: tableDelays, Indexes: map[string]*memdb.IndexSchema{
		"id": {Name: "id", Unique: true, Indexer: indexer{func(row any) []byte { return key(row.(*lockDelay).Key) }}},
	}}
	return out
}

func secondary(name string, of func(row any) []byte) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: indexer{of}}
}

// key joins parts so that no part runs into the next. Parts hold no NUL; see [nameError].
func key(parts ...string) []byte {
	var b []byte
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return b
}

// printable shows a key to people.
func printable(key []byte) string {
	return string(bytes.ReplaceAll(bytes.TrimRight(key, "\x00"), []byte{0}, []byte{'/'}))
}

// indexer finds rows by the bytes that of makes; arguments are parts for [key], or
// ready bytes. A nil from of leaves the row out of the index.
type indexer struct {
	of func(row any) []byte
}

// FromObject implements [memdb.SingleIndexer].
func (i indexer) FromObject(row any) (bool, []byte, error) {
	b := i.of(row)
	return b != nil, b, nil
}

// FromArgs implements [memdb.Indexer].
func (i indexer) FromArgs(args ...any) ([]byte, error) {
	var b []byte
	for _, a := range args {
		switch a := a.(type) {
		case string:
			b = append(append(b, a...), 0)
		case []byte:
			b = append(b, a...)
		default:
			return nil, fmt.Errorf("index argument of type %T", a)
		}
	}
	return b, nil
}

// PrefixFromArgs implements [memdb.PrefixIndexer].
func (i indexer) PrefixFromArgs(args ...any) ([]byte, error) { return i.FromArgs(args...) }

func decodeAs[T any](value []byte, _ *alike) (any, error) {
	row := new(T)
	if err := json.Unmarshal(value, row); err != nil {
		return nil, err
	}
	return row, nil
}

func decodeService(value []byte, alike *alike) (any, error) {
	if row, ok := alike.serviceRow(value); ok {
		return row, nil
	}
	return decodeAs[serviceRow](value, nil)
}

func decodeCheck(value []byte, alike *alike) (any, error) {
	if row, ok := alike.checkRow(value); ok {
		return row, nil
	}
	return decodeAs[checkRow](value, nil)
}

// likeOthers makes a service that was just decoded hold what another of its name has, too: most
// instances declare the same. Rows are never changed.
func likeOthers(txn *txn, row any) {
	r, ok := row.(*serviceRow)
	if !ok {
		return
	}
	other, ok := txn.first(tableServices, "name", named(r.Service.Name)).(*serviceRow)
	if !ok || other == r {
		return
	}
	if p, o := r.Service.Proxy, other.Service.Proxy; p != nil && o != nil {
		if reflect.DeepEqual(p.Upstreams, o.Upstreams) {
			p.Upstreams = o.Upstreams
		} else {
			p.Upstreams = slices.Clone(p.Upstreams)
		}
		if reflect.DeepEqual(p.Config, o.Config) {
			p.Config = o.Config
		}
	}
	if reflect.DeepEqual(r.Service.Meta, other.Service.Meta) {
		r.Service.Meta = other.Service.Meta
	}
	if reflect.DeepEqual(r.Service.Tags, other.Service.Tags) {
		r.Service.Tags = other.Service.Tags
	}
}

func decodeEntry(value []byte, _ *alike) (any, error) {
	var stored storedEntry
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, err
	}
	e, err := config.DecodeEntryJSON(stored.Entry)
	if err != nil {
		return nil, err
	}
	return &Entry{e, stored.CreateIndex, stored.ModifyIndex}, nil
}

func encode(row any) ([]byte, error) {
	e, ok := row.(*Entry)
	if !ok {
		return json.Marshal(row)
	}
	body, err := json.Marshal(e.Entry)
	if err != nil {
		return nil, err
	}
	return json.Marshal(storedEntry{body, e.CreateIndex, e.ModifyIndex})
}
