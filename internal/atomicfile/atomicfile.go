// Package atomicfile writes files that are there whole or not at all.
//
// In: a path and content. Out: a file of that content with mode 0600, or the file that was
// there before. The folder has to exist. Writers of one path take turns, which is left to them.
package atomicfile

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
)

// Write writes beside the path, syncs, and renames over what was there, so that its mode is
// 0600 whatever that had. A crash may leave "<path>.tmp", which the next Write replaces.
func Write(path string, content []byte) error {
	return WriteTo(path, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// WriteTo is [Write] of what content writes, which need not be in memory as a whole.
func WriteTo(path string, content func(io.Writer) error) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 16<<10)
	err = errors.Join(content(w), w.Flush(), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
