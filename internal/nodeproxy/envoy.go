package nodeproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// A started Envoy that has lived so long may crash again and be started at once.
	calmTime  = 30 * time.Second
	firstWait = 100 * time.Millisecond // between a crash and the next start; doubled each time
	mostWait  = 5 * time.Second
	stopTime  = 5 * time.Second // from SIGTERM to SIGKILL
	adminTime = 2 * time.Second
	pollTime  = 50 * time.Millisecond
)

// envoy keeps one Envoy running.
type envoy struct{ o Options }

// keep starts Envoy, and again when it ends, until ctx ends.
func (e *envoy) keep(ctx context.Context) error {
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		begun := time.Now()
		err := e.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) > calmTime {
			wait = firstWait
		}
		e.o.Log.Error("Envoy has ended by itself, and is started again", "how", err, "after", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// once runs Envoy until it ends. When ctx ends it is told to end.
func (e *envoy) once(ctx context.Context) error {
	// A socket of one that was killed is in the way of the next.
	if err := os.Remove(e.socket()); err != nil && !os.IsNotExist(err) {
		return err
	}
	cmd := exec.Command(e.o.Envoy, "-c", filepath.Join(e.o.Dir, bootName), "--disable-hot-restart",
		"--concurrency", strconv.Itoa(max(1, e.o.Concurrency)), "--log-level", "warning", "--drain-strategy", "immediate")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.Contains(kv, "_HTTP_TOKEN") })
	cmd.Stdout, cmd.Stderr = e.o.Output, e.o.Output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel ends Envoy when the thread that started it ends, and so with this process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go e.sayReady(watching, cmd.Process.Pid)
	select {
	case err := <-ended:
		return errors.Join(errors.New("it was not told to"), err)
	case <-ctx.Done():
	}
	_ = syscall.Kill(cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopTime):
		_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	}
	return nil
}

func (e *envoy) socket() string { return filepath.Join(e.o.Dir, adminName) }

// sayReady logs once that everything Envoy was started with is in force.
func (e *envoy) sayReady(ctx context.Context, pid int) {
	begun := time.Now()
	for {
		if _, err := e.ask(ctx, http.MethodGet, "/ready"); err == nil {
			e.o.Log.Info("ready", "envoy", pid, "after", time.Since(begun).Round(time.Millisecond))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollTime):
		}
	}
}

// drain tells clients to go, and waits until they have.
func (e *envoy) drain(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if limit <= 0 {
		return
	}
	// Going on to accept meanwhile: nobody is told to call elsewhere.
	if _, err := e.ask(ctx, http.MethodPost, "/drain_listeners?graceful&skip_exit"); err != nil {
		e.o.Log.Warn("draining", "error", err)
		return
	}
	for {
		n, err := e.open(ctx)
		if err != nil || n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			e.o.Log.Warn("the time to drain is over", "open", n)
			return
		case <-time.After(pollTime):
		}
	}
}

// open is how many clients of this host are connected, and how many requests of others
// are being answered.
func (e *envoy) open(ctx context.Context) (n uint64, err error) {
	body, err := e.ask(ctx, http.MethodGet, "/stats?format=json&filter="+url.QueryEscape(`^(http\.front\.downstream_cx_active|http\.peer\.downstream_rq_active|tcp\..*\.downstream_cx_active)$`))
	if err != nil {
		return 0, err
	}
	var stats struct {
		Stats []struct {
			Value uint64 `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(body, &stats); err != nil {
		return 0, err
	}
	for _, s := range stats.Stats {
		n += s.Value
	}
	return n, nil
}

// ask is an answer of Envoy's admin interface, which has to be 200.
func (e *envoy) ask(ctx context.Context, method, path string) ([]byte, error) {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.socket())
	}}
	ctx, cancel := context.WithTimeout(ctx, adminTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("Envoy's admin interface %s: %s", path, resp.Status)
	}
	return b, err
}
