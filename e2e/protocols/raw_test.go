package protocols

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// field is a header field, or a pseudo-header of HTTP/2, as it is to be sent.
type field struct{ name, value string }

// reply is how an exchange went: the status, or how it ended without one.
type reply struct {
	outcome string // "200", "reset", "closed"
	body    string
}

// sendHTTP1 sends bytes and reads one answer, past any 1xx.
func sendHTTP1(c net.Conn, raw string) reply {
	go io.WriteString(c, raw)
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: method(raw)})
		if err != nil {
			return reply{outcome: "closed"}
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 200 {
			return reply{fmt.Sprint(resp.StatusCode), string(b)}
		}
	}
}

func method(raw string) string {
	m, _, _ := strings.Cut(raw, " ")
	return m
}

// h2conn is a client of HTTP/2 that checks nothing of what it sends.
type h2conn struct {
	*http2.Framer
	net.Conn
	encoder *hpack.Encoder
	block   bytes.Buffer
	stream  uint32 // the next
}

func newH2(c net.Conn) (*h2conn, error) {
	h := &h2conn{Framer: http2.NewFramer(c, c), Conn: c, stream: 1}
	h.encoder = hpack.NewEncoder(&h.block)
	h.AllowIllegalWrites = true
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return nil, err
	}
	return h, h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
}

// headers opens a stream.
func (h *h2conn) headers(end bool, fields ...field) (uint32, error) {
	h.block.Reset()
	for _, f := range fields {
		if err := h.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
			return 0, err
		}
	}
	id := h.stream
	h.stream += 2
	return id, h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndStream: end, EndHeaders: true})
}

// await reads until a stream has ended, one way or another.
func (h *h2conn) await(id uint32) reply {
	var out reply
	for {
		f, err := h.ReadFrame()
		var reset http2.StreamError
		switch {
		case errors.As(err, &reset):
			continue
		case err != nil:
			return reply{outcome: "closed"}
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			h.WriteSettingsAck()
		}
		if f.Header().StreamID != id {
			continue
		}
		ended := false
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s != "" && s[0] != '1' {
				out.outcome = s
			}
			ended = f.StreamEnded()
		case *http2.DataFrame:
			out.body += string(f.Data())
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame:
			if out.outcome == "" {
				out.outcome = "reset"
			}
			ended = true
		}
		if ended {
			return out
		}
	}
}

// sendHTTP2 sends one request, whose body is data unless that is empty.
func sendHTTP2(c net.Conn, data string, fields ...field) reply {
	h, err := newH2(c)
	if err != nil {
		return reply{outcome: "closed"}
	}
	id, err := h.headers(data == "", fields...)
	if err == nil && data != "" {
		err = h.WriteData(id, true, []byte(data))
	}
	if err != nil {
		return reply{outcome: "closed"}
	}
	return h.await(id)
}

// line is how a request may be sent: by which identity, over which version of HTTP,
// through the caller's own sidecar or past it.
type line struct {
	as      string // "" is the caller, through its sidecar
	version int
}

func (l line) String() string {
	if l.as == "" {
		return fmt.Sprintf("http%d through the sidecar", l.version)
	}
	return fmt.Sprintf("http%d as %s", l.version, l.as)
}

func (m *mesh) connect(t *testing.T, l line, service string) net.Conn {
	t.Helper()
	switch {
	case l.as == "":
		return m.dial(t, service)
	case l.version == 1:
		return m.dialSide(t, l.as, service, "http/1.1")
	default:
		return m.dialSide(t, l.as, service, "h2")
	}
}
