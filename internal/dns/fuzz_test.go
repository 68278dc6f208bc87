package dns

import (
	"testing"

	"github.com/miekg/dns"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// FuzzAnswer holds that whatever is asked gets an answer that can be sent.
func FuzzAnswer(f *testing.F) {
	st, err := store.Open(store.Options{NodeName: "self", NodeAddress: "127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	err = st.Update(func(w *store.Writer) error {
		for _, address := range []string{"10.0.0.1", "fd00::1", "fe80::1%eth0", "host.example", "a b", "..", "::ffff:10.0.0.1"} {
			if err := w.PutNode(catalog.Node{Name: address, Address: address, Meta: map[string]string{"a\"": "\x00\\"}}); err != nil {
				return err
			}
			for _, other := range []string{"", address} {
				if err := w.PutService(address, catalog.Service{ID: "web" + other, Name: "web", Port: 1, Tags: []string{"v1"}, Address: other}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	s := &Server{store: st}
	for _, qname := range []string{"web.service.consul.", "v1.web.service.dc1.consul.", "_web._v1.service.consul.", "10.0.0.1.node.consul.", "0a000001.addr.consul.", "consul.", "x."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeANY, dns.TypeTXT} {
			raw, err := new(dns.Msg).SetQuestion(qname, qtype).Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		for _, size := range []int{dns.MinMsgSize, dns.MaxMsgSize} {
			m := s.answer(q)
			truncate(m, size)
			out, err := m.Pack()
			if err != nil {
				t.Fatalf("%v: %v", q, err)
			}
			if len(out) > size {
				t.Fatalf("%v: %d bytes, at most %d", q, len(out), size)
			}
		}
	})
}
