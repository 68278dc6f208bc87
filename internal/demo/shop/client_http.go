package shop

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
)

// maxBody bounds an answer, in bytes.
const maxBody = 64 << 10

// HTTP is a client of catalog or storefront over HTTP/1.1. It is safe for
// concurrent use.
type HTTP struct{ conns }

// NewHTTP calls addr, a host:port. Every newEvery-th request goes over a
// connection of its own, the others over kept-alive ones; 0 keeps all alive.
func NewHTTP(addr string, newEvery uint64) *HTTP { return NewHTTPBy(At(addr), newEvery) }

// NewHTTPBy calls where a road leads.
func NewHTTPBy(road Road, newEvery uint64) *HTTP {
	return &HTTP{conns{road: road, newEvery: newEvery}}
}

// Item asks catalog for an item. It is a [load.Call].
func (h *HTTP) Item(n uint64, deadline time.Time) (load.Answer, error) {
	sku, token := sku(n), token("i", n)
	body, head, isNew, err := h.ask("/items/"+sku+"?token="+token, h.own(n), deadline)
	if err != nil {
		return load.Answer{}, err
	}
	from, err := answered(body, token+" "+sku+" "+strconv.Itoa(int(Price(sku))))
	return load.Answer{From: from, Way: head.Get(cameHeader), NewConnection: isNew}, err
}

// AssignedItem asks catalog for an item in the variant that assignments has for
// the visitor. It returns the instance that answered.
func (h *HTTP) AssignedItem(sku, visitor string, deadline time.Time) (from string, err error) {
	body, _, err := h.get("/items/"+sku+"/assigned?token="+visitor, false, deadline)
	if err != nil {
		return "", err
	}
	return answered(body, fmt.Sprintf("%s %s %d %s", visitor, sku, Price(sku), Variant(visitor)))
}

// Page asks storefront for a page, which takes all four services. It is a [load.Call].
func (h *HTTP) Page(n uint64, deadline time.Time) (load.Answer, error) {
	sku, visitor := sku(n), token("v", n)
	body, isNew, err := h.get("/page/"+sku+"?token="+visitor, h.own(n), deadline)
	if err != nil {
		return load.Answer{}, err
	}
	want := fmt.Sprintf("%s %s %d %s paid ", visitor, sku, Price(sku), Variant(visitor))
	if !strings.HasPrefix(body, want) {
		return load.Answer{}, fmt.Errorf("wrong answer: got %.200q, want %q and two instances", body, want)
	}
	return load.Answer{NewConnection: isNew}, nil
}

// Caller is the identity of this client as catalog's Envoy authenticated it: the
// x-forwarded-client-cert header.
func (h *HTTP) Caller(deadline time.Time) (string, error) {
	body, _, err := h.get("/caller", true, deadline)
	return strings.TrimSpace(body), err
}

// get makes one request and returns the body of its answer, which has to be 200.
func (h *HTTP) get(path string, own bool, deadline time.Time) (body string, isNew bool, err error) {
	body, _, isNew, err = h.ask(path, own, deadline)
	return body, isNew, err
}

// ask is get with the answer's header.
func (h *HTTP) ask(path string, own bool, deadline time.Time) (body string, head http.Header, isNew bool, err error) {
	c, resp, isNew, err := h.send(path, own, deadline)
	if err != nil {
		return "", nil, isNew, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", resp.StatusCode, strings.TrimSpace(string(b)))
	}
	if err != nil || own || resp.Close {
		c.Close()
	} else {
		h.put(c)
	}
	return string(b), resp.Header, isNew, err
}

// send writes one request and reads the head of its answer. The connection is
// the caller's to close or give back.
func (h *HTTP) send(path string, own bool, deadline time.Time) (*conn, *http.Response, bool, error) {
	c, isNew, err := h.conns.get(own, deadline)
	if err != nil {
		return nil, nil, false, err
	}
	head := "GET " + path + " HTTP/1.1\r\nHost: " + c.host + "\r\n"
	if own {
		head += "Connection: close\r\n"
	}
	if _, err = c.Write([]byte(head + "\r\n")); err == nil {
		var resp *http.Response
		if resp, err = http.ReadResponse(c.r, nil); err == nil {
			return c, resp, isNew, nil
		}
	}
	c.Close()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("connection closed before an answer")
	}
	return nil, nil, isNew, err
}

// Held is a request that an instance of catalog has begun to answer and holds.
type Held struct {
	Instance string
	Sent     time.Time

	done chan error
}

// Hold sends a request that is held for the given time, on a connection of its
// own, and returns once the instance has answered its name.
func (h *HTTP) Hold(token string, hold time.Duration, deadline time.Time) (*Held, error) {
	held := &Held{Sent: time.Now(), done: make(chan error, 1)}
	c, resp, _, err := h.send("/held?token="+token+"&hold="+hold.String(), true, deadline)
	if err != nil {
		return nil, err
	}
	answer := bufio.NewReader(io.LimitReader(resp.Body, maxBody))
	first, err := answer.ReadString('\n')
	if err != nil || resp.StatusCode != http.StatusOK {
		c.Close()
		return nil, errors.Join(fmt.Errorf("status %d: %.200q", resp.StatusCode, first), err)
	}
	held.Instance = strings.TrimSpace(first)
	go func() {
		defer c.Close()
		rest, err := io.ReadAll(answer)
		if got := strings.TrimSpace(string(rest)); err == nil && got != token {
			err = fmt.Errorf("wrong answer: got %.200q, want %q", got, token)
		}
		held.done <- err
	}()
	return held, nil
}

// Wait is how the request ended: nil when its whole answer came and was right.
// It may be called once.
func (h *Held) Wait() error { return <-h.done }

// answered splits "<instance> <want>\n" and fails when body is anything else.
func answered(body, want string) (instance string, err error) {
	instance, rest, _ := strings.Cut(body, " ")
	if instance == "" || rest != want+"\n" {
		return "", fmt.Errorf("wrong answer: got %.200q, want an instance and %q", body, want)
	}
	return instance, nil
}

func sku(n uint64) string { return "sku-" + strconv.FormatUint(n%1000, 10) }

func token(kind string, n uint64) string { return kind + strconv.FormatUint(n, 36) }
