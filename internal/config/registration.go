package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

// serviceBody is a service as Consul writes it: in definition files and in the body
// of PUT /v1/agent/service/register.
type serviceBody struct {
	Kind              catalog.Kind               `json:"Kind,omitempty"`
	ID                string                     `json:"ID,omitempty"`
	Name              string                     `json:"Name,omitempty"`
	Tags              []string                   `json:"Tags,omitempty"`
	Meta              map[string]string          `json:"Meta,omitempty"`
	Address           string                     `json:"Address,omitempty"`
	Port              int                        `json:"Port,omitempty"`
	SocketPath        string                     `json:"SocketPath,omitempty"`
	TaggedAddresses   map[string]catalog.Address `json:"TaggedAddresses,omitempty"`
	Weights           *catalog.Weights           `json:"Weights,omitempty"`
	EnableTagOverride bool                       `json:"EnableTagOverride,omitempty"`
	Check             *CheckDefinition           `json:"Check,omitempty"`
	Checks            []CheckDefinition          `json:"Checks,omitempty"`
	Proxy             *catalog.Proxy             `json:"Proxy,omitempty"`
	Connect           *connectBody               `json:"Connect,omitempty"`
}

type connectBody struct {
	Native         bool         `json:"Native,omitempty"`
	SidecarService *serviceBody `json:"SidecarService,omitempty"`
}

// DecodeRegistration reads the body of PUT /v1/agent/service/register. As in
// Consul, unknown fields are refused and keys of the opaque Config maps are not.
func DecodeRegistration(data []byte) (Definition, error) {
	r := &report{}
	root := parse(formatJSON, data, r)
	if root == nil {
		return Definition{}, r.err()
	}
	d := decodeService(r, root)
	return d, r.err()
}

// decodeService reads one service in Consul's form. The definition is of use only
// when nothing was reported.
func decodeService(r *report, n *node) Definition {
	r.subject, r.root = subject("service", n.str("name")), n
	before := len(r.list)
	var body serviceBody
	decode(r, n, &body)
	if len(r.list) > before {
		return Definition{}
	}
	body.checkShape(r)
	d, checkPaths := body.definition()
	d.normalize()
	d.check(r, consulPlaces(d, checkPaths))
	return d
}

// checkShape refuses what a Definition cannot hold.
func (b *serviceBody) checkShape(r *report) {
	if b.Proxy != nil && b.Kind != catalog.ConnectProxy && !reflect.ValueOf(*b.Proxy).IsZero() {
		r.addf("Proxy", `only kind "connect-proxy" has one; a service declares its own in Connect.SidecarService.Proxy`)
	}
	if b.Connect == nil {
		return
	}
	side := b.Connect.SidecarService
	if b.Kind == catalog.ConnectProxy && (side != nil || b.Connect.Native) {
		r.addf("Connect", `kind "connect-proxy" cannot have a sidecar or be native: it is the proxy`)
	}
	if side == nil {
		return
	}
	const path = "Connect.SidecarService"
	switch {
	case b.Connect.Native:
		r.addf("Connect", "native and sidecar_service exclude each other")
	case side.ID != "":
		r.addf(path+".ID", `must be empty: it is always "<service id>%s"`, sidecarSuffix)
	case side.Kind != "" && side.Kind != catalog.ConnectProxy:
		r.addf(path+".Kind", `%q: want "connect-proxy" or nothing`, cut(string(side.Kind)))
	case side.Connect != nil && *side.Connect != connectBody{}:
		r.addf(path+".Connect", "a sidecar cannot have a sidecar or be native")
	}
}

// definition also gives the path of each check, by its index.
func (b *serviceBody) definition() (d Definition, checkPaths []string) {
	d.Service = catalog.Service{
		Kind: b.Kind, ID: b.ID, Name: b.Name, Tags: b.Tags, Meta: b.Meta,
		Address: b.Address, Port: b.Port, SocketPath: b.SocketPath,
		TaggedAddresses: b.TaggedAddresses, EnableTagOverride: b.EnableTagOverride,
	}
	if b.Weights != nil {
		d.Service.Weights = *b.Weights
	}
	if b.Kind == catalog.ConnectProxy {
		d.Service.Proxy = b.Proxy
	}
	for i, c := range b.Checks {
		d.Checks = append(d.Checks, c)
		checkPaths = append(checkPaths, index("Checks", i))
	}
	// Clients send an empty Check for none.
	if b.Check != nil && !reflect.ValueOf(*b.Check).IsZero() {
		d.Checks = append(d.Checks, *b.Check)
		checkPaths = append(checkPaths, "Check")
	}
	if b.Connect != nil {
		d.Service.Connect.Native = b.Connect.Native
		if b.Connect.SidecarService != nil {
			side := *b.Connect.SidecarService
			side.Kind = catalog.ConnectProxy
			inner, _ := side.definition()
			d.Sidecar = &inner
		}
	}
	return d, checkPaths
}

// MarshalRegistration is the body of PUT /v1/agent/service/register that
// [DecodeRegistration] reads back. Protocol is no part of it.
func (d Definition) MarshalRegistration() ([]byte, error) {
	body := registrationBody(d)
	if d.Sidecar != nil {
		side := registrationBody(*d.Sidecar)
		side.Kind, side.ID = "", "" // Consul sets the one and refuses the other
		body.Connect = &connectBody{SidecarService: &side}
	} else if d.Service.Connect.Native {
		body.Connect = &connectBody{Native: true}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return nil, fmt.Errorf("service %s: cannot be written as JSON: %w", strconv.Quote(d.Service.Name), err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func registrationBody(d Definition) serviceBody {
	s := d.Service
	b := serviceBody{
		Kind: s.Kind, ID: s.ID, Name: s.Name, Tags: s.Tags, Meta: s.Meta,
		Address: s.Address, Port: s.Port, SocketPath: s.SocketPath,
		TaggedAddresses: s.TaggedAddresses, EnableTagOverride: s.EnableTagOverride,
		Checks: d.Checks, Proxy: s.Proxy,
	}
	if s.Weights != (catalog.Weights{}) {
		b.Weights = &s.Weights
	}
	return b
}
