package protocols

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// A good caller is not to wait more than twice as long as when it is alone, which is
// logged, and judged with STRICT=1 on a machine that does nothing else. A run beside
// other work judges only whether it is starved.
const (
	slower, noise    = 2, 20 * time.Millisecond
	starved, longest = 20, time.Second
)

const (
	goodRate = 100 // requests per second
	goodSize = 10000
	window   = 1500 * time.Millisecond // of which each has its own p99
)

// good is what well-behaved callers send while others do not behave.
type good struct {
	streams []load.Generator // all but Record
	windows []time.Duration  // the p99 of each
	sent    uint64
}

// goodTraffic goes through the caller's sidecar, on connections that stay; with
// strangers, one request in eleven comes from another service past that sidecar,
// each on a connection of its own.
func (m *mesh) goodTraffic(t *testing.T, strangers bool, services ...string) *good {
	t.Helper()
	stream := func(rate int, c *http.Client, url string) load.Generator {
		return load.Generator{Rate: rate, Timeout: 5 * time.Second, Outstanding: 1000, Call: func(_ uint64, deadline time.Time) (load.Answer, error) {
			ctx, cancel := context.WithDeadline(context.Background(), deadline)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
			if err != nil {
				return load.Answer{}, err
			}
			resp, err := c.Do(req)
			if err != nil {
				return load.Answer{}, err
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil && (resp.StatusCode != 200 || n != goodSize) {
				err = fmt.Errorf("%d, %d bytes", resp.StatusCode, n)
			}
			return load.Answer{}, err
		}}
	}
	path := fmt.Sprintf("/stream?n=%d", goodSize)
	config := m.ca.Client(spiffe("other"))
	config.NextProtos = []string{"http/1.1"}
	stranger := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return tlsDial(ctx, addr, config)
	}}}
	g := &good{}
	for _, service := range services {
		rate := goodRate / len(services)
		g.streams = append(g.streams, stream(rate, client(t, 1), "http://"+m.out[service]+path))
		if strangers {
			g.streams = append(g.streams, stream(rate/10, stranger, "https://"+m.side[service]+path))
		}
	}
	return g
}

// measure sends for some windows, and on until ctx ends. Every request must succeed.
func (g *good) measure(ctx context.Context, t *testing.T, windows int) (p99 time.Duration) {
	t.Helper()
	g.windows, g.sent = nil, 0
	for ; windows > 0 || ctx.Err() == nil; windows-- {
		record := load.NewRecorder()
		end, cancel := context.WithTimeout(context.Background(), window)
		done := make(chan struct{})
		for i := range g.streams {
			stream := g.streams[i]
			stream.Record = record
			go func() {
				stream.Run(end)
				done <- struct{}{}
			}()
		}
		for range g.streams {
			<-done
		}
		cancel()
		for i, f := range record.Failures() {
			if i < 5 {
				t.Errorf("a good request failed after %v: %s", f.Ended.Sub(f.Sent), f.Reason)
			}
		}
		if n := record.Totals().Failed; n > 5 {
			t.Errorf("%d good requests failed", n)
		}
		g.sent += record.Totals().Requests
		g.windows = append(g.windows, record.Latency().Quantile(0.99))
	}
	sorted := slices.Sorted(slices.Values(g.windows))
	return sorted[len(sorted)/2]
}

// endure compares good traffic until an attack has returned with the same alone,
// before and afterwards: what else the machine does changes meanwhile.
func (g *good) endure(t *testing.T, attack func()) {
	t.Helper()
	over, cancel := context.WithCancel(context.Background())
	cancel()
	alone := g.measure(over, t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		attack()
	}()
	during, windows := g.measure(ctx, t, 2), g.windows
	sent := g.sent
	alone = max(alone, g.measure(over, t, 2))
	t.Logf("p99 of good requests %v, alone %v; %d sent meanwhile; p99 of each window: %v", during, alone, sent, windows)
	limit := max(starved*alone, longest)
	if os.Getenv("STRICT") != "" {
		limit = max(slower*alone, noise)
	}
	if during > limit {
		t.Errorf("p99 of good requests is %v, %v when they are alone, want at most %v", during, alone, limit)
	}
}
