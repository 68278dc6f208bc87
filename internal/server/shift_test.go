package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
)

func apiOf(t *testing.T, s *servertest.Server, token string) *api.Client {
	t.Helper()
	o := api.Options{Address: s.URL(), Token: token}
	if token != "" {
		o.HTTPClient = s.HTTPClient(servertest.Caller{})
	}
	c, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pairOf(source, destination string) api.PairName {
	return api.PairName{Source: source, Destination: destination}
}

func only(p ...api.PairName) (out []api.PairIndex) {
	for _, one := range p {
		out = append(out, api.PairIndex{PairName: one})
	}
	return out
}

// lines is what became of each pair.
func lines(c *api.Changed) (out []string) {
	for _, p := range c.Pairs {
		line := fmt.Sprintf("%s: %s -> %s", p.PairName, p.Before, p.After)
		if p.Refused != "" {
			line = fmt.Sprintf("%s: refused: %s", p.PairName, p.Refused)
		} else if p.Same() {
			line = fmt.Sprintf("%s: %s, same", p.PairName, p.After)
		}
		out = append(out, line)
	}
	return out
}

// declared waits until so many pairs are known.
func declared(t *testing.T, c *api.Client, n int) {
	t.Helper()
	meshtest.Eventually(t, fmt.Sprintf("%d pairs", n), func() error {
		rows, err := c.Pairs(t.Context(), api.Filter{})
		if err == nil && len(rows) != n {
			err = fmt.Errorf("%d pairs", len(rows))
		}
		return err
	})
}

func status(err error) int {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Status
	}
	return 0
}

func TestShiftAndRevertOverHTTP(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("catalog.yaml", catalog)
	c, ctx := apiOf(t, s, ""), t.Context()
	declared(t, c, 1)
	shift := func(in api.ShiftRequest, want ...string) *api.Changed {
		t.Helper()
		out, err := c.Shift(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, lines(out)); diff != "" {
			t.Error(diff)
		}
		return out
	}
	pair := only(pairOf("web", "catalog"))

	// A dry run says what the shift then does, and changes nothing.
	first := api.ShiftRequest{Pairs: pair, Via: map[string]float64{"mtls": 10}, Legacy: &api.LegacyWay{Address: "127.0.0.1:1", Host: "catalog.old"}}
	if _, err := c.Shift(ctx, first); err == nil || !strings.Contains(err.Error(), "shift: legacy address 127.0.0.1:1: cannot be connected to from the server: connect: connection refused; --force") {
		t.Errorf("an address that nothing listens at is taken: %v", err)
	}
	first.Force = true
	dry := first
	dry.DryRun = true
	const line = "web -> catalog: mtls 100% -> legacy 90%, mtls 10%"
	if out := shift(dry, line); out.Index != 0 {
		t.Errorf("a dry run has index %d", out.Index)
	}
	if rows, err := c.Pairs(ctx, api.Filter{}); err != nil || len(rows) != 1 || rows[0].Entry != "" {
		t.Errorf("after a dry run: %+v, %v", rows, err)
	}
	out := shift(first, line)
	if out.Index == 0 || len(out.Disconnected) != 1 || out.Disconnected[0] != "web-sidecar-proxy" {
		t.Errorf("%+v", out)
	}
	if out := shift(first, "web -> catalog: legacy 90%, mtls 10%, same"); out.Index != 0 {
		t.Errorf("the same again has index %d", out.Index)
	}
	more := api.ShiftRequest{Pairs: pair, Via: map[string]float64{"mtls": 20}}
	meshtest.Eventually(t, "catalog's sidecar is in service", func() error {
		dry := more
		dry.DryRun = true
		_, err := c.Shift(ctx, dry)
		return err
	})
	shift(more, "web -> catalog: legacy 90%, mtls 10% -> legacy 80%, mtls 20%")
	shift(api.ShiftRequest{Service: "catalog", Via: map[string]float64{"legacy": 50, "direct": 50}}, "web -> catalog: legacy 80%, mtls 20% -> legacy 50%, direct 50%")

	// The pair, with all that is known of it.
	p, err := c.Pair(ctx, "web", "catalog")
	if err != nil {
		t.Fatal(err)
	}
	if p.Entry != "web~catalog" || p.Legacy == nil || *p.Legacy != *first.Legacy || len(p.History) != 3 || p.History[2].What != "created" || p.Changed.Who != "dev" ||
		p.Revertible.State != api.No || len(p.Behind) != 1 || p.Behind[0].Why != "is not connected to this server" {
		t.Errorf("%+v", p)
	}

	// Back: not where nothing listens, unless forced.
	revert := func(in api.RevertRequest, want ...string) {
		t.Helper()
		out, err := c.Revert(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, lines(out)); diff != "" {
			t.Error(diff)
		}
	}
	revert(api.RevertRequest{Pairs: []api.PairName{pairOf("web", "catalog")}}, "web -> catalog: refused: legacy address 127.0.0.1:1: cannot be connected to from the server: connect: connection refused")
	revert(api.RevertRequest{Service: "catalog", Force: true}, "web -> catalog: legacy 50%, direct 50% -> legacy 100%")
	revert(api.RevertRequest{All: true}, "web -> catalog: legacy 100%, same")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shift(api.ShiftRequest{Pairs: pair, Via: map[string]float64{"mtls": 100}, Legacy: &api.LegacyWay{Address: l.Addr().String()}}, "web -> catalog: legacy 100% -> mtls 100%")
	revert(api.RevertRequest{All: true}, "web -> catalog: mtls 100% -> legacy 100%")
	if p, err = c.Pair(ctx, "web", "catalog"); err != nil || p.History[0].What != "reverted" || p.History[0].Who != "dev" || p.History[0].Shares.String() != "legacy 100%" || p.Revertible.State != api.Yes {
		t.Errorf("%+v, %v", p, err)
	}

	// An entry for all callers decides where there is no other, and a pair's own begins as its copy.
	s.Register("admin.yaml", "service: admin\nport: 8090\nprotocol: http\nupstreams: [catalog:7200]\n")
	declared(t, c, 2)
	shift(api.ShiftRequest{Pairs: only(pairOf("*", "catalog")), Via: map[string]float64{"direct": 40}}, "* -> catalog: mtls 100% -> direct 40%, mtls 60%")
	shift(api.ShiftRequest{Service: "catalog", Via: map[string]float64{"mtls": 30}}, "admin -> catalog: direct 40%, mtls 60% -> direct 70%, mtls 30%", "web -> catalog: legacy 100% -> legacy 70%, mtls 30%")
	revert(api.RevertRequest{Service: "catalog"}, "* -> catalog: direct 40%, mtls 60% -> direct 100%", "admin -> catalog: direct 70%, mtls 30% -> direct 100%", "web -> catalog: legacy 70%, mtls 30% -> legacy 100%")
}

