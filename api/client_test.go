package api_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/api"
)

func TestClientAsksWhatItIsAsked(t *testing.T) {
	var got []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("X-Consul-Token")+" "+string(b)))
		switch {
		case strings.Contains(r.URL.RawPath, "odd%2Fname"):
			http.Error(w, "pair: there is none", http.StatusNotFound)
		case r.URL.Path == "/v1/crossfade/pairs":
			io.WriteString(w, "[]")
		case r.URL.Path == "/v1/crossfade/applied":
			io.WriteString(w, "nonsense")
		default:
			io.WriteString(w, "{}")
		}
	}))
	defer s.Close()
	c, err := api.New(api.Options{Address: strings.TrimPrefix(s.URL, "http://"), Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := c.Pairs(ctx, api.Filter{Source: "a&b"}); err != nil {
		t.Error(err)
	}
	_, err = c.Pair(ctx, "odd/name", "b")
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Status != 404 || e.Text != "pair: there is none" {
		t.Error(err)
	}
	if _, err := c.Revert(ctx, api.RevertRequest{All: true}); err != nil {
		t.Error(err)
	}
	index := uint64(0)
	if _, err := c.Shift(ctx, api.ShiftRequest{Pairs: []api.PairIndex{{PairName: api.PairName{Source: "a", Destination: "b"}, Index: &index}}, Via: map[string]float64{"mtls": 1}}); err != nil {
		t.Error(err)
	}
	if _, err := c.Applied(ctx, 7, 0); err == nil || !strings.Contains(err.Error(), "answer is not what was expected") {
		t.Error(err)
	}
	if _, err := c.Held(ctx); err != nil {
		t.Error(err)
	}
	if _, err := c.Release(ctx, "a/b"); err != nil {
		t.Error(err)
	}
	if _, err := c.KeepHeld(ctx, "catalog"); err != nil {
		t.Error(err)
	}
	want := []string{
		"GET /v1/crossfade/pairs?source=a%26b secret",
		"GET /v1/crossfade/pairs/odd%2Fname/b secret",
		`POST /v1/crossfade/revert secret {"all":true}`,
		`POST /v1/crossfade/shift secret {"pairs":[{"source":"a","destination":"b","index":0}],"via":{"mtls":1}}`,
		"GET /v1/crossfade/applied?index=7&wait=0s secret",
		"GET /v1/crossfade/catalog/held secret",
		"PUT /v1/crossfade/catalog/release/a%2Fb secret",
		"PUT /v1/crossfade/catalog/keep/catalog secret",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, bad := range []string{"", "://", "ftp://host", "http://"} {
		if _, err := api.New(api.Options{Address: bad}); err == nil {
			t.Errorf("address %q is taken", bad)
		}
	}
}

func TestSharesReadInOrder(t *testing.T) {
	if got := (api.Shares{MTLS: 33.34, Legacy: 33.33, Direct: 33.33}).String(); got != "legacy 33.33%, direct 33.33%, mtls 33.34%" {
		t.Error(got)
	}
}
