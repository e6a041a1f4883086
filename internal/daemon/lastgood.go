package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/sisod/sisod/profiles"
)

// lastGood keeps a copy of the configuration that was last in force, as a tree
// that mirrors absolute paths, so that profiles.Load finds it with the tree as
// its root. Its owner alone can read it, as a profile may be for few eyes.
type lastGood struct{ stateDir string }

func (l lastGood) root() string { return filepath.Join(l.stateDir, "last-good") }

// fresh is where a copy is made, and old where the one before is put aside.
func (l lastGood) fresh() string { return l.root() + ".new" }
func (l lastGood) old() string   { return l.root() + ".old" }

// load reads the kept copy of the configuration in dir. It is nil when none is kept.
func (l lastGood) load(dir string) (*profiles.Config, error) {
	// Without the one, a change of copies was cut off between two renames.
	for _, root := range []string{l.root(), l.old()} {
		if _, err := os.Stat(filepath.Join(root, dir)); !errors.Is(err, fs.ErrNotExist) {
			return profiles.Load(root, dir)
		}
	}
	return nil, nil
}

// keep makes the files of a configuration the kept copy. Nothing is written
// when the copy already is the same.
func (l lastGood) keep(c *profiles.Config, dir string) error {
	if l.same(c, dir) {
		return nil
	}
	if err := os.RemoveAll(l.fresh()); err != nil {
		return fmt.Errorf("keep the last good configuration: %w", err)
	}
	asRead, err := l.copy(c, dir)
	if err != nil {
		return fmt.Errorf("keep the last good configuration: %w", err)
	}
	if !asRead {
		// They have been written to since they were loaded.
		if _, err := profiles.Load(l.fresh(), dir); err != nil {
			return fmt.Errorf("keep the last good configuration: its files have changed meanwhile: %w", err)
		}
	}
	if _, err := os.Stat(l.root()); err == nil {
		if err := os.RemoveAll(l.old()); err != nil {
			return fmt.Errorf("keep the last good configuration: %w", err)
		}
		if err := os.Rename(l.root(), l.old()); err != nil {
			return fmt.Errorf("put the last good configuration aside: %w", err)
		}
	}
	if err := os.Rename(l.fresh(), l.root()); err != nil {
		return fmt.Errorf("keep the last good configuration: %w", err)
	}
	return os.RemoveAll(l.old())
}

// copy puts the files into a tree of their own, for good: it has to be whole
// after a power cut. It reports whether they still are what was read.
func (l lastGood) copy(c *profiles.Config, dir string) (asRead bool, err error) {
	folders := map[string]bool{}
	for _, folder := range []string{dir, filepath.Join(dir, profiles.ProfilesDir)} {
		folders[filepath.Join(l.fresh(), folder)] = true
	}
	for _, file := range c.Files {
		folders[filepath.Dir(filepath.Join(l.fresh(), file))] = true
	}
	// The names of the tables may be in there too, for everybody.
	if err := os.MkdirAll(l.stateDir, 0o755); err != nil {
		return false, err
	}
	for folder := range folders {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return false, err
		}
	}
	asRead = true
	for _, file := range c.Files {
		sum, err := copyFile(file, filepath.Join(l.fresh(), file))
		if err != nil {
			return false, err
		}
		asRead = asRead && sum == c.Readings[file].Sum
	}
	for folder := range folders {
		if err := flush(folder); err != nil {
			return false, err
		}
	}
	return asRead, nil
}

// KeepLastGood keeps the configuration in dir as the one to fall back to.
func KeepLastGood(stateDir, dir string, c *profiles.Config) error {
	dir, err := Absolute(dir)
	if err != nil {
		return err
	}
	return lastGood{stateDir}.keep(c, dir)
}

// LastGood loads the kept copy of the configuration in dir; it is nil when
// none is kept.
func LastGood(stateDir, dir string) (*profiles.Config, error) {
	dir, err := Absolute(dir)
	if err != nil {
		return nil, err
	}
	return lastGood{stateDir}.load(dir)
}

// same reports whether the kept copy holds exactly these files, and is not one
// that others can read, as they were made once.
func (l lastGood) same(c *profiles.Config, dir string) bool {
	const others = 0o077
	if top, err := os.Stat(l.root()); err != nil || top.Mode().Perm()&others != 0 {
		return false
	}
	if _, err := os.Stat(filepath.Join(l.root(), dir)); err != nil {
		return false
	}
	kept := 0
	err := filepath.WalkDir(l.root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file := path[len(l.root()):]
		if !slices.Contains(c.Files, file) {
			return fs.ErrInvalid
		}
		if same, err := sameContent(path, file); err != nil || !same {
			return fs.ErrInvalid
		}
		kept++
		return nil
	})
	return err == nil && kept == len(c.Files)
}

// sameContent compares two files piece by piece: a list may have many megabytes.
func sameContent(one, other string) (bool, error) {
	a, err := os.Open(one)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(other)
	if err != nil {
		return false, err
	}
	defer b.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		endedB := errors.Is(errB, io.EOF) || errors.Is(errB, io.ErrUnexpectedEOF)
		switch {
		case err != nil && !ended || errB != nil && !endedB:
			return false, errors.Join(err, errB)
		case ended || endedB:
			return ended == endedB, nil
		}
	}
}

// copyFile copies a file, for good, and returns the sum of what it copied.
func copyFile(from, to string) (sum uint64, err error) {
	source, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer source.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	copied := profiles.NewSum()
	_, err = io.Copy(io.MultiWriter(f, copied), source)
	return copied.Sum64(), errors.Join(err, f.Sync(), f.Close())
}

// flush makes the names in a folder outlive a power cut.
func flush(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
