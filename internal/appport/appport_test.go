package appport

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24154 1
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24154 1
   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 24154 1
   3: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24154 1
   4: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1
   5: 0000000000000000FFFF00000100000A:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 1 1
`
	got, err := parse(strings.NewReader(text), 8080)
	want := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("::1"), netip.MustParseAddr("10.0.0.1")}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if Loopback(got) || !Loopback(want[:1]) || !Loopback(nil) {
		t.Error("what is loopback")
	}
	for _, bad := range []string{"x", "0100007F", "01:1F90", "0100007F:12345", "zz00007F:1F90"} {
		if _, err := address(bad); err == nil {
			t.Errorf("%q is taken for an address", bad)
		}
	}
}

func TestRules(t *testing.T) {
	const want = `table inet crossfade {
  chain app_ports {
    type filter hook input priority -10; policy accept;
    iifname != "lo" tcp dport 80 reject with tcp reset
    iifname != "lo" tcp dport 8080 reject with tcp reset
  }
}
`
	if got := Rules(8080, 80, 8080); got != want {
		t.Errorf("%s", got)
	}
}

func FuzzAddress(f *testing.F) {
	for _, text := range []string{"0100007F:1F90", "00000000000000000000000001000000:1F90", ":", "0:0", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if at, err := address(text); err == nil && !at.Addr().IsValid() {
			t.Errorf("%q: %v", text, at)
		}
	})
}
