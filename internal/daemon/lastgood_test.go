package daemon

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/profiles"
)

// configDir is a configuration of one profile and a list of prefixes elsewhere.
func configDir(t *testing.T) (dir, profile, list string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "etc", "sisod")
	profile, list = filepath.Join(dir, "profiles", "isp.toml"), filepath.Join(top, "lists", "cn.zone")
	write(t, list, "10.1.0.0/16\n")
	write(t, profile, profileWith("em1", list))
	return dir, profile, list
}

func profileWith(link, list string) string {
	return "[uplink.isp]\ninterface = \"" + link + "\"\nto = [\"@" + list + "\"]\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, dir string) *profiles.Config {
	t.Helper()
	c, err := profiles.Load("", dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keptLink is the interface in the kept copy, "" when there is none.
func keptLink(t *testing.T, l lastGood, dir string) string {
	t.Helper()
	c, err := l.load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c == nil {
		return ""
	}
	return c.Uplinks[0].Interface
}

func TestLastGoodCopyIsWhole(t *testing.T) {
	dir, profile, list := configDir(t)
	l := lastGood{t.TempDir()}
	if got := keptLink(t, l, dir); got != "" {
		t.Errorf("a copy of %s before any was kept", got)
	}
	c := load(t, dir)
	if err := l.keep(c, dir); err != nil {
		t.Fatal(err)
	}
	// The originals are gone, lists and all.
	for _, path := range []string{profile, list} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := l.load(dir)
	if err != nil || kept == nil {
		t.Fatalf("load the copy: %v", err)
	}
	if u := kept.Uplinks[0]; u.Interface != "em1" || len(u.To) != 1 || u.To[0].Prefixes.Len() != 1 || u.Pos.File != profile {
		t.Errorf("the copy says %+v", u)
	}
}

func TestLastGoodCopyIsReplacedByAnother(t *testing.T) {
	dir, profile, list := configDir(t)
	l := lastGood{t.TempDir()}
	for _, link := range []string{"em1", "em2", "em3"} {
		write(t, profile, profileWith(link, list))
		if err := l.keep(load(t, dir), dir); err != nil {
			t.Fatal(err)
		}
		if got := keptLink(t, l, dir); got != link {
			t.Errorf("the copy is of %s, want %s", got, link)
		}
	}
	left, err := filepath.Glob(l.root() + "*")
	if err != nil || len(left) != 1 {
		t.Errorf("left in the state folder: %q, %v", left, err)
	}
	// One that is the same is not written again.
	before, err := os.Stat(l.root())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.keep(load(t, dir), dir); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(l.root()); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same copy was written again, %v", err)
	}
}

func TestFileBrokenAfterLoadingIsNotKept(t *testing.T) {
	dir, profile, list := configDir(t)
	l := lastGood{t.TempDir()}
	c := load(t, dir)
	if err := l.keep(c, dir); err != nil {
		t.Fatal(err)
	}
	write(t, profile, "nonsense")
	if err := l.keep(c, dir); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("keep a broken file: %v", err)
	}
	if got := keptLink(t, l, dir); got != "em1" {
		t.Errorf("the copy is of %q", got)
	}
	write(t, profile, profileWith("em1", list))
	good, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	again, err := profiles.LoadAgain("", dir, c, func(profiles.Reading, fs.FileInfo) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]*profiles.Config{"read": c, "not read again": again} {
		write(t, list, "nonsense\n")
		if err := l.keep(c, dir); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
			t.Errorf("keep a broken list that was %s: %v", what, err)
		}
		// One that is another and a good one is kept, when it has been looked at.
		write(t, list, string(good)+"198.51.100.0/24\n")
		if err := l.keep(c, dir); err != nil {
			t.Errorf("keep a changed list that was %s: %v", what, err)
		}
		write(t, list, string(good))
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	if err := l.keep(c, dir); err == nil {
		t.Error("a copy without one of its files is kept")
	}
	if got := keptLink(t, l, dir); got != "em1" {
		t.Errorf("the copy is of %q", got)
	}
}

func TestPowerCutBetweenTwoRenamesLosesNoCopy(t *testing.T) {
	dir, profile, list := configDir(t)
	l := lastGood{t.TempDir()}
	if err := l.keep(load(t, dir), dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.root(), l.old()); err != nil {
		t.Fatal(err)
	}
	if got := keptLink(t, l, dir); got != "em1" {
		t.Errorf("the copy that was put aside is of %q", got)
	}
	write(t, profile, profileWith("em2", list))
	if err := l.keep(load(t, dir), dir); err != nil {
		t.Fatal(err)
	}
	if got := keptLink(t, l, dir); got != "em2" {
		t.Errorf("the copy is of %q", got)
	}
}

func TestEmptyConfigurationIsKeptAsSuch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sisod")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := lastGood{t.TempDir()}
	if err := l.keep(load(t, dir), dir); err != nil {
		t.Fatal(err)
	}
	c, err := l.load(dir)
	if err != nil || c == nil || len(c.Uplinks) != 0 {
		t.Errorf("the copy of nothing is %v, %v", c, err)
	}
}

func TestProfileBrokenRightAfterLoadingIsNotKept(t *testing.T) {
	dir, profile, _ := configDir(t)
	write(t, profile, "[uplink.one]\ninterface = \"em1\"\n")
	c := load(t, dir)
	write(t, profile, "nonsense")
	if err := (lastGood{t.TempDir()}).keep(c, dir); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("keep a broken file: %v", err)
	}
}

func TestKeptCopyIsForItsOwnerAlone(t *testing.T) {
	dir, profile, _ := configDir(t)
	if err := os.Chmod(profile, 0o640); err != nil {
		t.Fatal(err)
	}
	l := lastGood{filepath.Join(t.TempDir(), "state")}
	private := func() {
		t.Helper()
		if err := l.keep(load(t, dir), dir); err != nil {
			t.Fatal(err)
		}
		err := filepath.WalkDir(l.root(), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s is %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	private()
	// A copy of before, of the same files.
	if err := os.Chmod(l.root(), 0o755); err != nil {
		t.Fatal(err)
	}
	private()
	// The folder around has what is for everybody.
	if info, err := os.Stat(l.stateDir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the state folder is %v, %v", info.Mode(), err)
	}
}