// Of many who shift a pair that they have looked at together one succeeds, and the others
// are told.
func TestOfTwoWhoShiftAtOnceOneIsTold(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	c, ctx := apiOf(t, s, ""), t.Context()
	declared(t, c, 2)
	pairs := []api.PairName{pairOf("admin", "payments"), pairOf("web", "catalog")}
	for round := range 10 {
		var in api.ShiftRequest
		for _, p := range pairs {
			row, err := c.Pair(ctx, p.Source, p.Destination)
			if err != nil {
				t.Fatal(err)
			}
			in.Pairs = append(in.Pairs, api.PairIndex{PairName: p, Index: &row.Index})
		}
		const people = 8
		var wg sync.WaitGroup
		errs := make([]error, people)
		for i := range people {
			wg.Go(func() {
				mine := in
				mine.Via = map[string]float64{"direct": float64(round*people + i + 1)}
				_, errs[i] = c.Shift(ctx, mine)
			})
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case err == nil:
				t.Fatalf("round %d: both %d and %d have shifted", round, winner, i)
			case status(err) != http.StatusConflict || !strings.Contains(err.Error(), `shift "admin -> payments": nothing is changed: the pair was changed meanwhile by dev`):
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody has shifted: %v", round, errs)
		}
		for _, p := range pairs {
			row, err := c.Pair(ctx, p.Source, p.Destination)
			if err != nil || row.Shares.Direct != float64(round*people+winner+1) {
				t.Errorf("round %d: %s has %v, want what %d asked for (%v)", round, p, row.Shares, winner, err)
			}
		}
	}
	// One pair that was changed keeps all others as they were.
	stale := uint64(1)
	in := api.ShiftRequest{Pairs: []api.PairIndex{{PairName: pairs[0]}, {PairName: pairs[1], Index: &stale}}, Via: map[string]float64{"direct": 100}}
	if _, err := c.Shift(ctx, in); status(err) != http.StatusConflict {
		t.Fatal(err)
	}
	if row, err := c.Pair(ctx, "admin", "payments"); err != nil || row.Shares.Direct == 100 {
		t.Errorf("%+v, %v", row, err)
	}
}

