package consulapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/consulapi"
)

// FuzzAPI holds that no request panics, and that none is answered by a fault of ours:
// what is wrong with a request is said in words.
func FuzzAPI(f *testing.F) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	h := consulapi.New(consulapi.Options{Store: st})
	for _, c := range transcripts() {
		for _, s := range c.steps {
			if len(s.body) < 10_000 {
				method, path, _ := strings.Cut(s.request, " ")
				f.Add(method, path, s.body)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // answers blocking queries at once
	f.Fuzz(func(t *testing.T, method, path, body string) {
		r, err := http.NewRequestWithContext(ctx, method, "http://self"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if text := w.Body.String(); strings.Contains(text, "goroutine ") || strings.Contains(text, "runtime error") {
			t.Errorf("%s %s: %d %s", method, path, w.Code, text)
		}
		if w.Code >= 500 && w.Code != http.StatusNotImplemented && w.Body.Len() == 0 {
			t.Errorf("%s %s: %d without a word", method, path, w.Code)
		}
	})
}
