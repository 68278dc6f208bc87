package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/crossfade-mesh/crossfade/internal/ca"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// serveCA runs a new authority until stop is called.
func serveCA(t *testing.T) (conn *grpc.ClientConn, stop func()) {
	t.Helper()
	authority, err := ca.Open(ca.Options{Datacenter: "dc1", Authorize: ca.Anyone})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	authority.Register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	stop = sync.OnceFunc(func() {
		srv.Stop()
		<-done
	})
	t.Cleanup(stop)
	conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, stop
}

type given struct {
	certs chan *CertificateStatus
	roots chan string // version
}

// newCertificates are those of service catalog, kept in dir.
func newCertificates(dir *stateDir, conn *grpc.ClientConn, log io.Writer) (*certificates, given) {
	g := given{make(chan *CertificateStatus, 10), make(chan string, 10)}
	return &certificates{
		cred: &credential{},
		dir:  dir, client: ca.NewClient(conn), service: "catalog", datacenter: func() string { return "dc1" },
		give:   func(_, roots *xds.Resource) { g.roots <- roots.Version },
		report: func(c *CertificateStatus) { g.certs <- c },
		log:    slog.New(slog.NewTextHandler(log, nil)),
	}, g
}

// keepFresh runs c until the test, or stop, ends it.
func keepFresh(t *testing.T, c *certificates) (stop func()) {
	t.Helper()
	if err := c.load(time.Now()); err != nil {
		t.Fatal(err)
	}
	work := newCrew(context.WithoutCancel(t.Context()))
	work.run(c.watch)
	work.run(c.run)
	t.Cleanup(work.stop)
	return work.stop
}

func TestCertificates(t *testing.T) {
	dir := tempState(t)
	conn, kill := serveCA(t)
	c, got := newCertificates(dir, conn, io.Discard)
	stop := keepFresh(t, c)
	first := <-got.certs
	if !strings.HasSuffix(first.URI, "/ns/default/dc/dc1/svc/catalog") || !strings.Contains(first.Serial, ":") {
		t.Errorf("first certificate = %+v", first)
	}
	for _, name := range []string{keyFile, leafFile, rootsFile} {
		if st, err := os.Stat(dir.file(name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	oldKey, _ := dir.read(keyFile)
	c.renewNow()
	second := <-got.certs
	if second.Serial == first.Serial {
		t.Error("the renewed certificate is the old one")
	}
	if key, _ := dir.read(keyFile); bytes.Equal(key, oldKey) {
		t.Error("a renewed certificate has the old key")
	}
	stop()
	kill()

	// Without a server the pair from disk serves.
	c, got = newCertificates(dir, conn, io.Discard)
	stop = keepFresh(t, c)
	if again := <-got.certs; again.Serial != second.Serial || !c.complete() {
		t.Errorf("from disk: %+v, want serial %s", again, second.Serial)
	}
	stop()

	// Another authority: its roots are taken, and a leaf under them.
	other, _ := serveCA(t)
	c, got = newCertificates(dir, other, io.Discard)
	keepFresh(t, c)
	before := <-got.certs
	if roots := []string{<-got.roots, <-got.roots}; roots[0] == roots[1] {
		t.Error("Envoy was not given the new roots")
	}
	<-got.certs // the old leaf, handed over once more with the new roots
	if after := <-got.certs; after.URI == before.URI {
		t.Errorf("the leaf is still of the old trust domain %s", after.URI)
	}
}

func TestFailedRenewalKeepsTheLeaf(t *testing.T) {
	var log strings.Builder
	dir := tempState(t)
	conn, kill := serveCA(t)
	c, got := newCertificates(dir, conn, &log)
	stop := keepFresh(t, c)
	first := <-got.certs
	stop()
	kill()
	c.try(t.Context())
	if c.held.status().Serial != first.Serial || c.fails != 1 || !c.due.After(time.Now()) {
		t.Errorf("after a failed renewal: serial %s, %d failures, next at %v", c.held.status().Serial, c.fails, c.due)
	}
	if s := log.String(); !strings.Contains(s, "could not be renewed") || !strings.Contains(s, "valid_for=7") {
		t.Errorf("log does not tell the remaining life:\n%s", s)
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Error("the key is in the log")
	}
}

// A crash between writing the new key and putting its certificate in place loses nothing.
func TestCrashBetweenKeyAndLeaf(t *testing.T) {
	dir := tempState(t)
	conn, _ := serveCA(t)
	c, got := newCertificates(dir, conn, io.Discard)
	stop := keepFresh(t, c)
	<-got.certs
	old, _ := dir.read(leafFile)
	c.renewNow()
	want := <-got.certs
	stop()
	fresh, _ := dir.read(leafFile)
	if err := dir.write(leafFile+nextSuffix, fresh); err != nil {
		t.Fatal(err)
	}
	if err := dir.write(leafFile, old); err != nil {
		t.Fatal(err)
	}
	c, _ = newCertificates(dir, conn, io.Discard)
	if err := c.load(time.Now()); err != nil || c.held == nil || c.held.status().Serial != want.Serial {
		t.Errorf("after the crash: %+v, %v", c.held, err)
	}
	if _, err := tls.X509KeyPair(c.held.chain, c.held.key); err != nil {
		t.Errorf("key and leaf: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := tempState(t)
	conn, _ := serveCA(t)
	c, got := newCertificates(dir, conn, io.Discard)
	stop := keepFresh(t, c)
	<-got.certs
	stop()
	load := func(service string, now time.Time) (*certificates, error) {
		c, _ := newCertificates(dir, conn, io.Discard)
		c.service = service
		return c, c.load(now)
	}
	if c, err := load("catalog", time.Now().Add(100*time.Hour)); err != nil || c.held != nil {
		t.Errorf("an expired leaf: held %v, %v; want none and no error", c.held, err)
	}
	_, err := load("payments", time.Now())
	wantError(t, err, `belongs to service "catalog"`, "--state-dir")
	if err := os.Chmod(dir.file(keyFile), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = load("catalog", time.Now())
	wantError(t, err, keyFile, "0640", "delete it")
	if err := dir.write(keyFile, []byte("junk")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir.file(keyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = load("catalog", time.Now())
	wantError(t, err, keyFile, "not a key in PEM")
}
