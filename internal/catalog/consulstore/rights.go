package consulstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// The oldest Consul with all kinds of entries that are served: jwt-provider is the youngest.
const (
	floorMajor = 1
	floorMinor = 16
	// Floor is the oldest version of Consul that is served.
	Floor = "1.16.0"
)

// Rule is one that a token needs.
type Rule struct {
	Text                      string // as it stands in a policy
	What                      string // what it is for
	resource, access, segment string
}

// Rules are all that a server's token needs, in the words of Consul's policies.
func Rules() []Rule {
	return []Rule{
		{`key_prefix "` + Prefix + `" { policy = "write" }`, "crossfade's own state", "key", "write", Prefix + "x"},
		{`key_prefix "` + store.ConventionPrefix + `" { policy = "read" }`, "shares that clients follow", "key", "read", store.ConventionPrefix + "x"},
		{`session_prefix "" { policy = "write" }`, "locks", "session", "write", "x"},
		{`service_prefix "" { policy = "write" intentions = "write" }`, "service-defaults, -resolver, -router, -splitter and intentions", "service", "write", "x"},
		{`service_prefix "" { policy = "write" intentions = "write" }`, "service-intentions", "intention", "write", "x"},
		{`mesh = "write"`, "mesh, proxy-defaults and jwt-provider", "mesh", "write", ""},
		{`node_prefix "" { policy = "read" }`, "the catalog", "node", "read", "x"},
		{`agent_prefix "" { policy = "read" }`, "the agent's version and datacenter", "agent", "read", "x"},
	}
}

// ruleFor is the rule that a request takes.
func ruleFor(path, method string) string {
	kind, below, _ := strings.Cut(strings.TrimPrefix(path, "/v1/"), "/")
	all := Rules()
	at := 0
	switch {
	case kind == "session":
		at = 2
	case kind == "agent":
		at = 7
	case kind == "kv" && strings.HasPrefix(below, store.ConventionPrefix):
		at = 1
	case kind == "config":
		entry, _, _ := strings.Cut(below, "/")
		at = 3
		if entry == "mesh" || entry == "proxy-defaults" || entry == "jwt-provider" {
			at = 5
		}
	}
	rule := all[at].Text
	if method == http.MethodGet {
		rule = strings.ReplaceAll(rule, `"write"`, `"read"`)
	}
	return rule
}

// Check asks once whether the Consul can be used: its version, and with ACLs what the token
// lacks. The datacenter is the agent's; problems harm only what they name. An error is a Consul that is too old, or none.
func (e *Engine) Check(ctx context.Context) (datacenter string, problems []string, err error) {
	a, err := e.do(ctx, http.MethodGet, "/v1/agent/self", nil, nil, http.StatusForbidden)
	if err != nil {
		return "", nil, err
	}
	if a.Status == http.StatusForbidden {
		reason := refused(a, "/v1/agent/self", http.MethodGet)
		if strings.Contains(reason.Error(), "does not know the token") {
			return "", nil, fmt.Errorf("Consul at %s: %w", e.opts.Address, reason)
		}
		problems = append(problems, fmt.Sprintf("the version of Consul cannot be read: %v", reason))
	} else {
		var self struct {
			Config struct{ Datacenter, Version string }
		}
		if err := json.Unmarshal(a.Body, &self); err != nil || self.Config.Version == "" {
			return "", nil, fmt.Errorf("Consul at %s: /v1/agent/self is not that of a Consul agent", e.opts.Address)
		}
		if tooOld(self.Config.Version) {
			return "", nil, fmt.Errorf("Consul at %s: version %s is too old: want %s or later", e.opts.Address, self.Config.Version, Floor)
		}
		if a.Header.Get("X-Crossfade-Version") != "" {
			problems = append(problems, "it is a crossfade server, whose registry is one process: a Consul outlives any of its servers")
		}
		datacenter = self.Config.Datacenter
	}
	missing, err := e.missing(ctx)
	return datacenter, append(problems, missing...), err
}

func tooOld(version string) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (major < floorMajor || major == floorMajor && minor < floorMinor)
}

// missing lists the rules that the token lacks. A Consul without ACLs, or without this question,
// lacks none.
func (e *Engine) missing(ctx context.Context) (out []string, err error) {
	type question struct{ Resource, Access, Segment string }
	var ask []question
	for _, r := range Rules() {
		ask = append(ask, question{r.resource, r.access, r.segment})
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	a, err := e.client.Do(ctx, http.MethodPost, "/v1/internal/acl/authorize", nil, body, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("Consul at %s: %w: %w", e.opts.Address, store.ErrUnreachable, err)
	}
	var answers []struct {
		question
		Allow bool
	}
	if a.Status != http.StatusOK || json.Unmarshal(a.Body, &answers) != nil || len(answers) != len(ask) {
		return nil, nil
	}
	for i, r := range Rules() {
		if !answers[i].Allow && answers[i].Resource == r.resource {
			out = append(out, fmt.Sprintf("the token lacks the rule %s: without it there is no way to %s", r.Text, r.What))
		}
	}
	return out, nil
}
