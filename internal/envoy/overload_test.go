package envoy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

func TestHeapLimit(t *testing.T) {
	for memory, want := range map[int64]int64{64: 32, 128: 64, 192: 128, 256: 192, 1024: 768} {
		if got := envoy.HeapLimit(memory << 20); got != want<<20 {
			t.Errorf("of %d MiB: %d MiB, want %d", memory, got>>20, want)
		}
	}
}

// hog is an Envoy that answers every request with 200, and its load: connections
// whose requests never end.
type hog struct {
	t     *testing.T
	envoy *meshtest.Envoy
	addr  string
	open  []net.Conn
	most  int // bytes allocated at once, as far as was seen
}

func newHog(t *testing.T, heap int64) *hog {
	socket := filepath.Join(meshtest.RunDir(t), "admin.sock")
	boot, err := envoy.StaticBootstrap(envoy.BootstrapOptions{NodeID: "hog", AdminSocket: socket, MaxHeapBytes: heap, MaxDownstreamConnections: 5000},
		envoy.Resources{Listeners: []*listenerv3.Listener{answering(t)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &hog{t: t, envoy: meshtest.StartEnvoy(t, boot)}
	h.envoy.WaitReady()
	var list struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(h.envoy.Admin("/listeners?format=json")), &list); err != nil || len(list.Statuses) != 1 {
		t.Fatalf("listeners: %+v, %v", list, err)
	}
	h.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(list.Statuses[0].Address.Socket.Port))
	t.Cleanup(h.close)
	return h
}

func answering(t *testing.T) *listenerv3.Listener {
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix: "public_listener",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 200}},
			}},
		}}}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})}}},
	}
	return &listenerv3.Listener{
		Name: "public",
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0},
		}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(hcm)},
		}}}},
	}
}

func (h *hog) allocated() int {
	var m struct{ Allocated string }
	if err := json.Unmarshal([]byte(h.envoy.Admin("/memory")), &m); err != nil {
		h.t.Fatal(err)
	}
	n, err := strconv.Atoi(m.Allocated)
	if err != nil {
		h.t.Fatal(err)
	}
	h.most = max(h.most, n)
	return n
}

// headSize is what each connection sends, a part of a head.
const headSize = 40 << 10

// load opens n more connections.
func (h *hog) load(n int) {
	head := append([]byte("GET / HTTP/1.1\r\nhost: x\r\n"), bytes.Repeat([]byte("x-filler: "+strings.Repeat("f", 1012)+"\r\n"), headSize>>10)...)
	for range n {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			h.t.Fatal(err)
		}
		h.open = append(h.open, c)
		_, _ = c.Write(head) // refused perhaps, which is counted by Envoy
	}
}

func (h *hog) close() {
	for _, c := range h.open {
		c.Close()
	}
	h.open = nil
}

func (h *hog) answers() error {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + h.addr)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// With a heap limit Envoy refuses what it cannot hold, goes on answering its admin
// interface, and is as before when the load is gone. Without one the same load goes
// far beyond.
func TestShedsRatherThanGrows(t *testing.T) {
	const limit, batch, batches = 24 << 20, 50, 32 // 60 MB, if all are taken
	limited := newHog(t, limit)
	const reject = "listener.127.0.0.1_0.downstream_cx_overload_reject" // by the address as configured
	const pressure = "overload.envoy.resource_monitors.fixed_heap.pressure"
	for range batches {
		limited.load(batch)
		// As fast as Envoy looks: a burst within one look is beyond any limit.
		meshtest.Eventually(t, "Envoy's look at what it took", func() error {
			const http = "http.public_listener.downstream_cx_"
			taken, refused := limited.envoy.Stat(http+"total"), limited.envoy.Stat(reject)
			if read := limited.envoy.Stat(http + "rx_bytes_total"); taken+refused < len(limited.open) || read < taken*headSize {
				return fmt.Errorf("of %d connections it took %d, refused %d, and read %d bytes", len(limited.open), taken, refused, read)
			}
			share := limited.allocated() * 100 / limit
			if seen := limited.envoy.Stat(pressure); seen < share-5 {
				return fmt.Errorf("it sees %d %%, there are %d", seen, share)
			}
			return nil
		})
	}
	if limited.most > limit*13/10 {
		t.Errorf("%d MiB were allocated, the limit is %d", limited.most>>20, limit>>20)
	}
	if n := limited.envoy.Stat(reject); n == 0 {
		t.Error("no connection was refused")
	} else {
		t.Logf("limited: at most %d MiB allocated, %d of %d connections refused", limited.most>>20, n, batch*batches)
	}
	if err := limited.answers(); err == nil {
		t.Error("it takes requests at its limit")
	}
	// More memory, and it takes more, at once.
	limited.envoy.Post(fmt.Sprintf("/runtime_modify?%s=%d", envoy.HeapLimitKey, 2*limit))
	meshtest.Eventually(t, "answers with a higher limit", limited.answers)
	limited.envoy.Post(fmt.Sprintf("/runtime_modify?%s=%d", envoy.HeapLimitKey, limit))
	limited.close()
	meshtest.Eventually(t, "answers as before", limited.answers)

	free := newHog(t, 0)
	free.load(batch * batches)
	meshtest.Eventually(t, "more than the limit without one", func() error {
		if n := free.allocated(); n < limit*3/2 {
			return fmt.Errorf("%d MiB", n>>20)
		}
		return nil
	})
	t.Logf("without a limit: %d MiB", free.most>>20)
}
