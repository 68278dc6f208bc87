package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crossfade-mesh/crossfade/api"
	"github.com/crossfade-mesh/crossfade/internal/server"
	"github.com/crossfade-mesh/crossfade/internal/server/servertest"
	"github.com/crossfade-mesh/crossfade/internal/shift"
	"github.com/crossfade-mesh/crossfade/internal/telemetry"
)

func counted(destination string, attempts uint64) telemetry.Report {
	return telemetry.Report{Session: 1, Seq: 1, At: time.Now(), Outbound: []telemetry.Outbound{{
		Destination: destination, Ways: []shift.WayTelemetry{{Way: shift.MTLS, Telemetry: shift.Telemetry{Attempts: attempts, First: attempts, Latency: shift.Of(2, 2, 50)}}},
	}}}
}

func TestWhoMayReport(t *testing.T) {
	s, _ := secured(t)
	_, join := s.Token(`{"role":"join","services":["web"]}`)
	_, foreign := s.Token(`{"role":"join","services":["catalog"]}`)
	_, reader := s.Token(`{"role":"reader"}`)
	_, operator := s.Token(`{"role":"operator"}`)
	leaf := s.Leaf("web", join)
	for name, c := range map[string]struct {
		caller servertest.Caller
		want   string // in the refusal; empty: taken
	}{
		"nothing":         {servertest.Caller{}, "caller unknown"},
		"a reader":        {servertest.Caller{Token: reader}, "only the instance itself reports"},
		"an operator":     {servertest.Caller{Token: operator}, "only the instance itself reports"},
		"another's token": {servertest.Caller{Token: foreign}, `stands for service "web"`},
		"another's leaf":  {servertest.Caller{Leaf: s.Leaf("catalog", foreign)}, `stands for service "web"`},
		"own token":       {servertest.Caller{Token: join}, ""},
		"own leaf":        {servertest.Caller{Leaf: leaf}, ""},
	} {
		err := reported(t, s.ConnAs(c.caller), "web-sidecar-proxy", counted("catalog", 1))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// reported sends one report.
func reported(t *testing.T, conn *grpc.ClientConn, sidecar string, r telemetry.Report) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := telemetry.Connect(ctx, conn, "test", sidecar)
	if err != nil {
		return err
	}
	return c.Send(r)
}

const webCalls = `
service {
  name = "web"
  port = 8080
  connect { sidecar_service { proxy { upstreams = [{ destination_name = "catalog", local_bind_port = 9001 }] } } }
}`

// What an instance says counts for its own pairs alone, once.
func TestTelemetryOfPairs(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	s.Register("web.hcl", webCalls)
	for range 2 {
		r := counted("catalog", 7)
		r.Outbound = append(r.Outbound, counted("payments", 5).Outbound...)
		r.Open = []telemetry.Open{{Destination: "catalog", Way: shift.Legacy, Count: 3}, {Destination: "payments", Way: shift.MTLS, Count: 3}}
		if err := reported(t, s.Conn(), "web-sidecar-proxy", r); err != nil {
			t.Fatal(err)
		}
	}
	_, body := s.Call(http.MethodGet, "/v1/crossfade/telemetry/web/catalog", nil)
	var got api.Telemetry
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Ways) != 2 || got.Ways[0].Way != "legacy" || got.Ways[0].Open != 3 || got.Ways[1].Attempts != 7 || got.Ways[1].First != 7 || got.Ways[1].P50 < 2 || got.Ways[1].P99 < 50 {
		t.Errorf("%s", body)
	}
	for path, want := range map[string]int{"web/payments": http.StatusNotFound, "nobody/catalog": http.StatusNotFound} {
		resp, err := http.Get("http://" + s.HTTPAddr() + "/v1/crossfade/telemetry/" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
}

// A report pulses the checks of its own instance, as long as that is registered as it says.
func TestReportsPulse(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	s.Register("web.hcl", strings.Replace(webCalls, "port = 8080", "port = 8080\n  check { id = \"up\"\n ttl = \"15s\" }", 1))
	s.Register("other.hcl", "service {\n  name = \"other\"\n  port = 1\n  check { id = \"others\"\n ttl = \"15s\" }\n}")
	status := func(service string) string {
		_, body := s.Call(http.MethodGet, "/v1/health/checks/"+service, nil)
		var list []struct{ Status, Output string }
		if err := json.Unmarshal(body, &list); err != nil || len(list) != 1 {
			t.Fatalf("%v: %s", err, body)
		}
		return list[0].Status + " " + list[0].Output
	}
	_, body := s.Call(http.MethodGet, "/v1/agent/service/web-sidecar-proxy", nil)
	var found struct{ Port int }
	if err := json.Unmarshal(body, &found); err != nil || found.Port == 0 {
		t.Fatalf("%v: %s", err, body)
	}
	say := func(seq uint64, port int, check string) error {
		return reported(t, s.Conn(), "web-sidecar-proxy", telemetry.Report{Session: 1, Seq: seq, At: time.Now(), Alive: &telemetry.Alive{
			Port: port, Checks: []telemetry.Check{{ID: check, Status: "passing", Output: "as reported"}},
		}})
	}
	for _, c := range []struct {
		port  int
		check string
		want  string // in the refusal
	}{
		{found.Port + 1, "up", "two instances use one id"},
		{found.Port, "others", "none of sidecar"},
		{found.Port, "nobody's", "none of sidecar"},
	} {
		if err := say(1, c.port, c.check); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("check %q at port %d: %v, want %q", c.check, c.port, err, c.want)
		}
	}
	if got := status("web") + status("other"); strings.Contains(got, "reported") {
		t.Errorf("what was refused counts: %q", got)
	}
	if err := say(2, found.Port, "up"); err != nil {
		t.Fatal(err)
	}
	if got := status("web"); got != "passing as reported" {
		t.Errorf("the check is %q", got)
	}
}

// Garbage is refused with a reason, and so is who sends too much at once.
func TestTelemetryRefusesGarbage(t *testing.T) {
	s := servertest.Start(t, server.Options{})
	s.Register("web.hcl", webCalls)
	stream := func(hello string) grpc.ClientStream {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		t.Cleanup(cancel)
		st, err := s.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/crossfade.telemetry.v1.TelemetryService/Report")
		if err == nil {
			err = st.SendMsg(wrapperspb.String(hello))
		}
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	refused := func(what string, st grpc.ClientStream, code codes.Code, why string) {
		t.Helper()
		var ack wrapperspb.UInt64Value
		for {
			if err := st.RecvMsg(&ack); err != nil {
				if grpcstatus.Code(err) != code || !strings.Contains(err.Error(), why) {
					t.Errorf("%s: %v, want %v with %q", what, err, code, why)
				}
				return
			}
		}
	}
	for _, hello := range []string{"", "web-sidecar-proxy", "/", "test/", strings.Repeat("x", 1000) + "/web-sidecar-proxy"} {
		refused(fmt.Sprintf("%.20q", hello), stream(hello), codes.InvalidArgument, "the first message names the node")
	}
	for text, why := range map[string]string{"": "report", "{": "report", `{"out":[{"dst":"a","ways":[{"way":"x"}]}]}`: "no such way", `{"over":-5}`: "not negative"} {
		st := stream("test/web-sidecar-proxy")
		if err := st.SendMsg(wrapperspb.Bytes([]byte(text))); err != nil {
			t.Fatal(err)
		}
		refused(text, st, codes.InvalidArgument, why)
	}
	st := stream("test/web-sidecar-proxy")
	for seq := range 100 {
		if err := st.SendMsg(wrapperspb.Bytes(fmt.Appendf(nil, `{"session":1,"seq":%d}`, seq))); err != nil {
			break // refused meanwhile
		}
	}
	refused("a hundred at once", st, codes.ResourceExhausted, "send one a second")
	st = stream("test/web-sidecar-proxy")
	if err := st.SendMsg(wrapperspb.Bytes(make([]byte, 8<<20))); err != nil {
		t.Fatal(err)
	}
	refused("8 MiB", st, codes.ResourceExhausted, "")
}
