package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// consulRootsFile keeps the roots that Consul told last. They are no secret.
	consulRootsFile = "consul-roots.json"
	// signWithin bounds one request to Consul, which forwards it to its leader.
	signWithin = 8 * time.Second

	minRewatch = 200 * time.Millisecond
	maxRewatch = 15 * time.Second
)

// Consul has the Connect CA of a real Consul sign, by its ConnectCAService. It holds no
// key: requests and certificates pass through. Run follows the roots.
type Consul struct {
	*CA
	client   *Client
	file     string // "": roots are not kept
	watching outage // of the roots
	signing  outage
}

// OpenConsul starts from the roots that Dir holds, or asks Consul for them until ctx
// ends. conn, whose calls carry a token that may write every service, stays its
// owner's to close.
func OpenConsul(ctx context.Context, opts Options, conn *grpc.ClientConn) (*Consul, error) {
	opts, err := opts.checked()
	if err != nil {
		return nil, err
	}
	c := &Consul{client: NewClient(conn)}
	c.watching.log, c.signing.log, c.watching.now, c.signing.now = opts.Log, opts.Log, opts.Now, opts.Now
	if opts.Dir != "" {
		c.file = filepath.Join(opts.Dir, consulRootsFile)
	}
	roots, err := c.load()
	if err == nil && roots.TrustDomain == "" {
		roots, err = c.first(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.CA = newCA(opts, c, roots)
	return c, c.keep(roots)
}

// load is the zero value when nothing is kept.
func (c *Consul) load() (roots Roots, err error) {
	if c.file == "" {
		return roots, nil
	}
	text, err := os.ReadFile(c.file)
	if errors.Is(err, fs.ErrNotExist) {
		return roots, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &roots)
	}
	if err == nil && (roots.TrustDomain == "" || len(roots.Roots) == 0) {
		err = errors.New("no trust domain or no roots in it")
	}
	if err != nil {
		return Roots{}, fmt.Errorf("roots of Consul's CA %q: %w: remove the file to ask Consul for them", c.file, err)
	}
	return roots, nil
}

func (c *Consul) keep(roots Roots) error {
	if c.file == "" {
		return nil
	}
	text, err := json.MarshalIndent(roots, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.file), 0o700); err != nil {
		return fmt.Errorf("roots of Consul's CA: %w", err)
	}
	next := c.file + ".next"
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("roots of Consul's CA: %w", err)
	}
	if err := os.Rename(next, c.file); err != nil {
		return fmt.Errorf("roots of Consul's CA: %w", err)
	}
	return nil
}

// first asks until there is an answer or ctx ends. A refusal that will not change ends it too.
func (c *Consul) first(ctx context.Context) (got Roots, err error) {
	for wait := minRewatch; ; wait = min(2*wait, time.Second) {
		one, done := context.WithCancel(ctx)
		err = c.client.WatchRoots(one, func(r Roots) { got = r; done() })
		done()
		switch {
		case got.TrustDomain != "":
			return got, nil
		case refusedForGood(err), !sleep(ctx, wait):
			return Roots{}, fmt.Errorf("Consul's CA: its roots cannot be read: %w%s", err, hint(err))
		}
	}
}

func refusedForGood(err error) bool {
	switch status.Code(err) {
	case codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied, codes.FailedPrecondition:
		return true
	}
	return false
}

// hint says what to do about a refusal, where that is known.
func hint(err error) string {
	switch status.Code(err) {
	case codes.Unimplemented:
		return ": only Consul's servers have the CA: name the gRPC port of one with $CONSUL_GRPC_ADDR"
	case codes.FailedPrecondition:
		return ": is Connect enabled there (connect { enabled = true })?"
	case codes.Unauthenticated, codes.PermissionDenied:
		return ": the token needs service:write on every service of the mesh"
	}
	return ""
}

// Run follows Consul's roots until ctx ends. What was known last stays in force while
// Consul cannot be asked.
func (c *Consul) Run(ctx context.Context) {
	wait := minRewatch
	for ctx.Err() == nil {
		err := c.client.WatchRoots(ctx, func(r Roots) {
			wait = minRewatch
			c.watching.ended("Consul's CA tells its roots again")
			c.take(r)
		})
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) != codes.Aborted { // how Consul ends a stream whose token it wants to see again
			c.watching.began("the roots of Consul's CA cannot be followed, those known last stay in force", err)
		}
		if !sleep(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, maxRewatch)
	}
}

