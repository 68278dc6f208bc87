package meshtest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the wanted sections of txtar files; commit the change only if you can explain it")

// wanted begins the names of a txtar file's sections that hold results.
const wanted = "want/"

// Golden runs each txtar file that matches pattern as a subtest. run is given the
// sections that are input and returns results by name; a result "x" must equal the
// section "want/x", and every such section must have a result. With -update the
// wanted sections are rewritten, others and their order stay.
func Golden(t *testing.T, pattern string, run func(t *testing.T, input []txtar.File) []txtar.File) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("no file matches %s", pattern)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var input []txtar.File
			want := map[string]string{}
			for _, f := range archive.Files {
				if name, ok := strings.CutPrefix(f.Name, wanted); ok {
					want[name] = string(f.Data)
				} else {
					input = append(input, f)
				}
			}
			results := run(t, input)
			if *update {
				archive.Files = input
				for _, r := range results {
					archive.Files = append(archive.Files, txtar.File{Name: wanted + r.Name, Data: r.Data})
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, r := range results {
				// A section ends with a line break whether the result does or not.
				if diff := cmp.Diff(want[r.Name], line(r.Data)); diff != "" {
					t.Errorf("%s: %s%s differs (-want +got); -update rewrites it\n%s", path, wanted, r.Name, diff)
				}
				delete(want, r.Name)
			}
			for name := range want {
				t.Errorf("%s: nothing made %s%s", path, wanted, name)
			}
		})
	}
}

func line(data []byte) string {
	if len(data) > 0 && data[len(data)-1] != '\n' {
		return string(data) + "\n"
	}
	return string(data)
}
