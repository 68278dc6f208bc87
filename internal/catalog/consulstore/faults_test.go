package consulstore_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/consul"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore"
	"github.com/crossfade-mesh/crossfade/internal/catalog/consulstore/consultest"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

func state(s *store.Store, name string) (value []byte) {
	s.Read(context.Background(), 0, func(r *store.Reader) { value = r.State(name) })
	return value
}

func putState(name, value string) func(*store.Writer) error {
	return func(w *store.Writer) error { return w.PutState(name, []byte(value)) }
}

// request asks the Consul itself.
func request(t testing.TB, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// count adds one to a number that all servers have in common.
func count(w *store.Writer) error {
	n, _ := strconv.Atoi(string(w.State("count")))
	return w.PutState("count", []byte(strconv.Itoa(n+1)))
}

func TestWritesOfAllServersAreInOneOrder(t *testing.T) {
	f := consultest.NewFake(t)
	var members []*store.Store
	for range 3 {
		members = append(members, member(t, f.URL, ""))
	}
	const each = 40
	var writers sync.WaitGroup
	failed := make(chan error, 1000)
	for i, s := range members {
		for range 2 {
			writers.Go(func() {
				for n := range each {
					if err := s.Update(count); err != nil {
						failed <- err
					}
					if err := s.Update(put(policy(fmt.Sprintf("s%d", (i+n)%5), fmt.Sprintf("h%d-%d", i, n)), "w")); err != nil {
						failed <- err
					}
				}
			})
		}
	}
	writers.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	agree(t, members...)
	if got, want := string(state(members[0], "count")), strconv.Itoa(len(members)*2*each); got != want {
		t.Errorf("the servers have counted %s writes, %s were acknowledged", got, want)
	}
}

func TestOutsideEntriesAreTaken(t *testing.T) {
	f := consultest.NewFake(t)
	if code, body := request(t, "PUT", f.URL+"/v1/config", `{"Kind":"service-defaults","Name":"early","Protocol":"http"}`); code != 200 {
		t.Fatal(body)
	}
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	if got := strings.Join(describe(b), "\n"); !strings.Contains(got, `"early"`) {
		t.Errorf("a server that has started has not what was there: %s", got)
	}
	update(t, a, put(defaults("web", "http"), "ann"))
	request(t, "PUT", f.URL+"/v1/config", `{"Kind":"service-defaults","Name":"web","Protocol":"grpc"}`)
	request(t, "PUT", f.URL+"/v1/kv/crossfade/web/catalog/mesh_percent", "30")
	request(t, "DELETE", f.URL+"/v1/config/service-defaults/early", "")
	began := time.Now()
	eventually(t, "both have what others wrote", func() error {
		for _, s := range []*store.Store{a, b} {
			got := strings.Join(describe(s), "\n")
			if !strings.Contains(got, "consul changed] [") || !strings.Contains(got, `"Protocol":"grpc"`) || !strings.Contains(got, "mesh_percent=30") || strings.Contains(got, `"early"`) {
				return errors.New(got)
			}
		}
		return nil
	})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("what others wrote is there after %s", took)
	}
	agree(t, a, b)
	// And back: what servers write is in the Consul for others.
	update(t, b, put(defaults("web", "http2"), "bob"))
	if _, body := request(t, "GET", f.URL+"/v1/config/service-defaults/web", ""); !strings.Contains(body, `"http2"`) {
		t.Errorf("the Consul has %s", body)
	}
	got := agree(t, a, b)
	if !strings.Contains(strings.Join(got, "\n"), "bob changed] [") {
		t.Errorf("who wrote it is not said:\n%s", strings.Join(got, "\n"))
	}
}

// Others write all the time, and a server is in the middle of a write of its own whenever what they wrote is taken in: who
// wrote what is said all the same.
func TestOutsideEntriesHaveTheirAuthors(t *testing.T) {
	f := consultest.NewFake(t)
	at, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(at)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/txn" {
			<-time.After(30 * time.Millisecond) // between an entry and its commit
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(slow.Close)
	a, b := member(t, f.URL, ""), member(t, slow.URL, "")
	for n := range 40 {
		request(t, "PUT", f.URL+"/v1/config", fmt.Sprintf(`{"Kind":"service-defaults","Name":"outside-%d","Protocol":"http"}`, n))
		update(t, b, put(defaults(fmt.Sprint("own-", n), "http"), "bob"))
	}
	for _, line := range agree(t, a, b) {
		if strings.Contains(line, `"own-`) && strings.Contains(line, "[") && !strings.Contains(line, "bob created") {
			t.Errorf("it was bob: %s", line)
		}
	}
}

