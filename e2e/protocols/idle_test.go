package protocols

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

const (
	idlers   = 20000
	idleRate = 1000 // per second, of all holders
	idleSize = 256 << 20
)

// holder is a process of its own that holds idle connections: two of this test's
// could not open files enough. It is told what to do by its first line of input,
// says when all are opened or refused, answers each further line with how many
// are open, and ends with its input.
type holder struct {
	Addr, From string // From is the address that they come from
	N, Rate    int
	Cert, Key  []byte
}

// holding is the variable that makes this test binary a holder.
const holding = "CROSSFADE_TEST_HOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holding) == "" {
		os.Exit(m.Run())
	}
	in := bufio.NewScanner(os.Stdin)
	in.Scan()
	var h holder
	if err := json.Unmarshal(in.Bytes(), &h); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	h.hold(in)
}

func (h *holder) hold(in *bufio.Scanner) {
	pair, err := tls.X509KeyPair(h.Cert, h.Key)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	d := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(h.From)}},
		Config:    &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)},
	}
	var open atomic.Int64
	var unsettled sync.WaitGroup
	tick := time.NewTicker(10 * time.Millisecond)
	begin := time.Now()
	for n := 0; n < h.N; <-tick.C {
		for due := min(h.N, int(time.Since(begin).Seconds()*float64(h.Rate))); n < due; n++ {
			unsettled.Add(1)
			go func() {
				settle := sync.OnceFunc(unsettled.Done)
				defer settle()
				c, err := d.Dial("tcp", h.Addr)
				if err != nil {
					return
				}
				defer c.Close()
				if _, err := newH2(c); err != nil {
					return
				}
				open.Add(1)
				defer open.Add(-1)
				settle()
				io.Copy(io.Discard, c)
			}()
		}
	}
	unsettled.Wait()
	fmt.Println(open.Load())
	for in.Scan() {
		fmt.Println(open.Load())
	}
}

// start runs the holder as a process, which ends with the test at the latest, and
// gives what counts its open connections and what ends it.
func (h holder) start(t *testing.T) (count func() int, end func()) {
	t.Helper()
	order, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), holding+"=1"), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	lines := bufio.NewScanner(out)
	next := order
	return func() (n int) {
		fmt.Fprintf(in, "%s\n", next)
		next = nil
		lines.Scan()
		if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
			t.Errorf("holder of connections: %v", err)
		}
		return n
	}, end
}

// More idle connections than a sidecar may have: those above its limit are refused
// and counted, those below cost it no more than the memory it was given, and good
// requests on connections that were there before do not notice.
func TestIdleCrowd(t *testing.T) {
	m := start(t, service{name: "catalog", protocol: "http", port: serve(t, 1, &httpApp{}), memory: idleSize})
	e := m.envoys["catalog"]
	listener := "listener." + strings.ReplaceAll(m.side["catalog"], ":", "_") + "."
	cert, key := m.ca.Leaf(spiffe("other"))
	each := min(int(files(t))-200, idlers/2)
	var counts []func() int
	var ends []func()
	for left := idlers; left > 0; left -= each {
		h := holder{Addr: m.side["catalog"], From: fmt.Sprintf("127.0.0.%d", 2+len(counts)), N: min(each, left), Rate: idleRate * each / idlers, Cert: cert, Key: key}
		count, end := h.start(t)
		counts, ends = append(counts, count), append(ends, end)
	}
	open := func() (sum int) {
		parts := make([]int, len(counts))
		var wg sync.WaitGroup
		for i, count := range counts {
			wg.Go(func() { parts[i] = count() })
		}
		wg.Wait()
		for _, n := range parts {
			sum += n
		}
		return sum
	}
	m.goodTraffic(t, false, "catalog").endure(t, func() {
		begin := time.Now()
		opened := open()
		most := resident(t, e.PID)
		t.Logf("%d of %d connections open after %v", opened, idlers, time.Since(begin))
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(2 * window); time.Now().Before(end); <-tick.C {
			e.Admin("/ready")
			most = max(most, resident(t, e.PID))
		}
		refused := e.Stat(listener+"downstream_global_cx_overflow") + e.Stat(listener+"downstream_cx_overload_reject")
		t.Logf("%d open, %d refused, %d MB; heap at %d %%", open(), refused, most>>20, e.Stat("overload.envoy.resource_monitors.fixed_heap.pressure"))
		if accepted := e.Stat(listener + "downstream_cx_total"); accepted+refused < idlers || refused < idlers/10 {
			t.Errorf("%d accepted, %d counted as refused, want %d in all", accepted, refused, idlers)
		}
		if n := connections(t); opened > n {
			t.Errorf("%d connections are open, want at most %d", opened, n)
		}
		if opened < idlers/10 {
			t.Errorf("%d of %d connections are open: that is no burden", opened, idlers)
		}
		if most > idleSize {
			t.Errorf("the sidecar takes %d MB, of %d", most>>20, idleSize>>20)
		}
		for _, end := range ends {
			end()
		}
	})
	meshtest.Eventually(t, "the idle connections are gone", func() error {
		if n := e.Stat(listener + "downstream_cx_active"); n > 10 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
	if r := sendHTTP1(m.dialSide(t, "other", "catalog", "http/1.1"), "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"); r.outcome != "200" {
		t.Errorf("a new caller gets %s", r.outcome)
	}
	m.unchanged(t)
}

// Connections above the limit are closed at once and counted; those below stay, and
// make room when they go.
func TestConnectionLimit(t *testing.T) {
	const limit, n = 20, 50
	m := start(t, service{name: "catalog", protocol: "http", port: serve(t, 1, &httpApp{}), connections: limit})
	e := m.envoys["catalog"]
	begin := time.Now()
	var all []net.Conn
	for range n {
		c := dial(t, m.side["catalog"])
		c.SetDeadline(begin.Add(2 * time.Second)) // a handshake that does not begin may last longer
		all = append(all, c)
	}
	var closed atomic.Int64
	var wg sync.WaitGroup
	for _, c := range all {
		wg.Go(func() {
			if drain(c) == nil {
				closed.Add(1)
			}
		})
	}
	wg.Wait()
	counted := e.Stat("listener." + strings.ReplaceAll(m.side["catalog"], ":", "_") + ".downstream_global_cx_overflow")
	if closed.Load() != n-limit || counted != n-limit {
		t.Errorf("%d of %d connections closed, %d counted, want %d", closed.Load(), n, counted, n-limit)
	}
	for _, c := range all {
		c.Close()
	}
	meshtest.Eventually(t, "there is room again", func() error {
		c, err := tlsDial(t.Context(), m.side["catalog"], m.ca.Client(spiffe("other")))
		if err == nil {
			c.Close()
		}
		return err
	})
}
