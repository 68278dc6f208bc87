package config

import (
	"errors"
	"fmt"
)

// The values of MutualTLSMode, which are Consul's. Without a transparent proxy, whose
// business it is in Consul, permissive means that a sidecar's public port takes plaintext
// beside mTLS.
const (
	MutualTLSStrict     = "strict"
	MutualTLSPermissive = "permissive"
)

// MutualTLSMode is what a service's sidecars take: what its service-defaults say, else
// proxy-defaults; "" where neither says anything, and then mTLS alone.
func (s *Set) MutualTLSMode(service string) string {
	if e := s.ServiceDefaults(service); e != nil && e.MutualTLSMode != "" {
		return e.MutualTLSMode
	}
	if e := s.ProxyDefaults(); e != nil {
		return e.MutualTLSMode
	}
	return ""
}

// AllowsPermissive reports whether entries may let plaintext in.
func (s *Set) AllowsPermissive() bool {
	e := s.Mesh()
	return e != nil && e.AllowEnablingPermissiveMutualTLS
}

func (r *report) mutualTLSMode(mode string) {
	r.oneOf("MutualTLSMode", mode, "", MutualTLSStrict, MutualTLSPermissive)
}

// CheckMutualTLS refuses to let plaintext in where the mesh entry does not allow that. As
// in Consul, what is permissive already stays so when the mesh entry changes its mind.
func CheckMutualTLS(before, after *Set) error {
	if after.AllowsPermissive() {
		return nil
	}
	var errs []error
	for _, k := range Changed(before, after) {
		if mode := ownMode(after.Get(k)); mode == MutualTLSPermissive && ownMode(before.Get(k)) != mode {
			errs = append(errs, fmt.Errorf("%s: MutualTLSMode: permissive lets plaintext in, which the mesh does not allow: \"crossfade config write\" a file with Kind = \"mesh\" and AllowEnablingPermissiveMutualTLS = true first", k))
		}
	}
	return errors.Join(errs...)
}

func ownMode(e Entry) string {
	switch e := e.(type) {
	case *ServiceDefaults:
		return e.MutualTLSMode
	case *ProxyDefaults:
		return e.MutualTLSMode
	}
	return ""
}
