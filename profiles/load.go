package profiles

import (
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// SettingsFile is the name of the file of settings, and ProfilesDir of the
// folder of profiles, both below the configuration's folder.
const (
	SettingsFile = "sisod.toml"
	ProfilesDir  = "profiles"
)

// Load reads dir/sisod.toml and dir/profiles/*.toml and the prefix lists that
// they name. root is put before every path that is opened, and no position
// shows it: a copy of a configuration below root reads as the original does.
// A missing sisod.toml, and a missing or empty folder of profiles, are valid;
// a missing dir is not, because an unmounted disk must not read as "nothing is
// wanted". The error is an Errors with every complaint about every file.
func Load(root, dir string) (*Config, error) { return LoadAgain(root, dir, nil, nil) }

// LoadAgain is Load after an earlier one, which may be nil. A list of prefixes
// whose file unchanged calls the same is not read again.
func LoadAgain(root, dir string, earlier *Config, unchanged func(Reading, fs.FileInfo) bool) (*Config, error) {
	l := &loader{root: root, folders: true, lists: map[string]PrefixList{}}
	if earlier != nil {
		for _, u := range earlier.Uplinks {
			for _, list := range u.To {
				if list.File != "" {
					l.lists[list.File] = list
				}
			}
		}
		l.unchanged = func(path string) bool {
			read, known := earlier.Readings[path]
			same := known && unchanged(read, l.readings[path].Stat)
			if same {
				l.sum(path, read.Sum)
			}
			return same
		}
	}
	if _, ok := l.folder(dir, false); !ok {
		return nil, l.errs.tidy()
	}
	b := newBuilder(l)
	if path := filepath.Join(dir, SettingsFile); l.exists(path) {
		l.settings(path, b)
	}
	folder := filepath.Join(dir, ProfilesDir)
	names, _ := l.folder(folder, true)
	for _, name := range names {
		if !IsProfile(name) {
			continue
		}
		if root := l.document(filepath.Join(folder, name), false); root != nil {
			var raw rawProfile
			decodeTable(root, &raw)
			b.add(raw)
		}
	}
	return b.finish()
}

// LoadFile reads one profile with the default settings, or one sisod.toml.
func LoadFile(path string) (*Config, error) {
	l := &loader{}
	b := newBuilder(l)
	if filepath.Base(path) == SettingsFile {
		l.settings(path, b)
	} else if root := l.document(path, false); root != nil {
		var raw rawProfile
		decodeTable(root, &raw)
		b.add(raw)
	}
	return b.finish()
}

// IsProfile reports whether a file of that name in the folder of profiles is
// read: names in .toml, except what editors leave behind. The leftovers of
// package managers (x.toml.dpkg-old, x.toml.rpmsave) do not end in .toml.
func IsProfile(name string) bool {
	return strings.HasSuffix(name, ".toml") && name != ".toml" && !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "#")
}

// loader opens files and keeps what there is to say about them.
type loader struct {
	root string
	// folders asks that the folders of files are safe as well; a draft that is
	// only to be checked may lie anywhere.
	folders bool
	errs    Errors
	files   []string
	// readings are what the files were.
	readings map[string]Reading
	// lists are those of an earlier load, and unchanged tells which files are as they
	// were then.
	lists     map[string]PrefixList
	unchanged func(path string) bool
}

// list is what an earlier load made of a list that is open now.
func (l *loader) list(path string) (PrefixList, bool) {
	list, known := l.lists[path]
	return list, known && l.unchanged(path)
}

func (l *loader) on(path string) string {
	if l.root == "" {
		return path
	}
	return filepath.Join(l.root, path)
}

// complain is about a file or folder as a whole.
func (l *loader) complain(path string, f *fault) {
	l.errs = append(l.errs, &Error{Pos: Position{File: path}, Text: f.text, Hint: f.hint})
}

// exists is false only when there is no such name: what cannot be read is
// opened later and complained about.
func (l *loader) exists(path string) bool {
	_, err := os.Lstat(l.on(path))
	return !errors.Is(err, fs.ErrNotExist)
}

