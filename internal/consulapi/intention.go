package consulapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// intentionShape is one source of a service-intentions entry, shown on its own.
type intentionShape struct {
	ID              string
	Description     string `json:",omitempty"`
	SourceNS        string
	SourceName      string
	DestinationNS   string
	DestinationName string
	SourceType      string
	Action          config.Action        `json:",omitempty"`
	Permissions     []*config.Permission `json:",omitempty"`
	Precedence      int
	CreateIndex     uint64
	ModifyIndex     uint64
}

// intentionID names the intention of a pair as Consul's older API wants it: a UUID,
// always the same for the same pair.
func intentionID(source, destination string) string {
	b := sha256.Sum256([]byte(source + "\x00" + destination))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// showIntentions lists the intentions of entries in the order they are judged.
func showIntentions(entries []*store.Entry) []intentionShape {
	out := []intentionShape{}
	for _, e := range entries {
		si, ok := e.Entry.(*config.ServiceIntentions)
		if !ok {
			continue
		}
		for _, s := range si.Sources {
			out = append(out, intentionShape{
				ID: intentionID(s.Name, si.Name), Description: s.Description, SourceNS: "default", SourceName: s.Name, DestinationNS: "default", DestinationName: si.Name,
				SourceType: cmp.Or(s.Type, "consul"), Action: s.Action, Permissions: s.Permissions, Precedence: s.Precedence,
				CreateIndex: e.CreateIndex, ModifyIndex: e.ModifyIndex,
			})
		}
	}
	slices.SortStableFunc(out, func(a, b intentionShape) int {
		return cmp.Or(cmp.Compare(b.Precedence, a.Precedence), cmp.Compare(a.SourceName, b.SourceName), cmp.Compare(a.DestinationName, b.DestinationName))
	})
	return out
}

// intentions reads all of them, held back as the call asks.
func (c *call) intentions() ([]intentionShape, error) {
	var out []intentionShape
	err := c.read(func(r *store.Reader) { out = showIntentions(r.Entries(config.KindServiceIntentions)) })
	return out, err
}

func listIntentions(c *call) (any, error) {
	all, err := c.intentions()
	if err != nil {
		return nil, err
	}
	return filter(c, all)
}

// service is a query parameter that names a service, perhaps with partition and namespace.
func (c *call) service(parameter string) (string, error) {
	v := c.query.Get(parameter)
	if v == "" {
		return "", internal("required query parameter '%s' not set", parameter)
	}
	parts := strings.Split(v, "/")
	if len(parts) > 3 {
		return "", internal("%s %q is invalid: input can contain at most two '/'", parameter, v)
	}
	for _, p := range parts[:len(parts)-1] {
		if p != "default" {
			return "", badRequest("%s %q is invalid: only namespace and partition \"default\" exist", parameter, v)
		}
	}
	return parts[len(parts)-1], nil
}

func (c *call) pair() (source, destination string, err error) {
	if source, err = c.service("source"); err != nil {
		return "", "", err
	}
	destination, err = c.service("destination")
	return source, destination, err
}

func getIntention(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	all, err := c.intentions()
	if err != nil {
		return nil, err
	}
	for _, in := range all {
		if in.SourceName == source && in.DestinationName == destination {
			return in, nil
		}
	}
	return nil, notFound("Intention not found")
}

// intentionBody is what may be said of an intention. Fields of type any are those of
// Consul's answers that its writes do not heed.
type intentionBody struct {
	SourceName, DestinationName                string
	SourceNS, DestinationNS                    string
	SourcePartition, DestinationPartition      string
	SourcePeer, SourceSamenessGroup            string
	SourceType, Description                    string
	Action                                     config.Action
	Permissions                                []*config.Permission
	Meta                                       map[string]string
	ID, DefaultAddr, DefaultPort, Precedence   any
	CreatedAt, UpdatedAt, Hash                 any
	CreateIndex, ModifyIndex, LegacyID, Legacy any
}

func putIntention(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	var b intentionBody
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	err = c.writeIntention(source, destination, b, true)
	return err == nil, err
}

// createIntention takes the pair from the body and replaces nothing.
func createIntention(c *call) (any, error) {
	var b intentionBody
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	if b.SourceName == "" || b.DestinationName == "" {
		return nil, internal("SourceName and DestinationName must be set")
	}
	return map[string]string{"ID": intentionID(b.SourceName, b.DestinationName)}, c.writeIntention(b.SourceName, b.DestinationName, b, false)
}

// byID finds the intention that the path names.
func (c *call) byID() (intentionShape, error) {
	all, err := c.intentions()
	if err != nil {
		return intentionShape{}, err
	}
	for _, in := range all {
		if in.ID == c.arg {
			return in, nil
		}
	}
	return intentionShape{}, notFound("Intention not found")
}

func getIntentionByID(c *call) (any, error) {
	in, err := c.byID()
	return in, err
}

func putIntentionByID(c *call) (any, error) {
	in, err := c.byID()
	if err != nil {
		return nil, err
	}
	var b intentionBody
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	if cmp.Or(b.SourceName, in.SourceName) != in.SourceName || cmp.Or(b.DestinationName, in.DestinationName) != in.DestinationName {
		return nil, badRequest("intention %q is for %s => %s; an intention cannot change its pair", in.ID, in.SourceName, in.DestinationName)
	}
	return map[string]string{"ID": in.ID}, c.writeIntention(in.SourceName, in.DestinationName, b, true)
}

func deleteIntentionByID(c *call) (any, error) {
	in, err := c.byID()
	if err != nil {
		return nil, err
	}
	err = c.removeIntention(in.SourceName, in.DestinationName)
	return err == nil, err
}

func (c *call) writeIntention(source, destination string, b intentionBody, replace bool) error {
	switch {
	case b.SourcePeer != "" || b.SourceSamenessGroup != "":
		return badRequest("SourcePeer and SourceSamenessGroup are not served by this version")
	case len(b.Permissions) > 0 && b.Action != "":
		return internal("Sources[0].Action must be omitted if Permissions are specified")
	case len(b.Permissions) == 0 && b.Action != config.Allow && b.Action != config.Deny:
		return internal("Action must be set to 'allow' or 'deny'")
	}
	return c.api.store.Update(func(w *store.Writer) error {
		n := &config.ServiceIntentions{Name: destination}
		others, had := otherSources(w, n, source)
		if had && !replace {
			return internal("Sources of service-intentions %q define %q already", destination, source)
		}
		n.Sources = append(others, &config.SourceIntention{
			Name: source, Action: b.Action, Permissions: b.Permissions, Type: b.SourceType, Description: b.Description,
		})
		n.Normalize()
		if err := n.Validate(); err != nil {
			return badRequest("%v", err)
		}
		return w.PutEntry(n, c.author())
	})
}

// otherSources takes over what is kept of the destination's entry: all but one
// source, and whether that was there.
func otherSources(w *store.Writer, n *config.ServiceIntentions, source string) (out []*config.SourceIntention, had bool) {
	old := w.Entry(config.Key{Kind: config.KindServiceIntentions, Name: n.Name})
	if old == nil {
		return nil, false
	}
	entry, ok := old.Entry.(*config.ServiceIntentions)
	if !ok {
		return nil, false
	}
	n.Meta, n.JWT = entry.Meta, entry.JWT
	for _, s := range entry.Sources {
		if s.Name == source {
			had = true
			continue
		}
		kept := *s
		out = append(out, &kept)
	}
	return out, had
}

func deleteIntention(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	err = c.removeIntention(source, destination)
	return err == nil, err
}

func (c *call) removeIntention(source, destination string) error {
	k := config.Key{Kind: config.KindServiceIntentions, Name: destination}
	return c.api.store.Update(func(w *store.Writer) error {
		if w.Entry(k) == nil {
			return nil
		}
		n := &config.ServiceIntentions{Name: destination}
		if n.Sources, _ = otherSources(w, n, source); len(n.Sources) == 0 {
			return w.DeleteEntry(k, c.author())
		}
		n.Normalize()
		return w.PutEntry(n, c.author())
	})
}

// matchIntentions lists those that bear on a service, in the order they are judged.
func matchIntentions(c *call) (any, error) {
	by := c.query.Get("by")
	if by == "" {
		return nil, internal("required query parameter 'by' not set")
	}
	if by != "source" && by != "destination" {
		return nil, internal("'by' parameter must be one of 'source' or 'destination'")
	}
	names := c.all("name")
	if len(names) == 0 {
		return nil, internal("required query parameter 'name' not set")
	}
	all, err := c.intentions()
	if err != nil {
		return nil, err
	}
	out := map[string][]intentionShape{}
	for _, name := range names {
		out[name] = nil
		for _, in := range all {
			side := in.SourceName
			if by == "destination" {
				side = in.DestinationName
			}
			if side == name || side == config.Wildcard {
				out[name] = append(out[name], in)
			}
		}
	}
	return out, nil
}

func checkIntention(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	if t := c.query.Get("source-type"); t != "" && t != "consul" {
		return nil, internal("unsupported SourceType: %q", t)
	}
	action := c.api.DefaultIntention
	c.api.store.Read(context.WithoutCancel(c.r.Context()), 0, func(r *store.Reader) {
		for _, in := range showIntentions(r.Entries(config.KindServiceIntentions)) {
			if (in.SourceName == source || in.SourceName == config.Wildcard) &&
				(in.DestinationName == destination || in.DestinationName == config.Wildcard) {
				action = in.Action
				return
			}
		}
	})
	return map[string]bool{"Allowed": action == config.Allow}, nil
}
