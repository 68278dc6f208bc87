package routing

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/meshtest"
)

// Whatever shifts say, and whatever else changes what goes between sidecars, nobody is
// refused while all ways are alive. SHIFTS says how many writes (200), SEED which.
func TestRandomShifts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.speak()
	catalog := ways{legacy: w.plainHTTP("legacy", shop("legacy")), direct: w.plainHTTP("direct", shop("direct")), plain: w.plainHTTP("plain", shop("plain"))}
	w.enlist("catalog", catalog.direct)
	for _, version := range []string{"v1", "v2"} {
		port, stop := w.shopApp("catalog", version, true)
		w.native("catalog", version, version, port, stop)
	}
	w.before("catalog", catalog)
	chat, payments := w.four("chat"), w.four("payments")
	addresses := map[string][]int{
		"catalog":  {catalog.legacy.port, w.plainHTTP("legacy", shop("legacy")).port},
		"chat":     {chat.legacy.port, w.chat("legacy", false).port},
		"payments": {payments.legacy.port, w.plainTCP("legacy").port},
	}
	w.write(versions)
	web := w.caller("web", "web-1", "catalog", "chat", "payments")
	ready(t, web)
	load := w.traffic(t, web.ports)

	r := rand.New(rand.NewPCG(2, uint64(number(t, "SEED", 1))))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	written := map[string]bool{} // "kind name"
	next := func() string {
		service := pick("catalog", "chat", "payments")
		switch r.IntN(8) {
		case 0:
			for _, name := range []string{"traffic-shift web~" + service, "traffic-shift *~" + service, "service-splitter catalog", "traffic-policy " + service} {
				if written[name] && r.IntN(2) == 0 {
					var kind, of string
					_, _ = fmt.Sscan(name, &kind, &of)
					w.delete(kind, of)
					delete(written, name)
					return "delete " + name
				}
			}
			return ""
		case 1:
			v1 := r.IntN(101)
			text := fmt.Sprintf("Kind = \"service-splitter\"\nName = \"catalog\"\nSplits = [{ Weight = %d, ServiceSubset = \"v1\" }, { Weight = %d, ServiceSubset = \"v2\" }]\n", v1, 100-v1)
			w.write(text)
			written["service-splitter catalog"] = true
			return text
		case 2:
			sticky := pick("", "Sticky { Source = true }", "Sticky { Header = \"x-user\" }")
			if service == "payments" {
				sticky = ""
			}
			text := fmt.Sprintf("Kind = \"traffic-policy\"\nName = %q\n%s\n", service, sticky)
			w.write(text)
			written["traffic-policy "+service] = true
			return text
		}
		source := pick("web", "web", "*")
		legacy := r.IntN(2) * r.IntN(101)
		direct := r.IntN(2) * r.IntN(101-legacy)
		plain := r.IntN(2) * r.IntN(101-legacy-direct)
		sticky := pick("", "", "Sticky { Source = true }", "Sticky { Header = \"x-user\" }", "Sticky { Cookie { Name = \"way\" } }")
		if service == "payments" {
			sticky = pick("", "Sticky { Source = true }")
		}
		address := fmt.Sprintf("%s:%d", "127.0.0.1", addresses[service][r.IntN(2)])
		if service != "payments" && r.IntN(4) == 0 {
			address = fmt.Sprintf("localhost:%d", addresses[service][0])
		}
		text := fmt.Sprintf("Kind = \"traffic-shift\"\nSource = %q\nDestination = %q\nLegacy { Address = %q, Host = %q }\nShares { legacy = %d, direct = %d, plain = %d, mtls = %d }\n%s\n",
			source, service, address, pick("", service+".old"), legacy, direct, plain, 100-legacy-direct-plain, sticky)
		w.write(text)
		written["traffic-shift "+source+"~"+service] = true
		return text
	}
	var log []string
	tick := time.NewTicker(time.Second / 12)
	defer tick.Stop()
	for range number(t, "SHIFTS", 200) {
		<-tick.C
		log = append(log, time.Now().Format("05.000 ")+next())
		if len(load.failures()) > 20 {
			break
		}
	}
	from := load.sent()
	meshtest.Eventually(t, "traffic goes on", func() error { // for the last writes
		if n := load.sent(); n < from+600 {
			return fmt.Errorf("%d requests since", n-from)
		}
		return nil
	})
	load.stop()
	t.Logf("%d writes, %d requests%s", len(log), load.sent(), load.report())
	for i, f := range load.failures() {
		if i == 10 {
			t.Errorf("and %d more", len(load.failures())-i)
			break
		}
		t.Errorf("%s: sent %s, ended %s", f.Reason, f.Sent.Format("05.000"), f.Ended.Format("05.000"))
	}
	if n := load.closed.Load(); n > 0 {
		t.Errorf("%d kept-alive connections were closed", n)
	}
	if t.Failed() {
		for _, l := range log {
			t.Log(l)
		}
	}
	web.untouched(t, "web-1")
}
