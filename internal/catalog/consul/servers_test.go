package consul

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// Where the servers' gRPC ports are comes from their own registrations.
func TestServers(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		want         Servers
		wrong        string
	}{
		{name: "two", answer: `[{"Address": "10.0.0.2", "ServiceAddress": "", "ServiceMeta": {"grpc_port": "8502", "grpc_tls_port": "8503"}},
			{"Address": "10.0.0.9", "ServiceAddress": "10.0.0.1", "ServiceMeta": {"grpc_port": "8502"}}]`,
			want: Servers{Plaintext: []string{"10.0.0.1:8502", "10.0.0.2:8502"}, TLS: []string{"10.0.0.2:8503"}}},
		{name: "no gRPC", answer: `[{"Address": "10.0.0.2", "ServiceMeta": {"grpc_port": "-1"}}]`, wrong: "ports { grpc = 8502 }"},
		{name: "nobody", answer: `[]`, wrong: "no server of that Consul is registered"},
		{name: "not Consul's", answer: `<html>`, wrong: "not Consul's JSON"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, tc.answer) }))
		s, err := New(Options{Address: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Servers(t.Context())
		srv.Close()
		if tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong)) || tc.wrong == "" && (err != nil || !reflect.DeepEqual(got, tc.want)) {
			t.Errorf("%s: %+v, %v; want %+v %q", tc.name, got, err, tc.want, tc.wrong)
		}
	}
}
