package appport

import (
	"context"
	"fmt"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// The kernel takes the rules, shows them, and holds to them: seen from another host a
// protected port refuses, and over loopback it answers.
func TestProtect(t *testing.T) {
	if !meshtest.OwnHost(t) {
		return
	}
	other := meshtest.NewHost(t)
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	reach := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c, err := other.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", meshtest.HostAddress, port))
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !reach() {
		t.Fatal("not reached before there are rules")
	}
	if err := Protect(port, 81); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || !reflect.DeepEqual(got, sorted([]int{port, 81})) {
		t.Errorf("%v, %v", got, err)
	}
	if reach() {
		t.Error("reached from another host though it is protected")
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		t.Errorf("over loopback: %v", err)
	} else {
		c.Close()
	}
	if err := Unprotect(port); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || !reflect.DeepEqual(got, []int{81}) || !reach() {
		t.Errorf("after that: %v, %v, reached %v", got, err, reach())
	}
	if err := Unprotect(81); err != nil {
		t.Fatal(err)
	}
	if got, err := Protected(); err != nil || got != nil {
		t.Errorf("in the end: %v, %v", got, err)
	}
}
