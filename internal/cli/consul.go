package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/server"
)

// startAgain is how soon a server tries again to start whose Consul cannot be reached.
const startAgain = 2 * time.Second

// startServer starts a server. One whose Consul cannot be reached, and that has seen nothing of it
// yet, is tried again until ctx ends; then there is none.
func startServer(ctx context.Context, o server.Options) (*server.Server, error) {
	for {
		srv, err := server.New(o)
		if err == nil || o.Consul == "" || !errors.Is(err, store.ErrUnreachable) {
			return srv, err
		}
		o.Log.Error("not started yet, it is tried again", "reason", err)
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(startAgain):
		}
	}
}

// consulAccess is how Consul's own tools would reach the Consul at an address: by its flag for a
// token, and the environment.
func consulAccess(s streams, address *string, tokenFile string) (out server.ConsulAccess, err error) {
	for name, what := range map[string]string{"CONSUL_NAMESPACE": "namespaces", "CONSUL_PARTITION": "admin partitions"} {
		if v := s.env(name); v != "" && v != "default" {
			return out, fmt.Errorf("%s=%s: %s are Consul Enterprise's, and are not served: unset it", name, v, what)
		}
	}
	if s.env("CONSUL_HTTP_AUTH") != "" {
		return out, errors.New("CONSUL_HTTP_AUTH: basic authentication is not served: give a token")
	}
	if out.Token, err = consulToken(s, tokenFile); err != nil {
		return out, err
	}
	if v := s.env("CONSUL_HTTP_SSL"); v != "" && !strings.HasPrefix(*address, "unix://") {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return out, fmt.Errorf("CONSUL_HTTP_SSL=%s: want true or false", v)
		}
		if _, rest, scheme := strings.Cut(*address, "://"); on && scheme {
			*address = "https://" + rest
		} else if on {
			*address = "https://" + *address
		}
	}
	secure := api.TLSConfig{
		Address: s.env("CONSUL_TLS_SERVER_NAME"), CAFile: s.env("CONSUL_CACERT"), CAPath: s.env("CONSUL_CAPATH"),
		CertFile: s.env("CONSUL_CLIENT_CERT"), KeyFile: s.env("CONSUL_CLIENT_KEY"),
	}
	if v := s.env("CONSUL_HTTP_SSL_VERIFY"); v != "" {
		verify, err := strconv.ParseBool(v)
		if err != nil {
			return out, fmt.Errorf("CONSUL_HTTP_SSL_VERIFY=%s: want true or false", v)
		}
		secure.InsecureSkipVerify = !verify
	}
	if out.TLS, err = api.SetupTLSConfig(&secure); err != nil {
		return out, fmt.Errorf("TLS to Consul: %w: see CONSUL_CACERT, CONSUL_CAPATH, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY", err)
	}
	return out, nil
}

func consulToken(s streams, file string) (string, error) {
	file = cmp.Or(file, s.env("CONSUL_HTTP_TOKEN_FILE"))
	if file == "" {
		return s.env("CONSUL_HTTP_TOKEN"), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("Consul's token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("Consul's token: file %q is empty", file)
	}
	return token, nil
}
