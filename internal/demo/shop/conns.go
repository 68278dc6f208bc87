package shop

import (
	"bufio"
	"net"
	"sync"
	"time"
)

// Road says, call by call, where a service is called and, where it speaks HTTP, by which
// Host. It must be safe for concurrent use.
type Road func() (addr, host string)

// At is a road that leads to one address.
func At(addr string) Road { return func() (string, string) { return addr, addr } }

// conn is a connection with what was read ahead from it.
type conn struct {
	net.Conn
	r          *bufio.Reader
	addr, host string // as the road said
	born       time.Time
}

// conns opens connections where a road leads and keeps those that may be used again.
type conns struct {
	road Road
	// newEvery makes every request whose number it divides use a connection of its
	// own; 0 makes none do so.
	newEvery uint64
	// maxAge is for how long a connection is used; 0: for as long as it lasts.
	maxAge time.Duration

	mu     sync.Mutex         // guards all below
	idle   map[string][]*conn // by address
	closed bool
}

// own reports whether request n is to use a connection of its own.
func (p *conns) own(n uint64) bool { return p.newEvery > 0 && n%p.newEvery == 0 }

// prune closes idle connections that are too old.
func (p *conns) prune() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, idle := range p.idle {
		kept := idle[:0]
		for _, c := range idle {
			if p.maxAge > 0 && time.Since(c.born) > p.maxAge {
				c.Close()
			} else {
				kept = append(kept, c)
			}
		}
		p.idle[addr] = kept
	}
}

// get is an idle connection, unless own, or a new one; its deadline is set.
func (p *conns) get(own bool, deadline time.Time) (c *conn, isNew bool, err error) {
	addr, host := p.road()
	if !own {
		p.mu.Lock()
		for n := len(p.idle[addr]); n > 0 && c == nil; n-- {
			c, p.idle[addr] = p.idle[addr][n-1], p.idle[addr][:n-1]
			if p.maxAge > 0 && time.Since(c.born) > p.maxAge {
				c.Close()
				c = nil
			}
		}
		p.mu.Unlock()
	}
	if c == nil {
		d := net.Dialer{Deadline: deadline}
		raw, err := d.Dial("tcp", addr)
		if err != nil {
			return nil, false, err
		}
		c, isNew = &conn{Conn: raw, r: bufio.NewReaderSize(raw, 2048), addr: addr, host: host, born: time.Now()}, true
	}
	if err := c.SetDeadline(deadline); err != nil {
		c.Close()
		return nil, false, err
	}
	return c, isNew, nil
}

// put gives back a connection on which nothing is left unread.
func (p *conns) put(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.maxAge > 0 && time.Since(c.born) > p.maxAge {
		c.Close()
		return
	}
	if p.idle == nil {
		p.idle = map[string][]*conn{}
	}
	p.idle[c.addr] = append(p.idle[c.addr], c)
}

// Close closes what is idle now, and what is in use as soon as it is given back.
func (p *conns) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, idle := range p.idle {
		for _, c := range idle {
			c.Close()
		}
	}
	p.idle = nil
}
