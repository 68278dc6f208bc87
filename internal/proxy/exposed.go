package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Exposed is one path of the app that anybody may call: without TLS, without an
// identity, and so without regard to intentions.
type Exposed struct {
	ListenerName string
	StatPrefix   string
	Address      string // an IP
	Port         int
	Path         string // this one, and none below it
	App          ExposedApp
}

// What names of listeners and clusters of exposed paths begin with.
const (
	ExposedListener = "exposed_path_"
	ExposedCluster  = "exposed_cluster_"
)

// ExposedApp is where the app serves exposed paths. Several paths may share one.
type ExposedApp struct {
	Cluster  string
	Protocol string // http or http2
	App
}

// exposed decides where the exposed paths listen. The app is reached as in.App
// says, but for the port.
func (b *builder) exposed(in *Inbound, paths []catalog.ExposePath) []Exposed {
	var out []Exposed
	for _, p := range paths {
		subject := fmt.Sprintf("exposed path %q port %d", p.Path, p.ListenerPort)
		switch {
		case !strings.HasPrefix(p.Path, "/"):
			b.problem(subject, "a path begins with a slash: it is left out")
			continue
		case p.ListenerPort < 1 || p.ListenerPort > 65535 || p.LocalPathPort < 0 || p.LocalPathPort > 65535:
			b.problem(subject, "a port is out of range: it is left out")
			continue
		case p.Protocol != "" && p.Protocol != config.HTTP && p.Protocol != config.HTTP2:
			b.problem(subject, "protocol %q: want http or http2: it is left out", p.Protocol)
			continue
		}
		addr := netip.MustParseAddr(in.Address)
		if holder, ok := b.claim(bind{addr: addr, port: p.ListenerPort}, subject); !ok {
			b.problem(subject, "%s is taken by %s: it is left out", netip.AddrPortFrom(addr, uint16(p.ListenerPort)), holder)
			continue
		}
		app := ExposedApp{Protocol: cmp.Or(p.Protocol, config.HTTP), App: in.App}
		if p.LocalPathPort != 0 {
			app.SocketPath, app.Port = "", p.LocalPathPort
		}
		app.Cluster = fmt.Sprintf(ExposedCluster+"%d", app.Port)
		if app.SocketPath != "" {
			app.Cluster = ExposedCluster + "socket"
		}
		if app.Protocol == config.HTTP2 {
			app.Cluster += "_http2"
		}
		plain := alphanumeric(p.Path)
		out = append(out, Exposed{
			ListenerName: fmt.Sprintf(ExposedListener+"%s:%s:%d", plain, addr, p.ListenerPort),
			StatPrefix:   fmt.Sprintf("exposed_path_filter_%s_%d", plain, p.ListenerPort),
			Address:      addr.String(), Port: p.ListenerPort, Path: p.Path, App: app,
		})
	}
	slices.SortFunc(out, func(x, y Exposed) int { return cmp.Compare(x.ListenerName, y.ListenerName) })
	return out
}

// ExposedApps are those of the exposed paths, sorted by cluster, each once.
func (in *Inbound) ExposedApps() []ExposedApp {
	var out []ExposedApp
	for _, e := range in.Exposed {
		out = append(out, e.App)
	}
	slices.SortFunc(out, func(x, y ExposedApp) int { return cmp.Compare(x.Cluster, y.Cluster) })
	return slices.Compact(out)
}

// alphanumeric is what of a path can stand in a name.
func alphanumeric(path string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, path)
}
