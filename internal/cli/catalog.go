package cli

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crossfade-mesh/crossfade/internal/catalog"
)

func newCatalog(s streams) *cobra.Command {
	return group("catalog", "Look at what is registered, and decide what of it is held", newCatalogServices(s), newCatalogNodes(s), newCatalogHeld(s),
		newCatalogDecision(s, "release", "Let instances go that the endpoint guard holds", `Let the instances go that the endpoint guard holds of a service: callers are told at once that
they are gone. What vanishes after that is judged anew. The decision holds on all servers that
share a Consul, and is in the audit trail.`),
		newCatalogDecision(s, "keep", "Make instances stay that the endpoint guard holds", `Make the instances that the endpoint guard holds of a service stay, whatever explains their
absence, until they are registered again or released. It is kept over a restart of the server,
holds on all servers that share a Consul, and is in the audit trail.`))
}

func newCatalogServices(s streams) *cobra.Command {
	var tags bool
	cmd := &cobra.Command{
		Use: "services", Short: "List services", Args: exactly(),
		Example: `  crossfade catalog services
  crossfade catalog services -tags
  crossfade catalog services -o json`,
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().BoolVar(&tags, "tags", false, "show each service's tags")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var services map[string][]string
		if err := t.call(cmd.Context(), http.MethodGet, "/v1/catalog/services", nil, &services); err != nil {
			return err
		}
		return o.print(s.out, services, func(w io.Writer) {
			for _, name := range slices.Sorted(maps.Keys(services)) {
				if tags {
					fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(services[name], ","))
				} else {
					fmt.Fprintln(w, name)
				}
			}
		})
	}
	return cmd
}

func newCatalogNodes(s streams) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use: "nodes", Short: "List nodes", Args: exactly(),
		Example: `  crossfade catalog nodes
  crossfade catalog nodes -service web`,
	}
	t, o := addTarget(cmd, s), addOutput(cmd)
	cmd.Flags().StringVar(&service, "service", "", "only nodes with an instance of this service")
	complete(cmd, "service", t.serviceNames())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var nodes []catalog.Node
		if service == "" {
			if err := t.call(cmd.Context(), http.MethodGet, "/v1/catalog/nodes", nil, &nodes); err != nil {
				return err
			}
		} else {
			if err := t.call(cmd.Context(), http.MethodGet, "/v1/catalog/service/"+service, nil, &nodes); err != nil {
				return err
			}
			slices.SortFunc(nodes, func(a, b catalog.Node) int { return strings.Compare(a.Name, b.Name) })
			nodes = slices.CompactFunc(nodes, func(a, b catalog.Node) bool { return a.Name == b.Name })
		}
		return o.print(s.out, nodes, func(w io.Writer) {
			fmt.Fprintln(w, "Node\tID\tAddress\tDC")
			for _, n := range nodes {
				id, _, _ := strings.Cut(n.ID, "-")
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.Name, id, n.Address, n.Datacenter)
			}
		})
	}
	return cmd
}
