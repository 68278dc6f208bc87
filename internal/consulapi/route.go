package consulapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

// Bounds of request bodies, in bytes.
const (
	maxBody      = 8 << 20
	maxKVValue   = 512 << 10 // Consul's default kv_max_value_size
	maxSmallBody = 1 << 20
)

// httpError is an answer other than 200.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &httpError{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func internal(format string, args ...any) error {
	return &httpError{http.StatusInternalServerError, fmt.Sprintf(format, args...)}
}

func notServed(format string, args ...any) error {
	return &httpError{http.StatusNotImplemented, fmt.Sprintf(format, args...)}
}

// call is one request.
type call struct {
	api   *api
	w     http.ResponseWriter
	r     *http.Request
	query url.Values
	arg   string // what follows the route's path
}

// endpoint answers a call with a value to show as JSON, or an error. done means that
// it has written the answer itself.
type endpoint func(c *call) (any, error)

// done is what an endpoint returns that has written its answer.
type done struct{}

// empty is an answer without a body.
type empty struct{}

// route is one path of Consul's API. A path with a slash at its end stands for all
// below it.
type route struct {
	path string
	get  endpoint
	put  endpoint
	post endpoint
	del  endpoint
}

func (rt route) methods() map[string]endpoint {
	out := map[string]endpoint{}
	for method, e := range map[string]endpoint{
		http.MethodGet: rt.get, http.MethodPut: rt.put, http.MethodPost: rt.post, http.MethodDelete: rt.del,
	} {
		if e != nil {
			out[method] = e
		}
	}
	return out
}

// allow lists a route's methods in Consul's order.
func (rt route) allow() string {
	out := []string{http.MethodOptions}
	methods := rt.methods()
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		if methods[m] != nil {
			out = append(out, m)
		}
	}
	return strings.Join(out, ",")
}

// serve is the one way to every endpoint.
func (a *api) serve(rt route, w http.ResponseWriter, r *http.Request) {
	c := &call{api: a, w: w, r: r, query: r.URL.Query(), arg: strings.TrimPrefix(r.URL.Path, rt.path)}
	policy := config.Allow // what Consul says without tokens
	if a.Authorize != nil {
		policy = config.Deny
	}
	w.Header().Set("X-Consul-Default-Acl-Policy", string(policy))
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", rt.allow())
		return
	}
	e := rt.methods()[r.Method]
	if r.Method == http.MethodHead {
		e = rt.get
	}
	if e == nil {
		w.Header().Set("Allow", rt.allow())
		c.fail(&httpError{http.StatusMethodNotAllowed, fmt.Sprintf("method %s not allowed", r.Method)})
		return
	}
	if err := c.authorize(rt.path); err != nil {
		c.fail(err)
		return
	}
	if err := c.checkTenancy(); err != nil {
		c.fail(err)
		return
	}
	value, err := e(c)
	if err != nil {
		c.fail(err)
		return
	}
	c.answer(value)
}

// checkTenancy refuses what this registry does not hold.
func (c *call) checkTenancy() error {
	if dc := c.query.Get("dc"); dc != "" && dc != c.api.store.Datacenter() {
		return internal("No path to datacenter")
	}
	if c.query.Get("sg") != "" {
		return internal("sameness groups are not supported in consul CE")
	}
	for _, name := range []string{"ns", "partition"} {
		if v := c.query.Get(name); v != "" && v != "default" {
			return badRequest("Invalid query parameter: %q - only \"default\" exists, other ones are a Consul Enterprise feature", name)
		}
	}
	if peer := c.query.Get("peer"); peer != "" && peer != "local" {
		return notServed("peer %q: cluster peering is not served by crossfade's registry; run a Consul and point --consul at it", peer)
	}
	if c.query.Has("stale") && c.query.Has("consistent") {
		return badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	}
	return nil
}

func (c *call) fail(err error) {
	status := http.StatusInternalServerError
	if h, ok := errors.AsType[*httpError](err); ok {
		status = h.status
	} else if _, ok := errors.AsType[*store.Refusal](err); ok {
		status = http.StatusBadRequest // entries that would not fit together
	} else if c.r.Context().Err() == nil {
		c.api.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(status)
	io.WriteString(c.w, err.Error())
}

// answer writes a value as JSON.
func (c *call) answer(value any) {
	switch value.(type) {
	case done:
		return
	case empty:
		c.w.Header().Set("Content-Type", "application/json; charset=utf-8")
		return
	}
	body, err := json.Marshal(value)
	if c.query.Has("pretty") && err == nil {
		body, err = json.MarshalIndent(json.RawMessage(body), "", "    ")
		body = append(body, '\n')
	}
	if err != nil {
		c.fail(err)
		return
	}
	if c.w.Header().Get("Content-Type") == "" {
		c.w.Header().Set("Content-Type", "application/json")
	}
	c.w.Write(body)
}

// body reads a request body of at most limit bytes.
func (c *call) body(limit int64) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		size := "more"
		if c.r.ContentLength > 0 {
			size = strconv.FormatInt(c.r.ContentLength, 10)
		}
		return nil, &httpError{http.StatusRequestEntityTooLarge,
			fmt.Sprintf("Request body(%s bytes) too large, max size: %d bytes.", size, limit)}
	}
	if err != nil {
		return nil, badRequest("Request body cannot be read: %v", err)
	}
	return raw, nil
}

// decode reads a JSON body that may hold no unknown field.
func (c *call) decode(into any) error {
	raw, err := c.body(maxSmallBody)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return badRequest("Request decode failed: %v", err)
	}
	return nil
}

// need is the rest of the path, which must not be empty.
func (c *call) need(what string) (string, error) {
	if c.arg == "" {
		return "", badRequest("Missing %s", what)
	}
	return c.arg, nil
}

// flag is a query parameter that may stand alone or have a boolean value.
func (c *call) flag(name string) (bool, error) {
	if !c.query.Has(name) || c.query.Get(name) == "" {
		return c.query.Has(name), nil
	}
	v, err := strconv.ParseBool(c.query.Get(name))
	if err != nil {
		return false, badRequest("Invalid value for ?%s", name)
	}
	return v, nil
}

// number is an unsigned query parameter, or nil when it is not given.
func (c *call) number(name string) (*uint64, error) {
	if !c.query.Has(name) {
		return nil, nil
	}
	v, err := strconv.ParseUint(c.query.Get(name), 10, 64)
	if err != nil {
		return nil, internal("%v", err)
	}
	return &v, nil
}

// all is the values of a repeatable query parameter.
func (c *call) all(name string) []string {
	return slices.DeleteFunc(slices.Clone(c.query[name]), func(s string) bool { return s == "" })
}

// compare is the cas parameter, judged against what is there.
func compare(cas *uint64, exists bool, modified uint64) bool {
	return cas == nil || store.CAS(*cas, exists, modified)
}

// duration reads a time in Go's form or in whole seconds.
func duration(s string) (time.Duration, error) {
	if n, err := strconv.Atoi(s); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	return time.ParseDuration(s)
}
