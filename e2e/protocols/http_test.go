package protocols

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// pattern is what streamed bodies are made of, over and over. No length of a read
// or frame divides it.
var pattern = func() []byte {
	b := make([]byte, 65521)
	rand.Read(b)
	return b
}()

// body streams n bytes of pattern.
func body(n int64) io.Reader { return io.LimitReader(&endless{}, n) }

type endless struct{ at int }

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, pattern[e.at:])
	e.at = (e.at + n) % len(pattern)
	return n, nil
}

// sum reads to the end: how many bytes, and their checksum.
func sum(r io.Reader) (string, error) {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, r, make([]byte, 256<<10))
	return fmt.Sprintf("%d %08x", n, h.Sum32()), err
}

// httpApp is an app with a path for each kind of exchange.
type httpApp struct {
	requests atomic.Int64
	canceled chan struct{} // one per request to /wait that its caller gave up
}

func (a *httpApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	switch r.URL.Path {
	case "/status":
		w.WriteHeader(int(n))
	case "/stream":
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.Copy(w, body(n))
	case "/sum":
		s, err := sum(r.Body)
		fmt.Fprint(w, s, err)
	case "/trailers":
		w.Header().Set("Trailer", "X-Sum")
		s, _ := sum(r.Body)
		fmt.Fprintf(w, "the caller said %s", r.Trailer.Get("X-Sum"))
		w.(http.Flusher).Flush() // without a length, with which there are no trailers in HTTP/1.1
		w.Header().Set("X-Sum", s)
	case "/headers":
		size, _ := strconv.Atoi(r.URL.Query().Get("size"))
		count, _ := strconv.Atoi(r.URL.Query().Get("count"))
		w.Header().Set("X-Long", strings.Repeat("a", size))
		for i := range count {
			w.Header().Set(fmt.Sprintf("X-%d", i), "a")
		}
	case "/wait":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		a.canceled <- struct{}{}
	case "/slow":
		<-time.After(50 * time.Millisecond)
	case "/close":
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, "bye")
	default:
		s, _ := sum(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.RequestURI, s)
	}
}

// pair is a version of HTTP that a client speaks and one that an app speaks.
type pair struct {
	client, app int
	service     string
}

// pairs are all; "catalog" speaks HTTP/1.1 and "search" HTTP/2.
func pairs() []pair {
	return []pair{{1, 1, "catalog"}, {2, 1, "catalog"}, {1, 2, "search"}, {2, 2, "search"}}
}

func (p pair) String() string { return fmt.Sprintf("http%d to http%d", p.client, p.app) }

func startHTTP(t *testing.T) (*mesh, *httpApp) {
	t.Helper()
	app := &httpApp{canceled: make(chan struct{}, 100)}
	return start(t,
		service{name: "catalog", protocol: "http", port: serve(t, 1, app)},
		service{name: "search", protocol: "http2", port: serve(t, 2, app)},
	), app
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	body string
}

// ask sends a request to the caller's sidecar.
func (m *mesh) ask(t *testing.T, c *http.Client, service, method, path string, body io.Reader, prepare ...func(*http.Request)) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+m.out[service]+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v after %d bytes", method, path, err, len(b))
	}
	return answer{resp, string(b)}
}

func TestHTTP(t *testing.T) {
	m, app := startHTTP(t)
	for _, p := range pairs() {
		c := client(t, p.client)
		t.Run(p.String(), func(t *testing.T) {
			t.Run("methods", func(t *testing.T) { m.testMethods(t, c, p, app) })
			t.Run("statuses", func(t *testing.T) { m.testStatuses(t, c, p) })
			t.Run("trailers", func(t *testing.T) { m.testTrailers(t, c, p) })
			t.Run("expect", func(t *testing.T) { m.testExpect(t, c, p) })
			t.Run("headers", func(t *testing.T) { m.testLongHeaders(t, c, p) })
			t.Run("cancel", func(t *testing.T) { m.testCancel(t, c, p, app) })
			t.Run("an app that closes", func(t *testing.T) { m.testClosingApp(t, c, p) })
		})
	}
	t.Run("by hand", m.testByHand)
	t.Run("pipelined", m.testPipelined)
	m.unchanged(t)
}

