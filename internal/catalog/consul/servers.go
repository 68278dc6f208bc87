package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// Servers are the gRPC addresses of the datacenter's Consul servers, which have the
// Connect CA; client agents don't.
type Servers struct {
	Plaintext []string // host:port, sorted
	TLS       []string // likewise
}

// Servers asks once.
func (s *Source) Servers(ctx context.Context) (Servers, error) {
	a, err := s.get(ctx, "/v1/catalog/service/consul", 0, 0)
	if err != nil {
		return Servers{}, err
	}
	var rows []struct {
		Address, ServiceAddress string
		ServiceMeta             map[string]string
	}
	if err := decode(a.body, &rows); err != nil {
		return Servers{}, err
	}
	var out Servers
	for _, r := range rows {
		host := r.ServiceAddress
		if host == "" {
			host = r.Address
		}
		for meta, list := range map[string]*[]string{"grpc_port": &out.Plaintext, "grpc_tls_port": &out.TLS} {
			if port, err := strconv.Atoi(r.ServiceMeta[meta]); err == nil && port > 0 {
				*list = append(*list, net.JoinHostPort(host, strconv.Itoa(port)))
			}
		}
	}
	slices.Sort(out.Plaintext)
	slices.Sort(out.TLS)
	if len(rows) == 0 {
		return out, errors.New("no server of that Consul is registered")
	}
	if len(out.Plaintext)+len(out.TLS) == 0 {
		return out, fmt.Errorf("none of the %d Consul servers has a gRPC port: set ports { grpc = 8502 } or grpc_tls there", len(rows))
	}
	return out, nil
}