func (c *Consul) take(r Roots) {
	switch {
	case r.TrustDomain != c.trustDomain:
		c.opts.Log.Error("Consul's CA is of another trust domain than before, its roots are not taken: restart this server to serve that one, which cuts off every certificate of the old",
			"trust_domain", c.trustDomain, "consul", r.TrustDomain)
		return
	case reflect.DeepEqual(r, c.Roots()):
		return
	}
	if err := c.keep(r); err != nil {
		c.opts.Log.Error("new roots cannot be kept, a start without Consul would not know them", "error", err)
	}
	c.opts.Log.Info("Consul's CA has other roots", "active", r.ActiveRootID, "roots", len(r.Roots))
	c.publish(r)
}

// sign implements provider.
func (c *Consul) sign(ctx context.Context, csrPEM []byte, req Request, through string, _ time.Time) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signWithin)
	defer cancel()
	chain, err := c.client.Sign(ctx, csrPEM)
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.signing.began("Consul's CA does not sign: certificates stay in use until they end, sidecars ask again", err)
		}
		return nil, refusal(req, err)
	}
	c.signing.ended("Consul's CA signs again")
	leaf, err := parseCertificate(string(chain))
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "leaf for %q: Consul's answer: %v", req.ID, err)
	}
	if !c.underKnownRoot(leaf, chain) {
		// Whoever gets it would show it to peers that do not know the root yet.
		return nil, status.Errorf(codes.Unavailable, "leaf for %q: Consul signs with a root that it has not told yet: ask again", req.ID)
	}
	if through != "" && c.opts.Issued != nil {
		if err := c.opts.Issued(leaf, through); err != nil {
			return nil, status.Errorf(codes.Unavailable, "leaf for %q: %v", req.ID, err)
		}
	}
	return chain, nil
}

// through implements provider.
func (c *Consul) through(leaf *x509.Certificate) string {
	if c.opts.Through == nil {
		return ""
	}
	return c.opts.Through(leaf)
}

func (c *Consul) underKnownRoot(leaf *x509.Certificate, chain []byte) bool {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(c.Roots().PEM())
	between.AppendCertsFromPEM(chain)
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: Midlife(leaf),
	})
	return err == nil
}

// Midlife is a time at which a leaf that is sound counts whatever the clock says: its
// beginning won't do, since a leaf may be backdated to before a young root.
func Midlife(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
}

// refusal is what a sidecar is told. It is never a refusal of the sidecar itself, which
// would take it for the last word: the request was sound, and its caller known.
func refusal(req Request, err error) error {
	code := codes.Unavailable
	switch status.Code(err) {
	case codes.ResourceExhausted:
		code = codes.ResourceExhausted
	case codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.FailedPrecondition, codes.InvalidArgument:
		code = codes.FailedPrecondition
	}
	return status.Errorf(code, "leaf for %q: Consul's CA: %v%s", req.ID, err, hint(err))
}

// outage logs when something fails and when it works again, not each time.
type outage struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	since time.Time // zero: it works; guarded by mu, as the following
	what  string
	last  error
}

// Outage is something of Consul's CA that does not work now.
type Outage struct {
	What   string
	Since  time.Time
	Reason error // of the last failure
}

// Outages are those that hold.
func (c *Consul) Outages() (out []Outage) {
	for _, o := range []*outage{&c.watching, &c.signing} {
		o.mu.Lock()
		if !o.since.IsZero() {
			out = append(out, Outage{o.what, o.since, o.last})
		}
		o.mu.Unlock()
	}
	return out
}

func (o *outage) began(what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.what, o.last = what, err
	if o.since.IsZero() {
		o.since = o.now()
		o.log.Warn(what, "error", err) //nolint:sloglint // a constant of the caller's
	}
}

func (o *outage) ended(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.Info(what, "after", o.now().Sub(o.since).Round(time.Millisecond)) //nolint:sloglint // a constant of the caller's
		o.since = time.Time{}
	}
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
