package meshtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// ConsulSettled waits until the Consul agent at url has told its catalog of itself, for at most a minute.
// Where something is registered just as an agent begins to do so, it tells its catalog how checks go
// 15 to 30 seconds later only: until then that is critical, as all is when it is registered.
func ConsulSettled(t testing.TB, url string) {
	t.Helper()
	get := func(path string, answer any) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", path, resp.Status)
		}
		return json.NewDecoder(resp.Body).Decode(answer)
	}
	Within(t, time.Minute, "Consul's agent at "+url+" has told its catalog of itself", func() error {
		var self struct{ Config struct{ NodeName string } }
		if err := get("/v1/agent/self", &self); err != nil {
			return err
		}
		// The leader registers the node as well, but only the agent itself with these.
		var known struct {
			Node struct{ TaggedAddresses map[string]string }
		}
		if err := get("/v1/catalog/node/"+self.Config.NodeName, &known); err != nil {
			return err
		}
		if len(known.Node.TaggedAddresses) == 0 {
			return fmt.Errorf("the catalog has %+v of it", known.Node)
		}
		return nil
	})
}
