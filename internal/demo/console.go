package demo

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// palette paints text for terminals that want it.
type palette struct{ on bool }

func (c palette) paint(code, s string) string {
	if !c.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (c palette) bold(s string) string  { return c.paint("1", s) }
func (c palette) faint(s string) string { return c.paint("2", s) }
func (c palette) green(s string) string { return c.paint("32", s) }
func (c palette) red(s string) string   { return c.paint("31", s) }

const (
	liveInterval = 200 * time.Millisecond // between two states of the last line, on a terminal
	signOfLife   = 5 * time.Second        // after so long without a line one is written elsewhere
)

// console shows progress: whole lines, and on a terminal a last line that changes.
type console struct {
	palette
	w     io.Writer
	live  bool
	begun time.Time

	mu      sync.Mutex // guards all below
	traffic *traffic   // nil before there is load
	doing   string
	last    time.Time // when a whole line was written
	stopped bool

	quit, done chan struct{}
}

func newConsole(o Options) *console {
	c := &console{palette: palette{o.Color}, w: o.Stdout, live: o.Live, begun: time.Now(), last: time.Now(), quit: make(chan struct{}), done: make(chan struct{})}
	if o.JSON {
		c.w = o.Stderr
	}
	go c.tick()
	return c
}

func (c *console) tick() {
	defer close(c.done)
	t := time.NewTicker(liveInterval)
	defer t.Stop()
	for {
		select {
		case <-c.quit:
			return
		case <-t.C:
		}
		c.mu.Lock()
		switch {
		case c.live:
			fmt.Fprintf(c.w, "\r\x1b[K  %s", c.faint(c.state()))
		case time.Since(c.last) > signOfLife:
			fmt.Fprintf(c.w, "  … %s\n", c.state())
			c.last = time.Now()
		}
		c.mu.Unlock()
	}
}

// state is one line on how things stand. c.mu is held.
func (c *console) state() string {
	s := fmt.Sprintf("%s  %s", seconds(time.Since(c.begun)), c.doing)
	if c.traffic != nil {
		requests, failed := uint64(0), uint64(0)
		for _, p := range c.traffic.all() {
			t := p.rec.Totals()
			requests, failed = requests+t.Requests, failed+t.Failed
		}
		s += fmt.Sprintf(" · %s requests, %s failed", count(requests), count(failed))
	}
	return s
}

func (c *console) line(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	if c.live {
		fmt.Fprint(c.w, "\r\x1b[K")
	}
	fmt.Fprintf(c.w, format+"\n", args...)
	c.last = time.Now()
}

func (c *console) title(envoy string, o Options) {
	c.line("%s  a shop of four services moves from an old mesh into this one, on this machine alone, with Envoy %s", c.bold("crossfade demo"), envoy)
	for _, s := range o.Sabotage {
		c.line("%s", c.red("sabotage: "+s+" is done the naive way, so its proof has to fail"))
	}
}

func (c *console) begin(p *Proof) {
	c.mu.Lock()
	c.doing = p.Name
	c.mu.Unlock()
	c.line("\n%s  %s", c.bold(p.Name), p.Claim)
}

// watch shows the load from now on.
func (c *console) watch(t *traffic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.traffic = t
}

func (c *console) step(format string, args ...any) {
	c.line("  %s", c.faint(fmt.Sprintf("%5.1f s  ", time.Since(c.begun).Seconds())+fmt.Sprintf(format, args...)))
}

func (c *console) check(k Check) {
	sign := c.green("✓")
	if !k.OK {
		sign = c.red("✗")
	}
	c.line("  %s %s", sign, k.Text)
}

func (c *console) logs(byName map[string][]string) {
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		c.line("    the last words of %s:", name)
		for _, l := range byName[name] {
			c.line("      %s", l)
		}
	}
}

// finish clears the last line and shows nothing more. It may be called twice.
func (c *console) finish() {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		return
	}
	c.stopped = true
	close(c.quit)
	c.mu.Unlock()
	<-c.done
	if c.live {
		fmt.Fprint(c.w, "\r\x1b[K")
	}
}
