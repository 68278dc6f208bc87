package consulapi

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// Bounds and defaults of sessions, as in Consul.
const (
	minSessionTTL    = 10 * time.Second
	maxSessionTTL    = 24 * time.Hour
	defaultLockDelay = 15 * time.Second
	// lockDelaySeconds is the number from which on a lock delay given without a unit
	// counts nanoseconds instead of seconds.
	lockDelaySeconds = 1000
)

// lockDelay is a duration, or a number of seconds or nanoseconds.
type lockDelay time.Duration

func (d *lockDelay) UnmarshalJSON(raw []byte) error {
	var text string
	if bytes.HasPrefix(raw, []byte{'"'}) {
		if err := json.Unmarshal(raw, &text); err != nil {
			return err
		}
		v, err := time.ParseDuration(text)
		*d = lockDelay(v)
		return err
	}
	var number int64
	if err := json.Unmarshal(raw, &number); err != nil {
		return err
	}
	*d = lockDelay(number)
	if number < lockDelaySeconds {
		*d = lockDelay(time.Duration(number) * time.Second)
	}
	return nil
}

// sessionBody is the body of /v1/session/create.
type sessionBody struct {
	Name, Node, Behavior, TTL string
	LockDelay                 lockDelay
	NodeChecks                []string
	ServiceChecks             []store.ServiceCheck
	Checks                    *[]string // the older name of NodeChecks
}

func (b *sessionBody) session() (store.Session, error) {
	s := store.Session{
		Name: b.Name, Node: b.Node, Behavior: b.Behavior, TTL: b.TTL, LockDelay: time.Duration(b.LockDelay),
		NodeChecks: b.NodeChecks, ServiceChecks: b.ServiceChecks,
	}
	if b.Checks != nil {
		s.NodeChecks = *b.Checks
	}
	switch s.Behavior {
	case "":
		s.Behavior = store.ReleaseKeys
	case store.ReleaseKeys, store.DeleteKeys:
	default:
		return s, internal("Invalid Behavior setting '%s'", s.Behavior)
	}
	if s.TTL == "" {
		return s, nil
	}
	ttl, err := time.ParseDuration(s.TTL)
	if err != nil {
		return s, internal("Session TTL '%s' invalid: %v", s.TTL, err)
	}
	if ttl != 0 && (ttl < minSessionTTL || ttl > maxSessionTTL) {
		return s, internal("Invalid Session TTL '%d', must be between [%v=%v]", ttl, minSessionTTL, maxSessionTTL)
	}
	return s, nil
}

func createSession(c *call) (any, error) {
	b := sessionBody{Node: c.host().name, LockDelay: lockDelay(defaultLockDelay), NodeChecks: []string{"serfHealth"}}
	raw, err := c.body(maxSmallBody)
	if err != nil {
		return nil, err
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &b); err != nil {
			return nil, badRequest("Request decode failed: %v", err)
		}
	}
	s, err := b.session()
	if err != nil {
		return nil, err
	}
	var id string
	err = c.api.store.Update(func(w *store.Writer) error {
		if w.Node(s.Node) == nil {
			return internal("apply failed: Missing node registration")
		}
		id, err = w.PutSession(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	return map[string]string{"ID": id}, nil
}

func destroySession(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	return true, c.api.store.Update(func(w *store.Writer) error { return w.DeleteSession(id) })
}

func renewSession(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	s := c.api.store.Renew(id)
	if s == nil {
		return nil, notFound("Session id '%s' not found", id)
	}
	return []*store.Session{s}, nil
}

func sessionInfo(c *call) (any, error) {
	id, err := c.need("session")
	if err != nil {
		return nil, err
	}
	return c.sessions(func(r *store.Reader) []*store.Session {
		if s := r.Session(id); s != nil {
			return []*store.Session{s}
		}
		return nil
	})
}

func nodeSessions(c *call) (any, error) {
	name, err := c.need("node name")
	if err != nil {
		return nil, err
	}
	return c.sessions(func(r *store.Reader) []*store.Session { return r.NodeSessions(name) })
}

func listSessions(c *call) (any, error) { return c.sessions((*store.Reader).Sessions) }

func (c *call) sessions(list func(*store.Reader) []*store.Session) (any, error) {
	var out []*store.Session
	err := c.read(func(r *store.Reader) { out = append([]*store.Session{}, list(r)...) })
	return out, err
}
