package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const userAgent = "crossfade health check"

// probeFunc looks once. It returns when ctx ends at the latest.
type probeFunc func(ctx context.Context) Result

func newProbe(def config.CheckDefinition) (probeFunc, error) {
	switch {
	case def.HTTP != "":
		return httpProbe(def)
	case def.TCP != "":
		return tcpProbe(def)
	case def.UDP != "":
		return udpProbe(def)
	case def.H2PING != "":
		return h2Probe(def)
	case def.GRPC != "":
		return grpcProbe(def)
	}
	return nil, errors.New("one of HTTP, TCP, UDP, GRPC, H2PING, TTL and AliasService must be set")
}

func httpProbe(def config.CheckDefinition) (probeFunc, error) {
	method := def.Method
	if method == "" {
		method = http.MethodGet
	}
	if _, err := http.NewRequest(method, def.HTTP, nil); err != nil {
		return nil, fmt.Errorf("HTTP %q: %w", def.HTTP, err)
	}
	// A connection per probe: a kept one would hide that new ones are refused.
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
		TLSClientConfig:        tlsConfig(def),
	}}
	if def.DisableRedirects {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return func(ctx context.Context) Result {
		req, err := http.NewRequestWithContext(ctx, method, def.HTTP, strings.NewReader(def.Body))
		if err != nil {
			return Result{catalog.Critical, err.Error()}
		}
		for name, values := range def.Header {
			for _, v := range values {
				req.Header.Add(name, v)
			}
		}
		if host := req.Header.Get("Host"); host != "" {
			req.Host = host
		}
		if req.Header.Get("User-Agent") == "" {
			req.Header.Set("User-Agent", userAgent)
		}
		if req.Header.Get("Accept") == "" {
			req.Header.Set("Accept", "text/plain, text/*, */*")
		}
		resp, err := client.Do(req)
		if err != nil {
			return Result{catalog.Critical, err.Error()}
		}
		defer resp.Body.Close()
		// The code has decided; a body that cannot be read only shortens the output.
		body, _ := io.ReadAll(io.LimitReader(resp.Body, MaxOutput))
		return Result{httpStatus(resp.StatusCode), fmt.Sprintf("HTTP %s %s: %s Output: %s", method, def.HTTP, resp.Status, body)}
	}, nil
}

func httpStatus(code int) catalog.Status {
	switch {
	case code >= 200 && code <= 299:
		return catalog.Passing
	case code == http.StatusTooManyRequests:
		return catalog.Warning
	}
	return catalog.Critical
}

func tcpProbe(def config.CheckDefinition) (probeFunc, error) {
	if _, _, err := net.SplitHostPort(def.TCP); err != nil {
		return nil, fmt.Errorf("TCP %q: want host:port: %w", def.TCP, err)
	}
	return func(ctx context.Context) Result {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", def.TCP)
		if err != nil {
			return Result{catalog.Critical, err.Error()}
		}
		defer conn.Close()
		if def.TCPUseTLS {
			if _, err := secure(ctx, conn, def.TCP, tlsConfig(def)); err != nil {
				return Result{catalog.Critical, fmt.Sprintf("TLS handshake with %s: %v", def.TCP, err)}
			}
		}
		return Result{catalog.Passing, fmt.Sprintf("TCP connect %s: Success", def.TCP)}
	}, nil
}

// tlsConfig is how a check of that definition speaks TLS.
func tlsConfig(def config.CheckDefinition) *tls.Config {
	return &tls.Config{InsecureSkipVerify: def.TLSSkipVerify, ServerName: def.TLSServerName}
}

// secure is conn with TLS, to whom addr names unless c says otherwise.
func secure(ctx context.Context, conn net.Conn, addr string, c *tls.Config) (*tls.Conn, error) {
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	over := tls.Client(conn, c)
	return over, over.HandshakeContext(ctx)
}

// udpSilence is how long a UDP service may say nothing and count as well: most
// answer only what they understand, and a host without it refuses at once.
const udpSilence = time.Second

func udpProbe(def config.CheckDefinition) (probeFunc, error) {
	if _, _, err := net.SplitHostPort(def.UDP); err != nil {
		return nil, fmt.Errorf("UDP %q: want host:port: %w", def.UDP, err)
	}
	return func(ctx context.Context) Result {
		conn, err := new(net.Dialer).DialContext(ctx, "udp", def.UDP)
		if err != nil {
			return Result{catalog.Critical, err.Error()}
		}
		defer conn.Close()
		until := time.Now().Add(udpSilence)
		if end, ok := ctx.Deadline(); ok && end.Before(until) {
			until = end
		}
		if err := conn.SetDeadline(until); err != nil {
			return Result{catalog.Critical, err.Error()}
		}
		if _, err = conn.Write(nil); err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return Result{catalog.Critical, err.Error()}
		}
		return Result{catalog.Passing, fmt.Sprintf("UDP connect %s: Success", def.UDP)}
	}, nil
}

func h2Probe(def config.CheckDefinition) (probeFunc, error) {
	if _, _, err := net.SplitHostPort(def.H2PING); err != nil {
		return nil, fmt.Errorf("H2PING %q: want host:port: %w", def.H2PING, err)
	}
	fail := func(err error) Result {
		return Result{catalog.Critical, fmt.Sprintf("HTTP/2 ping %s: %v", def.H2PING, err)}
	}
	return func(ctx context.Context) Result {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", def.H2PING)
		if err != nil {
			return fail(err)
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() }) // the first frames heed no context
		defer stop()
		if def.H2PingUseTLS == nil || *def.H2PingUseTLS {
			c := tlsConfig(def)
			c.NextProtos = []string{http2.NextProtoTLS}
			if conn, err = secure(ctx, conn, def.H2PING, c); err != nil {
				return fail(err)
			}
		}
		over, err := new(http2.Transport).NewClientConn(conn)
		if err != nil {
			return fail(err)
		}
		if err := over.Ping(ctx); err != nil {
			return fail(err)
		}
		return Result{catalog.Passing, fmt.Sprintf("HTTP/2 ping %s: success", def.H2PING)}
	}, nil
}

func grpcProbe(def config.CheckDefinition) (probeFunc, error) {
	addr, service, _ := strings.Cut(def.GRPC, "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("GRPC %q: want host:port[/service]: %w", def.GRPC, err)
	}
	creds := insecure.NewCredentials()
	if def.GRPCUseTLS {
		creds = credentials.NewTLS(tlsConfig(def))
	}
	return func(ctx context.Context) Result {
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
			grpc.WithUserAgent(userAgent), grpc.WithDisableServiceConfig())
		if err != nil {
			return Result{catalog.Critical, fmt.Sprintf("gRPC check %s: %v", def.GRPC, err)}
		}
		defer conn.Close()
		resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		switch {
		case err != nil:
			return Result{catalog.Critical, fmt.Sprintf("gRPC check %s: %v", def.GRPC, err)}
		case resp.GetStatus() != healthpb.HealthCheckResponse_SERVING:
			return Result{catalog.Critical, fmt.Sprintf("gRPC check %s: status %s", def.GRPC, resp.GetStatus())}
		}
		return Result{catalog.Passing, fmt.Sprintf("gRPC check %s: success", def.GRPC)}
	}, nil
}

// clip cuts output to most bytes, 0 or too many being MaxOutput, and makes it valid UTF-8.
func clip(s string, most int) string {
	if most <= 0 || most > MaxOutput {
		most = MaxOutput
	}
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "?")
}