func TestGarbageChangesNothing(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	update(t, a, put(defaults("web", "http"), "ann"))
	update(t, a, put(defaults("api", "http"), "ann"))
	before := strings.Join(describe(a), "\n")
	for name, body := range map[string]string{"null": "null", "empty": "[]", "HTML": "<html>", "truncated": `[{"Kind":"service-def`, "another's": `[{"Kind":"mesh","Name":"mesh"}]`, "nameless": `[{"Kind":"service-defaults"}]`} {
		var asked sync.WaitGroup
		asked.Add(8)
		left := 8
		var mu sync.Mutex
		f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasPrefix(r.URL.Path, "/v1/config/service-defaults") {
				return false
			}
			mu.Lock()
			if left > 0 {
				left--
				asked.Done()
			}
			mu.Unlock()
			w.Header().Set("X-Consul-Index", "3")
			fmt.Fprint(w, body)
			return true
		})
		done := make(chan struct{})
		go func() { asked.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nobody asks", name)
		}
		if got := strings.Join(describe(a), "\n"); got != before {
			t.Errorf("%s: the server has\n%s\nbefore\n%s", name, got, before)
		}
	}
	f.Spoil(nil)
	update(t, a, put(defaults("web", "grpc"), "ann"))
}

func TestAnEntryThatIsNotUnderstoodStaysWhatItWas(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	update(t, a, put(defaults("web", "http"), "ann"))
	odd := `[{"Kind":"service-defaults","Name":"web","Protocol":"http","Tomorrow":{"A":1},"CreateIndex":2,"ModifyIndex":900}]`
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/config/service-defaults") || r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("X-Consul-Index", "900")
		fmt.Fprint(w, odd)
		return true
	})
	request(t, "PUT", f.URL+"/v1/kv/crossfade/web/catalog/mesh_percent", "30")
	eventually(t, "something later is taken", func() error {
		if got := strings.Join(describe(a), "\n"); !strings.Contains(got, "mesh_percent") {
			return errors.New(got)
		}
		return nil
	})
	if got := strings.Join(describe(a), "\n"); !strings.Contains(got, `"Name":"web","Protocol":"http"`) {
		t.Errorf("the entry is gone: %s", got)
	}
}

func TestTheLogIsCutOff(t *testing.T) {
	f, dir := consultest.NewFake(t), t.TempDir()
	a := member(t, f.URL, "")
	sleeper := member(t, f.URL, dir)
	update(t, a, put(defaults("web", "http"), "ann"))
	agree(t, a, sleeper)
	sleeper.Close()
	for n := range 800 {
		update(t, a, putState("n", strconv.Itoa(n)))
		if n%100 == 0 {
			update(t, a, put(policy("web", fmt.Sprintf("h%d", n)), "ann"))
		}
	}
	var keys []string
	eventually(t, "the log is cut off", func() error {
		_, body := request(t, "GET", f.URL+"/v1/kv/"+consulstore.Prefix+"log/?keys", "")
		if err := json.Unmarshal([]byte(body), &keys); err != nil {
			return err
		}
		if len(keys) > 600 {
			return fmt.Errorf("%d records", len(keys))
		}
		return nil
	})
	agree(t, a, member(t, f.URL, dir), member(t, f.URL, ""))
}

func TestLargeWrites(t *testing.T) {
	f := consultest.NewFake(t)
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	big := make([]byte, 1<<20) // does not compress
	rand.Read(big)
	update(t, a, func(w *store.Writer) error { return w.PutState("big", big) })
	update(t, a, func(w *store.Writer) error {
		for n := range 200 {
			if err := w.PutEntry(policy(fmt.Sprintf("s%d", n), "h"), store.Author{Who: "ann"}); err != nil {
				return err
			}
		}
		return nil
	})
	agree(t, a, b, member(t, f.URL, ""))
	if string(state(b, "big")) != string(big) {
		t.Error("what is large has changed on its way")
	}
}

func TestABlankedConsulTakesNothingAway(t *testing.T) {
	f, dir := consultest.NewFake(t), t.TempDir()
	a := member(t, f.URL, dir)
	update(t, a, put(policy("web", "user"), "ann"))
	before := strings.Join(describe(a), "\n")
	if code, body := request(t, "DELETE", f.URL+"/v1/kv/"+consulstore.Prefix+"?recurse", ""); code != 200 {
		t.Fatal(body)
	}
	eventually(t, "the server says so", func() error {
		if err := a.Trouble(); !errors.Is(err, store.ErrForeign) || !strings.Contains(err.Error(), "crossfade migrate store") {
			return fmt.Errorf("trouble is %v", err)
		}
		return nil
	})
	if err := a.Update(putState("x", "1")); !errors.Is(err, store.ErrForeign) {
		t.Errorf("a write into another history: %v", err)
	}
	a.Close()
	a = member(t, f.URL, dir)
	if got := strings.Join(describe(a), "\n"); got != before {
		t.Errorf("after a restart it has\n%s\nbefore\n%s", got, before)
	}
	if err := a.Update(putState("x", "1")); !errors.Is(err, store.ErrForeign) {
		t.Errorf("a write after a restart: %v", err)
	}
}

