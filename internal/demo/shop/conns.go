package shop

import (
	"bufio"
	"net"
	"sync"
	"time"
)

// conn is a connection with what was read ahead from it.
type conn struct {
	net.Conn
	r *bufio.Reader
}

// conns opens connections to one address and keeps those that may be used again.
type conns struct {
	addr string
	// newEvery makes every request whose number it divides use a connection of its
	// own; 0 makes none do so.
	newEvery uint64

	mu     sync.Mutex // guards all below
	idle   []*conn
	closed bool
}

// own reports whether request n is to use a connection of its own.
func (p *conns) own(n uint64) bool { return p.newEvery > 0 && n%p.newEvery == 0 }

// get is an idle connection, unless own, or a new one; its deadline is set.
func (p *conns) get(own bool, deadline time.Time) (c *conn, isNew bool, err error) {
	if !own {
		p.mu.Lock()
		if n := len(p.idle); n > 0 {
			c, p.idle = p.idle[n-1], p.idle[:n-1]
		}
		p.mu.Unlock()
	}
	if c == nil {
		d := net.Dialer{Deadline: deadline}
		raw, err := d.Dial("tcp", p.addr)
		if err != nil {
			return nil, false, err
		}
		c, isNew = &conn{Conn: raw, r: bufio.NewReaderSize(raw, 2048)}, true
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
	if p.closed {
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
}

// Close closes what is idle now, and what is in use as soon as it is given back.
func (p *conns) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		c.Close()
	}
	p.idle = nil
}
