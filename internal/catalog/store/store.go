// Package store is the embedded registry: nodes, services, checks, sessions, KV
// pairs and configuration entries of one datacenter.
//
// In: writes, one [Writer] function each, atomic and in a total order. Out: reads
// at one moment through a [Reader], waiting reads as Consul's blocking queries
// need them, and, as a [catalog.Source], snapshots.
//
// What is written is on disk (bbolt, fsync) before a reader sees it and before
// [Store.Update] returns. A write that changes nothing costs nothing and wakes
// nobody. Every change raises one counter, Consul's index; each thing that can be
// watched on its own, a "subject", remembers the index of its last change, so that
// an unrelated write neither wakes its watchers nor raises the index they see.
//
// It leaves Consul's HTTP shapes to consulapi, running checks to package check,
// and the meaning of entries to config, routing and proxy.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Options say what to open.
type Options struct {
	// Dir holds registry.db; it is made when missing. Empty: in memory only.
	Dir string
	// Datacenter is the name all nodes are in; default "dc1".
	Datacenter string
	// NodeName and NodeAddress describe the server's own node, which is registered
	// on opening. An empty name registers none.
	NodeName    string
	NodeAddress string
	// Judge, if set, is asked before a write that changes entries is committed, under
	// which no other write is: an error refuses the write, and [Store.Update] returns it
	// as a [Refusal]. What is on disk when the store opens is not judged.
	Judge func(before, after *config.Set) error
	// Shared, if set, is what this server shares with others; Dir then keeps the last that was
	// seen of it. The server's own node is not registered, nor is anybody else's to be: nodes,
	// services, checks and sessions are in the Consul that is shared.
	Shared Shared
	Log    *slog.Logger // nil: discard
}

// Store is an open registry. All methods may be called concurrently.
type Store struct {
	// Set on opening, read-only after that.
	options Options
	tables  map[string]*table
	disk    *disk  // nil: in memory only
	shared  Shared // nil: alone
	mem     *memdb.MemDB
	closed  chan struct{}

	expiry *expiry
	unread map[string]bool // keys of entries on disk that this version cannot read

	closing sync.Once

	mu      sync.Mutex
	pending []*update // waiting to be committed; guarded by mu

	commit   sync.Mutex  // held by the one goroutine that commits
	graves   int         // see [Writer.bury]; guarded by commit
	versions int         // of entries, or more, never fewer; guarded by commit
	left     int         // departures, or more, never fewer; guarded by commit
	judged   *config.Set // all entries, where there is a judge; guarded by commit
	mark     Mark        // of what is in memory, where it is shared; guarded by commit

	ctx       context.Context    // ends with the store
	stop      context.CancelFunc // ends ctx
	following sync.WaitGroup
	held      atomic.Pointer[error]     // why nothing is written any more
	trouble   atomic.Pointer[error]     // why nothing is written now
	since     atomic.Pointer[time.Time] // of the later of the two
}

