package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crossfade-mesh/crossfade/bench/lab"
	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/fleet"
	"github.com/crossfade-mesh/crossfade/internal/identity"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// startLimit bounds the server's start and each wait for all sidecars.
const startLimit = 3 * time.Minute

// world is everything that runs.
type world struct {
	registry
	dir   string
	log   io.Writer
	ports []int // HTTP, gRPC; of the server, and the same after its restart

	consul       *engine // or nil
	server       *lab.Process
	http         *http.Client
	token        string // operator's
	domain       string // trust domain
	fleet        *fleet.Fleet
	fleetOptions fleet.Options
	issuer       *fleet.Issuer
	real         *realEnvoys
	extra        *instance // see renew; nil: there is none
	renewals     int

	stops []func()
}

func (w *world) say(format string, args ...any) { fmt.Fprintf(w.log, "fleet: "+format+"\n", args...) }

func (w *world) stop() {
	for _, stop := range slices.Backward(w.stops) {
		stop()
	}
}

// openFiles lets this process, and the server that it starts, have a connection for each sidecar.
func openFiles(streams int) error {
	want := uint64(streams + 2048)
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	if now.Cur >= want {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(now.Max, want)}); err != nil {
		return fmt.Errorf("open files: %d are allowed, %d are needed: %w: raise ulimit -n, or lower STREAMS", now.Cur, want, err)
	}
	return nil
}

// start starts the server, fills its registry, and gets a leaf for each sidecar.
func start(ctx context.Context, s settings, dir string, log io.Writer) (_ *world, err error) {
	w := &world{registry: registry{s}, dir: dir, log: log}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	if err := openFiles(s.Streams); err != nil {
		return nil, err
	}
	if w.ports, err = lab.FreePorts(2); err != nil {
		return nil, err
	}
	began := time.Now()
	if s.Engine == engineConsul {
		err = w.startConsul(ctx)
	} else {
		err = w.prepare()
	}
	if err != nil {
		return nil, err
	}
	w.say("registry filled with %d instances of %d services in %.1f s", s.Instances, s.Services, time.Since(began).Seconds())
	began = time.Now()
	if err := w.startServer(ctx); err != nil {
		return nil, err
	}
	w.say("the server answers after %.1f s", time.Since(began).Seconds())
	w.stops = append(w.stops, func() { w.server.Stop(10 * time.Second) })
	if err := w.openFleet(ctx); err != nil {
		return nil, err
	}
	w.real, err = startReal(ctx, w)
	if err == nil {
		w.stops = append(w.stops, w.real.stop)
	}
	return w, err
}

// prepare makes the server's registry, or takes one of an earlier run.
func (w *world) prepare() error {
	if w.Registry == "" {
		return w.fill(w.data())
	}
	kept := filepath.Join(w.Registry, fmt.Sprintf("%d-%d-%d", w.Streams, w.Instances, w.Services))
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		half := kept + ".half"
		if err := errors.Join(os.RemoveAll(half), w.fill(half), os.Rename(half, kept)); err != nil {
			return err
		}
	}
	return os.CopyFS(w.data(), os.DirFS(kept))
}

func (w *world) data() string { return filepath.Join(w.dir, "data") }

// startServer runs the real binary, and waits until it answers.
func (w *world) startServer(ctx context.Context) error {
	env := append(os.Environ(), "GODEBUG=gctrace=1")
	if w.Profile != "" {
		env = append(env, "PROFILE_SOCKET="+w.profileSocket())
	}
	args := []string{
		"server", "--data-dir", w.data(), "--http-port", fmt.Sprint(w.ports[0]), "--grpc-port", fmt.Sprint(w.ports[1]), "--dns-port", "-1", "--node", "bench", "--log-level", "error",
	}
	if w.consul != nil {
		args = append(args, "--consul", w.consul.HTTPAddr)
	}
	var err error
	w.server, err = lab.StartIn(env, "crossfade server", filepath.Join(w.dir, fmt.Sprintf("server-%d.log", time.Now().UnixNano())), w.Binaries.Crossfade, args...)
	if err != nil {
		return err
	}
	return w.server.Await(ctx, "answering", startLimit, func() (bool, error) {
		if w.http == nil {
			if err := w.trust(); err != nil {
				return false, err
			}
		}
		var self struct{ Config struct{ Datacenter string } }
		err := w.call(ctx, http.MethodGet, "/v1/agent/self", nil, &self)
		return err == nil, err
	})
}

// trust reads what the server left for those who are to trust it, and to be trusted.
func (w *world) trust() error {
	pem, err := os.ReadFile(filepath.Join(w.data(), "ca.pem"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(w.data(), "operator.token"))
	if err != nil {
		return err
	}
	pool, err := fleet.Pool(pem)
	if err != nil {
		return err
	}
	w.token = strings.TrimSpace(string(token))
	w.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 64, MaxConnsPerHost: 64,
	}}
	return nil
}

// call makes a request as the operator.
func (w *world) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	var err error
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://127.0.0.1:%d%s", w.ports[0], path), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", w.token)
	res, err := w.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 500))
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(out)
}

