package kernel

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// oddTableNames has all that iproute2 reads, and then a line that it does not.
const oddTableNames = `# comment
 	 # comment
255	local

100 plain
0x7d1 hex
12abc
2002 commented # trailing
2003 extra words
  2004	indented
junk line
2005 behind
99999999999 large
2006
2007 # nameless
`

func TestTableNamesAreReadAsIPRoute2Does(t *testing.T) {
	got := parseTableNames([]byte(oddTableNames))
	want := map[string]uint32{
		"local": 255, "plain": 100, "hex": 2001, "abc": 12, "commented": 2002, "extra": 2003, "indented": 2004, "behind": 2005,
	}
	if !maps.Equal(got, want) {
		t.Fatalf("read %v, want %v", got, want)
	}
	// The oracle reads the same file from where it looks for it.
	enterNamespace(t)
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	readable, _, _ := strings.Cut(oddTableNames, "junk")
	writeFiles(t, dir, map[string]string{"rt_tables": "", "rt_tables.d/odd.conf": readable})
	if err := unix.Mount(dir, "/etc/iproute2", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("%v: install iproute2", err)
	}
	for name, number := range want {
		if name == "behind" {
			continue
		}
		ip(t, "rule add pref 77 lookup "+name)
		ip(t, "rule del pref 77 lookup "+state.Names{}.Table(number))
	}
}

func TestTableNamesOfTheAdministratorWin(t *testing.T) {
	h := &Host{options: Options{IPRoute2Dir: t.TempDir(), Root: t.TempDir()}}
	read := func() (system, own map[string]uint32) {
		t.Helper()
		system, own, err := h.readNames()
		if err != nil {
			t.Fatal(err)
		}
		return system, own
	}
	builtin := map[string]uint32{"main": 254, "local": 255, "default": 253}
	if system, own := read(); !maps.Equal(system, builtin) || len(own) != 0 {
		t.Errorf("without files: %v %v", system, own)
	}
	writeFiles(t, h.options.Root, map[string]string{
		"usr/share/iproute2/rt_tables":           "100 vendor\n",
		"usr/share/iproute2/rt_tables.d/a.conf":  "101 a-vendor\n",
		"usr/share/iproute2/rt_tables.d/b.conf":  "102 b-vendor\n103 shared\n",
		"usr/lib/iproute2/rt_tables":             "104 not-read\n",
		"usr/lib/iproute2/rt_tables.d/lib.conf":  "105 lib\n",
		"usr/share/iproute2/rt_tables.d/no.txt":  "106 no\n",
		"usr/share/iproute2/rt_tables.d/.x.conf": "107 hidden\n",
	})
	writeFiles(t, h.options.IPRoute2Dir, map[string]string{
		"rt_tables.d/a.conf":     "201 a-admin\n",
		"rt_tables.d/z.conf":     "203 shared\n",
		"rt_tables.d/sisod.conf": "11500 china\n",
	})
	want := map[string]uint32{"vendor": 100, "a-admin": 201, "b-vendor": 102, "shared": 203, "lib": 105}
	maps.Copy(want, builtin)
	if system, own := read(); !maps.Equal(system, want) || !maps.Equal(own, map[string]uint32{"china": 11500}) {
		t.Errorf("read %v %v, want %v", system, own, want)
	}
	writeFiles(t, h.options.IPRoute2Dir, map[string]string{"rt_tables": "300 admin\n"})
	delete(want, "vendor")
	want["admin"] = 300
	if system, _ := read(); !maps.Equal(system, want) {
		t.Errorf("read %v, want %v", system, want)
	}
	// What cannot be read is not empty.
	if err := os.Remove(filepath.Join(h.options.IPRoute2Dir, "rt_tables")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.options.IPRoute2Dir, "rt_tables"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.readNames(); err == nil {
		t.Error("an unreadable rt_tables was taken for an empty one")
	}
}

func TestNamesFileIsWrittenAsAWhole(t *testing.T) {
	h := &Host{options: Options{IPRoute2Dir: filepath.Join(t.TempDir(), "new"), Root: t.TempDir()}}
	file := filepath.Join(h.options.IPRoute2Dir, "rt_tables.d/sisod.conf")
	step := func(op state.Op, number uint32, name string) state.Step {
		return state.Step{Op: op, Object: state.TableName{Number: number, Name: name}}
	}
	mustApply(t, h.applyNames([]state.Step{step(state.Add, 11501, "abroad"), step(state.Add, 101, "china")}))
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := namesHeader + "101\tchina\n11501\tabroad\n"; string(content) != want {
		t.Errorf("wrote\n%s\nwant\n%s", content, want)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o644 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	if _, own, err := h.readNames(); err != nil || !maps.Equal(own, map[string]uint32{"china": 101, "abroad": 11501}) {
		t.Errorf("read back %v %v", own, err)
	}
	mustApply(t, h.applyNames([]state.Step{step(state.Add, 101, "china")}))
	if now, err := os.Stat(file); err != nil || !os.SameFile(st, now) {
		t.Errorf("written again with the same content: %v", err)
	}
	if errs := h.applyNames([]state.Step{step(state.Add, 102, "two words"), step(state.Delete, 101, "china")}); errs[0] == nil || errs[1] != nil {
		t.Errorf("errors %v", errs)
	}
	mustApply(t, h.applyNames([]state.Step{step(state.Delete, 11501, "abroad")}))
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("without names the file is still there: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestTableNamesAreWrittenWhereTheLinkLeads(t *testing.T) {
	for _, link := range []string{"../../lib/names.conf", "absolute"} {
		top := t.TempDir()
		place := filepath.Join(top, "lib", "names.conf")
		for _, dir := range []string{"lib", "iproute2/rt_tables.d"} {
			if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if link == "absolute" {
			link = place
		}
		h := &Host{options: Options{IPRoute2Dir: filepath.Join(top, "iproute2"), Root: top}}
		if err := os.Symlink(link, h.NamesFile()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []map[string]uint32{{"one": 11500, "two": 11501}, {"two": 11501}, {}} {
			if err := h.writeNames(want); err != nil {
				t.Fatal(err)
			}
			if _, own, err := h.readNames(); err != nil || !maps.Equal(own, want) {
				t.Errorf("by a link to %s: read %v (%v), want %v", link, own, err, want)
			}
			if to, err := os.Readlink(h.NamesFile()); err != nil || to != link {
				t.Errorf("the link leads to %q (%v), want %q", to, err, link)
			}
			if _, err := os.Lstat(place); (err == nil) != (len(want) > 0) {
				t.Errorf("with %d names, the place of the link: %v", len(want), err)
			}
		}
	}
}
