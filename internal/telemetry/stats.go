package telemetry

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/shift"
)

// What to ask Envoy's admin interface for: the counters made for this, and a few of clusters.
var (
	requestsPath    = statsPath(retries, requestsOpen, nobodyHealthy)
	connectionsPath = statsPath(retries, requestsOpen, nobodyHealthy, connectionsOpen, connectionsMade, connectionsFailed)
)

func statsPath(ofClusters ...string) string {
	names := `^(cf\.|cluster\..+\.internal\..+\.upstream_(` + strings.Join(ofClusters, "|") + `)$)`
	return "/stats?format=json&usedonly&histogram_buckets=detailed&filter=" + url.QueryEscape(names)
}

// Stats of clusters, after "cluster.<name>.upstream_".
const (
	retries           = "rq_retry"
	requestsOpen      = "rq_active"
	connectionsOpen   = "cx_active"
	connectionsMade   = "cx_total"
	connectionsFailed = "cx_connect_fail"
	nobodyHealthy     = "cx_none_healthy"
)

// clusterStat is the name of a cluster's stat.
func clusterStat(cluster, stat string) string { return "cluster." + cluster + ".upstream_" + stat }

// cutStat is the inverse of [clusterStat].
func cutStat(name string) (cluster, stat string) {
	i := strings.LastIndex(name, ".upstream_")
	if i < 0 {
		return "", ""
	}
	return strings.TrimPrefix(name[:i], "cluster."), name[i+len(".upstream_"):]
}

// Stats are Envoy's counts since it started.
type Stats struct {
	counters   map[string]uint64               // gauges among them
	histograms map[string]map[shift.Bin]uint64 // in milliseconds
}