// parallel calls do for 0 to n-1, several at a time, and returns the first error.
func parallel(n int, do func(int) error) error {
	const workers = 16
	var (
		wg    sync.WaitGroup
		next  atomic.Int64
		once  sync.Once
		first error
	)
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					once.Do(func() { first = err })
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// transact makes changes in transactions, several at a time when there are many. What
// is together in a group is in one transaction.
func (w *world) transact(ctx context.Context, groups [][]op) error {
	const most = 128
	var parts [][]op
	var part []op
	for _, g := range groups {
		if len(part)+len(g) > most {
			parts, part = append(parts, part), nil
		}
		part = append(part, g...)
	}
	parts = append(parts, part)
	return parallel(len(parts), func(i int) error { return w.txn(ctx, parts[i]) })
}

// txn makes a transaction where the registry is.
func (w *world) txn(ctx context.Context, ops []op) error {
	if w.consul != nil {
		return w.consul.put(ctx, "/v1/txn", ops)
	}
	return w.call(ctx, http.MethodPut, "/v1/txn", ops, nil)
}

func (w *world) write(ctx context.Context, entry map[string]any) error {
	return w.call(ctx, http.MethodPut, "/v1/config", entry, nil)
}

// openFleet makes the sidecars, with a leaf each, that the server has signed for a join token.
func (w *world) openFleet(ctx context.Context) error {
	pem, err := os.ReadFile(filepath.Join(w.data(), "ca.pem"))
	if err != nil {
		return err
	}
	pool, err := fleet.Pool(pem)
	if err != nil {
		return err
	}
	var roots struct{ TrustDomain string }
	if err := w.call(ctx, http.MethodGet, "/v1/connect/ca/roots", nil, &roots); err != nil {
		return err
	}
	w.domain = roots.TrustDomain
	began := time.Now()
	tokens, err := w.joinEach(ctx)
	if err != nil {
		return err
	}
	o := fleet.Options{
		Address: fmt.Sprintf("127.0.0.1:%d", w.ports[1]), Roots: pool, Names: "localhost", Refuse: 0.001,
		// An address each for some: so many connections to one port need more than an address has ports for.
		From: func(i int) net.IP { return net.IPv4(127, 1, 0, byte(1+i%100)) },
	}
	w.fleet, w.fleetOptions = fleet.New(o, w.sidecars()), o
	if w.issuer, err = fleet.NewIssuer(o, identity.SPIFFE{TrustDomain: w.domain, Datacenter: "dc1"}, tokens); err != nil {
		return err
	}
	w.stops = append(w.stops, w.issuer.Close, func() { w.fleet.Stop(0, w.Streams) })
	if err := w.issuer.Certify(ctx, w.fleet); err != nil {
		return err
	}
	w.say("%d sidecars joined, with tokens of %d services, in %.1f s", w.Streams, w.Services, time.Since(began).Seconds())
	return nil
}

// join makes a join token for a service.
func (w *world) join(ctx context.Context, service string) (string, error) {
	var made struct {
		Secret string `json:"secret"`
	}
	err := w.call(ctx, http.MethodPut, "/v1/crossfade/tokens", map[string]any{"role": "join", "services": []string{service}}, &made)
	return made.Secret, err
}

// joinEach makes one for every service.
func (w *world) joinEach(ctx context.Context) (map[string]string, error) {
	secrets := make([]string, w.Services)
	err := parallel(w.Services, func(i int) (err error) {
		secrets[i], err = w.join(ctx, w.service(i))
		return err
	})
	tokens := make(map[string]string, w.Services)
	for i, secret := range secrets {
		tokens[w.service(i)] = secret
	}
	return tokens, err
}

// cluster is the name of a service's endpoints.
func (w *world) cluster(service int) string {
	return identity.SPIFFE{TrustDomain: w.domain, Datacenter: "dc1", Service: w.service(service)}.SNI()
}

// flip makes the last instance of a service critical, or passing again.
func (w *world) flip(ctx context.Context, service int, critical bool) error {
	status := catalog.Passing
	if critical {
		status = catalog.Critical
	}
	return w.txn(ctx, []op{w.setCheck(instance{service: service, number: w.each() - 1}, status)})
}

// change flips a service and returns when its callers have it, with the times after which each had it.
func (w *world) change(ctx context.Context, service int, critical bool) ([]time.Duration, error) {
	return w.changeBy(ctx, service, func(ctx context.Context) error { return w.flip(ctx, service, critical) })
}

// renew is a change that all see, for while sidecars connect anew: it puts an instance of which nobody has heard in the place of
// the one before. One that has refused a change, and was not connected during the next, would hold what a change back makes, and
// be told nothing.
func (w *world) renew(ctx context.Context) ([]time.Duration, error) {
	ops := w.renewed()
	w.renewals++
	w.extra = &instance{service: 0, number: w.each() + w.renewals}
	ops = append(w.set(*w.extra), ops...)
	return w.changeBy(ctx, 0, func(ctx context.Context) error { return w.txn(ctx, ops) })
}

// renewed takes away what [world.renew] has made.
func (w *world) renewed() (ops []op) {
	if w.extra != nil {
		ops = append(ops, w.drop(*w.extra))
	}
	w.extra = nil
	return ops
}

func (w *world) changeBy(ctx context.Context, service int, write func(context.Context) error) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	watch := w.fleet.Watch(xds.EndpointType, w.cluster(service), w.callers(service))
	if err := write(ctx); err != nil {
		watch.End()
		return nil, err
	}
	err := watch.Wait(ctx)
	times := watch.End()
	if err != nil {
		err = fmt.Errorf("a change of %s: %d of %d sidecars have it: %w; of the others: %q; of all: %v, %+v",
			w.service(service), len(times), w.callers(service), err, watch.Missing(), w.fleet.Endpoints()[w.cluster(service)], w.fleet.Totals())
	}
	return times, err
}
