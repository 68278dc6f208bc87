package sidecar

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWhenConnectionsAreReported(t *testing.T) {
	at := time.Unix(1000, 0)
	open := map[string]int64{"public_listener": 3}
	for _, tt := range []struct {
		name string
		told toldConnections
		now  time.Time
		want bool
	}{
		{"never told", toldConnections{}, at, true},
		{"told just so", toldConnections{at, map[string]int64{"public_listener": 3}}, at.Add(5 * time.Second), false},
		{"told otherwise", toldConnections{at, map[string]int64{"public_listener": 4}}, at.Add(5 * time.Second), true},
		{"told of another", toldConnections{at, map[string]int64{"other": 3}}, at.Add(5 * time.Second), true},
		{"told long ago", toldConnections{at, open}, at.Add(time.Minute), true},
	} {
		if got := tt.told.due(tt.now, open); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestConnectionsByListener(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/listeners" {
			fmt.Fprint(w, `{"listener_statuses":[
				{"name":"public_listener:127.0.0.1:21000","local_address":{"socket_address":{"address":"127.0.0.1","port_value":21000}}},
				{"name":"six","local_address":{"socket_address":{"address":"::1","port_value":7100}}},
				{"name":"of a socket","local_address":{"pipe":{"path":"/tmp/x"}}},
				{"name":"not counted","local_address":{"socket_address":{"address":"127.0.0.1","port_value":7200}}}]}`)
			return
		}
		fmt.Fprint(w, "listener.127.0.0.1_21000.downstream_cx_active: 5\nlistener.[__1]_7100.downstream_cx_active: 0\n")
	}))
	srv.Listener = lis
	srv.Start()
	defer srv.Close()
	a := newAdmin(socket)
	defer a.close()
	got, err := a.connections(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"public_listener:127.0.0.1:21000": 5, "six": 0}, got); diff != "" {
		t.Error(diff)
	}
}
