package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/catalog/store"
	"github.com/crossfade-mesh/crossfade/internal/config"
)

const (
	// dirEvery is how often the folder of entries is looked at.
	dirEvery = time.Second
	// maxDirFiles bounds how many of its files are read, maxDirFile the size of each.
	maxDirFiles = 10_000
	maxDirFile  = 8 << 20
	// dirAuthor begins the author of what comes from the folder; the file's name ends it.
	dirAuthor = "config-dir "
	// dirName is under which the store remembers what shares files have given.
	dirName = "config-dir"
)

// configDir keeps the store's entries as the files of a folder have them. A file is
// taken when it is new or has changed, and at the start; between, what somebody writes
// by other means stays. What a file that is wrong was when it was last right stays, too.
// Shares of a traffic-shift are taken when they differ from those that the folder gave last:
// what people, shifts and reverts have made of them since is newer.
type configDir struct {
	path  string
	prune bool
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex          // guards the following
	files   map[string]*dirFile // by name
	trouble string              // with the folder as a whole
	stuck   string              // why what is to be pruned is not
	due     map[string]bool     // files whose entries the store does not have yet
	untidy  bool                // there may be something to prune
}

// dirFile is one file of the folder.
type dirFile struct {
	changed time.Time
	size    int64
	entry   config.Entry // as it was last right; nil: never
	problem string       // one line, empty when it is right
	refused string       // why the store does not take the entry beside the others
}

func newConfigDir(path string, prune bool, s *store.Store, log *slog.Logger) *configDir {
	return &configDir{path: path, prune: prune, store: s, log: log, files: map[string]*dirFile{}, due: map[string]bool{}, untidy: true}
}

// run looks at the folder until ctx ends.
func (d *configDir) run(ctx context.Context) {
	tick := time.NewTicker(dirEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.look(time.Now()); err != nil && ctx.Err() == nil {
			d.mu.Lock()
			news := d.trouble != err.Error()
			d.trouble = err.Error()
			d.mu.Unlock()
			if news {
				d.log.Error("configuration directory not taken, entries stay as they are", "problem", err)
			}
		}
	}
}

