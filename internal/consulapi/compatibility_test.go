package consulapi_test

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/crossfade-mesh/crossfade/internal/consulapi"
)

// difference is a row of docs/compatibility.md: a request, and what it is answered.
type difference struct{ request, consul, here string }

// compatibility reads the two tables of docs/compatibility.md.
func compatibility(t *testing.T) (differences []difference, notServed []string) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/compatibility.md")
	must(t, err)
	code := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(string(raw)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		switch {
		case !strings.HasPrefix(line, "| `"):
		case len(cells) == 4:
			differences = append(differences, difference{strings.Trim(cells[0], " `"), cells[1], cells[2]})
		case len(cells) == 2:
			for _, m := range code.FindAllStringSubmatch(cells[0], -1) {
				notServed = append(notServed, m[1])
			}
		default:
			t.Errorf("line with %d cells: %s", len(cells), line)
		}
	}
	if len(differences) == 0 || len(notServed) == 0 {
		t.Fatal("docs/compatibility.md has no tables")
	}
	return differences, notServed
}

// ask sends a row's request and shows the answer as the row's cells do.
func (d difference) ask(t *testing.T, url string) (status, whole string) {
	t.Helper()
	parts := strings.SplitN(d.request, " ", 3)
	r, err := http.NewRequestWithContext(t.Context(), parts[0], url+parts[1], strings.NewReader(strings.Join(parts[2:], "")))
	must(t, err)
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	status = resp.Status[:3]
	return status, status + " `" + string(raw) + "`"
}

// testDifferences holds one column of the table to a registry.
func testDifferences(t *testing.T, url string, column func(difference) string) {
	c := newClient(t, url)
	_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "n1", Address: "10.0.0.1", Service: &api.AgentService{Service: "api", Port: 80}}, nil)
	must(t, err)
	_, _, err = c.ConfigEntries().Set(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"}, nil)
	must(t, err)
	differences, _ := compatibility(t)
	for _, d := range differences {
		if status, whole := d.ask(t, url); column(d) != status && column(d) != whole {
			t.Errorf("%s: answers %s, the table says %s", d.request, whole, column(d))
		}
	}
}

func TestCompatibility(t *testing.T) {
	s, _ := newServer(t, "")
	testDifferences(t, s.URL, func(d difference) string { return d.here })
	_, notServed := compatibility(t)
	want := consulapi.NotServed()
	slices.Sort(want)
	slices.Sort(notServed)
	if diff := cmp.Diff(want, notServed); diff != "" {
		t.Errorf("paths not served (-code +docs/compatibility.md):\n%s", diff)
	}
}
