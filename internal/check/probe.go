package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

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
	case def.GRPC != "":
		return grpcProbe(def)
	}
	return nil, errors.New("one of HTTP, TCP, GRPC, TTL and AliasService must be set")
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
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: def.TLSSkipVerify},
	}}
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
		conn.Close()
		return Result{catalog.Passing, fmt.Sprintf("TCP connect %s: Success", def.TCP)}
	}, nil
}

func grpcProbe(def config.CheckDefinition) (probeFunc, error) {
	addr, service, _ := strings.Cut(def.GRPC, "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, fmt.Errorf("GRPC %q: want host:port[/service]: %w", def.GRPC, err)
	}
	creds := insecure.NewCredentials()
	if def.GRPCUseTLS {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: def.TLSSkipVerify})
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

// clip cuts output to MaxOutput and makes it valid UTF-8.
func clip(s string) string {
	if len(s) > MaxOutput {
		s = s[:MaxOutput]
	}
	return strings.ToValidUTF8(s, "?")
}
