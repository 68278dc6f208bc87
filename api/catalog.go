package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// CatalogHeld is what the endpoint guard keeps from sidecars of what a registry says.
type CatalogHeld struct {
	Guard GuardPolicy `json:"guard"`
	// Services are those of which instances are held, sorted by name.
	Services []HeldService `json:"services"`
	// LeftOut are instances that nobody can be sent to, for what they are registered with.
	LeftOut []LeftOut `json:"left_out"`
}

// GuardPolicy is how much a server lets vanish unexplained. Shares are between 0 and 1.
type GuardPolicy struct {
	On     bool    `json:"on"`
	Most   float64 `json:"most,omitempty"`
	Window string  `json:"window,omitempty"`
	Rate   float64 `json:"rate,omitempty"` // per second; 0: no limit
}

// HeldService is a service of which instances are held.
type HeldService struct {
	Service string    `json:"service"`
	Since   time.Time `json:"since"`
	Why     string    `json:"why"`
	Present int       `json:"present"` // instances that the registry has
	// Gone are those that it no longer has.
	Gone []HeldInstance `json:"gone,omitempty"`
	// Silent are those that stay although nobody hears of them.
	Silent []HeldInstance `json:"silent,omitempty"`
	// KeptBy is who said that they stay, and KeptAt when; empty: nobody did.
	KeptBy string     `json:"kept_by,omitempty"`
	KeptAt *time.Time `json:"kept_at,omitempty"`
}

// HeldInstance is one that is held.
type HeldInstance struct {
	ID      string `json:"id"`
	Node    string `json:"node"`
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// LeftOut is an instance that is left out, and why.
type LeftOut struct {
	Service string `json:"service"`
	Reason  string `json:"reason"`
}

// HeldDecision is what became of a decision about what is held.
type HeldDecision struct {
	Service   string    `json:"service"`
	Decision  string    `json:"decision"` // "release" or "keep"
	Instances int       `json:"instances"`
	By        string    `json:"by"`
	Time      time.Time `json:"time"`
}

// Held is what the endpoint guard holds.
func (c *Client) Held(ctx context.Context) (*CatalogHeld, error) {
	out := &CatalogHeld{}
	return out, c.do(ctx, http.MethodGet, "/v1/crossfade/catalog/held", nil, out)
}

// Release lets what is held of a service go. When nothing is, the error is an [*Error] with
// status 404.
func (c *Client) Release(ctx context.Context, service string) (*HeldDecision, error) {
	out := &HeldDecision{}
	return out, c.do(ctx, http.MethodPut, "/v1/crossfade/catalog/release/"+url.PathEscape(service), nil, out)
}

// KeepHeld makes what is held of a service stay until it is registered again or released,
// whatever explains its absence. When nothing is held, the error is an [*Error] with status 404.
func (c *Client) KeepHeld(ctx context.Context, service string) (*HeldDecision, error) {
	out := &HeldDecision{}
	return out, c.do(ctx, http.MethodPut, "/v1/crossfade/catalog/keep/"+url.PathEscape(service), nil, out)
}
