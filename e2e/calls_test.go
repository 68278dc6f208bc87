//go:build peers || nomad

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// calls is a load of requests.
type calls struct {
	*load.Recorder
	stop func()
}

// call offers requests on kept connections, as apps do. Answers are to have want in them.
func call(t *testing.T, rate int, url, want string) *calls {
	t.Helper()
	return callBy(t, &http.Transport{MaxIdleConnsPerHost: 64}, rate, url, want)
}

// callBy is call from wherever the transport connects.
func callBy(t *testing.T, tr *http.Transport, rate int, url, want string) *calls {
	t.Helper()
	client := &http.Client{Transport: tr}
	c := &calls{Recorder: load.NewRecorder()}
	g := load.Generator{Rate: rate, Timeout: 10 * time.Second, Outstanding: 500, Record: c.Recorder, Call: func(n uint64, deadline time.Time) (load.Answer, error) {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		// A body and POST: a client's own retry of a request is not to hide a loss.
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("hello"))
		if err != nil {
			return load.Answer{}, err
		}
		req.GetBody = nil
		resp, err := client.Do(req)
		if err != nil {
			return load.Answer{}, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return load.Answer{}, err
		}
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			return load.Answer{}, fmt.Errorf("%d %.200s", resp.StatusCode, body)
		}
		return load.Answer{From: want}, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	c.stop = sync.OnceFunc(func() { cancel(); <-done; tr.CloseIdleConnections() })
	t.Cleanup(c.stop)
	return c
}

// more waits until so many further requests have ended.
func (c *calls) more(t *testing.T, n uint64) {
	t.Helper()
	began := c.Totals().Requests
	meshtest.Eventually(t, "requests", func() error {
		if got := c.Totals().Requests - began; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// unharmed fails the test when requests failed.
func (c *calls) unharmed(t *testing.T, what string) {
	t.Helper()
	failures := c.Failures()
	for i, f := range failures {
		if i == 10 {
			break
		}
		t.Errorf("%s: request sent at %s failed after %s: %s", what, f.Sent.Format("05.000"), f.Ended.Sub(f.Sent), f.Reason)
	}
	t.Logf("%s: %d requests, %d failed, p99 %s", what, c.Totals().Requests, len(failures), c.Latency().Quantile(0.99))
}