func TestShiftsRefuseBadInputAndChangeNothing(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	c := apiOf(t, s, "")
	declared(t, c, 1)
	many := make([]api.PairIndex, api.MaxPairs+1)
	for i := range many {
		many[i].PairName = pairOf(fmt.Sprint(i), "x")
	}
	tooMany, err := json.Marshal(api.ShiftRequest{Pairs: many, Via: map[string]float64{"mtls": 1}})
	if err != nil {
		t.Fatal(err)
	}
	const pair = `"pairs":[{"source":"web","destination":"catalog"}]`
	for _, tt := range []struct {
		path, body string
		code       int
		want       string
	}{
		{"shift", ``, 400, "shift: the request can't be read: EOF"},
		{"shift", `[]`, 400, "shift: the request can't be read: "},
		{"shift", `{"pear":1}`, 400, `shift: the request can't be read: json: unknown field "pear"`},
		{"shift", `{` + pair + `,"via":{"mtls":1}} x`, 400, "shift: the request can't be read: something follows"},
		{"shift", `{}`, 400, "shift: want either pairs or a service"},
		{"shift", `{` + pair + `,"service":"x","via":{"mtls":1}}`, 400, "shift: want either pairs or a service"},
		{"shift", `{` + pair + `}`, 400, "shift: neither shares, nor a way to move to, nor a legacy address are given"},
		{"shift", `{` + pair + `,"via":{"tls":1}}`, 400, `shift "web -> catalog": via "tls": no such way: want one of legacy, direct, plain, mtls`},
		{"shift", `{` + pair + `,"via":{"mtls":1e300}}`, 400, `shift "web -> catalog": via mtls=1e+300: want a percentage`},
		{"shift", `{` + pair + `,"via":{"mtls":50,"direct":60}}`, 400, `shift "web -> catalog": via direct=60, mtls=50: they add up to 110, want 100`},
		{"shift", `{` + pair + `,"via":{"legacy":50}}`, 400, `Legacy.Address is missing`},
		{"shift", `{` + pair + `,"via":{"plain":50}}`, 400, `take no plaintext`},
		{"shift", `{` + pair + `,"via":{"mtls":50},"legacy":{"address":"nowhere"}}`, 400, `shift "web -> catalog": traffic-shift "web~catalog": Legacy.Address`},
		{"shift", `{"pairs":[{"source":"web"}],"via":{"mtls":50}}`, 400, `shift "web -> ": want both a source and a destination`},
		{"shift", `{"pairs":[{"source":"a b","destination":"c"}],"via":{"direct":50}}`, 400, `shift "a b -> c": traffic-shift`},
		{"shift", `{"pairs":[{"source":"a~b","destination":"c"}],"via":{"direct":50}}`, 400, `shift "a~b -> c": traffic-shift`},
		{"shift", `{"pairs":[{"source":"web","destination":"catalog"},{"source":"web","destination":"catalog"}],"via":{"mtls":50}}`, 400, `shift "web -> catalog": the pair is given twice`},
		{"shift", `{"pairs":[{"source":"web","destination":"catlog"}],"via":{"direct":50}}`, 404, `shift "web -> catlog": nobody has registered "catlog", declares it as an upstream, or names it in an entry; --force`},
		{"shift", `{"pairs":[{"source":"wbe","destination":"catalog"}],"stage":"client"}`, 404, `shift "wbe -> catalog": nobody has registered "wbe"`},
		{"shift", `{"service":"nobody","via":{"mtls":50}}`, 404, `shift: service "nobody": nobody declares it`},
		{"shift", string(tooMany), 400, "shift: 5001 pairs: at most 5000 in one request"},
		{"shift", `{"service":"` + strings.Repeat("x", api.MaxBody) + `"}`, 413, "shift: the request is larger than 1048576 bytes"},
		{"revert", `{}`, 400, "revert: want either pairs or a service"},
		{"revert", `{"all":true,"service":"x"}`, 400, "revert: want either all, or pairs, or a service"},
		{"revert", `{"service":"nobody"}`, 404, `revert: service "nobody": no traffic-shift decides for a caller of it: nothing was shifted`},
		{"revert", `{"force":"yes"}`, 400, "revert: the request can't be read: "},
	} {
		resp, err := http.Post(s.URL()+"/v1/crossfade/"+tt.path, "application/json", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		resp.Write(&text)
		_, body, _ := strings.Cut(text.String(), "\r\n\r\n")
		if body = strings.TrimSpace(body); resp.StatusCode != tt.code || !strings.Contains(body, tt.want) || strings.Contains(body, "\n") {
			t.Errorf("%s %.100s: status %d: %s", tt.path, tt.body, resp.StatusCode, body)
		}
	}
	if _, err := c.Pair(t.Context(), "web", "nobody"); status(err) != http.StatusNotFound {
		t.Errorf("a pair that is none: %v", err)
	}
	rows, err := c.Pairs(t.Context(), api.Filter{})
	if err != nil || len(rows) != 1 || rows[0].Entry != "" {
		t.Errorf("something was changed: %+v, %v", rows, err)
	}
	early := api.ShiftRequest{Pairs: only(pairOf("web", "to-come")), Via: map[string]float64{"direct": 50}}
	if _, err := c.Shift(t.Context(), early); status(err) != http.StatusNotFound {
		t.Errorf("a callee that nobody knows: %v", err)
	}
	early.Force = true
	if _, err := c.Shift(t.Context(), early); err != nil {
		t.Errorf("the same, forced: %v", err)
	}
	early.Force = false // now an entry names it
	if _, err := c.Shift(t.Context(), early); err != nil {
		t.Errorf("once an entry names it: %v", err)
	}
}

func TestWhoMayShift(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true, DataDir: t.TempDir()})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	token := func(request string) *api.Client {
		_, secret := s.Token(request)
		return apiOf(t, s, secret)
	}
	reader, owner, operator := token(`{"Role":"reader"}`), token(`{"Role":"owner","Services":["web"]}`), token(`{"Role":"operator"}`)
	ctx := t.Context()
	declared(t, operator, 2)
	via := map[string]float64{"direct": 10}
	own := api.ShiftRequest{Pairs: only(pairOf("web", "catalog")), Via: via}
	for _, c := range []*api.Client{reader, owner, operator} {
		if rows, err := c.Pairs(ctx, api.Filter{}); err != nil || len(rows) != 2 {
			t.Errorf("%v, %v", rows, err)
		}
		dry := own
		dry.DryRun = true
		if _, err := c.Shift(ctx, dry); err != nil {
			t.Errorf("a dry run: %v", err)
		}
	}
	if _, err := reader.Shift(ctx, own); status(err) != http.StatusForbidden {
		t.Errorf("a reader: %v", err)
	}
	if _, err := owner.Shift(ctx, own); err != nil {
		t.Errorf("the source's owner: %v", err)
	}
	for name, in := range map[string]api.ShiftRequest{
		"another's":         {Pairs: only(pairOf("admin", "payments")), Via: via},
		"another's as well": {Pairs: only(pairOf("web", "catalog"), pairOf("admin", "payments")), Via: via},
		"everybody's":       {Pairs: only(pairOf("*", "catalog")), Via: via},
		"all callers":       {Service: "catalog", Via: via},
	} {
		if _, err := owner.Shift(ctx, in); status(err) != http.StatusForbidden {
			t.Errorf("%s, by an owner: %v", name, err)
		}
		if _, err := operator.Shift(ctx, in); err != nil {
			t.Errorf("%s, by an operator: %v", name, err)
		}
	}
	for who, code := range map[string]int{`{"Role":"reader"}`: http.StatusForbidden, `{"Role":"owner","Services":["web"]}`: http.StatusForbidden, `{"Role":"operator"}`: http.StatusOK} {
		_, secret := s.Token(who)
		resp, err := s.HTTPClient(servertest.Caller{Token: secret}).Get(s.URL() + "/v1/crossfade/shift/log")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("the log of shifts, by %s: status %d, want %d", who, resp.StatusCode, code)
		}
	}
	if _, err := owner.Revert(ctx, api.RevertRequest{All: true}); status(err) != http.StatusForbidden {
		t.Errorf("all, by an owner: %v", err)
	}
	if _, err := owner.Revert(ctx, api.RevertRequest{Pairs: []api.PairName{pairOf("web", "catalog")}, Force: true}); err != nil {
		t.Errorf("one's own, by an owner: %v", err)
	}
	p, err := reader.Pair(ctx, "web", "catalog")
	if err != nil || !strings.HasPrefix(p.Changed.Who, "owner of web (token ") || p.Changed.What != "reverted" {
		t.Errorf("%+v, %v", p, err)
	}
}

