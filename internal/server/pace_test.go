package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	cat "github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

// With a rate a service that is taken out at once leaves one by one; without one it leaves at once.
func TestEndpointGuardRate(t *testing.T) {
	const n = 4
	for _, rate := range []float64{0.25, 0} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			s := servertest.Start(t, server.Options{DataDir: t.TempDir(), Guard: cat.GuardPolicy{Rate: rate}})
			told := func() int {
				_, b := s.Call(http.MethodGet, "/v1/crossfade/proxies", nil)
				return strings.Count(string(b), `"DestinationServiceName":"catalog"`)
			}
			for i := range n {
				s.Call(http.MethodPut, "/v1/agent/service/register", fmt.Appendf(nil, `{"Name":"catalog","ID":"catalog-%d","Port":%d,"Connect":{"SidecarService":{"Port":%d}}}`, i, 8080+i, 21000+i))
			}
			meshtest.Eventually(t, "all are told", func() error {
				if got := told(); got != n {
					return fmt.Errorf("%d", got)
				}
				return nil
			})
			began := time.Now()
			for i := range n {
				s.Call(http.MethodPut, fmt.Sprintf("/v1/agent/service/deregister/catalog-%d", i), nil)
			}
			last := n
			meshtest.Eventually(t, "all are gone", func() error {
				if got := told(); got != last {
					t.Logf("%d after %v", got, time.Since(began).Round(time.Millisecond))
					last = got
				}
				if last > 0 {
					return fmt.Errorf("%d are told", last)
				}
				return nil
			})
			took := time.Since(began)
			if least := (n - 1) * 950 * time.Millisecond; (took < least) == (rate > 0) {
				t.Errorf("%d left within %v; a second apart: %v", n, took, rate > 0)
			}
			if held := heldOf(t, s); len(held.Services) != 0 || held.Guard.Rate != rate {
				t.Errorf("held %+v", held)
			}
		})
	}
}
