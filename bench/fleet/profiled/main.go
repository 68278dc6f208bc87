// Command profiled is crossfade with a way to look inside: it does what crossfade does, and a server
// or a sidecar takes profiles when asked to on the Unix socket that PROFILE_SOCKET names.
//
//	GET /cpu/start?file=F   begins a CPU profile
//	GET /cpu/stop           ends it
//	GET /heap?file=F        writes what is on the heap, goroutines to F.goroutines, and all else that
//	                        memory is taken for to F.memstats
package main

import (
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"

	"github.com/crossfade-mesh/crossfade/internal/cli"
)

func main() {
	if path := os.Getenv("PROFILE_SOCKET"); path != "" && len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "sidecar") {
		_ = os.Remove(path) // of the one before
		if lis, err := net.Listen("unix", path); err == nil {
			go func() { _ = http.Serve(lis, handler()) }() // until the process ends
		}
	}
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, do func(file string) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.FormValue("file")); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	answer("/cpu/start", func(file string) error {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		return pprof.StartCPUProfile(f)
	})
	answer("/cpu/stop", func(string) error { pprof.StopCPUProfile(); return nil })
	answer("/heap", func(file string) error {
		runtime.GC()
		for _, p := range []struct {
			name, path string
			debug      int
		}{{"heap", file, 0}, {"goroutine", file + ".goroutines", 0}, {"heap", file + ".memstats", 1}} {
			f, err := os.Create(p.path)
			if err != nil {
				return err
			}
			if err := pprof.Lookup(p.name).WriteTo(f, p.debug); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return mux
}
