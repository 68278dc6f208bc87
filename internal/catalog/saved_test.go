package catalog

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What was saved is read as the same instances in the same health, whatever the registry has by then;
// sets that are the registry's too are taken from it.
func TestSavedBesideTheRegistry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		saved, have := map[string]*Set{}, map[string]*Set{}
		for i := range 4 {
			name := fmt.Sprint("s", i)
			saved[name] = ill(t, drawSet(t, name, nil))
			switch rapid.IntRange(0, 3).Draw(t, "registry") {
			case 0:
				have[name] = ill(t, drawSet(t, name, saved[name]))
			case 1:
				have[name] = ill(t, saved[name])
			case 2:
				have[name] = saved[name]
			}
			for _, m := range []map[string]*Set{saved, have} {
				if m[name] == nil || len(m[name].Instances) == 0 {
					delete(m, name)
				}
			}
		}
		var file bytes.Buffer
		if err := WriteSaved(&file, NewSnapshot("dc1", 7, saved), nil); err != nil {
			t.Fatal(err)
		}
		registry := NewSnapshot("dc1", 9, have)
		earlier := regexp.MustCompile(`"sum":"[^"]*",`).ReplaceAll(file.Bytes(), nil)
		for name, text := range map[string][]byte{"with sums": file.Bytes(), "without": earlier} {
			got, _, err := ReadSaved(bytes.NewReader(text), registry)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !slices.Equal(got.Services(), NewSnapshot("", 0, saved).Services()) || got.Index != 7 {
				t.Fatalf("%s: %v", name, got.Services())
			}
			for service, want := range saved {
				set := got.Set(service)
				if set.sum() != want.sum() {
					t.Errorf("%s: %s: %v, want %v", name, service, set, want)
				}
				if name == "with sums" && have[service] == want && set != want {
					t.Errorf("%s is read again", service)
				}
			}
		}
	})
}

// ill is the set with other checks.
func ill(t *rapid.T, set *Set) *Set {
	if set == nil {
		return nil
	}
	var out []Instance
	for _, in := range set.Instances {
		in.Checks = []*Check{{
			Node: in.Node.Name, CheckID: "alive", Status: rapid.SampledFrom([]Status{Passing, Warning, Critical}).Draw(t, "status"),
			ServiceID: in.Service.ID, Output: rapid.SampledFrom([]string{"", "no", TTLExpired + " 3s ago"}).Draw(t, "output"),
		}}
		out = append(out, in)
	}
	return NewSet(set.Name, out)
}

// Sets that differ in who is in them, where they are or how they are have different sums.
func TestSum(t *testing.T) {
	base := func() Instance {
		return Instance{
			Node: &Node{Name: "n1", Address: "10.0.0.1"}, Service: &Service{ID: "web-1", Name: "web", Address: "10.0.0.2", Port: 80},
			Checks: []*Check{{CheckID: "alive", Status: Critical, Type: "ttl"}},
		}
	}
	sums := map[string]string{}
	for name, change := range map[string]func(*Instance){
		"as it is": func(*Instance) {},
		"node":     func(in *Instance) { in.Node.Name = "n2" },
		"host":     func(in *Instance) { in.Node.Address = "10.0.0.3" },
		"id":       func(in *Instance) { in.Service.ID = "web-2" },
		"address":  func(in *Instance) { in.Service.Address = "" },
		"port":     func(in *Instance) { in.Service.Port = 8 },
		"check":    func(in *Instance) { in.Checks[0].CheckID = "well" },
		"status":   func(in *Instance) { in.Checks[0].Status = Passing },
		"silence":  func(in *Instance) { in.Checks[0].Output = TTLExpired },
		"not run":  func(in *Instance) { in.Checks[0].ServiceID, in.Checks[0].Type = "web-1", "tcp" },
		"unasked":  func(in *Instance) { in.Checks = nil },
	} {
		in := base()
		change(&in)
		sum := NewSet("web", []Instance{in}).sum()
		if other, is := sums[sum]; is {
			t.Errorf("%s and %s have one sum", name, other)
		}
		sums[sum] = name
	}
}
