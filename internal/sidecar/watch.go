package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/crossfade-mesh/crossfade/internal/envoyadmin"
)

// watch looks at a running Envoy from outside, and asks it for what only it knows.
type watch struct {
	admin *envoyadmin.Client
	rss   atomic.Int64 // as last seen
}

// look is what one look gave.
type look struct {
	sample
	inbound int64 // limit on inbound connections; 0: none
}

func (w *watch) lastRSS() int64 { return w.rss.Load() }

func (w *watch) look(ctx context.Context, pid int) (look, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return look{}, err
	}
	w.rss.Store(kibibytes(status, "VmRSS:"))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return look{}, err
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return look{}, err
	}
	l := look{sample: sample{memory: kibibytes(status, "RssAnon:"), files: len(files), limit: openFiles(limits)}}
	stats, err := w.admin.Gauges(ctx, `^overload\..*\.pressure$`)
	if err != nil {
		return look{}, err
	}
	l.heap = int(stats["overload.envoy.resource_monitors.fixed_heap.pressure"])
	l.conns = int(stats["overload.envoy.resource_monitors.global_downstream_max_connections.pressure"])
	l.inbound, err = w.inboundLimit(ctx)
	return l, err
}

// inboundLimit is the limit on inbound connections that is in force.
func (w *watch) inboundLimit(ctx context.Context) (int64, error) {
	values, err := w.admin.Runtime(ctx)
	if err != nil {
		return 0, err
	}
	for key, value := range values {
		if strings.HasPrefix(key, "envoy.resource_limits.listener.public_listener:") && strings.HasSuffix(key, ".connection_limit") {
			f, err := strconv.ParseFloat(value, 64)
			return int64(f), err
		}
	}
	return 0, nil
}

// kibibytes is the amount in bytes that a line of /proc/<pid>/status gives.
func kibibytes(status []byte, name string) int64 {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(value)), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// openFiles is the soft limit that /proc/<pid>/limits gives; 0 when there is none.
func openFiles(limits []byte) int {
	for line := range bytes.Lines(limits) {
		if rest, ok := bytes.CutPrefix(line, []byte("Max open files")); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				n, _ := strconv.Atoi(string(f[0]))
				return n
			}
		}
	}
	return 0
}
