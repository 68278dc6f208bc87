package consul

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Client makes single requests of one Consul. See [NewClient].
type Client struct {
	client     *http.Client
	base       *url.URL
	token      string
	datacenter string
}

// NewClient checks the options. It does not connect.
func NewClient(o Options) (*Client, error) {
	base, socket, err := parseAddress(o.Address)
	if err != nil {
		return nil, fmt.Errorf("consul address %q: %w", o.Address, err)
	}
	client := newClient(socket, cmp.Or(max(o.MaxQueries, 0), manyQueries), o.TLS)
	if o.HTTPClient != nil {
		if socket != "" {
			return nil, fmt.Errorf("consul address %q: a Unix socket cannot be used with an HTTP client of one's own", o.Address)
		}
		given := *o.HTTPClient
		client = &given
		client.Timeout = 0
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{client: client, base: base, token: o.Token, datacenter: o.Datacenter}, nil
}

// Answer is what Consul said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	HTTP2  bool // it came over HTTP/2
}

// Index is the answer's X-Consul-Index, at least 1; 0 where there is none.
func (a Answer) Index() (uint64, error) {
	header := a.Header.Get("X-Consul-Index")
	if header == "" {
		return 0, nil
	}
	index, err := strconv.ParseUint(header, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("X-Consul-Index %q is not a number", header)
	}
	return max(index, 1), nil // 0 would make the next query return at once
}

// Unreachable marks a failure to get any answer at all.
type Unreachable struct{ error }

// Unwrap is the cause.
func (u Unreachable) Unwrap() error { return u.error }

// Do makes one request, of the client's datacenter. With after > 0 Consul answers when its index
// exceeds that, or after wait. An answer of any status is no error.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, body []byte, after uint64, wait time.Duration) (Answer, error) {
	timeout := answerWithin
	if query == nil {
		query = url.Values{}
	}
	if c.datacenter != "" {
		query.Set("dc", c.datacenter)
	}
	if after > 0 {
		query.Set("index", strconv.FormatUint(after, 10))
		query.Set("wait", strconv.FormatInt(wait.Milliseconds(), 10)+"ms")
		timeout += wait + wait/16 // Consul adds up to a sixteenth
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u := c.base.String() + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return Answer{}, Unreachable{err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	a := Answer{resp.StatusCode, resp.Header, text, resp.ProtoMajor == 2}
	switch {
	case resp.StatusCode != http.StatusOK:
		return a, nil
	case err != nil:
		return a, fmt.Errorf("the answer breaks off after %d bytes: %w", len(text), err)
	case len(text) > maxBody:
		return a, fmt.Errorf("the answer is longer than %d MiB", maxBody>>20)
	}
	return a, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.client.CloseIdleConnections() }
