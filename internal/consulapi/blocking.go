package consulapi

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
)

// How long a blocking query waits, as in Consul.
const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
	// jitterFraction of the wait is added at most, so that many waiters do not end at once.
	jitterFraction = 16
)

// wait is how a call asks to be held back.
type wait struct {
	index uint64
	hash  string
	limit time.Duration
}

func (c *call) wait() (wait, error) {
	w := wait{hash: c.query.Get("hash"), limit: defaultWait}
	if v := c.query.Get("index"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return w, badRequest("Invalid index")
		}
		w.index = n
	}
	if v := c.query.Get("wait"); v != "" {
		d, err := duration(v)
		if err != nil || d < 0 {
			return w, badRequest("Invalid wait time")
		}
		if d > 0 {
			w.limit = min(d, maxWait)
		}
	}
	w.limit += rand.N(w.limit/jitterFraction + 1)
	return w, nil
}

// read answers a query from the registry, held back as the call asks, and says at
// which index. look may run several times; its last run counts.
func (c *call) read(look func(*store.Reader)) error {
	w, err := c.wait()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), w.limit)
	defer cancel()
	c.meta(c.api.store.Read(ctx, w.index, look))
	return nil
}

// meta sets the headers that describe an answer.
func (c *call) meta(index uint64) {
	h := c.w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
	h.Set("X-Consul-Knownleader", "true")
	h.Set("X-Consul-Lastcontact", "0")
	h.Set("X-Consul-Query-Backend", "blocking-query")
	level := "leader"
	switch {
	case c.query.Has("stale"):
		level = "stale"
	case c.query.Has("consistent"):
		level = "consistent"
	}
	h.Set("X-Consul-Effective-Consistency", level)
	if c.query.Has("cached") {
		// Nothing is cached: every answer is as fresh as one that was not.
		h.Set("X-Cache", "MISS")
	}
}

// missing answers that there is nothing, at an index that can be waited on.
func (c *call) missing() (any, error) {
	c.w.WriteHeader(http.StatusNotFound)
	return done{}, nil
}
