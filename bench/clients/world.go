package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/bench/lab"
)

// callers are spread over so many services.
const callingServices = 100

const everyone = "everyone"

// world is a server in development mode, and in its registry sidecars which all call one service
// of three instances.
type world struct {
	settings
	mesh *lab.Mesh
	dir  string
}

type object = map[string]any

func open(ctx context.Context, s settings) (*world, error) {
	dir, err := os.MkdirTemp("", "cf-clients")
	if err != nil {
		return nil, err
	}
	w := &world{settings: s, dir: dir}
	if w.mesh, err = lab.StartMesh(ctx, s.Binaries, dir); err == nil {
		err = w.fill(ctx)
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) close() {
	if w.mesh != nil {
		w.mesh.Stop()
	}
	os.RemoveAll(w.dir)
}

func service(i int) string { return fmt.Sprintf("caller-%02d", i%callingServices) }
func id(i int) string      { return fmt.Sprintf("caller-%d", i) }
func proxyID(i int) string { return id(i) + "-sidecar-proxy" }
func node(i int) string    { return fmt.Sprintf("host-%d", i) }
func port(i int) int       { return 10_000 + i%20_000 }
func alive(i int) string   { return fmt.Sprintf("alive-%d", i) }

// fill registers all instances with their sidecars, whose checks are pulsed from outside.
func (w *world) fill(ctx context.Context) error {
	if err := w.mesh.Write(ctx, "Kind = \"proxy-defaults\"\nName = \"global\"\nConfig { protocol = \"http\" }\n"); err != nil {
		return err
	}
	for i := range 3 {
		name := fmt.Sprintf("%s-%d", everyone, i)
		if err := w.register(ctx, name, everyone, name, alive(-1-i), 9000+i, nil); err != nil {
			return err
		}
	}
	return parallel(w.Streams, func(i int) error {
		return w.register(ctx, node(i), service(i), id(i), alive(i), port(i), []object{{"DestinationName": everyone, "LocalBindPort": 7100}})
	})
}

func (w *world) register(ctx context.Context, node, service, id, check string, port int, upstreams []object) error {
	return lab.Put(ctx, w.mesh.HTTPAddr+"/v1/agent/service/register?address=127.0.0.1&node="+node, object{
		"Name": service, "ID": id, "Port": 9,
		"Connect": object{"SidecarService": object{
			"Port": port, "Proxy": object{"Upstreams": upstreams},
			"Checks": []object{{"CheckID": check, "TTL": "1h", "Status": "passing"}},
		}},
	})
}

// pulse sets a check by a request of its own.
func (w *world) pulse(ctx context.Context, node, check, status string) error {
	return lab.Put(ctx, w.mesh.HTTPAddr+"/v1/agent/check/update/"+check+"?node="+node, object{"Status": status})
}

// parallel calls do for 0 to n-1, several at a time, and returns an error of one of them.
func parallel(n int, do func(int) error) error {
	const workers = 8
	var wg sync.WaitGroup
	failed := make(chan error, workers)
	for at := range workers {
		wg.Go(func() {
			for i := at; i < n; i += workers {
				if err := do(i); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	return <-failed
}

// cpu is what the server has run for.
func (w *world) cpu() (time.Duration, error) { return lab.CPUTime(w.mesh.ServerPID()) }
