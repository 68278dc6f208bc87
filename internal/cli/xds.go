package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/crossfade-mesh/crossfade/internal/envoy"
	"github.com/crossfade-mesh/crossfade/internal/xds"
)

// toldResource is one resource as a sidecar is told it.
type toldResource struct {
	Type    string          `json:"type"`
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Bytes   int             `json:"bytes"`
	Body    json.RawMessage `json:"resource,omitempty"`
}

func newXDS(s streams) *cobra.Command {
	var grpcAddr, node, kind string
	var bodies bool
	cmd := &cobra.Command{
		Use:   "xds PROXY-ID",
		Short: "Show what a sidecar is told now, with versions",
		Long: `Connect to a server as the sidecar with that proxy service ID would, and show every
resource that it is told. It takes part in nothing: the sidecar itself is not touched.`,
		Example: `  crossfade xds web-sidecar-proxy
  crossfade xds web-sidecar-proxy -type Cluster -o json`,
		Args: exactly("PROXY-ID"),
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringVar(&grpcAddr, "grpc-addr", "", "server's gRPC address (default: as the server says)")
	cmd.Flags().StringVar(&node, "node", "", "catalog node of the sidecar, where several have one with that ID")
	cmd.Flags().StringVar(&kind, "type", "", "only resources of this type: "+or(resourceTypes()))
	cmd.ValidArgsFunction = first(t.sidecars(ofID))
	complete(cmd, "node", t.sidecars(ofNode))
	complete(cmd, "type", words(resourceTypes()...))
	cmd.Flags().BoolVar(&bodies, "v", false, "with -o json: the resources themselves, too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var only xds.Type
		if kind != "" {
			var ok bool
			if only, ok = xds.ParseShort(kind); !ok || only == xds.SecretType {
				return usageError{fmt.Errorf("--type %q: want %s", kind, or(resourceTypes())), "crossfade xds --help"}
			}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
		defer cancel()
		if _, err := findProxy(ctx, t, args[0], "", node); err != nil {
			return err
		}
		addr, err := grpcAddress(ctx, t, grpcAddr)
		if err != nil {
			return err
		}
		conn, err := t.dial(addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		told, err := observe(ctx, conn, args[0], node)
		if err != nil {
			return fmt.Errorf("sidecar %q: %w", args[0], err)
		}
		rows := []toldResource{}
		for _, r := range told {
			if only != "" && r.Type != only {
				continue
			}
			row := toldResource{Type: r.Type.Short(), Name: r.Name, Version: r.Version, Bytes: r.Size()}
			if bodies || only != "" {
				b, err := r.Body()
				if err != nil {
					return err
				}
				if row.Body, err = envoy.JSON(string(r.Type), b); err != nil {
					return err
				}
			}
			rows = append(rows, row)
		}
		return o.print(s.out, rows, func(w io.Writer) {
			fmt.Fprintln(w, "Type\tName\tVersion\tBytes")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", r.Type, r.Name, r.Version, r.Bytes)
			}
		})
	}
	return cmd
}

// agentSelf is what a verb needs of /v1/agent/self.
type agentSelf struct {
	Config struct{ Datacenter, NodeName string }
	XDS    *struct {
		Ports struct{ Plaintext, TLS int }
	} `json:"xDS"`
}

// grpcAddress is the flag's value, or where the HTTP API says that gRPC is.
func grpcAddress(ctx context.Context, t *target, flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	var self agentSelf
	if err := t.call(ctx, http.MethodGet, "/v1/agent/self", nil, &self); err != nil {
		return "", err
	}
	base, err := t.baseURL()
	if err != nil {
		return "", err
	}
	port := 0
	if self.XDS != nil {
		port = self.XDS.Ports.Plaintext
		if strings.HasPrefix(base, "https://") {
			port = self.XDS.Ports.TLS
		}
	}
	if port <= 0 {
		return "", fmt.Errorf("server %s: says of no gRPC port that goes with it: set --grpc-addr", t.httpAddr())
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(u.Hostname(), strconv.Itoa(port)), nil
}

// observe subscribes as an Envoy would and collects resources until all that they
// refer to by name has come.
func observe(ctx context.Context, conn *grpc.ClientConn, id, node string) ([]*xds.Resource, error) {
	meta, err := structpb.NewStruct(map[string]any{"node_name": node, "crossfade_relay": true})
	if err != nil {
		return nil, err
	}
	c, err := xds.Connect(ctx, conn, &corev3.Node{Id: id, Metadata: meta})
	if err != nil {
		return nil, err
	}
	waiting := map[xds.Type]map[string]bool{xds.ClusterType: nil, xds.ListenerType: nil}
	for _, t := range []xds.Type{xds.ClusterType, xds.ListenerType} {
		if err := c.Send(xds.Request{Type: t}); err != nil {
			return nil, err
		}
	}
	var out []*xds.Resource
	for len(waiting) > 0 {
		r, err := c.Recv()
		if err != nil {
			if ctx.Err() != nil {
				err = errors.New("the server has not sent all of it within 15 s: see its log")
			}
			return nil, err
		}
		out = append(out, r.Resources...)
		asked := map[xds.Type][]string{}
		for _, res := range r.Resources {
			delete(waiting[r.Type], res.Name)
			body, err := res.Body()
			if err != nil {
				return nil, err
			}
			refs, err := envoy.References(string(res.Type), body)
			if err != nil {
				return nil, err
			}
			for _, ref := range refs {
				t := xds.Type(ref.Type)
				if t != xds.SecretType { // made beside Envoy, never sent
					asked[t] = append(asked[t], ref.Name)
				}
			}
		}
		for _, name := range r.Removed {
			delete(waiting[r.Type], name)
		}
		if len(waiting[r.Type]) == 0 {
			delete(waiting, r.Type)
		}
		for t, names := range asked {
			if waiting[t] == nil {
				waiting[t] = map[string]bool{}
			}
			for _, n := range names {
				waiting[t][n] = true
			}
			if err := c.Send(xds.Request{Type: t, Subscribe: names}); err != nil {
				return nil, err
			}
		}
		if err := c.Send(xds.Request{Type: r.Type, Nonce: r.Nonce}); err != nil {
			return nil, err
		}
	}
	return out, nil
}
