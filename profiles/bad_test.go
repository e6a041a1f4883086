package profiles

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files of testdata/bad anew")

// copyIn copies a file or folder into the current folder with modes that a
// checkout's umask has no say in.
func copyIn(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if e.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checked loads one case: a single file as `sisod check FILE` does, a folder
// as the daemon does.
func checked(t *testing.T, path string) error {
	t.Helper()
	stat, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	base, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if !stat.IsDir() {
		copyIn(t, base, filepath.Base(base))
		_, err := LoadFile(filepath.Base(base))
		return err
	}
	if err := os.Chmod(".", 0o700); err != nil {
		t.Fatal(err)
	}
	copyIn(t, base, ".")
	_, err = Load("", ".")
	return err
}

func TestBadProfilesGetTheirExactText(t *testing.T) {
	entries, err := os.ReadDir("testdata/bad")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := filepath.Abs("testdata/bad")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".txt") {
			continue
		}
		cases++
		name := strings.TrimSuffix(e.Name(), ".toml")
		t.Run(name, func(t *testing.T) {
			golden := filepath.Join(folder, name+".txt")
			err := checked(t, filepath.Join(folder, e.Name()))
			var all Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("no complaint: %v", err)
			}
			got := all.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
	if cases < 150 {
		t.Errorf("%d cases in testdata/bad; the corpus had more", cases)
	}
	texts, err := filepath.Glob("testdata/bad/*.txt")
	if err != nil || len(texts) != cases {
		t.Errorf("%d cases and %d texts (%v)", cases, len(texts), err)
	}
}

func TestComplaintsAreSorted(t *testing.T) {
	err := checked(t, "testdata/bad/mixed-all-at-once")
	var all Errors
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	sorted := slices.IsSortedFunc(all, func(a, b *Error) int { return strings.Compare(a.Pos.String(), b.Pos.String()) })
	if !sorted || len(all) < 5 {
		t.Errorf("%d complaints, sorted: %t\n%v", len(all), sorted, err)
	}
}
