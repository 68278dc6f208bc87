package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const defaultHTTPAddr = "127.0.0.1:8500"

// target is the server a verb talks to.
type target struct {
	addr string // as given by the flag
	s    streams
	*anchors
	*credential
}

// addTarget gives a verb the flags that say which server it talks to, and as whom.
func addTarget(cmd *cobra.Command, s streams) *target {
	t := &target{s: s, anchors: addAnchors(cmd, s), credential: addCredential(cmd, s)}
	cmd.Flags().StringVar(&t.addr, "http-addr", "", "server's HTTP address (default $CROSSFADE_HTTP_ADDR, then $CONSUL_HTTP_ADDR, then "+defaultHTTPAddr+")")
	return t
}

// httpAddr is the address to use, as the user wrote it.
func (t *target) httpAddr() string {
	return cmp.Or(t.addr, t.s.env("CROSSFADE_HTTP_ADDR"), t.s.env("CONSUL_HTTP_ADDR"), defaultHTTPAddr)
}

func (t *target) baseURL() (string, error) {
	raw := t.httpAddr()
	if !strings.Contains(raw, "://") {
		scheme := "http://"
		if t.given() {
			scheme = "https://"
		}
		raw = scheme + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("HTTP address %q: want host:port or http://host:port", t.httpAddr())
	}
	return u.Scheme + "://" + u.Host, nil
}

// versionHeader is on every answer of a crossfade server.
const versionHeader = "X-Crossfade-Version"

// statusError is an answer other than 200.
type statusError struct {
	code int
	body string
}

func (e statusError) Error() string {
	return fmt.Sprintf("server answered %d: %s", e.code, strings.TrimSpace(e.body))
}

// call makes one request. in, when not nil, is sent as it is; out, when not nil,
// takes the JSON answer.
func (t *target) call(ctx context.Context, method, path string, in []byte, out any) error {
	_, err := t.exchange(ctx, method, path, in, out)
	return err
}

// exchange is call that also returns the answer's header.
func (t *target) exchange(ctx context.Context, method, path string, in []byte, out any) (http.Header, error) {
	base, err := t.baseURL()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	client, token, err := t.client()
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	resp, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, fmt.Errorf("server %s: %w: is it running? set --http-addr or CROSSFADE_HTTP_ADDR", t.httpAddr(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusBadRequest && resp.Header.Get(versionHeader) == "" && req.URL.Scheme == "http" {
		if b, _ := io.ReadAll(io.LimitReader(resp.Body, 200)); strings.Contains(string(b), "HTTPS server") {
			return nil, fmt.Errorf("server %s: it speaks TLS: set --ca-file or CROSSFADE_CACERT to the CA's certificate, or --ca-fingerprint", t.httpAddr())
		}
	}
	if resp.Header.Get(versionHeader) == "" {
		fmt.Fprintf(t.s.err, "note: %s answers as a plain Consul agent, not as a crossfade server\n", t.httpAddr())
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", t.httpAddr(), err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, statusError{resp.StatusCode, string(body)}
	}
	if out == nil {
		return resp.Header, nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return nil, fmt.Errorf("server %s: answer to %s %s is not what was expected: %w", t.httpAddr(), method, path, err)
	}
	return resp.Header, nil
}

// output is the -o flag of readers.
type output struct{ format string }

func addOutput(cmd *cobra.Command) *output {
	o := &output{}
	addChoice(cmd, &o.format, "output", "o", "table", `"table" for people, "json" for machines`, "table", "json")
	return o
}

// print writes v as JSON, or calls table with a writer that aligns tab-separated
// columns. A nil table is that of what people read as JSON, too.
func (o *output) print(w io.Writer, v any, table func(io.Writer)) error {
	if o.format == "json" || table == nil {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	table(tw)
	return tw.Flush()
}

// readFile reads a file, or standard input for "-", up to a limit that no honest
// definition reaches.
func readFile(s streams, name string) ([]byte, error) {
	const limit = 8 << 20
	r := s.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err // names the file
	}
	if len(b) > limit {
		return nil, fmt.Errorf("read %s: larger than %d MiB", name, limit>>20)
	}
	return b, nil
}
