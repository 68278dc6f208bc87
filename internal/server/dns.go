package server

import (
	"context"
	"net"

	"github.com/crossfade-mesh/crossfade/internal/dns"
)

// openDNS listens for questions, unless none are to be answered: a real Consul
// answers its own.
func (s *Server) openDNS() error {
	o := s.opts
	if o.DNSPort < 0 || o.Consul != "" {
		return nil
	}
	bind := o.DNSBind
	if bind == "" {
		bind = "127.0.0.1" // what is registered is told to everybody who asks
		if ip := net.ParseIP(o.BindAddr); ip != nil && ip.IsLoopback() {
			bind = o.BindAddr
		}
	}
	server, err := dns.Listen(dns.Options{Store: s.store, Addr: bind, Port: o.DNSPort, Log: o.Log})
	if err != nil {
		if o.DNSOptional {
			o.Log.Warn("names are not answered", "reason", err)
			return nil
		}
		return err
	}
	s.dns = server
	s.shutdown = append(s.shutdown, func() error { return ignoreClosed(server.Close()) })
	return nil
}

// runDNS answers until ctx ends.
func (s *Server) runDNS(ctx context.Context) error {
	if s.dns == nil {
		return nil
	}
	return s.dns.Run(ctx)
}

// DNSAddr is where names are answered, over UDP and TCP; "" for nowhere.
func (s *Server) DNSAddr() string {
	if s.dns == nil {
		return ""
	}
	return s.dns.Addr()
}