// Open reads the registry in options.Dir, or starts an empty one.
func Open(options Options) (*Store, error) {
	if options.Datacenter == "" {
		options.Datacenter = "dc1"
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	mem, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, fmt.Errorf("registry: schema: %w", err)
	}
	s := &Store{options: options, mem: mem, shared: options.Shared, closed: make(chan struct{}), tables: map[string]*table{}, unread: map[string]bool{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.expiry = newExpiry(s.expire)
	for _, t := range tables() {
		s.tables[t.name] = t
	}
	if s.shared != nil {
		if err := s.openShared(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, nil
	}
	if options.Dir != "" {
		if err := notShared(options.Dir); err != nil {
			s.expiry.close()
			return nil, err
		}
		if s.disk, err = openDisk(options.Dir, diskFile); err != nil {
			return nil, err
		}
		if err := s.load(); err != nil {
			s.expiry.close()
			s.disk.close()
			return nil, err
		}
		if err := s.disk.reopen(); err != nil {
			s.expiry.close()
			s.disk.close()
			return nil, err
		}
	}
	if err := s.registerSelf(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends all waiting reads and releases the data directory. Writes after it fail.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.closed)
		s.stop()
		s.following.Wait()
		s.expiry.close()
		s.commit.Lock()
		defer s.commit.Unlock()
		if s.disk != nil {
			err = s.disk.close()
		}
	})
	return err
}

// Datacenter is the name of the datacenter whose registry this is.
func (s *Store) Datacenter() string { return s.options.Datacenter }

// Node is the name of the server's own node.
func (s *Store) Node() string { return s.options.NodeName }

// NodeAddress is the address of the server's own node.
func (s *Store) NodeAddress() string { return s.options.NodeAddress }

// load fills the empty memory from disk.
func (s *Store) load() error {
	txn := s.txn(true)
	defer txn.Abort()
	trees := map[*table][]any{} // rows that go there
	err := s.disk.decoded(func(l loaded) error {
		t, key, row, err := l.t, l.key, l.row, l.err
		if err != nil && t.name == tableEntries {
			// Kept on disk: an entry that this version cannot read harms nobody else.
			s.unread[string(key)] = true
			s.options.Log.Error("configuration entry ignored: it cannot be read", "entry", printable(key), "err", err)
			return nil
		}
		if err != nil && t.name == tableHistory {
			s.options.Log.Error("version of a configuration entry ignored: it cannot be read", "err", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("data directory %q: %s %q cannot be read: %w", s.options.Dir, t.name, printable(key), err)
		}
		s.graves += t.graves
		switch t.name {
		case tableHistory:
			s.versions++
		case tableLeft:
			s.left++
		}
		if session, ok := row.(*Session); ok && session.ttl() > 0 {
			s.expiry.start(session.ID, session.ttl()) // its holder could not renew it meanwhile
		}
		if t.orders != nil {
			trees[t] = append(trees[t], row)
			return nil
		}
		return txn.put(t, row)
	})
	if err == nil {
		for t, rows := range trees {
			txn.plant(t, rows)
		}
		err = txn.commit()
	}
	if err != nil {
		return err
	}
	if s.options.Judge != nil {
		var all []config.Entry
		for _, e := range s.reader().Entries("") {
			all = append(all, e.Entry)
		}
		s.judged = config.NewSet(all...)
	}
	return nil
}

// registerSelf puts the server's own node in the catalog, keeping its ID over restarts.
func (s *Store) registerSelf() error {
	if s.options.NodeName == "" {
		return nil
	}
	return s.Update(func(w *Writer) error {
		n := catalog.Node{Name: s.options.NodeName, Address: s.options.NodeAddress}
		if old := w.Node(n.Name); old != nil {
			n.ID, n.Meta = old.ID, old.Meta
		} else {
			n.ID = uuid()
		}
		n.TaggedAddresses = map[string]string{"lan": n.Address, "wan": n.Address}
		if ip := net.ParseIP(n.Address); ip != nil {
			family := "ipv6"
			if ip.To4() != nil {
				family = "ipv4"
			}
			n.TaggedAddresses["lan_"+family], n.TaggedAddresses["wan_"+family] = n.Address, n.Address
		}
		if err := w.PutNode(n); err != nil {
			return err
		}
		return w.PutCheck(catalog.Check{Node: n.Name, CheckID: "serfHealth", Name: "Serf Health Status",
			Status: catalog.Passing, Output: "Agent alive and reachable"}, nil)
	})
}

func uuid() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Read calls read with the registry as it is now, and returns the index of what
// read looked at: the newest change of any of its subjects.
//
// With after > 0 it first waits until that index exceeds after, ctx ends or the
// store closes, calling read anew each time; the last call's view is the answer.
// An after that the registry has not reached, left over from another registry, is
// answered at once with the present index, so that its owner starts afresh.
func (s *Store) Read(ctx context.Context, after uint64, read func(*Reader)) uint64 {
	var index uint64
	s.ReadUntil(ctx, func(r *Reader) bool {
		read(r)
		index = r.index
		return after == 0 || index > after || after > r.Index()
	})
	return index
}

// ReadUntil calls read, and again after each change of something read looked at,
// until read returns true, ctx ends or the store closes.
func (s *Store) ReadUntil(ctx context.Context, read func(*Reader) bool) {
	for {
		r := s.reader()
		if read(r) {
			return
		}
		r.watch.Add(s.closed)
		if r.watch.WatchCtx(ctx) != nil || s.isClosed() {
			return
		}
	}
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

func (s *Store) txn(write bool) *txn { return &txn{Txn: s.mem.Txn(write), tables: s.tables} }

func (s *Store) reader() *Reader {
	return &Reader{txn: s.txn(false), watch: memdb.NewWatchSet(), index: firstIndex, datacenter: s.options.Datacenter}
}

// Reader reads the registry at one moment. What it returns is shared: never change
// it. It is valid only inside the function it was given to.
type Reader struct {
	txn        *txn
	watch      memdb.WatchSet // nil in a Writer
	index      uint64         // of everything looked at so far
	datacenter string
}

// Index is the registry's counter: the index of the newest change of all.
func (r *Reader) Index() uint64 {
	if row := r.first(tableIndex, "id", subjectAll); row != nil {
		return row.(*indexRow).Index
	}
	return firstIndex
}