// ParseStats reads Envoy's answer to [Meter.Path].
func ParseStats(b []byte) (Stats, error) {
	var answer struct {
		Stats []struct {
			Name       string `json:"name"`
			Value      uint64 `json:"value"`
			Histograms *struct {
				Details []struct {
					Name   string              `json:"name"`
					Totals []shift.EnvoyBucket `json:"totals"`
				} `json:"details"`
			} `json:"histograms"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return Stats{}, fmt.Errorf("Envoy's stats: %w", err)
	}
	out := Stats{counters: map[string]uint64{}, histograms: map[string]map[shift.Bin]uint64{}}
	for _, s := range answer.Stats {
		if s.Histograms == nil {
			out.counters[s.Name] = s.Value
			continue
		}
		for _, h := range s.Histograms.Details {
			bins := map[shift.Bin]uint64{}
			for _, b := range shift.FromEnvoy(h.Totals, time.Microsecond).Bins {
				bins[b.Bin] = uint64(b.Count)
			}
			out.histograms[h.Name] = bins
		}
	}
	return out, nil
}

// AttemptsPath is what to ask for, for [Stats.Attempts] alone.
var AttemptsPath = "/stats?format=json&usedonly&filter=" + url.QueryEscape(`^cf\.(attempt|connection)\.`)

// Attempts is how many attempts, or connections, Envoy counted by destination and way.
// What names no way counts for mtls.
func (s Stats) Attempts() map[string]map[shift.Way]uint64 {
	out := map[string]map[shift.Way]uint64{}
	for name, n := range s.counters {
		p := attemptName.FindStringSubmatch(name)
		if p == nil {
			p = connectionName.FindStringSubmatch(name)
		}
		if p == nil {
			continue
		}
		if out[p[1]] == nil {
			out[p[1]] = map[shift.Way]uint64{}
		}
		out[p[1]][wayOf(p[2])] += n
	}
	return out
}

// HostsPath is what to ask for when connections are divided among ways.
const HostsPath = "/clusters?format=json"

// Hosts are Envoy's counts of endpoints since they are there, by cluster and address.
type Hosts map[host]hostCounts

type host struct{ cluster, address, part string }

type hostCounts struct{ open, failed, requests uint64 }

// ParseHosts reads Envoy's answer to [HostsPath].
func ParseHosts(b []byte) (Hosts, error) {
	var answer struct {
		Clusters []struct {
			Name  string `json:"name"`
			Hosts []struct {
				Address  json.RawMessage `json:"address"`
				Locality struct {
					SubZone string `json:"sub_zone"`
				} `json:"locality"`
				Stats []struct {
					Name  string `json:"name"`
					Value uint64 `json:"value,string"`
				} `json:"stats"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("Envoy's clusters: %w", err)
	}
	out := Hosts{}
	for _, c := range answer.Clusters {
		for _, h := range c.Hosts {
			var n hostCounts
			for _, s := range h.Stats {
				switch s.Name {
				case "cx_active":
					n.open = s.Value
				case "cx_connect_fail":
					n.failed = s.Value
				case "rq_active":
					n.requests = s.Value
				}
			}
			out[host{c.Name, string(h.Address), h.Locality.SubZone}] = n
		}
	}
	return out, nil
}

// Idle are the addresses of clusters at which no request is under way.
func (h Hosts) Idle(clusters []string) map[netip.AddrPort]bool {
	out, busy := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for of, n := range h {
		if at, ok := placeOf(of.address); ok && slices.Contains(clusters, of.cluster) {
			busy[at] = busy[at] || n.requests > 0
			out[at] = !busy[at]
		}
	}
	maps.DeleteFunc(out, func(_ netip.AddrPort, idle bool) bool { return !idle })
	return out
}

// placeOf reads an address of an endpoint as Envoy writes it.
func placeOf(text string) (netip.AddrPort, bool) {
	var a struct {
		Socket struct {
			Address string `json:"address"`
			Port    uint16 `json:"port_value"`
		} `json:"socket_address"`
	}
	if json.Unmarshal([]byte(text), &a) != nil {
		return netip.AddrPort{}, false
	}
	ip, err := netip.ParseAddr(a.Socket.Address)
	return netip.AddrPortFrom(ip.Unmap(), a.Socket.Port), err == nil
}

// outcome is how an attempt ended.
type outcome struct {
	code, flags, grpc string
	connection        bool
}

// failedStatus are gRPC's statuses that say more of the way or the callee than of the call:
// UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
var failedStatus = []string{"2", "4", "13", "14", "15"}

// judge says whether the attempt failed, and whether for want of a connection.
func (o outcome) judge() (failed, unconnected bool) {
	if o.connection {
		return o.flags != "-", o.flags != "-"
	}
	code, _ := strconv.Atoi(o.code)
	unconnected = code == 0 && (o.has("UF") || o.has("UH") || o.has("UO"))
	return code == 0 || code >= 500 || slices.Contains(failedStatus, o.grpc) || slices.ContainsFunc(cutShort, o.has), unconnected
}

// cutShort are Envoy's flags of an answer that began and did not end: reset or closed by the
// callee, out of time, malformed.
var cutShort = []string{"UR", "UC", "UT", "UPE", "UMSDR"}

// CutShort is how many attempts to a destination, on other ways than one, ended with their
// connection, of Envoy's counters by name.
func CutShort(counters map[string]int64, destination, but string) (n uint64) {
	for name, value := range counters {
		p := attemptName.FindStringSubmatch(name)
		if p != nil && p[1] == destination && wayOf(p[2]) != shift.Way(but) && (outcome{flags: p[5]}).has("UC") && value > 0 {
			n += uint64(value)
		}
	}
	return n
}

// CutShortFilter matches the names of the counters for [CutShort].
func CutShortFilter(destination string) string {
	return `^cf\.attempt\.destination\.` + regexp.QuoteMeta(destination) + `\.way\.`
}

// UnderWay is how many requests are under way on clusters, of Envoy's gauges by name.
func UnderWay(gauges map[string]int64, clusters []string) (n uint64) {
	for _, c := range clusters {
		n += uint64(max(0, gauges[clusterStat(c, requestsOpen)]))
	}
	return n
}

// UnderWayFilter matches the names of the gauges for [UnderWay].
const UnderWayFilter = `^cluster\..+\.internal\..+\.upstream_` + requestsOpen + `$`

// has reports whether Envoy set a flag.
func (o outcome) has(flag string) bool { return slices.Contains(strings.Split(o.flags, ","), flag) }

// nobodyThere is a failure for want of anybody healthy.
const nobodyThere = "no instance"

// String is the outcome in few words.
func (o outcome) String() string {
	words := []string{o.code}
	switch {
	case o.connection:
		words = []string{"no connection"}
	case o.code == "" || o.code == "0":
		words = []string{"no answer"}
	}
	if o.flags != "-" && o.flags != "" {
		words = append(words, o.flags)
	}
	if slices.Contains(failedStatus, o.grpc) {
		words = append(words, "grpc "+o.grpc)
	}
	return strings.Join(words, " ")
}
