package load

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// pipe is two ends of a loopback connection, closed with the test.
func pipe(t *testing.T) (near, far net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if near, err = net.Dial("tcp", lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = lis.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestExchangeChecksAnswers(t *testing.T) {
	body := string(payload(Small))
	for name, tc := range map[string]struct{ answer, want string }{
		"good":       {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body, ""},
		"status":     {"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "503"},
		"length":     {"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "content-length 3"},
		"no length":  {"HTTP/1.1 200 OK\r\nx: y\r\n\r\n" + body, "no such header"},
		"wrong body": {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + strings.ToUpper(body), "wrong body"},
		"too long":   {"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body + "x", "too long"},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pipe(t)
			go func() {
				buf := make([]byte, 4096)
				far.Read(buf)
				far.Write([]byte(tc.answer))
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			h := &httpConn{deadlined: deadlined{Conn: near}, request: []byte("GET / HTTP/1.1\r\n\r\n"), want: payload(Small), buf: make([]byte, 16<<10)}
			err := h.Exchange(ctx)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

// A request's latency begins when it was due, however late a worker was free for it.
func TestFixedRate(t *testing.T) {
	schedule := make(chan due, 10)
	var recording, stop atomic.Bool
	recording.Store(true)
	begun := time.Now()
	pace(1000, 0.5, schedule, &recording, &stop) // until it is full
	var at []time.Time
	for d := range schedule {
		if at = append(at, d.at); !d.record || d.at.After(time.Now()) {
			t.Errorf("request %d: %+v, want it recorded and not early", len(at), d)
		}
	}
	if len(at) != 10 || at[9].Sub(at[0]) != 9*time.Millisecond || at[0].Sub(begun) < 500*time.Microsecond {
		t.Errorf("due at %v, want 10 a millisecond apart, the first half of one after %v", at, begun)
	}

	a, err := StartApp(HTTP, Small)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Stop()
	conn, err := Dial(HTTP, fmt.Sprintf("127.0.0.1:%d", a.Port), Small)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	late := make(chan due, 2)
	late <- due{at: time.Now().Add(-time.Minute), record: true}
	late <- due{at: time.Now()}
	close(late)
	w := &worker{conn: conn}
	w.follow(t.Context(), late, &atomic.Bool{})
	if w.err != nil || w.done.Load() != 2 || len(w.latencies) != 1 || w.latencies[0] < time.Minute {
		t.Errorf("%d done, latencies %v, %v; want 2, one of a minute", w.done.Load(), w.latencies, w.err)
	}
}

func TestQuantile(t *testing.T) {
	v := []int{5, 1, 4, 2, 3}
	for q, want := range map[float64]int{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := Quantile(v, q); got != want {
			t.Errorf("quantile %v = %d, want %d", q, got, want)
		}
	}
	if got := Quantile([]int(nil), 0.5); got != 0 {
		t.Errorf("quantile of nothing = %d", got)
	}
}

// What is overdue when a turn ends is left, where that is asked for.
func TestAbandon(t *testing.T) {
	late := make(chan due, 1)
	late <- due{at: time.Now()}
	close(late)
	var abandoned atomic.Bool
	abandoned.Store(true)
	w := &worker{}
	w.follow(t.Context(), late, &abandoned)
	if w.done.Load() != 0 || w.err != nil {
		t.Errorf("%d done, %v; want none", w.done.Load(), w.err)
	}
}
