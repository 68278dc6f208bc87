package config

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
)

// Sizing says how much one sidecar may use. The zero value of a field leaves it to
// the sidecar. It is written as sidecar in the short form, and as crossfade_sizing
// in a proxy's Config, where a Consul keeps it too.
type Sizing struct {
	CPU            float64 `json:"cpu,omitempty"` // cores: 0.5 is half of one
	MemoryBytes    Bytes   `json:"memory,omitempty"`
	Concurrency    int     `json:"concurrency,omitempty"` // Envoy's worker threads
	MaxConnections int     `json:"connections,omitempty"` // that all its listeners together accept
}

const sizingKey = "crossfade_sizing"

// Bounds of a sizing. Envoy alone takes some 50 MiB.
const (
	minCPU, maxCPU       = 0.01, 1024
	minMemory, maxMemory = 64 * MiB, 1 << 50
	maxConcurrency       = 1024
	maxConnections       = 10_000_000
)

func (s Sizing) check(r *report, path string) {
	if s.CPU != 0 && (s.CPU < minCPU || s.CPU > maxCPU) {
		r.addf(join(path, "cpu"), "%v: want cores, %v to %v", s.CPU, minCPU, maxCPU)
	}
	if s.MemoryBytes != 0 && (s.MemoryBytes < minMemory || s.MemoryBytes > maxMemory) {
		r.addf(join(path, "memory"), "%s: want at least %s, which Envoy itself needs", s.MemoryBytes, minMemory)
	}
	if s.Concurrency < 0 || s.Concurrency > maxConcurrency {
		r.addf(join(path, "concurrency"), "%d: want threads, 1 to %d", s.Concurrency, maxConcurrency)
	}
	if s.MaxConnections < 0 || s.MaxConnections > maxConnections {
		r.addf(join(path, "connections"), "%d: want 1 to %d", s.MaxConnections, maxConnections)
	}
}

// opaque is the sizing as a proxy's Config holds it.
func (s Sizing) opaque() map[string]any {
	out := map[string]any{}
	set := func(key string, zero bool, value any) {
		if !zero {
			out[key] = value
		}
	}
	set("cpu", s.CPU == 0, s.CPU)
	set("memory", s.MemoryBytes == 0, s.MemoryBytes.String())
	set("concurrency", s.Concurrency == 0, float64(s.Concurrency))
	set("connections", s.MaxConnections == 0, float64(s.MaxConnections))
	return out
}

// Sizing is what the definition says of the size of its sidecar, or of itself when
// it is one. The definition is valid.
func (d Definition) Sizing() Sizing { return d.proxyConfig().Sizing }

// proxyConfig is the opaque Config of the definition's sidecar, or its own when it is one.
func (d Definition) proxyConfig() ProxyConfig {
	p := d.Service.Proxy
	if d.Sidecar != nil {
		p = d.Sidecar.Service.Proxy
	}
	if p == nil {
		return ProxyConfig{}
	}
	c, _, _ := decodeProxyConfig(p.Config)
	return c
}

// Bytes is an amount of memory, written "128MiB"; a bare number is bytes.
type Bytes int64

// MiB is a mebibyte.
const MiB Bytes = 1 << 20

// units of [Bytes], the largest that divides first.
var units = []struct {
	name  string
	bytes Bytes
}{
	{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", MiB}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}, {"B", 1},
}

// String is the exact amount in the largest unit that gives a whole number.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.bytes == 0 {
			return strconv.FormatInt(int64(b/u.bytes), 10) + u.name
		}
	}
	return "0B"
}

// MarshalJSON writes "128MiB".
func (b Bytes) MarshalJSON() ([]byte, error) { return json.Marshal(b.String()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (b *Bytes) UnmarshalJSON(raw []byte) error {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	amount, ok := parseBytes(text)
	if !ok {
		return fmt.Errorf("%q is no amount of memory", text)
	}
	*b = amount
	return nil
}

func parseBytes(text string) (Bytes, bool) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.name)
		f, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if ok && err == nil && f >= 0 && f*float64(u.bytes) <= 1<<53 {
			return Bytes(f * float64(u.bytes)), true
		}
	}
	return 0, false
}

// bytes decodes an amount of memory.
func (d *decoder) bytes(n *node, v reflect.Value, path string) {
	if n.kind == numberNode {
		v.SetInt(d.integer(n, path, 0, math.MaxInt64))
		return
	}
	if n.kind == textNode {
		if amount, ok := parseBytes(n.text); ok {
			v.SetInt(int64(amount))
			return
		}
	}
	d.r.at(n.line, path, `want an amount of memory such as "128MiB", got %s`, n.describe())
}

// fraction decodes a number that need not be whole.
func (d *decoder) fraction(n *node, path string) float64 {
	if !d.weak || n.kind != textNode {
		if !d.is(n, numberNode, path) {
			return 0
		}
	}
	f, err := strconv.ParseFloat(n.text, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		d.r.at(n.line, path, "want a number, got %s", n.describe())
		return 0
	}
	return f
}
