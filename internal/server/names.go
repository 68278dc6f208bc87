package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/proxy"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

const (
	// resolveEvery is how often names are resolved, as often as Envoys do those of requests.
	resolveEvery = 5 * time.Second
	// resolveWithin bounds one look-up, resolveFirst how long entries wait for that of a new name.
	resolveWithin = 2 * time.Second
	resolveFirst  = 500 * time.Millisecond
	// resolvesAtOnce is how many names are looked up at the same time.
	resolvesAtOnce = 64
	// maxResolved bounds the addresses of one name: the first ones count.
	maxResolved = 32
	// nameKept is how long addresses outlive the last entry with their name: endpoints do too.
	nameKept = time.Minute
)

// namesFile is in the data directory. It has the last addresses of names, so that a server
// which starts while they cannot be resolved gives callers what it gave them before.
const namesFile = "names.json"

// names knows what the names in legacy addresses of tcp stand for, as this host resolves them.
// Endpoints take addresses alone. The last answer stays while there is no other.
type names struct {
	lookup   func(ctx context.Context, network, host string) ([]netip.Addr, error)
	resolver *net.Resolver // nil: the host's
	tell     func(proxy.Names)
	log      *slog.Logger
	path     string // of the file; empty for none
	slots    chan struct{}
	fresh    chan question
	saving   sync.Mutex // held by who writes the file; taken before mu

	mu    sync.Mutex // guards the following, and waits for nothing
	known map[string]*resolved
	told  proxy.Names
}

// question is names to be looked up at once.
type question struct {
	hosts []string
	done  chan struct{} // closed then
}

// resolved is what is known of one name.
type resolved struct {
	addresses []netip.Addr // the last answer, sorted
	unwanted  time.Time    // since when no entry has it; zero: one does
	err       error        // why it was not resolved the last time
	since     time.Time    // since when that is so
}

func newNames(r *net.Resolver, tell func(proxy.Names), log *slog.Logger) *names {
	return &names{lookup: cmp.Or(r, net.DefaultResolver).LookupNetIP, resolver: r, tell: tell, log: log, known: map[string]*resolved{}, slots: make(chan struct{}, resolvesAtOnce), fresh: make(chan question)}
}

