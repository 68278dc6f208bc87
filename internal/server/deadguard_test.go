package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// A revert needs nothing of the shift guard: it works while that is stuck, while it panics at
// each look, and on a server that has not looked yet. The guard yields once it is back.
func TestRevertWithoutTheGuard(t *testing.T) {
	for what, kill := range map[string]func(c *convoy) (heal func()){
		"stuck": func(c *convoy) func() {
			entered, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
			was := c.s.steps.runs
			c.s.steps.runs = func(*books, string, uint64) bool {
				close(entered)
				<-end
				return true
			}
			go func() {
				defer close(ended)
				c.s.steps.tick(c.now)
			}()
			<-entered
			return func() {
				c.s.steps.runs = was
				close(end)
				<-ended
			}
		},
		"panics": func(c *convoy) func() {
			was := c.s.steps.runs
			c.s.steps.runs = func(*books, string, uint64) bool { panic("no") }
			for range 2 { // whoever panics lets the next one look
				if err := isolated(func() error { c.s.steps.tick(c.now); return nil }); err == nil {
					c.t.Fatal("it does not panic")
				}
			}
			return func() { c.s.steps.runs = was }
		},
		"just started": func(c *convoy) func() {
			c.restart()
			return func() {}
		},
	} {
		t.Run(what, func(t *testing.T) {
			c := newConvoy(t, 12, "web")
			c.start(func(p *shift.Plan) { p.Steps, p.Dwell = []shift.Share{shift.Percent(50)}, 30*time.Second })
			for c.of("web").Shares.MTLS == 0 {
				c.second(nil)
			}
			before := c.of("web").Generation
			heal := kill(c)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			answered := make(chan *httptest.ResponseRecorder, 1)
			go func() {
				w := httptest.NewRecorder()
				c.s.revert(w, httptest.NewRequest(http.MethodPost, "/v1/crossfade/revert", strings.NewReader(`{"all": true}`)))
				answered <- w
			}()
			select {
			case w := <-answered:
				if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"after":{"direct":100}`) {
					t.Fatalf("%d %s", w.Code, w.Body)
				}
			case <-ctx.Done():
				t.Fatal("no answer within two seconds")
			}
			c.publish()
			if e := c.of("web"); e.Shares != (config.Shares{Direct: 100}) || e.Generation <= before {
				t.Fatalf("%+v", e)
			}
			heal()
			for range 90 {
				c.second(nil)
				if got := c.of("web").Shares; got != (config.Shares{Direct: 100}) {
					t.Fatalf("the guard has moved it again: %+v", got)
				}
			}
			if at := c.at("web"); at.Status != shift.Reverted {
				t.Errorf("%s: %s", at.Status, at.Reason)
			}
		})
	}
}
