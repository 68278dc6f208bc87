package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// chat echoes messages on a WebSocket.
func chat(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

// chatClient sends messages on WebSockets, so many on each before it hangs up.
type chatClient struct {
	addr string

	mu   sync.Mutex
	idle []*socket
}

type socket struct {
	*websocket.Conn
	left int
}

const messagesEach = 5

// Message sends message n and wants it back. It is a [load.Call].
func (c *chatClient) Message(n uint64, deadline time.Time) (load.Answer, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	s, isNew, err := c.get(ctx)
	if err != nil {
		return load.Answer{}, fmt.Errorf("opening a WebSocket: %w", err)
	}
	want := "message " + strconv.FormatUint(n, 10)
	if err := s.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
		s.CloseNow()
		return load.Answer{}, err
	}
	_, got, err := s.Read(ctx)
	if err == nil && string(got) != want {
		err = fmt.Errorf("wrong answer: got %.200q, want %q", got, want)
	}
	if s.left--; err != nil || s.left <= 0 {
		s.CloseNow()
	} else {
		c.mu.Lock()
		c.idle = append(c.idle, s)
		c.mu.Unlock()
	}
	return load.Answer{NewConnection: isNew}, err
}

// get is an idle socket, or a new one.
func (c *chatClient) get(ctx context.Context) (*socket, bool, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		s := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return s, false, nil
	}
	c.mu.Unlock()
	conn, _, err := websocket.Dial(ctx, "ws://"+c.addr+"/", nil)
	if err != nil {
		return nil, false, err
	}
	return &socket{conn, messagesEach}, true, nil
}

func (c *chatClient) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.idle {
		s.CloseNow()
	}
	c.idle = nil
}
