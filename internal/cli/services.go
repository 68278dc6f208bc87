package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

func newServices(s streams) *cobra.Command {
	return group("services", "Register and deregister services", newServicesRegister(s), newServicesDeregister(s))
}

func newServicesRegister(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "register FILE...",
		Short: "Register the services defined in files",
		Long: `Register the services that files define: Consul's service definitions in HCL or
JSON, or the short YAML form. "-" reads standard input. The services are checked by
the server; a sidecar that a definition asks for is registered, not started: see
"crossfade sidecar" for both at once.`,
		Example: `  printf 'service: web\nport: 8080\nupstreams: [catalog:7100]\n' > web.yaml
  crossfade services register web.yaml`,
		Args:              atLeastOne("FILE"),
		ValidArgsFunction: written(),
	}
	t := addTarget(cmd, s)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		defs, err := readDefinitions(s, args)
		if err != nil {
			return err
		}
		for _, d := range defs {
			body, err := d.MarshalRegistration()
			if err != nil {
				return err
			}
			if err := t.call(cmd.Context(), http.MethodPut, "/v1/agent/service/register?replace-existing-checks=true", body, nil); err != nil {
				return fmt.Errorf("service %q: %w", d.Service.ID, err)
			}
			fmt.Fprintf(s.out, "Registered service: %s\n", d.Service.Name)
			if err := declareProtocol(cmd.Context(), t, d); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// declareProtocol writes the service-defaults that the short form's protocol asks
// for. An entry that is there wins, and a difference is told.
func declareProtocol(ctx context.Context, t *target, d config.Definition) error {
	if d.Protocol == "" {
		return nil
	}
	e := &config.ServiceDefaults{Kind: config.KindServiceDefaults, Name: d.Service.Name, Protocol: d.Protocol}
	body, err := config.EncodeEntry(e)
	if err != nil {
		return err
	}
	var written bool
	if err := t.call(ctx, http.MethodPut, "/v1/config?cas=0", body, &written); err != nil {
		return fmt.Errorf("%s: %w", config.KeyOf(e), err)
	}
	if written {
		fmt.Fprintf(t.s.out, "Config entry written: %s\n", config.KeyOf(e))
		return nil
	}
	var there struct{ Protocol string }
	if err := t.call(ctx, http.MethodGet, "/v1/config/"+config.KeyOf(e).String(), nil, &there); err != nil {
		return fmt.Errorf("%s: %w", config.KeyOf(e), err)
	}
	if there.Protocol != d.Protocol {
		fmt.Fprintf(t.s.err, "warning: service %q: its file says protocol %s, %s says %q and wins\n", d.Service.Name, d.Protocol, config.KeyOf(e), there.Protocol)
	}
	return nil
}

func newServicesDeregister(s streams) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "deregister [-id ID] [FILE...]",
		Short: "Deregister services by ID or by the files that define them",
		Example: `  crossfade services deregister web.yaml
  crossfade services deregister -id web`,
		ValidArgsFunction: written(),
	}
	t := addTarget(cmd, s)
	cmd.Flags().StringVar(&id, "id", "", "ID of the one service to deregister")
	complete(cmd, "id", t.serviceIDs())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if (id == "") == (len(args) == 0) {
			return usageError{errors.New("services deregister: give either -id ID or files"), "crossfade services deregister --help"}
		}
		ids := []string{id}
		if id == "" {
			defs, err := readDefinitions(s, args)
			if err != nil {
				return err
			}
			ids = nil
			for _, d := range defs {
				ids = append(ids, d.Service.ID)
			}
		}
		for _, id := range ids {
			if err := t.call(cmd.Context(), http.MethodPut, "/v1/agent/service/deregister/"+url.PathEscape(id), nil, nil); err != nil {
				return fmt.Errorf("service %q: %w", id, err)
			}
			fmt.Fprintf(s.out, "Deregistered service: %s\n", id)
		}
		return nil
	}
	return cmd
}

// readDefinitions reads all files before anything is done with any.
func readDefinitions(s streams, files []string) ([]config.Definition, error) {
	var out []config.Definition
	var errs []error
	for _, f := range files {
		b, err := readFile(s, f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defs, err := config.DecodeDefinitions(f, b)
		errs = append(errs, err)
		out = append(out, defs...)
	}
	return out, errors.Join(errs...)
}
