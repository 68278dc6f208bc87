package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/crossfade-mesh/crossfade/internal/ca"
)

// caFile, in the data directory, is the CA's certificate without its key: what is
// handed to those who are to trust the servers.
const caFile = "ca.pem"

// caDir, in the data directory, holds the CA, where that is not in a Consul.
const caDir = "ca"

func listen(what, addr string, port int, flag string) (net.Listener, error) {
	return listenWith(net.ListenConfig{}, what, addr, port, flag)
}

// listenStreams is listen for what grpc-go serves, which asks by HTTP/2 whether a client is still there.
// It has the kernel end connections after 20 s without an acknowledgement, too. The kernel's own
// probes, one in 15 s, would mean by that: after a single one is lost. When many connections fall quiet at
// once so many are sent at once that some are, and so may be the news of the end.
func listenStreams(what, addr string, port int, flag string) (net.Listener, error) {
	return listenWith(net.ListenConfig{KeepAlive: -1}, what, addr, port, flag)
}

func listenWith(c net.ListenConfig, what, addr string, port int, flag string) (net.Listener, error) {
	l, err := c.Listen(context.Background(), "tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("%s port %d: %w: stop what listens there or choose another with %s", what, port, err, flag)
	}
	return l, nil
}

// addresses checks where to listen, and settles under which address others find this server.
func (o Options) addresses() (Options, error) {
	bind := net.ParseIP(o.BindAddr)
	if bind == nil {
		return o, fmt.Errorf("bind address %q: want an IP address", o.BindAddr)
	}
	if o.Dev && !bind.IsLoopback() {
		return o, fmt.Errorf("bind address %q: --dev serves everybody, and so loopback addresses only: use --data-dir to serve others", o.BindAddr)
	}
	switch {
	case o.Advertise == "" && bind.IsUnspecified():
		ip, err := outward()
		if err != nil {
			return o, err
		}
		o.Advertise = ip.String()
	case o.Advertise == "":
		o.Advertise = o.BindAddr
	}
	if ip := net.ParseIP(o.Advertise); ip == nil || ip.IsUnspecified() {
		return o, fmt.Errorf("advertise address %q: want the IP address at which others find this server", o.Advertise)
	}
	return o, nil
}

// outward is the first address of this host that others could use.
func outward() (net.IP, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("advertise address: %w: set --advertise", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP, nil
		}
	}
	return nil, fmt.Errorf("advertise address: this host has loopback addresses only: set --bind to one of them, or --advertise")
}

// serverLeaf is the certificate of this server's ports. Clients of ours go by its
// URI; names and addresses are for others.
func (o Options) serverLeaf(authority *ca.BuiltIn) (*ca.ServerLeaf, error) {
	names := []string{"server." + o.Datacenter + "." + authority.TrustDomain(), "server." + o.Datacenter + ".consul", "localhost"}
	if host, err := os.Hostname(); err == nil && validName(host) {
		names = append(names, host)
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, addr := range []string{o.BindAddr, o.Advertise} {
		ip := net.ParseIP(addr)
		if !ip.IsUnspecified() && !slices.ContainsFunc(ips, ip.Equal) {
			ips = append(ips, ip)
		}
	}
	return authority.ServerLeaf(names, ips)
}

// validName reports whether a host's own name may stand in a certificate.
func validName(s string) bool {
	return s != "" && len(s) < 254 && !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return c <= ' ' || c >= 0x7f || c == '*' || c == '/' || c == '_'
	})
}

// tlsConfig asks callers for a certificate and leaves it to the door to judge it, so
// that a refusal has words. No session is resumed: a resumed one would outlive a change of trust.
func tlsConfig(leaf *ca.ServerLeaf) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		GetCertificate:         leaf.Get,
		ClientAuth:             tls.RequestClientCert,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true,
	}
}

// grpcSecurity is what the gRPC server needs to know its callers.
func (s *Server) grpcSecurity() []grpc.ServerOption {
	out := []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.door.unary), grpc.ChainStreamInterceptor(s.door.stream)}
	if s.leaf != nil {
		config := tlsConfig(s.leaf)
		config.CurvePreferences = ca.Curves
		config.GetConfigForClient = s.gate.enter
		out = append(out, grpc.Creds(passing{credentials.NewTLS(config), s.door.ca}))
	}
	return out
}

// openSecurity makes what a server outside development mode needs beside the CA:
// its own certificate, the CA's for others, and a first operator.
func (s *Server) openSecurity() (err error) {
	if s.opts.Dev {
		return nil
	}
	if s.leaf, err = s.opts.serverLeaf(s.builtIn); err != nil {
		return err
	}
	if err := os.WriteFile(s.CAFile(), s.builtIn.RootPEM(), 0o644); err != nil {
		return fmt.Errorf("CA certificate: %w", err)
	}
	s.operatorFile, err = bootstrap(s.tokens, s.opts.DataDir, s.opts.NewOperatorToken)
	return err
}

// CAFile is where the CA's certificate is, for those who are to trust this server;
// "" in development mode.
func (s *Server) CAFile() string {
	if s.opts.Dev {
		return ""
	}
	return filepath.Join(s.opts.DataDir, caFile)
}

// Fingerprint is that of the CA whose certificates this server's ports show; "" where
// there is none, since they show none.
func (s *Server) Fingerprint() string {
	if s.builtIn == nil {
		return ""
	}
	return s.builtIn.Fingerprint()
}

// OperatorFile is where the secret of an operator's token is that was made by this
// start, or "".
func (s *Server) OperatorFile() string { return s.operatorFile }

// URL is the HTTP API's.
func (s *Server) URL() string {
	if s.leaf != nil {
		return "https://" + s.HTTPAddr()
	}
	return "http://" + s.HTTPAddr()
}
