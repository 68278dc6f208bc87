package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	// fileName holds certificate and key together, so that no crash can leave one without the other.
	fileName = "root.pem"

	typePrivateKey = "PRIVATE KEY"
	maxFile        = 64 << 10 // bytes
)

// loadOrCreate returns the authority in dir. It creates dir (0700) and the file (0600)
// when there is no file, and never replaces one.
func loadOrCreate(dir string, now time.Time) (root *x509.Certificate, key *ecdsa.PrivateKey, created bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, false, fmt.Errorf("CA directory %q: %w", dir, err)
	}
	path := filepath.Join(dir, fileName)
	root, key, err = load(dir, path)
	if !errors.Is(err, fs.ErrNotExist) {
		return root, key, false, err
	}
	if root, key, err = newRoot(now); err != nil {
		return nil, nil, false, err
	}
	if err := store(path, root, key); err != nil {
		return nil, nil, false, fmt.Errorf("CA root %q: create: %w", path, err)
	}
	return root, key, true, nil
}

// load reads the file; an error that is fs.ErrNotExist means that there is none.
func load(dir, path string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if err := closedToOthers(dir, "CA directory", "chmod 700"); err != nil {
		return nil, nil, err
	}
	if err := closedToOthers(path, "CA root", "chmod 600"); err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root %q: %w", path, errors.Unwrap(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("CA root %q: %w", path, errors.Unwrap(err))
	}
	root, key, err := decodeRoot(data)
	if err != nil {
		return nil, nil, fmt.Errorf("CA root %q: %w (restore the file, or move it away to start a new trust domain)", path, err)
	}
	return root, key, nil
}

// closedToOthers refuses what group or others may touch. Its error is fs.ErrNotExist
// when there is nothing at path.
func closedToOthers(path, what, remedy string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s %q: %w", what, path, errors.Unwrap(err))
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s %q: mode %#o lets others at the key: %s %s", what, path, perm, remedy, path)
	}
	return nil
}

// decodeRoot wants one certificate and one key that belong together.
func decodeRoot(data []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	var (
		root *x509.Certificate
		key  *ecdsa.PrivateKey
	)
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, nil, errors.New("not PEM")
		}
		data = rest
		switch {
		case block.Type == typeCertificate && root == nil:
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, err
			}
			root = c
		case block.Type == typePrivateKey && key == nil:
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, errors.New("the key cannot be read") // the cause could quote the key
			}
			ec, ok := k.(*ecdsa.PrivateKey)
			if !ok {
				return nil, nil, errors.New("the key is not an ECDSA key")
			}
			key = ec
		default:
			return nil, nil, fmt.Errorf("a PEM block %q too many", block.Type)
		}
	}
	switch {
	case root == nil:
		return nil, nil, errors.New("no certificate in it")
	case key == nil:
		return nil, nil, errors.New("no key in it")
	}
	return root, key, checkRoot(root, key)
}

// encodeRoot is a root with its key, PEM.
func encodeRoot(root *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: root.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: typePrivateKey, Bytes: der})...), nil
}

// store writes the file so that after a crash it is there whole or not at all.
// It fails when the file exists.
func store(path string, root *x509.Certificate, key *ecdsa.PrivateKey) (err error) {
	text, err := encodeRoot(root, key)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+fileName+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	_, err = tmp.Write(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadDir is the root in a directory with its key, PEM, or nil when there is none.
func ReadDir(dir string) ([]byte, error) {
	root, key, err := load(dir, filepath.Join(dir, fileName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return encodeRoot(root, key)
}

// WriteDir puts a root with its key into a directory that has none.
func WriteDir(dir string, text []byte) error {
	root, key, err := decodeRoot(text)
	if err != nil {
		return fmt.Errorf("CA root: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("CA directory %q: %w", dir, err)
	}
	path := filepath.Join(dir, fileName)
	if err := store(path, root, key); err != nil {
		return fmt.Errorf("CA root %q: create: %w", path, err)
	}
	return nil
}