// look brings the store up to the folder. An error is about the folder or the store as
// a whole: then nothing was deleted.
func (d *configDir) look(now time.Time) error {
	seen, err := d.list()
	if err != nil {
		return fmt.Errorf("config directory %q: %w", d.path, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.owners()
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		d.read(name, seen[name])
	}
	for name := range d.files {
		if _, there := seen[name]; !there {
			delete(d.files, name)
			delete(d.due, name)
			d.untidy = true
		}
	}
	owners := d.owners()
	for k, name := range owners {
		if before[k] != name {
			d.due[name] = true
		}
	}
	d.judgeRivals(owners)
	if len(d.due) > 0 || d.untidy && d.prune {
		if err := d.take(owners, now); err != nil {
			return fmt.Errorf("config directory %q: %w", d.path, err)
		}
	}
	for name := range d.due {
		if d.files[name].refused == "" { // else it is tried again: what is around it may change
			delete(d.due, name)
		}
	}
	if d.trouble != "" {
		d.trouble = ""
		d.log.Info("configuration directory is taken again", "directory", d.path)
	}
	return nil
}

// list is the folder's files that hold entries.
func (d *configDir) list() (map[string]os.FileInfo, error) {
	all, err := os.ReadDir(d.path)
	if err != nil {
		return nil, reasonOf(err)
	}
	out := map[string]os.FileInfo{}
	for _, e := range all {
		name := e.Name()
		if ext := strings.ToLower(filepath.Ext(name)); strings.HasPrefix(name, ".") || ext != ".hcl" && ext != ".json" && ext != ".yaml" && ext != ".yml" {
			continue
		}
		info, err := os.Stat(filepath.Join(d.path, name)) // what a link leads to
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, reasonOf(err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if len(out) == maxDirFiles {
			return nil, fmt.Errorf("more than %d files", maxDirFiles)
		}
		out[name] = info
	}
	return out, nil
}

// reasonOf is an error of the file system without the path.
func reasonOf(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// read takes a file in if it has changed.
func (d *configDir) read(name string, info os.FileInfo) {
	f := d.files[name]
	if f != nil && f.changed.Equal(info.ModTime()) && f.size == info.Size() {
		return
	}
	next := &dirFile{changed: info.ModTime(), size: info.Size()}
	if f != nil {
		next.entry = f.entry
	}
	d.files[name] = next
	path := filepath.Join(d.path, name)
	e, err := readEntry(path)
	if err != nil {
		next.problem = firstLine(err)
		d.log.Error("configuration file not taken, its entry stays as it was when it was last right", "file", path, "problem", next.problem)
		return
	}
	d.untidy = d.untidy || next.entry != nil && config.KeyOf(next.entry) != config.KeyOf(e)
	next.entry = e
	d.due[name] = true
}

func readEntry(path string) (config.Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, reasonOf(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDirFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, reasonOf(err))
	}
	return config.DecodeEntry(path, b)
}

// firstLine is what is wrong first, and how much more is.
func firstLine(err error) string {
	first, rest, more := strings.Cut(err.Error(), "\n")
	if more {
		first += fmt.Sprintf(" (and %d more)", 1+strings.Count(rest, "\n"))
	}
	return first
}

// owners says which file an entry comes from: of several the first by name.
func (d *configDir) owners() map[config.Key]string {
	out := map[config.Key]string{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		if e := d.files[name].entry; e != nil {
			if _, taken := out[config.KeyOf(e)]; !taken {
				out[config.KeyOf(e)] = name
			}
		}
	}
	return out
}

const rivalOf = " is given already by "

// judgeRivals finds the files whose entry another one gives.
func (d *configDir) judgeRivals(owners map[config.Key]string) {
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		if f.entry == nil {
			continue
		}
		k := config.KeyOf(f.entry)
		problem := ""
		if owners[k] != name {
			problem = fmt.Sprintf("%s: %s %q:%s%s", filepath.Join(d.path, name), k.Kind, k.Name, rivalOf, owners[k])
		}
		switch {
		case problem != "" && f.problem == "":
			d.log.Error("configuration file not taken", "file", filepath.Join(d.path, name), "problem", problem)
			f.problem = problem
		case problem == "" && strings.Contains(f.problem, rivalOf):
			f.problem = ""
		}
	}
}

// take writes what is due and deletes what is to be pruned: at once, or where the
// store refuses that, as much of it as fits together.
func (d *configDir) take(owners map[config.Key]string, now time.Time) error {
	due := slices.DeleteFunc(slices.SortedFunc(maps.Keys(owners), config.Key.Compare), func(k config.Key) bool { return !d.due[owners[k]] })
	err := d.apply(owners, due, d.prune, now)
	if _, refused := errors.AsType[*store.Refusal](err); !refused {
		if err == nil {
			d.untidy, d.stuck = false, ""
			d.refuse(owners, due, nil)
		}
		return err
	}
	reasons := map[config.Key]error{}
	for progress := true; progress; {
		progress = false
		due = slices.DeleteFunc(due, func(k config.Key) bool {
			e := d.apply(owners, []config.Key{k}, false, now)
			if _, refused := errors.AsType[*store.Refusal](e); e != nil && !refused {
				err = e
				return false
			}
			if e == nil {
				d.refuse(owners, []config.Key{k}, nil)
				progress = true
			}
			reasons[k] = e
			return e == nil
		})
	}
	if _, refused := errors.AsType[*store.Refusal](err); !refused {
		return err
	}
	d.refuse(owners, due, reasons)
	if !d.prune || !d.untidy {
		return nil
	}
	stuck := ""
	err = d.apply(owners, nil, true, now)
	if _, refused := errors.AsType[*store.Refusal](err); refused {
		stuck, err = fmt.Sprintf("%s: entries whose files are gone are not deleted: %s", d.path, firstLine(err)), nil
		if stuck != d.stuck {
			d.log.Error("entries not deleted though their files are gone", "problem", stuck)
		}
	}
	d.stuck, d.untidy = stuck, err != nil || stuck != ""
	return err
}

// refuse notes why files are not taken, or that they are.
func (d *configDir) refuse(owners map[config.Key]string, keys []config.Key, reasons map[config.Key]error) {
	for _, k := range keys {
		f, path := d.files[owners[k]], filepath.Join(d.path, owners[k])
		reason := ""
		if err := reasons[k]; err != nil {
			reason = fmt.Sprintf("%s: %s: %s", path, k, firstLine(err))
		}
		if reason != "" && reason != f.refused {
			d.log.Error("configuration file not taken, it does not fit the other entries", "file", path, "problem", reason)
		}
		f.refused = reason
	}
}

// apply writes entries of files and, with prune, deletes what is to be, all or nothing.
func (d *configDir) apply(owners map[config.Key]string, keys []config.Key, prune bool, now time.Time) error {
	var wrote, pruned, kept []string
	err := d.store.Update(func(w *store.Writer) error {
		wrote, pruned, kept = nil, nil, nil
		gave := gaveOf(&w.Reader)
		before := maps.Clone(gave)
		for _, k := range keys {
			name := owners[k]
			e, older := gave.succeed(w.Entry(k), d.files[name].entry)
			if older {
				kept = append(kept, k.String())
			}
			before := w.Index()
			if err := w.PutEntry(e, store.Author{Who: dirAuthor + name, Time: now}); err != nil {
				return err
			}
			if w.Index() != before {
				wrote = append(wrote, k.String())
			}
		}
		if !maps.Equal(before, gave) {
			if err := gave.put(w); err != nil {
				return err
			}
		}
		if !prune {
			return nil
		}
		for _, e := range w.Entries("") {
			k := config.KeyOf(e.Entry)
			from, ok := fromDir(w.Latest(k))
			if !ok || !abandoned(k, from, owners, d.files) {
				continue
			}
			if err := w.DeleteEntry(k, store.Author{Who: dirAuthor + from, Time: now}); err != nil {
				return err
			}
			pruned = append(pruned, k.String())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range wrote {
		d.log.Info("entry taken from the configuration directory", "entry", k)
	}
	for _, k := range kept {
		d.log.Info("shares in the configuration directory are older than those in force, which stay", "entry", k)
	}
	for _, k := range pruned {
		d.log.Info("entry deleted: its file in the configuration directory is gone", "entry", k)
	}
	return nil
}

// gave are the shares that files gave last, by traffic-shift.
type gave map[string]config.Shares

func gaveOf(r *store.Reader) gave {
	out := gave{}
	if err := json.Unmarshal(r.State(dirName), &out); err != nil {
		return gave{}
	}
	return out
}

func (g gave) put(w *store.Writer) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	return w.PutState(dirName, b)
}

// succeed is what is written for a file, given what the store has. Shares that the folder gave
// before leave those alone that the store has by now, unless they are of a higher generation.
func (g gave) succeed(was *store.Entry, next config.Entry) (e config.Entry, older bool) {
	file, ok := next.(*config.TrafficShift)
	if !ok {
		return next, false
	}
	last, again := g[file.EntryName()]
	g[file.EntryName()] = file.Shares
	if was == nil || !again || last != file.Shares {
		return next, false
	}
	now, ok := was.Entry.(*config.TrafficShift)
	if !ok || now.Shares == file.Shares || file.Generation > now.Generation {
		return next, false
	}
	merged := *file
	merged.Shares, merged.Generation = now.Shares, now.Generation
	return &merged, true
}

// fromDir is the file that the newest version of an entry came from, if it came from one.
func fromDir(v *store.Version) (file string, ok bool) {
	if v == nil {
		return "", false
	}
	return strings.CutPrefix(v.Who, dirAuthor)
}

// abandoned decides whether an entry that came from a file has lost it. A file that is
// there and was never right since the start may be that of any entry it once gave.
func abandoned(k config.Key, file string, owners map[config.Key]string, files map[string]*dirFile) bool {
	if _, owned := owners[k]; owned {
		return false
	}
	f := files[file]
	return f == nil || f.entry != nil
}

// problems lists what is wrong with the folder and its files, sorted.
func (d *configDir) problems() (out []string) {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range []string{d.trouble, d.stuck} {
		if p != "" {
			out = append(out, p)
		}
	}
	for _, f := range d.files {
		if f.problem != "" {
			out = append(out, f.problem)
		}
		if f.refused != "" {
			out = append(out, f.refused)
		}
	}
	slices.Sort(out)
	return out
}
