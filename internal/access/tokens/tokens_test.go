package tokens

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
)

// clock is a present that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func open(t *testing.T, o Options) *Tokens {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func create(t *testing.T, s *Tokens, n New) (string, Token) {
	t.Helper()
	secret, tok, err := s.Create(n)
	if err != nil {
		t.Fatal(err)
	}
	return secret, tok
}

func TestLifeOfAJoinToken(t *testing.T) {
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	var revoked []string
	s := open(t, Options{Now: c.Now, Revoked: func(t Token) { revoked = append(revoked, t.Accessor) }})
	secret, tok := create(t, s, New{Role: access.Join, Services: []string{"web"}})
	if want := c.now.Add(DefaultJoinTTL); !tok.Expires.Equal(want) {
		t.Errorf("expires %s, want %s", tok.Expires, want)
	}
	p, until, err := s.Bearer(secret)
	if err != nil || !p.IsInstance("web") || p.IsInstance("catalog") || !until.Equal(tok.Expires) {
		t.Fatalf("Bearer = %v, %v, %v", p, until, err)
	}

	// The end of the token is not that of the identity that came through it; its revocation is.
	c.now = c.now.Add(DefaultJoinTTL + time.Second)
	if _, _, err := s.Bearer(secret); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("expired: %v", err)
	}
	if p, err := s.Instance("web", tok.Accessor); err != nil || p.Role != access.Service || !p.IsInstance("web") {
		t.Errorf("instance after the token's end: %v, %v", p, err)
	}
	if _, err := s.Revoke(tok.Accessor); err != nil || len(revoked) != 1 || revoked[0] != tok.Accessor {
		t.Fatalf("Revoke: %v; told of %v", err, revoked)
	}
	for what, err := range map[string]error{"bearer": second(s.Bearer(secret)), "instance": last(s.Instance("web", tok.Accessor))} {
		if err == nil || !strings.Contains(err.Error(), "revoked at 2026-01-02T00:00:01Z") || strings.Contains(err.Error(), secret) {
			t.Errorf("%s of a revoked token: %v", what, err)
		}
	}
}

func second(_ access.Principal, _ time.Time, err error) error { return err }
func last(_ access.Principal, err error) error                { return err }

func TestInstanceRefuses(t *testing.T) {
	s := open(t, Options{})
	_, join := create(t, s, New{Role: access.Join, Services: []string{"web"}})
	_, owner := create(t, s, New{Role: access.Owner, Services: []string{"web"}})
	for name, through := range map[string]string{"no token": "", "a stranger's": newAccessor(), "an owner's": owner.Accessor} {
		if p, err := s.Instance("web", through); err == nil {
			t.Errorf("%s: %v", name, p)
		}
	}
	if p, err := s.Instance("catalog", join.Accessor); err == nil {
		t.Errorf("another service: %v", p)
	}
	if _, _, err := s.Bearer(""); err == nil {
		t.Error("the empty secret is somebody's")
	}
}

func TestCreateRefuses(t *testing.T) {
	s := open(t, Options{})
	for name, n := range map[string]New{
		"no role":             {},
		"service role":        {Role: access.Service, Services: []string{"web"}},
		"join for none":       {Role: access.Join},
		"join for two":        {Role: access.Join, Services: []string{"a", "b"}},
		"owner of none":       {Role: access.Owner},
		"operator of one":     {Role: access.Operator, Services: []string{"web"}},
		"any service":         {Role: access.Owner, Services: []string{"*"}},
		"empty name":          {Role: access.Join, Services: []string{""}},
		"path":                {Role: access.Join, Services: []string{"a/b"}},
		"life that is over":   {Role: access.Reader, TTL: -time.Second},
		"life without end":    {Role: access.Reader, TTL: MaxTTL + 1},
		"endless words":       {Role: access.Reader, Description: strings.Repeat("x", maxDescription+1)},
		"more than a fleet's": {Role: access.Owner, Services: strings.Fields(many(maxServices + 1))},
	} {
		if _, tok, err := s.Create(n); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, tok, err)
		}
	}
	if _, err := s.Revoke("nobody"); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoke of an unknown one: %v", err)
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" s" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + time.Duration(i).String())
	}
	return b.String()
}

func TestKeptOnDiskWithoutSecrets(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	secret, tok := create(t, s, New{Role: access.Operator, By: "the test", Description: "kept"})
	gone, dead := create(t, s, New{Role: access.Reader})
	if _, err := s.Revoke(dead.Accessor); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Bearer(secret); err != nil {
		t.Fatal(err)
	}
	s.Record(Entry{Who: "the test", Action: "PUT /v1/config", Outcome: "done"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte(secret[len("cf-operator-"):])) {
		t.Error("the secret is on disk")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v", path, st.Mode(), err)
	}

	s = open(t, Options{Dir: dir})
	p, _, err := s.Bearer(secret)
	if err != nil || p.Role != access.Operator || p.Accessor != tok.Accessor {
		t.Errorf("after a restart: %v, %v", p, err)
	}
	if _, _, err := s.Bearer(gone); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("revoked before a restart: %v", err)
	}
	if got, _ := s.Get(tok.Accessor); got.CreatedBy != "the test" || got.Used.IsZero() {
		t.Errorf("after a restart: %+v", got)
	}
	if e := s.Trail(10); len(e) != 1 || e[0].Who != "the test" || e[0].Index != 1 {
		t.Errorf("trail after a restart: %+v", e)
	}
}

func TestTrailIsBounded(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	const n = maxEntries + 100
	for range n {
		s.Record(Entry{Action: "x"})
	}
	if e := s.Trail(1); e[0].Index != n {
		t.Errorf("newest entry %d, want %d", e[0].Index, n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Options{Dir: dir})
	if got := len(s.Trail(2 * n)); got > maxEntries || got < maxEntries/2 {
		t.Errorf("%d entries after a restart, want at most %d and the half at least", got, maxEntries)
	}
	s.Record(Entry{Action: "y"})
	if e := s.Trail(1); e[0].Index != n+1 {
		t.Errorf("index after a restart %d, want %d", e[0].Index, n+1)
	}
}

func TestForgottenLongAfterTheirEnd(t *testing.T) {
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s := open(t, Options{Now: c.Now})
	_, unused := create(t, s, New{Role: access.Join, Services: []string{"a"}})
	_, used := create(t, s, New{Role: access.Join, Services: []string{"b"}})
	_, endless := create(t, s, New{Role: access.Reader})
	c.now = c.now.Add(300 * 24 * time.Hour)
	if _, err := s.Instance("b", used.Accessor); err != nil { // a leaf is still renewed
		t.Fatal(err)
	}
	c.now = c.now.Add(200 * 24 * time.Hour)
	create(t, s, New{Role: access.Reader})
	for name, c := range map[string]struct {
		tok  Token
		kept bool
	}{"unused": {unused, false}, "used": {used, true}, "without end": {endless, true}} {
		if _, kept := s.Get(c.tok.Accessor); kept != c.kept {
			t.Errorf("%s: kept %v, want %v", name, kept, c.kept)
		}
	}
}
