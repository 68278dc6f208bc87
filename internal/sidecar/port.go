package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// The range that Consul takes sidecars' ports from.
const (
	minPublicPort = 21000
	maxPublicPort = 21255
)

// The range of ports for plaintext alone: between Consul's for sidecars and its for
// exposed paths.
const (
	minPlaintextPort = 21256
	maxPlaintextPort = 21499
)

// portWait is how long an address that must be had may be in use by a
// predecessor whose Envoy is just being killed.
const portWait = 3 * time.Second

// reservation keeps other sidecars on this host from choosing the same port while
// Envoy has not bound it, or is down. It is an abstract socket: it dies with the
// process and, as ports do, belongs to the network namespace.
type reservation struct{ l net.Listener }

func (r *reservation) release() {
	if r != nil {
		_ = r.l.Close()
	}
}

// reserve takes address:port among sidecars and makes sure that nobody listens there.
func reserve(address string, port int) (*reservation, error) {
	hostPort := net.JoinHostPort(address, strconv.Itoa(port))
	r, err := hold(hostPort)
	if err != nil {
		return nil, err
	}
	if err := free(hostPort); err != nil {
		r.release()
		return nil, fmt.Errorf("public port %s: %w", hostPort, err)
	}
	return r, nil
}

// hold takes an address among sidecars, whoever else listens there.
func hold(hostPort string) (*reservation, error) {
	l, err := net.Listen("unix", "@crossfade/public-port/"+hostPort)
	if err != nil {
		return nil, fmt.Errorf("public port %s: held by another crossfade sidecar: %w", hostPort, syscallError(err))
	}
	return &reservation{l}, nil
}

// free is an error when hostPort cannot be listened on.
func free(hostPort string) error {
	l, err := net.Listen("tcp", hostPort)
	if err != nil {
		return syscallError(err)
	}
	return l.Close()
}

// portsFrom are all ports of a range, from the one on that a service's ID gives, and around.
// Each sidecar has a place of its own to begin at, so that others do not take its port
// while it is down.
func portsFrom(first, last int, id string) iter.Seq[int] {
	h := fnv.New32a()
	h.Write([]byte(id))
	n := last - first + 1
	at := int(h.Sum32() % uint32(n))
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(first + (at+i)%n) {
				return
			}
		}
	}
}

// choosePlaintextPort settles where plaintext alone may be taken: the remembered port if it
// is free, else the first free one of the range; 0 when there is none, which harms nobody
// who does not want it. Those in use are the registration's own.
func choosePlaintextPort(address, id string, remembered int, inUse []int) (int, *reservation) {
	if remembered != 0 && !slices.Contains(inUse, remembered) {
		if r, err := reserve(address, remembered); err == nil {
			return remembered, r
		}
	}
	for port := range portsFrom(minPlaintextPort, maxPlaintextPort, id) {
		if slices.Contains(inUse, port) {
			continue
		}
		if r, err := reserve(address, port); err == nil {
			return port, r
		}
	}
	return 0, nil
}

// wantedPort is the public port that a sidecar wants; 0 for none.
type wantedPort struct {
	id         string // of the service
	fixed      int    // by the definition
	remembered int    // from last time
}

// choosePort settles the public port: fixed if the definition names one, else the
// remembered one, else the first free one of the range. A fixed port that stays in
// use is an error, a remembered one is given up.
func choosePort(ctx context.Context, address string, want wantedPort) (int, *reservation, error) {
	if port := cmp.Or(want.fixed, want.remembered); port != 0 {
		r, err := persist(ctx, func() (*reservation, error) { return reserve(address, port) })
		if err == nil {
			return port, r, nil
		}
		if want.fixed != 0 {
			return 0, nil, fmt.Errorf("%w: stop what uses it, or set another connect.sidecar_service.port", err)
		}
	}
	var last error
	for port := range portsFrom(minPublicPort, maxPublicPort, want.id) {
		r, err := reserve(address, port)
		if err == nil {
			return port, r, nil
		}
		last = err
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return 0, nil, fmt.Errorf("public address %q: not an address of this host: set --node-address or the service's address: %w", address, last)
		}
	}
	return 0, nil, fmt.Errorf("public port: none of %d-%d on %s is free: set connect.sidecar_service.port: %w", minPublicPort, maxPublicPort, address, last)
}

// persist tries again while the error is "address in use", for at most portWait.
func persist[T any](ctx context.Context, try func() (T, error)) (T, error) {
	deadline := time.Now().Add(portWait)
	for {
		v, err := try()
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return v, err
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return v, err
		}
	}
}

// checkUpstreamPorts reports every declared local address that something else
// already listens on: Envoy could not bind it, and the app would talk to a stranger.
func checkUpstreamPorts(ctx context.Context, upstreams []localUpstream) error {
	var errs []error
	for _, u := range upstreams {
		_, err := persist(ctx, func() (struct{}, error) { return struct{}{}, free(u.bind()) })
		if err != nil {
			errs = append(errs, fmt.Errorf("upstream %q: its local address %s cannot be listened on, stop what uses it or choose another port: %w", u.name, u.bind(), err))
		}
	}
	return errors.Join(errs...)
}

// syscallError is the error number inside a net.OpError, without addresses repeated.
func syscallError(err error) error {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no
	}
	return err
}