func (m *mesh) testMethods(t *testing.T, c *http.Client, p pair, app *httpApp) {
	before, sent := app.requests.Load(), int64(0)
	prepare := func(length int64) func(*http.Request) {
		return func(r *http.Request) {
			r.Host, r.ContentLength = "shop.example", length
			r.Header.Set("Content-Type", "text/plain") // Envoy refuses a QUERY without
		}
	}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "PURGE"} {
		for _, n := range []int64{0, 1, 70000} {
			if n > 0 && (method == "GET" || method == "HEAD") {
				continue
			}
			want, _ := sum(body(n))
			want = fmt.Sprintf("%s shop.example /x?a=b%%20c %s", method, want)
			sized := m.ask(t, c, p.service, method, "/x?a=b%20c", body(n), prepare(n))
			chunked := m.ask(t, c, p.service, method, "/x?a=b%20c", body(n), prepare(-1))
			sent += 2
			for _, a := range []answer{sized, chunked} {
				if method == "HEAD" {
					if a.StatusCode != 200 || a.ContentLength != int64(len(want)) {
						t.Errorf("HEAD: %d, content length %d, want that of the body, %d", a.StatusCode, a.ContentLength, len(want))
					}
				} else if a.StatusCode != 200 || a.body != want {
					t.Errorf("%d %q, want %q", a.StatusCode, a.body, want)
				}
			}
		}
	}
	if got := app.requests.Load() - before; got != sent {
		t.Errorf("%d requests sent, %d arrived", sent, got)
	}
}

func (m *mesh) testStatuses(t *testing.T, c *http.Client, p pair) {
	for _, status := range []int{201, 204, 205, 301, 304, 404, 418, 500, 503, 599} {
		a := m.ask(t, c, p.service, "GET", fmt.Sprintf("/status?n=%d", status), nil)
		if a.StatusCode != status || a.body != "" {
			t.Errorf("%d %q, want %d and no body", a.StatusCode, a.body, status)
		}
	}
}

func (m *mesh) testTrailers(t *testing.T, c *http.Client, p pair) {
	want, _ := sum(body(1000))
	a := m.ask(t, c, p.service, "POST", "/trailers", body(1000), func(r *http.Request) {
		r.ContentLength, r.Trailer = -1, http.Header{"X-Sum": {"mine"}}
	})
	if a.body != "the caller said mine" || a.Trailer.Get("X-Sum") != want {
		t.Errorf("%q, trailers %v, want the caller's trailer and %q", a.body, a.Trailer, want)
	}
}

// unread notes whether anybody read of it.
type unread struct {
	io.Reader
	read atomic.Bool
}

func (u *unread) Read(p []byte) (int, error) { u.read.Store(true); return u.Reader.Read(p) }

// The app's word counts on whether a body is sent.
func (m *mesh) testExpect(t *testing.T, c *http.Client, p pair) {
	expect := func(r *http.Request) { r.ContentLength = 1000; r.Header.Set("Expect", "100-continue") }
	want, _ := sum(body(1000))
	if a := m.ask(t, c, p.service, "POST", "/sum", body(1000), expect); a.body != want+"<nil>" {
		t.Errorf("%q, want %q", a.body, want)
	}
	refused := &unread{Reader: body(1000)}
	if a := m.ask(t, c, p.service, "POST", "/status?n=417", refused, expect); a.StatusCode != 417 || refused.read.Load() {
		t.Errorf("%d, body sent: %t, want 417 and the body kept", a.StatusCode, refused.read.Load())
	}
}

// testLongHeaders goes up to the limits of a sidecar and beyond. What one sidecar
// lets pass the other one does too, or the callee would count as failing.
func (m *mesh) testLongHeaders(t *testing.T, c *http.Client, p pair) {
	request := func(what string, n, add int) string {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+m.out[p.service]+"/", nil)
		if what == "size" {
			req.Header.Set("X-Long", strings.Repeat("a", n+add))
		}
		for i := 0; what == "count" && i < n+add; i++ {
			req.Header.Set(fmt.Sprintf("X-%d", i), "a")
		}
		return outcome(c, req)
	}
	answer := func(what string, n, add int) string {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", fmt.Sprintf("http://%s/headers?%s=%d", m.out[p.service], what, n+add), nil)
		return outcome(c, req)
	}
	for _, tc := range []struct {
		name, what string
		do         func(string, int, int) string
		n, step    int
		tooMuch    []string
	}{
		{"request", "count", request, 90, 1, []string{"431", "reset"}},
		{"request", "size", request, 60 << 10, 16, []string{"431", "reset"}},
		{"answer", "count", answer, 90, 1, []string{"502", "503"}},
		{"answer", "size", answer, 60 << 10, 16, []string{"502", "503"}},
	} {
		passed, refused := 0, 0
		for i := -20; i < 20; i++ {
			switch got := tc.do(tc.what, tc.n, i*tc.step); {
			case got == "200" && refused == 0:
				passed++
			case slices.Contains(tc.tooMuch, got):
				refused++
			default:
				t.Errorf("%s of %d: %s", tc.what, tc.n+i*tc.step, got)
			}
		}
		if passed == 0 || refused == 0 {
			t.Errorf("%s, %s: %d passed and %d were refused, want some of both", tc.name, tc.what, passed, refused)
		}
	}
	for _, stat := range []string{"upstream_rq_rx_reset", "upstream_rq_retry", "upstream_cx_protocol_error"} {
		if n := m.upstreamStat(p.service, stat); n != 0 {
			t.Errorf("%s towards %q is %d: it looks as if it failed", stat, p.service, n)
		}
	}
}

