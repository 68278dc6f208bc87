package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/demo/load"
	"github.com/crossfade-mesh/crossfade/internal/demo/shop"
)

// issue makes a root and a leaf for uri, which has the given serial.
func issue(t *testing.T, uri string, serial int64) (rootPEM string, leaf tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: root.NotBefore, NotAfter: root.NotAfter, URIs: []*url.URL{id},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, of, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})), tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}
}

// serve answers "ok" on a free port, over TLS when config is set.
func serve(t *testing.T, config *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if config != nil {
		ln = tls.NewListener(ln, config)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }), ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return addr
}

func TestDialServedReadsTheCertificateWithoutHavingOne(t *testing.T) {
	const uri = "spiffe://td/ns/default/dc/dc1/svc/web"
	root, leaf := issue(t, uri, 0x0a1b)
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{leaf}, ClientAuth: tls.RequireAnyClientCert})
	got, err := dialServed(addr, root)
	if want := (served{Serial: "0a:1b", URI: uri, TLS: "TLS 1.3"}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	other, _ := issue(t, uri, 2)
	if _, err := dialServed(addr, other); err == nil {
		t.Error("a chain to another root was accepted")
	}
}

func TestStrangersAreTold(t *testing.T) {
	_, leaf := issue(t, "spiffe://td/x", 2)
	certs := []tls.Certificate{leaf}
	for _, tc := range []struct {
		name      string
		config    *tls.Config
		plaintext bool
		want      bool
	}{
		{"plaintext to a plaintext port", nil, true, true},
		{"no certificate where none is asked for", &tls.Config{Certificates: certs}, false, true},
		{"no certificate where one is required", &tls.Config{Certificates: certs, ClientAuth: tls.RequireAnyClientCert}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := answersWithoutCertificate(serve(t, tc.config), tc.plaintext)
			if err != nil || got != tc.want {
				t.Errorf("answers: %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestConnectionsAreThoseTheKernelHas(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().String()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	before, err := connectionsTo([]string{addr})
	if err != nil || len(before) != 1 {
		t.Fatalf("got %v, %v", before, err)
	}
	for conn := range before {
		if conn.from.String() != c.LocalAddr().String() || conn.to.String() != addr {
			t.Errorf("got %v", conn)
		}
	}
	c.Close()
	if after, err := connectionsTo([]string{addr}); err != nil || len(after) != 0 {
		t.Errorf("after it was closed: %v, %v", after, err)
	}
}

func TestAdminIsReadAsEnvoyWritesIt(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/certs", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"certificates":[
			{"ca_cert":[],"cert_chain":[{"serial_number":"a1b","subject_alt_names":[{"uri":"spiffe://td/web"}]}]},
			{"cert_chain":[{"serial_number":"a1b","subject_alt_names":[{"uri":"spiffe://td/web"}]}]}]}`)
	})
	mux.HandleFunc("/clusters", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"cluster_statuses":[
			{"name":"local_app","host_statuses":[{"address":{"socket_address":{"address":"127.0.0.1","port_value":1}}}]},
			{"name":"catalog.default.dc1.internal.td","host_statuses":[
				{"address":{"socket_address":{"address":"127.0.0.1","port_value":21002}}},
				{"address":{"socket_address":{"address":"127.0.0.1","port_value":21001}}}]}]}`)
	})
	mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: 7\nof time: P0(nan,1) P100(nan,2)\n", r.URL.Query().Get("filter"))
	})
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	defer func() { srv.Close(); <-done }()

	if got, err := loadedSerial(t.Context(), socket, "spiffe://td/web"); err != nil || got != "0a:1b" {
		t.Errorf("serial %q, %v", got, err)
	}
	if _, err := loadedSerial(t.Context(), socket, "spiffe://td/other"); err == nil {
		t.Error("a leaf that is not loaded was found")
	}
	if got, err := endpoints(t.Context(), socket, "catalog"); err != nil || !slices.Equal(got, []string{"127.0.0.1:21001", "127.0.0.1:21002"}) {
		t.Errorf("endpoints %v, %v", got, err)
	}
	if got, err := counted(t.Context(), socket, `^cluster\.x$`); err != nil || got[`^cluster\.x$`] != 7 {
		t.Errorf("counted %v, %v", got, err)
	}
}

func TestAFailedRequestFailsTheProof(t *testing.T) {
	fail := false
	pr := &pair{from: &instance{service: "a"}, to: &instance{service: "b"}, rec: load.NewRecorder()}
	pr.call = func(uint64, time.Time) (load.Answer, error) {
		if fail {
			return load.Answer{}, fmt.Errorf("wrong answer")
		}
		return load.Answer{From: "b-1"}, nil
	}
	tr := &traffic{pairs: []*pair{pr}, pages: &pair{from: pr.from, to: pr.to, rec: load.NewRecorder()}, mourned: map[*shop.LongLived]bool{}}
	offer := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		g := load.Generator{Rate: 1000, Timeout: time.Second, Outstanding: 1000, Call: pr.call, Record: pr.rec}
		g.Run(ctx)
	}
	out := newConsole(Options{Stdout: io.Discard})
	defer out.finish()
	d := &demo{out: out, traffic: tr}

	m := tr.mark()
	offer()
	good := &Proof{Held: true, out: out}
	if err := d.nothingFailed(t.Context(), good, m); err != nil || !good.Held {
		t.Errorf("held %v, %v: %v", good.Held, err, good.Checks)
	}
	m, fail = tr.mark(), true
	offer()
	bad := &Proof{Held: true, out: out}
	if err := d.nothingFailed(t.Context(), bad, m); err != nil || bad.Held || !strings.Contains(fmt.Sprint(bad.Checks), "a → b: ") {
		t.Errorf("held %v, %v: %v", bad.Held, err, bad.Checks)
	}
}