// folder lists a folder by name. It is false when the folder cannot be listed;
// a missing folder that is optional is an empty one.
func (l *loader) folder(path string, optional bool) ([]string, bool) {
	if optional && !l.exists(path) {
		return nil, true
	}
	stat, err := os.Stat(l.on(path))
	switch {
	case err != nil:
		l.complain(path, l.refusal(path, err, "sisod reads sisod.toml and profiles/*.toml below this folder: create it, or name another with --config"))
		return nil, false
	case !stat.IsDir():
		l.complain(path, faultf("sisod reads sisod.toml and profiles/*.toml below a folder", "this is not a folder"))
		return nil, false
	}
	if bad := writable(path, stat); bad != nil {
		l.complain(path, bad)
		return nil, false
	}
	entries, err := os.ReadDir(l.on(path))
	if err != nil {
		l.complain(path, l.refusal(path, err, ""))
		return nil, false
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, true
}

// writable refuses what others than the owner can write: who can write a
// profile decides where this host's packets go.
func writable(path string, stat fs.FileInfo) *fault {
	if stat.Mode().Perm()&0o022 == 0 {
		return nil
	}
	return faultf("whoever can write it decides where this host's packets go:\nchmod go-w "+path,
		"others than the owner can write this (mode %04o)", stat.Mode().Perm())
}

// refusal words an error of the file system.
func (l *loader) refusal(path string, err error, missing string) *fault {
	if target, linked := os.Readlink(l.on(path)); linked == nil && errors.Is(err, fs.ErrNotExist) {
		return faultf("mend the link or remove it", "this is a symbolic link to %s, which does not exist", target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return faultf(missing, "no such file or folder")
	}
	cause := err
	var p *fs.PathError
	if errors.As(err, &p) {
		cause = fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return faultf("run as root, or give the reader leave; for the daemon's user root's sisod check says how", "%v", cause)
	}
	return faultf("", "%v", cause)
}

// open opens a regular file that nobody else can write. It looks before it
// opens, because opening a pipe would wait for its writer.
func (l *loader) open(path string) (*os.File, int64, *fault) {
	stat, err := os.Stat(l.on(path))
	switch {
	case err != nil:
		return nil, 0, l.refusal(path, err, "")
	case stat.IsDir():
		return nil, 0, faultf("move it away, or give it another name", "this is a folder, not a file")
	case !stat.Mode().IsRegular():
		return nil, 0, faultf("pipes, sockets and devices are not read", "this is not a regular file")
	}
	if bad := writable(path, stat); bad != nil {
		return nil, 0, bad
	}
	if l.folders {
		folder := filepath.Dir(path)
		stat, err := os.Stat(l.on(folder))
		if err != nil {
			return nil, 0, l.refusal(folder, err, "")
		}
		if bad := writable(folder, stat); bad != nil {
			bad.text = folder + ": " + bad.text
			return nil, 0, bad
		}
	}
	now := time.Now()
	f, err := os.Open(l.on(path))
	if err != nil {
		return nil, 0, l.refusal(path, err, "")
	}
	if stat, err = f.Stat(); err != nil {
		f.Close()
		return nil, 0, l.refusal(path, err, "")
	}
	l.files = append(l.files, path)
	if l.readings == nil {
		l.readings = map[string]Reading{}
	}
	l.readings[path] = Reading{Stat: stat, At: now}
	return f, stat.Size(), nil
}

// document reads one TOML file. It complains and returns nil when it cannot.
func (l *loader) document(path string, settings bool) *node {
	f, size, bad := l.open(path)
	if bad != nil {
		l.complain(path, bad)
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	switch {
	case err != nil:
		l.complain(path, l.refusal(path, err, ""))
		return nil
	case len(text) > maxProfile:
		l.complain(path, faultf("a long list of prefixes stands in a file of its own, named in the uplink's key:\nto = [\"@cn.zone\"]",
			"the file has %.1f MB; a profile has at most %d MB", float64(max(size, maxProfile+1))/(1<<20), maxProfile>>20))
		return nil
	}
	if len(text) == 0 && !settings {
		// A full disk and an editor in the middle of its work look like this.
		l.complain(path, faultf("delete the file if nothing is wanted, or write a comment into it", "the file is empty"))
		return nil
	}
	sum := NewSum()
	sum.Write(text)
	l.sum(path, sum.Sum64())
	return parse(path, text, settings, &l.errs)
}

// sum notes the sum of a file that was read.
func (l *loader) sum(path string, sum uint64) {
	reading := l.readings[path]
	reading.Sum = sum
	l.readings[path] = reading
}

// NewSum begins a Reading's sum: of what is written to it.
func NewSum() hash.Hash64 { return crc64.New(sumTable) }

var sumTable = crc64.MakeTable(crc64.ECMA)

func (l *loader) settings(path string, b *builder) {
	if root := l.document(path, true); root != nil {
		var raw rawSettings
		decodeTable(root, &raw)
		b.settings = raw.check()
	}
}

// read lists the files that were read, each once.
func (l *loader) read() []string {
	slices.Sort(l.files)
	return slices.Compact(l.files)
}