// namesIn are the names in legacy addresses of destinations that may speak tcp, sorted.
func namesIn(set *config.Set) []string {
	found := map[string]struct{}{}
	for _, k := range set.Keys() {
		e, ok := set.Get(k).(*config.TrafficShift)
		if !ok || e.Legacy == nil {
			continue
		}
		host, _ := e.Legacy.HostPort()
		_, err := netip.ParseAddr(host)
		protocol, _, _ := routing.Protocol(set, e.Destination)
		if err != nil && (e.Destination == config.Wildcard || !config.IsHTTP(protocol)) {
			found[host] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// want says which names count from now on. It waits, not for long, for an answer about those
// that did not.
func (n *names) want(ctx context.Context, hosts []string) {
	var fresh []string
	n.mu.Lock()
	for host, of := range n.known {
		if _, wanted := slices.BinarySearch(hosts, host); !wanted && of.unwanted.IsZero() {
			of.unwanted = time.Now()
		}
	}
	for _, host := range hosts {
		of := n.known[host]
		if of == nil {
			of = &resolved{unwanted: time.Now()}
			n.known[host] = of
		}
		if !of.unwanted.IsZero() {
			fresh = append(fresh, host)
		}
		of.unwanted = time.Time{}
	}
	n.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	late := time.NewTimer(resolveFirst)
	defer late.Stop()
	q := question{fresh, make(chan struct{})}
	for ask := n.fresh; ; {
		select {
		case ask <- q:
			ask = nil
		case <-q.done:
			return
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// run resolves all names again and again until ctx ends.
func (n *names) run(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		tick := time.NewTicker(resolveEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				n.ask(ctx, n.due(now))
			}
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-n.fresh: // does not wait for those that are slow
			asking.Go(func() {
				defer close(q.done)
				n.ask(ctx, q.hosts)
			})
		}
	}
}

// due are the names to be resolved now. Those that nothing needs any more are forgotten.
func (n *names) due(now time.Time) (hosts []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for host, of := range n.known {
		switch {
		case of.unwanted.IsZero():
			hosts = append(hosts, host)
		case now.Sub(of.unwanted) > nameKept:
			delete(n.known, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// ask looks names up, tells of what has changed, and returns when all are done.
func (n *names) ask(ctx context.Context, hosts []string) {
	var wg sync.WaitGroup
	for _, host := range hosts {
		wg.Go(func() {
			n.slots <- struct{}{}
			defer func() { <-n.slots }()
			within, cancel := context.WithTimeout(ctx, resolveWithin)
			defer cancel()
			list, err := n.resolve(within, host)
			if ctx.Err() == nil {
				n.note(host, list, err, time.Now())
			}
		})
	}
	wg.Wait()
	n.publish()
}

// resolve finds the addresses of a name: those of IPv4 or, where there are none, of IPv6, as an
// Envoy does for requests.
func (n *names) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	list, err := n.lookup(ctx, "ip4", host)
	if len(list) == 0 {
		var six error
		if list, six = n.lookup(ctx, "ip6", host); six == nil {
			err = nil
		}
	}
	for i, at := range list {
		list[i] = at.Unmap().WithZone("")
	}
	slices.SortFunc(list, netip.Addr.Compare)
	list = slices.Compact(list)
	if len(list) == 0 && err == nil {
		err = errors.New("it has no address")
	}
	return list[:min(len(list), maxResolved)], err
}

// note takes in an answer. Without one the last stays.
func (n *names) note(host string, list []netip.Addr, err error, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	of := n.known[host]
	if of == nil {
		return // nobody needs it any more
	}
	switch {
	case err != nil && of.err == nil:
		of.since = now
		n.log.Warn("name in a legacy address cannot be resolved, its last addresses stay", "name", host, "addresses", of.addresses, "reason", err)
	case err == nil && of.err != nil:
		n.log.Info("name in a legacy address is resolved again", "name", host, "addresses", list)
	case err == nil && !slices.Equal(list, of.addresses):
		n.log.Info("name in a legacy address stands for other addresses", "name", host, "before", of.addresses, "addresses", list)
	}
	if of.err = err; err == nil {
		of.addresses = list
	}
}

// publish tells what names stand for if that has changed, and keeps it for the next start.
func (n *names) publish() {
	if n.renew() && n.path != "" {
		n.keep()
	}
}

// renew tells what names stand for, and reports whether that has changed.
func (n *names) renew() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := proxy.Names{}
	for host, of := range n.known {
		if len(of.addresses) > 0 {
			now[host] = of.addresses
		}
	}
	if len(now) == len(n.told) && len(namesChanged(n.told, now)) == 0 {
		return false
	}
	n.told = now
	n.tell(now)
	return true
}

// keep writes the file.
func (n *names) keep() {
	n.saving.Lock()
	defer n.saving.Unlock()
	n.mu.Lock()
	now := n.told
	n.mu.Unlock()
	b, err := json.Marshal(now)
	if err == nil {
		err = atomicfile.Write(n.path, b)
	}
	if err != nil {
		n.log.Error("what names in legacy addresses stand for is not saved: a restart of this server forgets it", "file", n.path, "reason", err)
	}
}

// recall begins with what another start knew. What can't be read is as if it weren't there.
func (n *names) recall(path string) {
	n.path = path
	was := proxy.Names{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil {
		n.log.Error("what names in legacy addresses stood for is lost, they are resolved anew", "file", path, "reason", err)
		return
	}
	for host, list := range was {
		n.known[host] = &resolved{addresses: list, unwanted: time.Now()}
	}
	n.publish()
}

// of are the addresses of a name; none of one that does not count.
func (n *names) of(host string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if of := n.known[host]; of != nil {
		return of.addresses
	}
	return nil
}

// lost is why the name in a legacy address is not known, or not any more; empty: it is.
func (n *names) lost(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	of := n.known[host]
	if of == nil || of.err == nil {
		return ""
	}
	stays := "nothing goes there"
	if len(of.addresses) > 0 {
		stays = fmt.Sprintf("the last %d addresses stay", len(of.addresses))
	}
	return fmt.Sprintf("legacy address %s: the server cannot resolve its name since %s: %v: %s", address, of.since.UTC().Format(time.RFC3339), of.err, stays)
}

// dial connects to an address, and hangs up. Of a name that counts any of a few of those
// addresses will do which callers are given.
func (n *names) dial(ctx context.Context, address string) error {
	host, port, _ := net.SplitHostPort(address)
	list := n.of(host)
	list = list[:min(len(list), probedOfName)]
	if len(list) == 0 {
		return dialTCP(ctx, net.Dialer{Timeout: probeTimeout, Resolver: n.resolver}, address)
	}
	var first error
	for _, at := range list {
		err := dialTCP(ctx, net.Dialer{Timeout: probeTimeout / time.Duration(len(list))}, net.JoinHostPort(at.String(), port))
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// probedOfName bounds the addresses of a name that are tried.
const probedOfName = 3

// namesChanged are the names that stand for something else than before, sorted.
func namesChanged(before, now proxy.Names) (out []string) {
	for host, list := range now {
		if !slices.Equal(list, before[host]) {
			out = append(out, host)
		}
	}
	for host := range before {
		if _, there := now[host]; !there {
			out = append(out, host)
		}
	}
	slices.Sort(out)
	return out
}
