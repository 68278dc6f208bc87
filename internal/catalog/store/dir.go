package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/crossfade-mesh/crossfade/internal/config"
)

// ReadDir is all that a directory keeps of what servers can share, and the mark of the last that
// was seen of it; the zero one where the directory is one server's own. No server may be using it.
func ReadDir(dir string) (rows []Change, index uint64, mark Mark, err error) {
	file := diskFile
	if _, err := os.Stat(filepath.Join(dir, diskFile)); errors.Is(err, os.ErrNotExist) {
		file = cacheFile
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return nil, 0, mark, fmt.Errorf("data directory %q: neither %s nor %s is in it: want the --data-dir of a server", dir, diskFile, cacheFile)
	}
	d, err := openDisk(dir, file)
	if err != nil {
		return nil, 0, mark, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if mark, err = d.mark(); err != nil {
		return nil, 0, mark, err
	}
	index = firstIndex
	err = d.each(func(t *table, key, value []byte) error {
		if t.name == tableIndex {
			var row indexRow
			if err := json.Unmarshal(value, &row); err != nil {
				return fmt.Errorf("data directory %q: %w", dir, err)
			}
			if row.Subject == subjectAll {
				index = row.Index
			}
		}
		if Kept(t.name) && t.name != tableGraves {
			rows = append(rows, Change{t.name, append([]byte{}, key...), append([]byte{}, value...)})
		}
		return nil
	})
	return rows, index, mark, err
}

// Free says why a directory cannot become one server's own, or nil.
func Free(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, diskFile)); err == nil {
		return fmt.Errorf("data directory %q: %s is in it already: choose another, or move the file away", dir, diskFile)
	}
	return nil
}

// WriteDir makes a directory one server's own, with these rows.
func WriteDir(dir string, rows []Change, index uint64) (err error) {
	if err := Free(dir); err != nil {
		return err
	}
	if err := Retire(dir, cacheFile); err != nil {
		return err
	}
	d, err := openDisk(dir, diskFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, subject := range []string{subjectAll, subjectFloor} {
		value, err := encode(&indexRow{subject, index})
		if err != nil {
			return err
		}
		rows = append(rows, Change{tableIndex, key(subject), value})
	}
	return d.apply(rows)
}

// Moved ends the name of a file whose state has been moved elsewhere.
const Moved = ".moved"

// Retire renames a file of a directory whose state has been moved elsewhere, if it is there; the
// empty name is that of one server's own.
func Retire(dir, file string) error {
	if file == "" {
		file = diskFile
	}
	path := filepath.Join(dir, file)
	if err := os.Rename(path, path+Moved); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("data directory %q: %w", dir, err)
	}
	return nil
}

// Entry is the entry of a row, or nil; one that cannot be read is an error.
func (c Change) Entry() (config.Entry, error) {
	if c.Table != tableEntries {
		return nil, nil
	}
	row, err := decodeEntry(c.Value, nil)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", printable(c.Key), err)
	}
	return row.(*Entry).Entry, nil
}

// KV is the pair of a row, or nil.
func (c Change) KV() *KV {
	if row, err := decodeAs[KV](c.Value, nil); err == nil && c.Table == tableKV {
		return row.(*KV)
	}
	return nil
}

// State is the name and value of a row of [Writer.PutState].
func (c Change) State() (name string, value []byte, ok bool) {
	row, err := decodeAs[stateRow](c.Value, nil)
	if err != nil || c.Table != tableStates {
		return "", nil, false
	}
	return row.(*stateRow).Name, row.(*stateRow).Value, true
}

// StateRow is the row of a state.
func StateRow(name string, value []byte) (Change, error) {
	row, err := encode(&stateRow{name, value})
	return Change{tableStates, key(name), row}, err
}