func TestATokenThatMayOnlyRead(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	update(t, a, put(defaults("web", "http"), "ann"))
	forbid := func(prefix string) {
		f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || !strings.HasPrefix(r.URL.Path, prefix) {
				return false
			}
			const why = "Permission denied: token with AccessorID '00000000-0000-0000-0000-000000000002' lacks permission"
			if prefix == "/v1/txn" { // whose parts are judged one by one
				w.WriteHeader(http.StatusConflict)
				fmt.Fprintf(w, `{"Results":null,"Errors":[{"OpIndex":0,"What":%q}]}`, why)
				return true
			}
			http.Error(w, why, http.StatusForbidden)
			return true
		})
	}
	for prefix, want := range map[string]string{
		"/v1/txn":    `key_prefix "crossfade-store/" { policy = "write" }`,
		"/v1/config": `service_prefix "" { policy = "write" intentions = "write" }`,
	} {
		forbid(prefix)
		err := a.Update(put(defaults("web", "grpc"), "ann"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is forbidden: %v; want %s", prefix, err, want)
		}
	}
	f.Spoil(nil)
	if _, body := request(t, "GET", f.URL+"/v1/config/service-defaults/web", ""); !strings.Contains(body, `"Protocol":"http"`) {
		t.Errorf("a refused write is left in the Consul: %s", body)
	}
	if got := strings.Join(describe(a), "\n"); !strings.Contains(got, `"Protocol":"http"`) {
		t.Errorf("a refused write is in force: %s", got)
	}
}

func TestOneServerHoldsALock(t *testing.T) {
	f := consultest.NewFake(t)
	const lock = "shifts"
	a := member(t, f.URL, "", lock)
	eventually(t, "the first has it", func() error {
		if !a.Holds(lock) {
			return errors.New("not yet")
		}
		return nil
	})
	b := member(t, f.URL, "", lock)
	held := func(name string) func(*store.Writer) error {
		return func(w *store.Writer) error {
			w.Holding(lock)
			return w.PutState("who", []byte(name))
		}
	}
	update(t, a, held("a"))
	if err := b.Update(held("b")); !errors.As(err, new(*store.LockLost)) {
		t.Errorf("a write without the lock: %v", err)
	}
	// One that does not know yet that it has lost the lock.
	_, body := request(t, "GET", f.URL+"/v1/session/list", "")
	var sessions []struct{ ID string }
	if err := json.Unmarshal([]byte(body), &sessions); err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		request(t, "PUT", f.URL+"/v1/session/destroy/"+s.ID, "")
	}
	if err := a.Update(held("late")); !errors.As(err, new(*store.LockLost)) {
		t.Errorf("a write of who has lost the lock: %v", err)
	}
	eventually(t, "somebody has it again", func() error {
		if a.Holds(lock) == b.Holds(lock) {
			return fmt.Errorf("both say %v", a.Holds(lock))
		}
		return nil
	})
	if a.Holds(lock) {
		a, b = b, a
	}
	update(t, b, held("b"))
	b.Close() // lets go of it
	eventually(t, "the other has it", func() error {
		if !a.Holds(lock) {
			return errors.New("not yet")
		}
		return a.Update(held("a"))
	})
}

func TestEntriesThatRefuseEachOther(t *testing.T) {
	f := consultest.NewFake(t)
	a := member(t, f.URL, "")
	good := defaults("web", "http")
	// The Consul takes the router only after the defaults, and nothing named bad.
	var have sync.Map
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || r.URL.Path != "/v1/config" {
			return false
		}
		body := readAll(r)
		r.Body = readCloser(body)
		_, ok := have.Load("web")
		switch {
		case strings.Contains(body, `"bad"`), strings.Contains(body, "proxy-defaults") && !ok:
			http.Error(w, "it does not fit", http.StatusInternalServerError)
			return true
		case strings.Contains(body, `"web"`):
			have.Store("web", true)
		}
		return false
	})
	global, err := config.DecodeEntryJSON([]byte(`{"Kind":"proxy-defaults","Name":"global","Config":{"protocol":"http"}}`))
	if err != nil {
		t.Fatal(err)
	}
	update(t, a, func(w *store.Writer) error {
		return errors.Join(w.PutEntry(global, store.Author{}), w.PutEntry(good, store.Author{}))
	})
	err = a.Update(func(w *store.Writer) error {
		return errors.Join(w.PutEntry(defaults("api", "http"), store.Author{}), w.PutEntry(defaults("bad", "http"), store.Author{}))
	})
	if !errors.As(err, new(*store.Refusal)) || !strings.Contains(err.Error(), `service-defaults "bad"`) || !strings.Contains(err.Error(), "it does not fit") {
		t.Errorf("what the Consul refuses: %v", err)
	}
	if code, body := request(t, "GET", f.URL+"/v1/config/service-defaults/api", ""); code != 404 {
		t.Errorf("half of a refused write is in the Consul: %s", body)
	}
}

