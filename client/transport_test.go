package client_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/client"
)

// between returns a pair between two addresses.
func between(t *testing.T, percent, old, new string) *client.Pair {
	t.Helper()
	p, err := client.Open(client.Options{Destination: "catalog", Getenv: getenv(map[string]string{
		"CROSSFADE_PERCENT_catalog": percent, "CROSSFADE_LEGACY_ADDR_catalog": old, "NOMAD_UPSTREAM_ADDR_catalog": new,
	})})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func do(t *testing.T, c *http.Client, r *http.Request) string {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Request.URL.Host != r.URL.Host {
		t.Errorf("the response is of %s, want %s", resp.Request.URL, r.URL)
	}
	return string(body)
}

func request(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTransportRewrites(t *testing.T) {
	old, new := answering(t, "old"), answering(t, "new")
	for _, tt := range []struct {
		name, percent, host string
		t                   client.Transport
		want                string
	}{
		{"old keeps the host", "0", "", client.Transport{}, "old POST catalog.example:81/items?q=1 {}"},
		{"new keeps the host", "100", "", client.Transport{}, "new POST catalog.example:81/items?q=1 {}"},
		{"a request's own host", "100", "shop", client.Transport{}, "new POST shop/items?q=1 {}"},
		{"the old way's host", "0", "shop", client.Transport{OldHost: "catalog.linkerd", NewHost: "catalog"}, "old POST catalog.linkerd/items?q=1 {}"},
		{"the new way's host", "100", "shop", client.Transport{OldHost: "catalog.linkerd", NewHost: "catalog"}, "new POST catalog/items?q=1 {}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.t.Pair = between(t, tt.percent, old.Listener.Addr().String(), new.URL)
			r := request(t, http.MethodPost, "http://catalog.example:81/items?q=1", "{}")
			r.Host = tt.host
			r.Header.Set("X-Test", "1")
			if got := do(t, &http.Client{Transport: &tt.t}, r); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if r.URL.String() != "http://catalog.example:81/items?q=1" || r.Host != tt.host || len(r.Header) != 1 {
				t.Errorf("the caller's request is now %s for %q with %v", r.URL, r.Host, r.Header)
			}
		})
	}
}

func TestTransportSchemes(t *testing.T) {
	for _, tt := range []struct{ percent, old, new, url, want string }{
		{"0", "a:1", "b:2", "https://catalog/", "https://a:1/"},
		{"0", "http://a:1", "b:2", "https://catalog/", "http://a:1/"},
		{"0", "https://a:1", "b:2", "http://catalog/", "https://a:1/"},
		{"100", "a:1", "b:2", "https://catalog/", "http://b:2/"},
		{"100", "a:1", "https://b:2", "http://catalog/", "https://b:2/"},
	} {
		got := ""
		tr := &client.Transport{Pair: between(t, tt.percent, tt.old, tt.new), Base: roundTrip(func(r *http.Request) (*http.Response, error) {
			got = r.URL.String()
			return nil, errors.New("enough")
		})}
		tr.RoundTrip(request(t, http.MethodGet, tt.url, ""))
		if got != tt.want {
			t.Errorf("%+v: asked %s", tt, got)
		}
	}
}

func TestTransportSticks(t *testing.T) {
	old, new := answering(t, "old"), answering(t, "new")
	p := between(t, "50", old.URL, new.URL)
	byHeader := &http.Client{Transport: &client.Transport{Pair: p, Key: func(r *http.Request) string { return r.Header.Get("X-User") }}}
	byContext := &http.Client{Transport: &client.Transport{Pair: p}}
	for i := range 40 {
		user := fmt.Sprintf("user-%d", i)
		want := "old"
		if client.Bucket(user) < 5000 {
			want = "new"
		}
		r := request(t, http.MethodGet, "http://catalog/", "")
		r.Header.Set("X-User", user)
		if got := do(t, byHeader, r); !strings.HasPrefix(got, want) {
			t.Errorf("%s by header: %s, want %s", user, got, want)
		}
		r = request(t, http.MethodGet, "http://catalog/", "")
		r = r.WithContext(client.WithKey(r.Context(), user))
		for name, c := range map[string]*http.Client{"with a Key": byHeader, "without": byContext} {
			if got := do(t, c, r); !strings.HasPrefix(got, want) {
				t.Errorf("%s by context, %s: %s, want %s", user, name, got, want)
			}
		}
	}
}

type closed struct {
	io.Reader
	times int
}

func (c *closed) Close() error { c.times++; return nil }

func TestTransportWithoutAddresses(t *testing.T) {
	body := &closed{Reader: strings.NewReader("x")}
	r := request(t, http.MethodPost, "http://catalog/", "")
	r.Body = body
	_, err := (&http.Client{Transport: &client.Transport{Pair: between(t, "100", "", "")}}).Do(r)
	if !errors.Is(err, client.ErrNoAddress) {
		t.Errorf("error %v, want %v", err, client.ErrNoAddress)
	}
	if body.times == 0 {
		t.Error("the body is not closed")
	}
}

// A redirect within the destination is a call like others; one elsewhere is none of the pair's.
func TestTransportRedirects(t *testing.T) {
	elsewhere := answering(t, "elsewhere")
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "secure %s", r.Host) }))
	defer secure.Close()
	new := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/relative":
			http.Redirect(w, r, "/end", http.StatusFound)
		case "/absolute":
			http.Redirect(w, r, "http://"+r.Host+"/end", http.StatusFound)
		case "/elsewhere":
			http.Redirect(w, r, elsewhere.URL+"/end", http.StatusFound)
		case "/secure":
			http.Redirect(w, r, secure.URL, http.StatusFound)
		default:
			fmt.Fprintf(w, "new %s%s", r.Host, r.URL.Path)
		}
	}))
	defer new.Close()
	base := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer base.CloseIdleConnections()
	for _, tt := range []struct{ path, newHost, host, want string }{
		{"/relative", "", "catalog", "new catalog/end"},
		{"/absolute", "", "catalog", "new catalog/end"},
		{"/absolute", "catalog.mesh", "catalog", "new catalog.mesh/end"},
		{"/elsewhere", "", "catalog", "elsewhere GET " + elsewhere.Listener.Addr().String() + "/end "},
		{"/elsewhere", "catalog.mesh", "catalog", "elsewhere GET " + elsewhere.Listener.Addr().String() + "/end "},
		{"/secure", "", secure.Listener.Addr().String(), "secure " + secure.Listener.Addr().String()},
	} {
		tr := &client.Transport{Pair: between(t, "100", "", new.URL), Base: base, NewHost: tt.newHost}
		resp, err := (&http.Client{Transport: tr}).Get("http://" + tt.host + tt.path)
		if err != nil {
			t.Errorf("%s: %v", tt.path, err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != tt.want {
			t.Errorf("%s: got %q, want %q", tt.path, body, tt.want)
		}
	}
}

func BenchmarkTransport(b *testing.B) {
	resp := &http.Response{}
	base := roundTrip(func(*http.Request) (*http.Response, error) { return resp, nil })
	tr := &client.Transport{Pair: at(b, "50", nil), Base: base}
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://catalog/", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		tr.RoundTrip(r)
	}
}
