package routing_test

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/crossfade-mesh/crossfade/internal/config"
	"github.com/crossfade-mesh/crossfade/internal/meshtest"
	"github.com/crossfade-mesh/crossfade/internal/routing"
)

// TestScenarios prints the chains of a scenario's services, and what is wrong with
// them. Section "chains" has a service in each line, with what its caller takes its
// protocol for and another datacenter than dc1, if so: "catalog protocol=tcp dc=dc2".
func TestScenarios(t *testing.T) {
	meshtest.Golden(t, "testdata/*.txtar", func(t *testing.T, input []txtar.File) []txtar.File {
		var wanted []string
		var entries []config.Entry
		for _, f := range input {
			if f.Name == "chains" {
				wanted = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
				continue
			}
			e, err := config.DecodeEntry(f.Name, f.Data)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		var chains, problems strings.Builder
		for _, line := range wanted {
			req := routing.Request{Config: config.NewSet(entries...), Datacenter: meshtest.Datacenter}
			words := strings.Fields(line)
			req.Service = words[0]
			for _, w := range words[1:] {
				switch key, value, _ := strings.Cut(w, "="); key {
				case "protocol":
					req.Protocol = value
				case "dc":
					req.Datacenter = value
				default:
					t.Fatalf("chains: %q: want protocol=… or dc=…", w)
				}
			}
			c, list := routing.Compile(req)
			chains.WriteString(c.Describe())
			for _, p := range list {
				fmt.Fprintln(&problems, p)
			}
		}
		out := []txtar.File{{Name: "chains", Data: []byte(chains.String())}}
		if problems.Len() > 0 {
			out = append(out, txtar.File{Name: "problems", Data: []byte(problems.String())})
		}
		return out
	})
}
