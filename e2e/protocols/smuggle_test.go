package protocols

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n"

// desync are requests on whose end two readers may disagree. Those with a body hide a
// second request in it.
func desync() []string {
	post := func(headers, body string) string {
		return "POST /a HTTP/1.1\r\nHost: shop\r\n" + headers + "\r\n" + body
	}
	length := fmt.Sprintf("Content-Length: %d\r\n", len(smuggled))
	chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
	out := []string{
		// Two lengths, or two framings.
		post("Content-Length: 0\r\n"+length, smuggled),
		post(length+"Content-Length: 0\r\n", smuggled),
		post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", chunk),
		post("Transfer-Encoding: chunked\r\n"+length, "0\r\n\r\n"+smuggled),
		post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled),
		post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"+length, "0\r\n\r\n"+smuggled),
		// What is no head. Readers that are lenient here agree on where it ends.
		"GET /a HTTP/1.1\nHost: shop\n\n",
		"GET /a HTTP/1.1\r\nHost: shop\r\n\r",
		"GET  /a HTTP/1.1\r\nHost: shop\r\n\r\n",
		"GET /a HTTP/1.1 HTTP/1.1\r\nHost: shop\r\n\r\n",
		"GET /a HTTP/2.0\r\nHost: shop\r\n\r\n",
		"GET /a HTTP/1.11\r\nHost: shop\r\n\r\n",
		"GET /a HTTP/-1.1\r\nHost: shop\r\n\r\n",
		"GET /a\r\nHost: shop\r\n\r\n",
		"GET /a http/1.1\r\nHost: shop\r\n\r\n",
		"G\x00T /a HTTP/1.1\r\nHost: shop\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00",
		strings.Repeat("\r\n", 1000) + "\x00",
		strings.Repeat("A", 100000),
	}
	for _, te := range []string{
		"Transfer-Encoding: xchunked", "Transfer-Encoding : chunked", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: chunked, identity",
		"Transfer-Encoding: identity, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding:\r\n chunked", "X: y\r\n Transfer-Encoding: chunked",
		"Transfer-Encoding: \"chunked\"", "Transfer\x00-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "X: y\nTransfer-Encoding: chunked", "Transfer_Encoding: chunked",
		"Transfer-Encoding: chunked;q=1", "Transfer-Encoding: cow, chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: ",
	} {
		out = append(out, post(te+"\r\n"+length, "0\r\n\r\n"+smuggled))
	}
	for _, cl := range []string{"+40", "-1", "0x28", "4 0", "40;", "1e1", "", " ", "99999999999999999999999", "40, 40", "\x0b40", "0\r\n 40"} {
		out = append(out, post("Content-Length: "+cl+"\r\n", smuggled))
	}
	for _, chunks := range []string{
		"-1\r\n", "+1\r\na\r\n0\r\n\r\n", "0x1\r\na\r\n0\r\n\r\n", "fffffffffffffffff\r\na", "g\r\n", " 1\r\na\r\n0\r\n\r\n", "1\r\nab\r\n0\r\n\r\n", "1\na\n0\n\n",
		"1;\na\r\n0\r\n\r\n", "\r\n1\r\na\r\n0\r\n\r\n", "1\r\na0\r\n\r\n", "0\r\nContent-Length: 40\r\nHost\r\n\r\n", "1;" + strings.Repeat("a", 100000),
		"0\r\nX-Forwarded-Client-Cert: a\r\nTransfer-Encoding: chunked\r\n: b\r\n\r\n", "0\r\n" + strings.Repeat("x: y\r\n", 5000),
	} {
		out = append(out, post("Transfer-Encoding: chunked\r\n", chunks+smuggled))
	}
	return out
}

// desync2 are their kin in HTTP/2, whose receiver writes HTTP/1.1 to the app.
var desync2 = []struct {
	data   string
	fields []field
}{
	{"abc", []field{{"content-length", "2"}}},
	{"abc", []field{{"content-length", "4"}}},
	{"abc", []field{{"content-length", "0"}}},
	{"", []field{{"content-length", "40"}}},
	{"abc", []field{{"content-length", "3"}, {"content-length", "4"}}},
	{smuggled, []field{{"transfer-encoding", "chunked"}}},
	{"0\r\n\r\n" + smuggled, []field{{"transfer-encoding", "chunked"}, {"content-length", "5"}}},
	{smuggled, []field{{"content-length", "0\r\n\r\n" + smuggled}}},
	{smuggled, []field{{"a", "b\r\nContent-Length: 0\r\n\r\n" + smuggled}}},
	{smuggled, []field{{"a: b\r\ntransfer-encoding", "chunked"}}},
	{smuggled, []field{{"connection", "content-length"}}},
	{smuggled, []field{{"expect", "100-continue\r\n\r\n" + smuggled}}},
}

// gate is an app that knows what must not arrive.
type gate struct {
	t        *testing.T
	requests atomic.Int64
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	b, _ := io.ReadAll(r.Body)
	if r.URL.Path == "/smuggled" {
		g.t.Errorf("a smuggled request reached the app: %v", r.Header)
	}
	fmt.Fprintf(w, "%s %d", r.URL.Path, len(b))
}

func TestSmuggling(t *testing.T) {
	app := &gate{t: t}
	m := start(t, service{name: "catalog", protocol: "http", port: serve(t, 1, app)})
	for _, as := range []string{"", "other"} {
		passed, refused := 0, 0
		judge := func(sent any, c net.Conn, r reply) {
			c.Close()
			switch {
			case r.outcome == "200":
				passed++
			case r.outcome[0] == '4' || r.outcome == "501" || r.outcome == "reset" || r.outcome == "closed":
				refused++
			default:
				t.Errorf("%q: %s %q", sent, r.outcome, r.body)
			}
			c = m.connect(t, line{as, 1}, "catalog")
			defer c.Close()
			if r := sendHTTP1(c, "POST /next HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nab"); r.body != "/next 2" {
				t.Errorf("after %.200q the next caller got %s %q", sent, r.outcome, r.body)
			}
		}
		for _, raw := range desync() {
			c := m.connect(t, line{as, 1}, "catalog")
			c.SetDeadline(time.Now().Add(time.Second)) // some wait for more
			judge(raw, c, sendHTTP1(c, raw))
		}
		for _, d := range desync2 {
			c := m.connect(t, line{as, 2}, "catalog")
			fields := append([]field{{":method", "POST"}, {":scheme", "http"}, {":authority", "shop"}, {":path", "/a"}}, d.fields...)
			judge(d, c, sendHTTP2(c, d.data, fields...))
		}
		t.Logf("as %q: %d refused, %d passed as one request", as, refused, passed)
	}
	m.unchanged(t)
}
