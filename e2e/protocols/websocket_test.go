package protocols

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"testing"

	"github.com/coder/websocket"
)

// each side sends so many messages.
const messages = 1000

// wsApp sends messages of its own while it takes those of its caller, if it is at
// /flood, else it echoes; and says with which status the caller closed. "close" as
// a message makes it close with 4002.
type wsApp struct {
	t      *testing.T
	closed chan websocket.StatusCode
}

func (a *wsApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"shop.v2"}, InsecureSkipVerify: true})
	if err != nil {
		a.t.Error(err)
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(4 << 20)
	if r.URL.Path == "/flood" {
		go func() {
			for i := range messages {
				if err := c.Write(r.Context(), websocket.MessageBinary, numbered(i)); err != nil {
					a.t.Errorf("message %d to the caller: %v", i, err)
					return
				}
			}
		}()
		for i := range messages {
			_, got, err := c.Read(r.Context())
			if err != nil || !bytes.Equal(got, numbered(i)) {
				a.t.Errorf("message %d from the caller: %d bytes, %v", i, len(got), err)
				return
			}
		}
	}
	for {
		kind, message, err := c.Read(r.Context())
		if err != nil {
			a.closed <- websocket.CloseStatus(err)
			return
		}
		if string(message) == "close" {
			c.Close(4002, "as told")
			a.closed <- 4002
			return
		}
		if err := c.Write(r.Context(), kind, message); err != nil {
			a.t.Error(err)
		}
	}
}

// numbered is a message of some size that says which it is.
func numbered(i int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, i*7%5000)...)
}

func TestWebSocket(t *testing.T) {
	app := &wsApp{t: t, closed: make(chan websocket.StatusCode, 10)}
	m := start(t, service{name: "prices", protocol: "http", port: serve(t, 1, app)})
	connect := func(t *testing.T, path string) *websocket.Conn {
		t.Helper()
		c, resp, err := websocket.Dial(t.Context(), "ws://"+m.out["prices"]+path, &websocket.DialOptions{Subprotocols: []string{"shop.v1", "shop.v2"}})
		if err != nil {
			t.Fatal(err, resp)
		}
		t.Cleanup(func() { c.CloseNow() })
		if c.Subprotocol() != "shop.v2" {
			t.Errorf("subprotocol %q, want shop.v2", c.Subprotocol())
		}
		c.SetReadLimit(4 << 20)
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	t.Run("echo", func(t *testing.T) {
		c := connect(t, "/")
		for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
			for _, n := range []int{0, 1, 125, 126, 65535, 65536, 2 << 20} {
				if err := c.Write(ctx, kind, bytes.Repeat([]byte("a"), n)); err != nil {
					t.Fatal(err)
				}
				if got, message, err := c.Read(ctx); err != nil || got != kind || len(message) != n {
					t.Fatalf("%v of %d bytes: %v of %d, %v", kind, n, got, len(message), err)
				}
			}
		}
		if err := c.Close(4001, "enough"); err != nil {
			t.Error(err)
		}
		if got := <-app.closed; got != 4001 {
			t.Errorf("the app saw %d, want 4001", got)
		}
	})
	t.Run("both at once", func(t *testing.T) {
		c := connect(t, "/flood")
		sent := make(chan error, 1)
		go func() {
			for i := range messages {
				if err := c.Write(ctx, websocket.MessageBinary, numbered(i)); err != nil {
					sent <- fmt.Errorf("message %d: %w", i, err)
					return
				}
			}
			sent <- nil
		}()
		for i := range messages {
			if _, got, err := c.Read(ctx); err != nil || !bytes.Equal(got, numbered(i)) {
				t.Fatalf("message %d from the app: %d bytes, %v", i, len(got), err)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if err := c.Write(ctx, websocket.MessageText, []byte("close")); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.Read(ctx)
		if got := websocket.CloseStatus(err); got != 4002 || <-app.closed != 4002 {
			t.Errorf("the caller saw %d (%v), want 4002", got, err)
		}
	})
	t.Run("a caller that is gone", func(t *testing.T) {
		c := connect(t, "/")
		c.CloseNow()
		if got := <-app.closed; got != -1 {
			t.Errorf("the app saw status %d, want a broken connection", got)
		}
	})
	m.unchanged(t)
}
