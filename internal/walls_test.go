package internal

import (
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/crossfade-mesh/crossfade/"

// pure lists the packages that decide and do nothing, with what of this module each may import.
var pure = map[string][]string{
	"identity": {},
	"catalog":  {},
	"config":   {"catalog", "identity", "shift"},
	"routing":  {"config", "identity"},
	"proxy":    {"catalog", "config", "identity", "routing"},
	"access":   {},
	"shift":    {},
	"envoy":    {"config", "identity", "proxy", "routing"},

	"connectfleet": {"catalog", "config", "proxy"},
}

// effects are imports with which a package could read a clock, log, or reach outside.
var effects = []string{
	"net", "net/http", "os", "os/exec", "log", "log/slog", "syscall", "google.golang.org/grpc", "github.com/hashicorp/consul/api",
}

// clock are the functions of package time that read or wait for the present.
var clock = []string{"time.Now(", "time.Since(", "time.Until(", "time.Sleep(", "time.After(", "time.NewTimer(", "time.NewTicker(", "time.Tick("}

func TestPurePackagesHaveNoEffects(t *testing.T) {
	for pkg, may := range pure {
		p, err := build.ImportDir(pkg, 0)
		if err != nil {
			t.Errorf("package %s: %v", pkg, err)
			continue
		}
		for _, imp := range p.Imports {
			if slices.Contains(effects, imp) {
				t.Errorf("package %s imports %s: it decides, others act", pkg, imp)
			}
			if own, ok := strings.CutPrefix(imp, module+"internal/"); ok && !slices.Contains(may, own) {
				t.Errorf("package %s imports %s: data flows downwards, it may import %v", pkg, own, may)
			}
		}
		for _, file := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(pkg, file))
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range clock {
				if strings.Contains(string(src), call) {
					t.Errorf("%s/%s calls %s): time is an argument there", pkg, file, call)
				}
			}
		}
	}
}

// tools know nothing of a mesh, and import nothing of this module.
var tools = []string{"atomicfile", "envoyadmin", "envoybin", "process"}

func TestToolsStandAlone(t *testing.T) {
	for _, pkg := range tools {
		p, err := build.ImportDir(pkg, 0)
		if err != nil {
			t.Errorf("package %s: %v", pkg, err)
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) {
				t.Errorf("package %s imports %s: it is a tool of others", pkg, imp)
			}
		}
	}
}

// Only these import many others. Tools don't count.
func TestOnlyServerAndCLIImportMany(t *testing.T) {
	const most = 12
	many := []string{"server", "cli"}
	each(t, func(dir string, p *build.Package) {
		own := 0
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, module) && !slices.Contains(tools, strings.TrimPrefix(imp, module+"internal/")) {
				own++
			}
		}
		if own > most && !slices.Contains(many, dir) {
			t.Errorf("package %s imports %d packages of this module, at most %d are allowed: leave wiring to server and cli", dir, own, most)
		}
	})
}

func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	each(t, func(dir string, p *build.Package) {
		doc := ""
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			doc += f.Doc.Text()
		}
		if len(doc) < 100 || !strings.HasPrefix(doc, "Package "+p.Name) {
			t.Errorf("package %s: its doc must begin %q and say what goes in, what comes out and what it leaves to others", dir, "Package "+p.Name)
		}
	})
}

func TestFilesStayReadable(t *testing.T) {
	const most = 800
	each(t, func(dir string, p *build.Package) {
		for _, file := range p.GoFiles {
			src, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(src), "\n"); n > most {
				t.Errorf("%s/%s has %d lines, at most %d are allowed", dir, file, n, most)
			}
			if strings.Contains(string(src), "\nfunc init() {") {
				t.Errorf("%s/%s has an init function: pass things in instead", dir, file)
			}
		}
	})
}

// public are the folders of what other modules import.
var public = []string{"../client", "../api"}

// What other modules import brings them nothing of ours and no other module, but
// grpc-go where it is about gRPC.
func TestPublicPackagesStandAlone(t *testing.T) {
	found := 0
	each(t, func(dir string, p *build.Package) {
		if !strings.HasPrefix(dir, "../") {
			return
		}
		found++
		for _, imp := range p.Imports {
			first, _, _ := strings.Cut(imp, "/")
			own := imp == module+"client"
			grpc := dir == "../client/grpcway" && strings.HasPrefix(imp, "google.golang.org/grpc")
			if strings.Contains(first, ".") && !own && !grpc {
				t.Errorf("package %s imports %s", dir, imp)
			}
		}
	})
	if found < 3 {
		t.Errorf("%d packages in %v", found, public)
	}
}

// each calls f for every package below this folder, and every public one, that has non-test code.
func each(t *testing.T, f func(dir string, p *build.Package)) {
	t.Helper()
	walk(t, ".", f)
	for _, dir := range public {
		walk(t, dir, f)
	}
}

func walk(t *testing.T, root string, f func(dir string, p *build.Package)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == "." {
			return err
		}
		if d.Name() == "testdata" {
			return filepath.SkipDir
		}
		p, err := build.ImportDir(path, 0)
		if err == nil && len(p.GoFiles) > 0 {
			f(path, p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
