package xds

import (
	"testing"

	"pgregory.net/rapid"
)

// What a client was told and what it acknowledged are as two maps would have them, and nothing is kept twice.
func TestToldAndAcknowledged(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sub, told, acked := &subscription{}, map[string]string{}, map[string]string{}
		version := rapid.SampledFrom([]string{"", "1", "2", absentVersion})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			name, v := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), version.Draw(t, "version")
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				sub.tell(name, v)
				told[name] = v
			case 1:
				sub.untell(name)
				delete(told, name)
			case 2:
				sub.acknowledge(name, v)
				acked[name] = v
			case 3:
				sub.forget(name)
				delete(told, name)
				delete(acked, name)
			}
			for _, name := range []string{"a", "b"} {
				was, is := sub.told.look(name)
				if want, has := told[name]; was != want || is != has {
					t.Fatalf("told of %s: %q %v, want %q %v", name, was, is, want, has)
				}
				if got := sub.acked(name); got != acked[name] {
					t.Fatalf("acknowledged of %s: %q, want %q", name, got, acked[name])
				}
				if sub.behind.has(name) != (told[name] != acked[name]) {
					t.Fatalf("%s is kept twice, or not at all", name)
				}
			}
		}
	})
}