func TestWhichConsulIsServed(t *testing.T) {
	f := consultest.NewFake(t)
	check := func(body string) (string, []string, error) {
		f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/agent/self" {
				return false
			}
			fmt.Fprint(w, body)
			return true
		})
		c, err := consul.NewClient(consul.Options{Address: f.URL})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return consulstore.New(consulstore.Options{Client: c, Address: f.URL}).Check(t.Context())
	}
	for body, want := range map[string]string{
		`{"Config":{"Datacenter":"dc7","Version":"1.15.9"}}`:    "version 1.15.9 is too old: want 1.16.0 or later",
		`{"Config":{"Datacenter":"dc7","Version":"0.9.2"}}`:     "too old",
		`{"Config":{"Datacenter":"dc7","Version":"1.16.0"}}`:    "",
		`{"Config":{"Datacenter":"dc7","Version":"2.0.0+ent"}}`: "",
		`<html>`: "not that of a Consul agent",
		`{}`:     "not that of a Consul agent",
	} {
		dc, problems, err := check(body)
		if want == "" && (err != nil || dc != "dc7" || len(problems) > 0) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v, %v; want %q", body, dc, problems, err, want)
		}
	}
	f.Down()
	c, err := consul.NewClient(consul.Options{Address: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := consulstore.New(consulstore.Options{Client: c, Address: f.URL}).Check(t.Context()); !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("no Consul: %v", err)
	}
}

// A server writes an entry into the Consul, is slow to commit it, and others commit meanwhile,
// among them one that finds the entry there: what is acknowledged stays.
func TestAnEntryThatOthersFindFirst(t *testing.T) {
	f := consultest.NewFake(t)
	a, b := member(t, f.URL, ""), member(t, f.URL, "")
	update(t, a, put(defaults("web", "http"), "ann"))
	agree(t, a, b)
	var begun atomic.Bool
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/txn" {
			return false
		}
		body := readAll(r)
		r.Body = readCloser(body)
		if begun.CompareAndSwap(false, true) { // a's commit: b finds the entry before it is made
			eventually(t, "another server takes the entry for somebody else's", func() error {
				if got := strings.Join(describe(b), "\n"); !strings.Contains(got, `"Protocol":"grpc"`) {
					return errors.New(got)
				}
				return nil
			})
		}
		return false
	})
	update(t, a, put(defaults("web", "grpc"), "ann"))
	f.Spoil(nil)
	<-time.After(time.Second) // time enough to be taken back
	for _, line := range agree(t, a, b) {
		if !strings.Contains(line, `"Protocol":"grpc"`) {
			t.Errorf("an acknowledged write is lost: %s", line)
		}
	}
	if _, body := request(t, "GET", f.URL+"/v1/config/service-defaults/web", ""); !strings.Contains(body, `"grpc"`) {
		t.Errorf("the Consul has %s", body)
	}

	// One that is refused after it was half done is taken back, everywhere.
	var refuse atomic.Bool
	begun.Store(false)
	f.Spoil(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v1/txn" {
			body := readAll(r)
			r.Body = readCloser(body)
			if begun.CompareAndSwap(false, true) {
				refuse.Store(true)
				if err := b.Update(putState("x", "1")); err != nil {
					t.Error(err)
				}
			}
		}
		return false
	})
	err := a.Update(func(w *store.Writer) error {
		if refuse.Load() {
			return errors.New("no longer")
		}
		return w.PutEntry(defaults("web", "http2"), store.Author{Who: "ann"})
	})
	if err == nil {
		t.Fatal("not refused")
	}
	f.Spoil(nil)
	<-time.After(time.Second)
	if got := strings.Join(agree(t, a, b), "\n"); !strings.Contains(got, `"Protocol":"grpc"`) || strings.Contains(got, `"Protocol":"http2"`) {
		t.Errorf("what was refused is in force: %s", got)
	}
	if _, body := request(t, "GET", f.URL+"/v1/config/service-defaults/web", ""); !strings.Contains(body, `"grpc"`) {
		t.Errorf("the Consul has %s", body)
	}
}
