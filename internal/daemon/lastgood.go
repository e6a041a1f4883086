package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/sisod/sisod/profiles"
)

// lastGood keeps a copy of the configuration that last loaded and was applied,
// as a tree that mirrors absolute paths, so that profiles.Load finds it with
// the tree as its root.
type lastGood struct{ stateDir string }

func (l lastGood) root() string { return filepath.Join(l.stateDir, "last-good") }

// load reads the kept copy of the configuration in dir. It is nil when none is kept.
func (l lastGood) load(dir string) (*profiles.Config, error) {
	if _, err := os.Stat(filepath.Join(l.root(), dir)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return profiles.Load(l.root(), dir)
}

// keep makes the files of a configuration the kept copy. Nothing is written
// when the copy already is the same.
func (l lastGood) keep(c *profiles.Config, dir string) error {
	if l.same(c, dir) {
		return nil
	}
	fresh, old := l.root()+".new", l.root()+".old"
	for _, d := range []string{fresh, old} {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("clear %s: %w", d, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(fresh, dir), 0o755); err != nil {
		return fmt.Errorf("make folder for the last good configuration: %w", err)
	}
	for _, file := range c.Files {
		if err := copyFile(file, filepath.Join(fresh, file)); err != nil {
			return fmt.Errorf("keep the last good configuration: %w", err)
		}
	}
	if err := os.Rename(l.root(), old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put the last good configuration aside: %w", err)
	}
	if err := os.Rename(fresh, l.root()); err != nil {
		return fmt.Errorf("keep the last good configuration: %w", err)
	}
	return os.RemoveAll(old)
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

// same reports whether the kept copy holds exactly these files.
func (l lastGood) same(c *profiles.Config, dir string) bool {
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
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(have, want) {
			return fs.ErrInvalid
		}
		kept++
		return nil
	})
	return err == nil && kept == len(c.Files)
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}