// outcome is a status, or "reset".
func outcome(c *http.Client, req *http.Request) string {
	resp, err := c.Do(req)
	switch {
	case err != nil && strings.Contains(err.Error(), "stream error"):
		return "reset"
	case err != nil:
		return err.Error()
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return fmt.Sprint(resp.StatusCode)
}

// upstreamStat is what the caller's sidecar counts towards a service.
func (m *mesh) upstreamStat(service, stat string) int {
	return m.envoys[caller].Stat("cluster." + spiffe(service).SNI() + "." + stat)
}

// A caller that goes away ends its request at the app.
func (m *mesh) testCancel(t *testing.T, c *http.Client, p pair, app *httpApp) {
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+m.out[p.service]+"/wait", nil)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	select {
	case <-app.canceled:
	case <-time.After(patience):
		t.Error("the app was not told")
	}
}

func (m *mesh) testClosingApp(t *testing.T, c *http.Client, p pair) {
	for range 100 {
		if a := m.ask(t, c, p.service, "GET", "/close", nil); a.StatusCode != 200 || a.body != "bye" {
			t.Fatalf("%d %q", a.StatusCode, a.body)
		}
	}
}

// testByHand sends what the client of Go's library would not.
func (m *mesh) testByHand(t *testing.T) {
	const empty = "0 00000000"
	for name, tc := range map[string]struct{ send, want string }{
		"HTTP/1.0":              {"GET /x HTTP/1.0\r\nHost: shop\r\n\r\n", "200 GET shop /x " + empty + " closed"},
		"HTTP/1.0 without host": {"GET /x HTTP/1.0\r\n\r\n", "200 GET catalog /x " + empty + " closed"},
		"HTTP/1.0 with a body":  {"POST /x HTTP/1.0\r\nHost: shop\r\nContent-Length: 1\r\n\r\na", "200 POST shop /x 1 c1d04330 closed"},
		"HTTP/1.1 without host": {"GET /x HTTP/1.1\r\n\r\n", "400"},
		"absolute form":         {"GET http://other/x?y HTTP/1.1\r\nHost: shop\r\n\r\n", "200 GET other /x?y " + empty},
		// Two that HTTP/1.1 knows and HTTP/2, to the callee, does not.
		"host with a user":   {"GET /x HTTP/1.1\r\nHost: user@shop\r\n\r\n", "502"},
		"empty host":         {"GET /x HTTP/1.1\r\nHost:\r\n\r\n", "502"},
		"connection: close":  {"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n", "200 GET shop /x " + empty + " closed"},
		"options *":          {"OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n", "404"},
		"connect":            {"CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n", "404"},
		"empty lines before": {"\r\n\r\nGET /x HTTP/1.1\r\nHost: shop\r\n\r\n", "200 GET shop /x " + empty},
		"chunk extension":    {"POST /x HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\na\r\n0\r\n\r\n", "200 POST shop /x 1 c1d04330"},
		"unknown upgrade":    {"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: spdy/3\r\n\r\n", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := m.dial(t, "catalog")
			io.WriteString(c, tc.send)
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(resp.StatusCode)
			if resp.StatusCode == 200 {
				got += " " + string(b)
				if resp.Close {
					if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
						t.Errorf("after the answer: %v, want the connection closed", err)
					}
					got += " closed"
				}
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// Requests sent before the first answer are answered in order.
func (m *mesh) testPipelined(t *testing.T) {
	c := m.dial(t, "catalog")
	var all strings.Builder
	for i := range 50 {
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: shop\r\nContent-Length: 1\r\n\r\na", i)
	}
	go io.WriteString(c, all.String())
	r := bufio.NewReader(c)
	for i := range 50 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		b, _ := io.ReadAll(resp.Body)
		if want := fmt.Sprintf("POST shop /%d 1 c1d04330", i); string(b) != want {
			t.Fatalf("%q, want %q", b, want)
		}
	}
}