// A hundred pairs go back at once, though nothing answers at some of their old addresses.
func TestAHundredPairsGoBackQuickly(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, ctx := apiOf(t, s, ""), t.Context()
	s.Register("catalog.yaml", catalog)
	const n = 100
	var alive, dead api.ShiftRequest
	for i := range n {
		name := fmt.Sprintf("s%03d", i)
		s.Register(name+".yaml", fmt.Sprintf("service: %s\nport: 8080\nprotocol: http\nupstreams: [catalog:7100]\n", name))
		if i%10 == 0 {
			dead.Pairs = append(dead.Pairs, only(pairOf(name, "catalog"))...)
		} else {
			alive.Pairs = append(alive.Pairs, only(pairOf(name, "catalog"))...)
		}
	}
	declared(t, c, n)
	for _, p := range alive.Pairs {
		sidecar := follow(t, s, p.Source+"-sidecar-proxy", true, endpoints(s, "catalog"), route("catalog"))
		sidecar.until("its sidecar is in sync", func() bool { return sidecar.held[route("catalog")] != nil })
	}
	alive.Via, dead.Via = map[string]float64{"mtls": 100}, map[string]float64{"mtls": 100}
	alive.Legacy = &api.LegacyWay{Address: l.Addr().String()}
	dead.Legacy, dead.Force = &api.LegacyWay{Address: "192.0.2.1:80"}, true // nobody's
	for _, in := range []api.ShiftRequest{alive, dead} {
		if _, err := c.Shift(ctx, in); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	out, err := c.Revert(ctx, api.RevertRequest{All: true})
	took := time.Since(began)
	if err != nil {
		t.Fatal(err)
	}
	back, refused := 0, 0
	for _, p := range out.Pairs {
		switch {
		case p.Refused != "":
			refused++
		case p.After.Legacy == 100:
			back++
		}
	}
	t.Logf("%d pairs: %d back, %d refused in %s", n, back, refused, took)
	if back != n-n/10 || refused != n/10 {
		t.Errorf("%d back, %d refused", back, refused)
	}
	applied, err := c.Applied(ctx, out.Index, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	acked := 0
	for _, sidecar := range applied.Sidecars {
		if sidecar.State == api.Acked {
			acked++
		}
	}
	t.Logf("acknowledged by %d of %d sidecars in %s", acked, len(applied.Sidecars), time.Since(began))
	if acked != back || acked != len(applied.Sidecars) {
		t.Errorf("%d of %d sidecars have acknowledged", acked, len(applied.Sidecars))
	}
	if took > time.Duration(n/10)*time.Second { // one after the other the dead ones take that long
		t.Errorf("took %s", took)
	}
}

// What does not go with other entries keeps nobody else from going back.
func TestWhatCannotBeWrittenIsNamedAndTheRestGoesBack(t *testing.T) {
	s := servertest.Start(t, server.Options{DefaultAllow: true})
	s.Register("web.yaml", web)
	s.Register("admin.yaml", admin)
	s.Register("catalog.yaml", catalog)
	s.Register("payments.yaml", "service: payments\nport: 8083\nprotocol: http\n")
	c, ctx := apiOf(t, s, ""), t.Context()
	declared(t, c, 2)
	in := api.ShiftRequest{Pairs: only(pairOf("admin", "payments"), pairOf("web", "catalog")), Via: map[string]float64{"mtls": 100}, Legacy: &api.LegacyWay{Address: s.HTTPAddr()}}
	if _, err := c.Shift(ctx, in); err != nil {
		t.Fatal(err)
	}
	write(t, s, `{"Kind":"service-router","Name":"catalog","Routes":[{"Match":{"HTTP":{"PathPrefix":"/shop"}},"Destination":{"PrefixRewrite":"/"}}]}`)
	out, err := c.Revert(ctx, api.RevertRequest{All: true})
	if err != nil {
		t.Fatal(err)
	}
	got := lines(out)
	if len(got) != 2 || got[0] != "admin -> payments: mtls 100% -> legacy 100%" || !strings.HasPrefix(got[1], "web -> catalog: refused: traffic-shift/web~catalog: service-router/catalog: ") || out.Index == 0 {
		t.Errorf("%q", got)
	}
	in.Via = map[string]float64{"mtls": 50}
	if _, err := c.Shift(ctx, in); status(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "shift: traffic-shift/web~catalog: service-router/catalog: ") {
		t.Error(err)
	}
}
