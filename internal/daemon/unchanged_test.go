package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sisod/sisod/profiles"
)

func TestAFileIsUnchangedOnlyWhenNothingTellsOtherwise(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cn.zone")
	stat := func() os.FileInfo {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	write(t, path, "10.1.0.0/16\n")
	read := profiles.Reading{Stat: stat(), At: time.Now().Add(time.Hour)}
	if !unchanged(read, stat()) {
		t.Error("a file that nobody touched has changed")
	}
	if fresh := (profiles.Reading{Stat: stat(), At: time.Now()}); unchanged(fresh, stat()) {
		t.Error("a file that was read as soon as it was written is taken for unchanged")
	}
	// The file system's clock moves on before each change.
	for what, change := range map[string]func() error{
		"written over, with its time put back": func() error {
			write(t, path, "10.2.0.0/16\n")
			return os.Chtimes(path, time.Time{}, read.Stat.ModTime())
		},
		"renamed over": func() error {
			write(t, path+".new", "10.3.0.0/16\n")
			return os.Rename(path+".new", path)
		},
		"longer": func() error {
			write(t, path, "10.1.0.0/16\n10.3.0.0/16\n")
			return nil
		},
	} {
		write(t, path, "10.1.0.0/16\n")
		read = profiles.Reading{Stat: stat(), At: time.Now().Add(time.Hour)}
		for moved := false; !moved; {
			write(t, path+".clock", "")
			clock, err := os.Stat(path + ".clock")
			if err != nil {
				t.Fatal(err)
			}
			moved = clock.ModTime().After(read.Stat.ModTime())
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if unchanged(read, stat()) {
			t.Errorf("%s: taken for unchanged", what)
		}
	}
}
