package control

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// BenchmarkStore: registrations of service instances, by one writer and by 64 for each processor,
// in memory and on disk, where those that wait together share an fsync.
func BenchmarkStore(b *testing.B) {
	for _, disk := range []bool{false, true} {
		for _, writers := range []int{1, 64} {
			where := "memory"
			if disk {
				where = "disk"
			}
			b.Run(fmt.Sprintf("%s/writers=%d", where, writers), func(b *testing.B) {
				o := store.Options{NodeName: "n1", NodeAddress: "127.0.0.1"}
				if disk {
					o.Dir = b.TempDir()
				}
				s, err := store.Open(o)
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				var n atomic.Int64
				b.ReportAllocs()
				b.SetParallelism(writers) // for each processor
				write := func() {
					i := n.Add(1)
					err := s.Update(func(w *store.Writer) error {
						return w.PutService("n1", catalog.Service{ID: fmt.Sprint("s", i%1000), Name: "s", Port: int(1 + i%60000)})
					})
					if err != nil {
						b.Error(err)
					}
				}
				if writers == 1 {
					for b.Loop() {
						write()
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							write()
						}
					})
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
	}
}
