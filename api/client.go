package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 20

// Options say which server to ask, and as whom.
type Options struct {
	Address string // host:port, or http:// or https:// and that
	// Token is shown with every request; empty for none.
	Token string
	// HTTPClient, if set, asks in place of [http.DefaultClient]: with the server's CA, or a
	// certificate of the caller's.
	HTTPClient *http.Client
}

// Client asks one server. It may be used concurrently.
type Client struct {
	base, token string
	http        *http.Client
}

// New makes a client. It asks nothing yet.
func New(o Options) (*Client, error) {
	raw := o.Address
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("server address %q: want host:port or http://host:port", o.Address)
	}
	c := &Client{base: u.Scheme + "://" + u.Host, token: o.Token, http: o.HTTPClient}
	if c.http == nil {
		c.http = http.DefaultClient
	}
	return c, nil
}

// Filter narrows the ledger; a zero field does not.
type Filter struct{ Source, Destination string }

// Path is where the ledger is, so narrowed.
func (f Filter) Path() string {
	q := url.Values{}
	if f.Source != "" {
		q.Set("source", f.Source)
	}
	if f.Destination != "" {
		q.Set("destination", f.Destination)
	}
	path := "/v1/crossfade/pairs"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

// Path is where all that is known of the pair is.
func (p PairName) Path() string {
	return "/v1/crossfade/pairs/" + url.PathEscape(p.Source) + "/" + url.PathEscape(p.Destination)
}

// Pairs is the ledger: all pairs that are declared or have an entry, sorted.
func (c *Client) Pairs(ctx context.Context, f Filter) (out []Pair, err error) {
	return out, c.do(ctx, http.MethodGet, f.Path(), nil, &out)
}

// Pair is all that is known of one pair.
func (c *Client) Pair(ctx context.Context, source, destination string) (*PairDetail, error) {
	out := &PairDetail{}
	return out, c.do(ctx, http.MethodGet, PairName{source, destination}.Path(), nil, out)
}

// Telemetry is what a pair did in about the last minute, by way.
func (c *Client) Telemetry(ctx context.Context, source, destination string) (*Telemetry, error) {
	out := &Telemetry{}
	return out, c.do(ctx, http.MethodGet, "/v1/crossfade/telemetry/"+url.PathEscape(source)+"/"+url.PathEscape(destination), nil, out)
}

// Shift changes shares of all the pairs, or of none: when one has another index than the
// request says, the error is an [*Error] with status 409.
func (c *Client) Shift(ctx context.Context, r ShiftRequest) (*Changed, error) {
	out := &Changed{}
	return out, c.do(ctx, http.MethodPost, "/v1/crossfade/shift", r, out)
}

// Revert puts pairs back on the old way, but for those that the answer says are refused.
func (c *Client) Revert(ctx context.Context, r RevertRequest) (*Changed, error) {
	out := &Changed{}
	return out, c.do(ctx, http.MethodPost, "/v1/crossfade/revert", r, out)
}

// Cut says how far sidecars are with the order that [Changed.Cut] names.
func (c *Client) Cut(ctx context.Context, id string) (*Cut, error) {
	out := &Cut{}
	return out, c.do(ctx, http.MethodGet, CutPath(id), nil, out)
}

// CutPath is where that is.
func CutPath(id string) string { return "/v1/crossfade/cuts/" + url.PathEscape(id) }

// Applied waits, a minute at most, until every sidecar has answered for the change of that
// index, and says how each did. When the wait is over some may not have.
func (c *Client) Applied(ctx context.Context, index uint64, wait time.Duration) (*Applied, error) {
	out := &Applied{}
	q := url.Values{"index": {strconv.FormatUint(index, 10)}, "wait": {wait.String()}}
	return out, c.do(ctx, http.MethodGet, "/v1/crossfade/applied?"+q.Encode(), nil, out)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", method, path, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("%s %s: the answer is larger than %d bytes", method, path, maxAnswer)
	case resp.StatusCode != http.StatusOK:
		return &Error{resp.StatusCode, strings.TrimSpace(string(b))}
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: answer is not what was expected: %w", method, path, err)
	}
	return nil
}
