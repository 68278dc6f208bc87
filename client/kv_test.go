package client_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crossfade-mesh/crossfade/client"
)

// fakeKV is Consul's KV with one key, without a network, so that time can be a bubble's.
type fakeKV struct {
	mu      sync.Mutex
	value   *string // nil: no such key
	down    bool
	bare    bool // answers without an index, as a proxy does
	index   uint64
	changed chan struct{}
	asked   []*http.Request
	at      []time.Time
	body    io.Reader // in place of the value
}

func newFakeKV() *fakeKV { return &fakeKV{index: 10, changed: make(chan struct{})} }

// change makes a change, and wakes whoever waits.
func (f *fakeKV) change(by func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	by()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeKV) set(v string) { f.change(func() { f.value, f.down, f.index = &v, false, f.index+1 }) }

func (f *fakeKV) questions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

func (f *fakeKV) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.at = append(f.asked, r), append(f.at, time.Now())
	q := r.URL.Query()
	index, _ := strconv.ParseUint(q.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(q.Get("wait"))
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for late := false; !late && !f.down && index > 0 && f.index <= index; {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-timeout.C:
			late = true
		case <-r.Context().Done():
		}
		f.mu.Lock()
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
	}
	if f.down {
		return nil, errors.New("connection refused")
	}
	w := &http.Response{StatusCode: http.StatusNotFound, Status: "404 Not Found", Header: http.Header{}, Body: http.NoBody, Request: r}
	if !f.bare {
		w.Header.Set("X-Consul-Index", strconv.FormatUint(f.index, 10))
	}
	if f.value != nil {
		w.StatusCode, w.Status = http.StatusOK, "200 OK"
		w.Body = io.NopCloser(strings.NewReader(*f.value))
		if f.body != nil {
			w.Body = io.NopCloser(f.body)
		}
	}
	return w, nil
}

// settle lets all that waits for a time happen: an answer, a pause after failures, a wait that ends.
func settle() {
	<-time.After(3 * time.Minute)
	synctest.Wait()
}

// open opens the pair of web and catalog, with both addresses, in a bubble, until the test ends.
func open(t *testing.T, kv http.RoundTripper, change func(*client.Options)) *client.Pair {
	t.Helper()
	o := client.Options{Source: "web", Destination: "catalog", Getenv: getenv(map[string]string{
		"CROSSFADE_LEGACY_ADDR_catalog": "10.0.0.1:80",
		"NOMAD_UPSTREAM_ADDR_catalog":   "127.0.0.1:7100",
	})}
	if kv == nil {
		o.Source = ""
	} else {
		o.HTTPClient = &http.Client{Transport: kv}
	}
	if change != nil {
		change(&o)
	}
	p, err := client.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func wantPercent(t *testing.T, p *client.Pair, want float64) {
	t.Helper()
	if got := p.Percent(); got != want {
		t.Errorf("percent %v, want %v", got, want)
	}
}

func TestOpenKnowsKV(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("70")
		wantPercent(t, open(t, kv, nil), 70)
	})
}

func TestOpenDoesNotWaitLong(t *testing.T) {
	silent := roundTrip(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	for _, tt := range []struct{ first, want time.Duration }{{0, time.Second}, {3 * time.Second, 3 * time.Second}, {-1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			p := open(t, silent, func(o *client.Options) { o.FirstRead = tt.first })
			if took := time.Since(start); took != tt.want {
				t.Errorf("FirstRead %v: opened after %v, want %v", tt.first, took, tt.want)
			}
			p.Close()
			p.Close()
		})
	}
}

func TestKVIsAskedForOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		open(t, kv, func(o *client.Options) {
			o.Source = "web app"
			o.Getenv = getenv(map[string]string{"CONSUL_HTTP_ADDR": "https://consul.example/prefix/", "CONSUL_HTTP_TOKEN": "secret"})
		})
		synctest.Wait()
		r := kv.asked[0]
		if got, want := r.URL.String(), "https://consul.example/prefix/v1/kv/crossfade/web%20app/catalog/mesh_percent?raw"; got != want {
			t.Errorf("asked for %s, want %s", got, want)
		}
		if got := r.Header.Get("X-Consul-Token"); got != "secret" {
			t.Errorf("token %q, want secret", got)
		}
	})
}

func TestUnusableConsulAddressIsAProblem(t *testing.T) {
	for _, addr := range []string{"ftp://x", "http://", "http://a b", "http://x?y", "http://[::1"} {
		p := open(t, roundTrip(nil), func(o *client.Options) { o.Getenv = getenv(map[string]string{"CONSUL_HTTP_ADDR": addr}) })
		if got := p.Problems(); len(got) != 2 || got[0].Kind != client.KVUnreachable {
			t.Errorf("%s: problems %v", addr, got)
		}
	}
}

// Questions are as rare as answers allow: none while nothing changes, five a second
// while all does.
func TestQuestionsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("1")
		p := open(t, kv, nil)
		<-time.After(10 * time.Minute)
		if n := kv.questions(); n > 12 {
			t.Errorf("%d questions in 10m of silence, want one a minute", n)
		}
		before := kv.questions()
		for range 1000 {
			kv.set("2")
			<-time.After(10 * time.Millisecond)
		}
		if n := kv.questions() - before; n > 52 {
			t.Errorf("%d questions in 10s of changes, want 5 a second", n)
		}
		kv.set("3")
		<-time.After(201 * time.Millisecond)
		wantPercent(t, p, 3)
	})
}

func TestFailuresBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.down = true
		var told []client.Problem
		p := open(t, kv, func(o *client.Options) { o.OnProblem = func(p client.Problem) { told = append(told, p) } })
		<-time.After(10 * time.Minute)
		if n := kv.questions(); n < 20 || n > 60 {
			t.Errorf("%d questions in 10m of failures, want one in 15 to 30s and a few before", n)
		}
		for i := 1; i < len(kv.at); i++ {
			if gap := kv.at[i].Sub(kv.at[i-1]); gap < 100*time.Millisecond || gap > 30*time.Second {
				t.Errorf("pause %d of %v, want 100ms to 30s", i, gap)
			}
		}
		if len(told) != 1 || p.Stats().Problems != 1 {
			t.Errorf("told %v: one outage is one problem", told)
		}
		kv.set("5")
		settle()
		wantPercent(t, p, 5)
		kv.change(func() { kv.down = true })
		settle()
		if len(told) != 2 {
			t.Errorf("told %v: a second outage is a second problem", told)
		}
	})
}

// A server that counts from elsewhere is asked anew, without an index.
func TestIndexGoingBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("50")
		p := open(t, kv, nil)
		<-time.After(time.Second)
		kv.change(func() { kv.index, kv.value = 1, nil })
		settle()
		wantPercent(t, p, 0)
		for i, want := range []string{"", "11", "", "1"} {
			if got := kv.asked[i].URL.Query().Get("index"); got != want {
				t.Errorf("question %d holds index %q, want %q", i, got, want)
			}
		}
	})
}

// A question with index 0 would be answered at once, again and again.
func TestIndexZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.index = 0
		open(t, kv, nil)
		settle()
		if n := kv.questions(); n > 5 || kv.asked[1].URL.Query().Get("index") != "1" {
			t.Errorf("%d questions in 3m, the second is %s", n, kv.asked[1].URL)
		}
	})
}

// One reply that counts from elsewhere, as of a server that is still restoring, rules no call.
func TestIndexGoingBackwardsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		questions := 0
		kv := roundTrip(func(r *http.Request) (*http.Response, error) {
			w := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"X-Consul-Index": {"11"}}, Body: io.NopCloser(strings.NewReader("50"))}
			switch questions++; questions {
			case 2:
				w.StatusCode, w.Header, w.Body = http.StatusNotFound, http.Header{"X-Consul-Index": {"3"}}, http.NoBody
			case 4:
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return w, nil
		})
		// Without a new address a share of 50 is a problem; 0 in between would end it, and begin it twice.
		p := open(t, kv, func(o *client.Options) {
			o.Getenv = getenv(map[string]string{"CROSSFADE_LEGACY_ADDR_catalog": "10.0.0.1:80"})
		})
		<-time.After(10 * time.Second)
		synctest.Wait()
		wantPercent(t, p, 50)
		if questions != 4 || p.Stats().Problems != 1 {
			t.Errorf("after %d questions: %+v", questions, p.Stats())
		}
	})
}

// After a failure nothing is known of the index, and a question that held a high one
// would wait for what a new server reaches in days.
func TestIndexIsForgottenAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("50")
		p := open(t, kv, nil)
		<-time.After(time.Second)
		kv.change(func() { kv.down = true })
		synctest.Wait()
		kv.change(func() { v := "60"; kv.down, kv.index, kv.value = false, 1, &v })
		<-time.After(time.Second)
		synctest.Wait()
		wantPercent(t, p, 60)
	})
}

func TestWhatIsNotConsulIsUnreachable(t *testing.T) {
	for name, change := range map[string]func(*fakeKV){
		"404 of a proxy": func(f *fakeKV) { f.bare, f.value = true, nil },
		"page of a proxy": func(f *fakeKV) {
			page := "<html>"
			f.bare, f.value = true, &page
		},
		"broken body": func(f *fakeKV) { f.index, f.body = f.index+1, io.MultiReader(strings.NewReader("9"), failing{}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kv := newFakeKV()
				kv.set("50")
				p := open(t, kv, nil)
				synctest.Wait()
				kv.change(func() { change(kv) })
				settle()
				wantPercent(t, p, 50)
				if got := p.Problems(); len(got) != 1 || got[0].Kind != client.KVUnreachable {
					t.Errorf("problems %v, want kv_unreachable", got)
				}
			})
		})
	}
}

func TestBodyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := newFakeKV()
		kv.set("50")
		p := open(t, kv, nil)
		synctest.Wait()
		long := &zeros{}
		kv.change(func() { kv.index, kv.body = kv.index+1, long })
		<-time.After(time.Second)
		synctest.Wait()
		wantPercent(t, p, 50)
		if long.read > 4096 {
			t.Errorf("read %d bytes of a value", long.read)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

type zeros struct{ read int }

func (z *zeros) Read(b []byte) (int, error) {
	if z.read > 1<<20 {
		return 0, io.EOF
	}
	z.read += len(b)
	copy(b, bytes.Repeat([]byte("0"), len(b)))
	return len(b), nil
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
