package consulapi_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// sessionContract holds for crossfade and for Consul.
func sessionContract() []contractCase {
	return []contractCase{
		{"a session and the key it holds", func(t *testing.T, c *api.Client) {
			one, _, err := c.Session().Create(&api.SessionEntry{Name: "one", TTL: "30s", LockDelay: time.Nanosecond}, nil)
			must(t, err)
			two, _, err := c.Session().CreateNoChecks(&api.SessionEntry{Behavior: api.SessionBehaviorDelete, LockDelay: time.Nanosecond}, nil)
			must(t, err)
			info, meta, err := c.Session().Info(one, nil)
			must(t, err)
			if info.Name != "one" || info.Node != "self" || info.TTL != "30s" || info.Behavior != "release" || strings.Join(info.NodeChecks, " ") != "serfHealth" || meta.LastIndex == 0 {
				t.Errorf("info: %+v at %+v", info, meta)
			}
			renewed, _, err := c.Session().Renew(one, nil)
			if err != nil || renewed.ID != one {
				t.Errorf("renewed: %+v, %v", renewed, err)
			}
			if list, _, err := c.Session().List(nil); err != nil || len(list) != 2 {
				t.Errorf("list: %v, %v", list, err)
			}
			if list, _, err := c.Session().Node("self", nil); err != nil || len(list) != 2 {
				t.Errorf("of the node: %v, %v", list, err)
			}
			acquire := func(session, value string, want bool) {
				t.Helper()
				if got, _, err := c.KV().Acquire(&api.KVPair{Key: "lock", Value: []byte(value), Session: session}, nil); err != nil || got != want {
					t.Errorf("acquire by %s: %v %v, want %v", session, got, err, want)
				}
			}
			lock := func(index uint64, session, value string) {
				t.Helper()
				p, _, err := c.KV().Get("lock", nil)
				must(t, err)
				if p == nil || p.LockIndex != index || p.Session != session || string(p.Value) != value {
					t.Errorf("the key is %+v, want index %d, session %q, value %q", p, index, session, value)
				}
			}
			acquire(one, "a", true)
			acquire(two, "b", false)
			acquire(one, "c", true)
			lock(1, one, "c")
			if got, _, err := c.KV().Release(&api.KVPair{Key: "lock", Session: two}, nil); err != nil || got {
				t.Errorf("released by another: %v %v", got, err)
			}
			if got, _, err := c.KV().Release(&api.KVPair{Key: "lock", Value: []byte("d"), Session: one}, nil); err != nil || !got {
				t.Errorf("not released by its holder: %v %v", got, err)
			}
			lock(1, "", "d")
			acquire(one, "e", true)
			lock(2, one, "e")
			_, err = c.KV().Put(&api.KVPair{Key: "lock", Value: []byte("f")}, nil)
			must(t, err)
			lock(0, one, "f")
			_, err = c.Session().Destroy(one, nil)
			must(t, err)
			lock(0, "", "f")
			eventually(t, "the other has it", func() bool {
				got, _, err := c.KV().Acquire(&api.KVPair{Key: "lock", Session: two}, nil)
				return err == nil && got
			})
			_, err = c.Session().Destroy(two, nil)
			must(t, err)
			if p, _, err := c.KV().Get("lock", nil); err != nil || p != nil {
				t.Errorf("the key of a session with behavior delete: %+v, %v", p, err)
			}
		}},
		{"a lock delay", func(t *testing.T, c *api.Client) {
			s, _, err := c.Session().Create(&api.SessionEntry{LockDelay: time.Minute}, nil)
			must(t, err)
			_, _, err = c.KV().Acquire(&api.KVPair{Key: "lock", Session: s}, nil)
			must(t, err)
			_, err = c.Session().Destroy(s, nil)
			must(t, err)
			next, _, err := c.Session().Create(nil, nil)
			must(t, err)
			if got, _, err := c.KV().Acquire(&api.KVPair{Key: "lock", Session: next}, nil); err != nil || got {
				t.Errorf("acquired within the delay: %v %v", got, err)
			}
			if _, r, _, err := c.KV().Txn(api.KVTxnOps{{Verb: api.KVLock, Key: "lock", Session: next}}, nil); err != nil || len(r.Errors) != 1 || !strings.Contains(r.Errors[0].What, "delay") {
				t.Errorf("acquired within the delay: %+v %v", r, err)
			}
		}},
		{"sessions end with a check, a service, a node", func(t *testing.T, c *api.Client) {
			check := func(status string) {
				_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "n", Address: "10.0.0.1", Service: &api.AgentService{Service: "web"},
					Checks: api.HealthChecks{{CheckID: "c", Name: "c", ServiceID: "web", Status: status}, {CheckID: "n", Name: "n", Status: api.HealthPassing}}}, nil)
				must(t, err)
			}
			open := func() string {
				id, _, err := c.Session().Create(&api.SessionEntry{Node: "n", NodeChecks: []string{"n"}, ServiceChecks: []api.ServiceCheck{{ID: "c"}}}, nil)
				must(t, err)
				return id
			}
			gone := func(what, id string) {
				t.Helper()
				if s, _, err := c.Session().Info(id, nil); err != nil || s != nil {
					t.Errorf("%s: it is still there: %+v %v", what, s, err)
				}
			}
			check(api.HealthPassing)
			id := open()
			check(api.HealthWarning)
			if s, _, err := c.Session().Info(id, nil); err != nil || s == nil {
				t.Errorf("a warning ended the session: %v", err)
			}
			check(api.HealthCritical)
			gone("check critical", id)
			if _, _, err := c.Session().Create(&api.SessionEntry{Node: "n", NodeChecks: []string{"c"}}, nil); err == nil || !strings.Contains(err.Error(), "500") {
				t.Errorf("a session with a critical check: %v", err)
			}
			check(api.HealthPassing)
			id = open()
			_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n", ServiceID: "web"}, nil)
			must(t, err)
			gone("service gone", id)
			check(api.HealthPassing)
			id = open()
			_, err = c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n"}, nil)
			must(t, err)
			gone("node gone", id)
		}},
		{"api.Lock and api.Semaphore", func(t *testing.T, c *api.Client) {
			lock, err := c.LockOpts(&api.LockOptions{Key: "leader", LockDelay: time.Nanosecond, SessionTTL: "10s"})
			must(t, err)
			lost := ok[<-chan struct{}](t)(lock.Lock(nil))
			other, err := c.LockOpts(&api.LockOptions{Key: "leader", LockTryOnce: true, LockWaitTime: 100 * time.Millisecond})
			must(t, err)
			if ch, err := other.Lock(nil); err != nil || ch != nil {
				t.Errorf("locked twice: %v", err)
			}
			waiter, err := c.LockKey("leader")
			must(t, err)
			has := make(chan error, 1)
			go func() {
				_, err := waiter.Lock(nil)
				has <- err
			}()
			must(t, lock.Unlock())
			<-lost
			must(t, <-has)
			must(t, waiter.Unlock())
			must(t, waiter.Destroy())

			first := ok[*api.Semaphore](t)(c.SemaphorePrefix("slots", 1))
			_ = ok[<-chan struct{}](t)(first.Acquire(nil))
			second, err := c.SemaphoreOpts(&api.SemaphoreOptions{Prefix: "slots", Limit: 1, SemaphoreTryOnce: true, SemaphoreWaitTime: 100 * time.Millisecond})
			must(t, err)
			if ch, err := second.Acquire(nil); err != nil || ch != nil {
				t.Errorf("a second slot of one: %v", err)
			}
			must(t, first.Release())
			_ = ok[<-chan struct{}](t)(second.Acquire(nil))
			must(t, second.Release())
			must(t, second.Destroy())
		}},
	}
}
