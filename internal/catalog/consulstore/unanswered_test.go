package consulstore_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

func TestCommitWithoutAnswer(t *testing.T) {
	f := consultest.NewFake(t)
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	// The Consul commits, and the connection breaks before it says so.
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/txn" {
			return false
		}
		f.Serve(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	})
	if err := a.Update(count); err != nil {
		t.Errorf("what the Consul has committed: %v", err)
	}
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/txn" {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	if err := a.Update(count); err == nil {
		t.Error("what the Consul has not committed is acknowledged")
	}
	f.Spoil(nil)
	update(t, b, count)
	agree(t, a, b)
	if got := string(state(a, "count")); got != "2" {
		t.Errorf("%s writes, want 2", got)
	}
}

func TestEntryWithoutAnswer(t *testing.T) {
	f := consultest.NewFake(t)
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	for name, serve := range map[string]bool{"written, and not said": true, "not written": false} {
		t.Run(name, func(t *testing.T) {
			var tries atomic.Int32
			f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/v1/config" || tries.Add(1) > 1 {
					return false
				}
				if serve {
					f.Serve(httptest.NewRecorder(), r)
				}
				panic(http.ErrAbortHandler)
			})
			update(t, a, put(defaults("web-"+strconv.FormatBool(serve), "http"), "ann"))
			if want := map[bool]int32{true: 1, false: 2}[serve]; tries.Load() != want {
				t.Errorf("written %d times, want %d", tries.Load(), want)
			}
			if got := strings.Join(agree(t, a, b), "\n"); !strings.Contains(got, `"Name":"web-`+strconv.FormatBool(serve)+`","Protocol":"http"`) {
				t.Errorf("the entry is not there: %s", got)
			}
		})
	}
}

func TestConsulGoesAwayAndComesBack(t *testing.T) {
	f, dir := consultest.NewFake(t), t.TempDir()
	a := member(t, f.URL, filepath.Join(dir, "a"))
	update(t, a, put(defaults("web", "http"), "ann"))
	b := member(t, f.URL, filepath.Join(dir, "b"))
	before := agree(t, a, b)
	b.Close()

	f.Down()
	began := time.Now()
	err := a.Update(putState("x", "1"))
	if took := time.Since(began); !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), f.URL) || took > 5*time.Second {
		t.Errorf("a write with the Consul gone, after %s: %v", took, err)
	}
	if _, err := tryMember(f.URL, ""); !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("a server that has seen nothing yet starts with the Consul gone: %v", err)
	}
	b = member(t, f.URL, filepath.Join(dir, "b"))
	for name, s := range map[string]*store.Store{"that ran on": a, "that was restarted": b} {
		if got := strings.Join(describe(s), "\n"); got != strings.Join(before, "\n") {
			t.Errorf("the server %s has\n%s", name, got)
		}
	}

	f.Spoil(nil)
	for _, s := range []*store.Store{a, b} {
		eventually(t, "it is well, though nothing is written", s.Trouble)
	}
	eventually(t, "writes go on", func() error { return b.Update(putState("x", "2")) })
	agree(t, a, b)
	if got := string(state(a, "x")); got != "2" {
		t.Errorf("x is %q", got)
	}
}

// A Consul that is cut off from its cluster lets queries wait, and answers the others. That it has no
// leader is trouble soon, though nothing is asked of it, and none once it has one again.
func TestConsulWithoutALeader(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	update(t, a, count)
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/status/leader" {
			w.Write([]byte(`""`))
		}
		return r.URL.Path == "/v1/status/leader"
	})
	began := time.Now()
	eventually(t, "it is said", func() error {
		if err := a.Trouble(); err == nil || !strings.Contains(err.Error(), "it has no leader") || !strings.Contains(err.Error(), f.URL) {
			return fmt.Errorf("the trouble is %v", err)
		}
		return nil
	})
	if took := time.Since(began); took < 4*time.Second || took > 12*time.Second {
		t.Errorf("said after %s: elections take up to a few seconds", took)
	}
	began = time.Now()
	for name, write := range map[string]func(*store.Writer) error{"a row": count, "an entry": put(defaults("late", "http"), "ann")} {
		if err := a.Update(write); err == nil || !strings.Contains(err.Error(), "nothing was written: Consul at "+f.URL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if took := time.Since(began); took > 4*time.Second { // less than an election, for two writes
		t.Errorf("writes are refused after %s", took)
	}
	f.Spoil(nil)
	eventually(t, "writes go on", func() error { return a.Update(count) })
	eventually(t, "it is well", a.Trouble)
}

// A Consul may leave what it is asked without a leader unanswered long after it has one again. Nobody waits for that.
func TestConsulThatLeavesQuestionsUnanswered(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	update(t, a, count)
	var looks atomic.Int32
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/v1/status/leader":
			looks.Add(1)
			w.Write([]byte(`""`))
			return true
		case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/kv/"):
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		return false
	})
	eventually(t, "it is said", func() error {
		if a.Trouble() == nil {
			return errors.New("no trouble")
		}
		return nil
	})
	said := looks.Load()
	eventually(t, "it has been asked again", func() error {
		if n := looks.Load() - said; n < 4 {
			return fmt.Errorf("%d looks", n)
		}
		return nil
	})
	f.Spoil(nil)
	began := time.Now()
	eventually(t, "it is well", a.Trouble)
	if took := time.Since(began); took > 6*time.Second { // an answer is waited for 15 s
		t.Errorf("it is well after %s", took)
	}
}

// An entry's write that Consul takes, and answers never, may be made at any time.
func TestEntryThatMayYetBeWritten(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v1/config") {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	if err := a.Update(put(defaults("web", "http"), "ann")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a write without an answer: %v", err)
	}
}
