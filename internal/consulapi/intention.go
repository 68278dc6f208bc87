package consulapi

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// An intention is one source of a service-intentions entry, shown on its own.

type intentionShape struct {
	Description     string `json:",omitempty"`
	SourceNS        string
	SourceName      string
	DestinationNS   string
	DestinationName string
	SourceType      string
	Action          config.Action
	Precedence      int
	CreateIndex     uint64
	ModifyIndex     uint64
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
				Description: s.Description, SourceNS: "default", SourceName: s.Name, DestinationNS: "default", DestinationName: si.Name,
				SourceType: cmp.Or(s.Type, "consul"), Action: s.Action, Precedence: s.Precedence,
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
	Permissions                                []any
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
	switch {
	case len(b.Permissions) > 0:
		return nil, badRequest("Permissions are not served by this version; use Action")
	case b.SourcePeer != "" || b.SourceSamenessGroup != "":
		return nil, badRequest("SourcePeer and SourceSamenessGroup are not served by this version")
	case b.Action != config.Allow && b.Action != config.Deny:
		return nil, internal("Action must be set to 'allow' or 'deny'")
	}
	err = c.api.store.Update(func(w *store.Writer) error {
		n := &config.ServiceIntentions{Name: destination}
		n.Sources = append(otherSources(w, n, source), &config.SourceIntention{
			Name: source, Action: b.Action, Type: b.SourceType, Description: b.Description,
		})
		n.Normalize()
		if err := n.Validate(); err != nil {
			return badRequest("%v", err)
		}
		return w.PutEntry(n)
	})
	return err == nil, err
}

// otherSources takes over what is kept of the destination's entry: all but one source.
func otherSources(w *store.Writer, n *config.ServiceIntentions, source string) []*config.SourceIntention {
	old := w.Entry(config.Key{Kind: config.KindServiceIntentions, Name: n.Name})
	if old == nil {
		return nil
	}
	entry, ok := old.Entry.(*config.ServiceIntentions)
	if !ok {
		return nil
	}
	n.Meta = entry.Meta
	var out []*config.SourceIntention
	for _, s := range entry.Sources {
		if s.Name != source {
			kept := *s
			out = append(out, &kept)
		}
	}
	return out
}

func deleteIntention(c *call) (any, error) {
	source, destination, err := c.pair()
	if err != nil {
		return nil, err
	}
	k := config.Key{Kind: config.KindServiceIntentions, Name: destination}
	err = c.api.store.Update(func(w *store.Writer) error {
		if w.Entry(k) == nil {
			return nil
		}
		n := &config.ServiceIntentions{Name: destination}
		if n.Sources = otherSources(w, n, source); len(n.Sources) == 0 {
			return w.DeleteEntry(k)
		}
		n.Normalize()
		return w.PutEntry(n)
	})
	return err == nil, err
}

// matchIntentions lists those that bear on a service, in the order they are judged.
func matchIntentions(c *call) (any, error) {
	by := c.query.Get("by")
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
