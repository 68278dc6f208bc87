package demo

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// served is what a sidecar's public port shows to whoever calls it.
type served struct {
	Serial, URI string
	TLS         string // "TLS 1.3"
}

// dialServed shakes hands with a public port up to the certificate it shows, and
// checks that against the roots. It has no certificate itself, so that is as far
// as it gets.
func dialServed(addr, rootsPEM string) (served, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(rootsPEM)) {
		return served{}, errors.New("the server's CA has no roots")
	}
	raw, err := net.DialTimeout("tcp", addr, apiTimeout)
	if err != nil {
		return served{}, err
	}
	defer raw.Close()
	var s served
	c := tls.Client(raw, &tls.Config{
		// The name in a mesh certificate is a URI, which crypto/tls does not match;
		// the chain is checked here and the URI by whoever asked.
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			via := x509.NewCertPool()
			for _, c := range state.PeerCertificates[1:] {
				via.AddCert(c)
			}
			s.Serial, s.TLS = serialOf(leaf), tls.VersionName(state.Version)
			if len(leaf.URIs) == 1 {
				s.URI = leaf.URIs[0].String()
			}
			_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: via, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			return err
		},
	})
	if err := c.SetDeadline(time.Now().Add(apiTimeout)); err != nil {
		return served{}, err
	}
	if err := c.Handshake(); err != nil {
		return served{}, fmt.Errorf("TLS handshake with %s: %w", addr, err)
	}
	return s, nil
}

// answersWithoutCertificate reports whether a public port serves a caller that
// shows no certificate: over TLS, or in plaintext.
func answersWithoutCertificate(addr string, plaintext bool) (bool, error) {
	var c net.Conn
	c, err := net.DialTimeout("tcp", addr, apiTimeout)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(apiTimeout)); err != nil {
		return false, err
	}
	if !plaintext {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	// What is refused may be refused at any of these steps.
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
		return false, nil
	}
	n, err := c.Read(make([]byte, 1))
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return false, fmt.Errorf("%s neither answers nor refuses a caller without a certificate", addr)
	}
	return n > 0, nil
}

// serialOf is a certificate's serial as [serial] writes it.
func serialOf(c *x509.Certificate) string { return serial(hex.EncodeToString(c.SerialNumber.Bytes())) }

// serial writes a hexadecimal serial in the one way in which serials are compared
// and shown: lower case, two digits a byte, colons between.
func serial(s string) string {
	s = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(s, ":", "")), "0")
	if len(s)%2 == 1 {
		s = "0" + s
	}
	var b strings.Builder
	for i := 0; i < len(s); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(s[i : i+2])
	}
	return b.String()
}

// connection is an established TCP connection, by its two ends.
type connection struct{ from, to netip.AddrPort }

// connectionsTo asks the kernel for the established connections to the given addresses.
func connectionsTo(addrs []string) (map[connection]bool, error) {
	want := map[netip.AddrPort]bool{}
	for _, a := range addrs {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return nil, fmt.Errorf("public address %q: %w", a, err)
		}
		want[ap] = true
	}
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[connection]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		const established = "01"
		row := strings.Fields(lines.Text())
		if len(row) < 4 || row[3] != established {
			continue
		}
		from, err1 := procAddr(row[1])
		to, err2 := procAddr(row[2])
		if err1 == nil && err2 == nil && want[to] {
			out[connection{from, to}] = true
		}
	}
	return out, nil
}

// procAddr reads "0100007F:1F90": the address in the machine's byte order, the port in hex.
func procAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if !ok || err != nil || len(b) != 4 {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var ip [4]byte
	binary.NativeEndian.PutUint32(ip[:], binary.BigEndian.Uint32(b))
	return netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(p)), nil
}
