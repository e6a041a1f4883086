package kernel

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/renameio/v2"

	"github.com/sisod/sisod/internal/state"
)

// defaultIPRoute2Dir is the administrator's iproute2 folder.
const defaultIPRoute2Dir = "/etc/iproute2"

// vendorIPRoute2Dirs are where newer iproute2 keeps the names that a
// distribution ships, below the root folder.
var vendorIPRoute2Dirs = [...]string{"usr/share/iproute2", "usr/lib/iproute2"}

// namesHeader begins the drop-in.
const namesHeader = `# Names of the routing tables of sisod, which writes this file as a whole.
# A name keeps its number as long as it stands here.
`

func (h *Host) ipRoute2Dir() string { return cmp.Or(h.options.IPRoute2Dir, defaultIPRoute2Dir) }

func (h *Host) root() string { return cmp.Or(h.options.Root, "/") }

// readNames returns the table names of the system and those that sisod has
// recorded. The system's are found as iproute2 finds them (lib/rt_names.c):
// built in, then rt_tables, then rt_tables.d, a file of the administrator in
// place of the vendor's of the same name.
func (h *Host) readNames() (system, own map[string]uint32, err error) {
	system = map[string]uint32{"main": state.TableMain, "local": state.TableLocal, "default": state.TableDefault}
	own = map[string]uint32{}
	dirs := []string{h.ipRoute2Dir()}
	for _, d := range vendorIPRoute2Dirs {
		dirs = append(dirs, filepath.Join(h.root(), d))
	}
	for _, d := range dirs {
		content, err := os.ReadFile(filepath.Join(d, "rt_tables"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read table names: %w", err)
		}
		maps.Copy(system, parseTableNames(content))
		break
	}
	dropIns, err := tableDropIns(dirs)
	if err != nil {
		return nil, nil, fmt.Errorf("read table names: %w", err)
	}
	ownFile := h.NamesFile()
	for _, file := range dropIns {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read table names: %w", err)
		}
		if file == ownFile {
			own = parseTableNames(content)
			// What sisod could not have written is damage, and goes with the next write.
			maps.DeleteFunc(own, func(name string, _ uint32) bool { return !recordable(name) })
		} else {
			maps.Copy(system, parseTableNames(content))
		}
	}
	return system, own, nil
}

// tableDropIns lists the files of rt_tables.d, the administrator's last.
func tableDropIns(dirs []string) ([]string, error) {
	var files []string
	seen := map[string]bool{}
	for _, d := range dirs {
		entries, err := os.ReadDir(filepath.Join(d, "rt_tables.d"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			name := e.Name()
			if strings.HasPrefix(name, ".") || filepath.Ext(name) != ".conf" || e.IsDir() || seen[name] {
				continue
			}
			seen[name] = true
			files = append(files, filepath.Join(d, "rt_tables.d", name))
		}
	}
	slices.Reverse(files)
	return files, nil
}

// parseTableNames reads "number name" lines as iproute2's scanf does, which
// needs no space between the two. What is not such a line says nothing; iproute2
// reads no further there, but a name behind it is somebody's wish all the same.
func parseTableNames(content []byte) map[string]uint32 {
	names := map[string]uint32{}
	for line := range strings.Lines(string(content)) {
		number, rest, ok := leadingNumber(strings.TrimSpace(line))
		if words := strings.Fields(rest); ok && len(words) > 0 && words[0][0] != '#' {
			names[words[0]] = number
		}
	}
	return names
}

// recordable reports whether a name can stand in rt_tables and be read again,
// by programs and by people.
func recordable(name string) bool {
	return name != "" && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '#' || unicode.IsSpace(r) || !unicode.IsGraphic(r) })
}

// leadingNumber cuts a decimal or 0x number off a line.
func leadingNumber(s string) (number uint32, rest string, ok bool) {
	base, digits := 10, "0123456789"
	if hex, found := strings.CutPrefix(s, "0x"); found {
		s, base, digits = hex, 16, "0123456789abcdefABCDEF"
	}
	rest = strings.TrimLeft(s, digits)
	n, err := strconv.ParseUint(s[:len(s)-len(rest)], base, 32)
	return uint32(n), rest, err == nil
}

// NamesFile is the drop-in in which sisod records the names of its tables.
func (h *Host) NamesFile() string {
	return filepath.Join(h.ipRoute2Dir(), filepath.FromSlash(state.TableNamesFile))
}

// applyNames writes the drop-in as a whole, or removes it with its last name.
func (h *Host) applyNames(steps []state.Step) []error {
	errs := make([]error, len(steps))
	_, own, err := h.readNames()
	if err != nil {
		return allSteps(steps, err)
	}
	changed := make([]bool, len(steps))
	for i, s := range steps {
		t, ok := s.Object.(state.TableName)
		if !ok || !recordable(t.Name) {
			errs[i] = fmt.Errorf("%s table name %q: not a table name", s.Op, s.Object.Spell(nil))
			continue
		}
		changed[i] = true
		if s.Op.Removes() {
			if own[t.Name] == t.Number {
				delete(own, t.Name)
			}
			continue
		}
		own[t.Name] = t.Number
	}
	if err := h.writeNames(own); err != nil {
		for i, s := range steps {
			if changed[i] {
				errs[i] = fmt.Errorf("%s table name %s: %w", s.Op, s.Object.Spell(nil), err)
			}
		}
	}
	return errs
}

// allSteps is one error for each of them.
func allSteps(steps []state.Step, err error) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		errs[i] = fmt.Errorf("%s %s %s: %w", s.Op, s.Object.Kind(), s.Object.Spell(nil), err)
	}
	return errs
}

// namesPlace is where the drop-in's content is. Packages make the drop-in a link
// into sisod's own folder: the daemon's user need not write below /etc then.
func (h *Host) namesPlace() string {
	file := h.NamesFile()
	target, err := os.Readlink(file)
	if err != nil {
		return file
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(file), target)
	}
	return target
}

func (h *Host) writeNames(own map[string]uint32) error {
	file := h.namesPlace()
	have, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(own) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	var want bytes.Buffer
	want.WriteString(namesHeader)
	for _, name := range slices.SortedFunc(maps.Keys(own), func(a, b string) int {
		return cmp.Or(cmp.Compare(own[a], own[b]), cmp.Compare(a, b))
	}) {
		fmt.Fprintf(&want, "%d\t%s\n", own[name], name)
	}
	if bytes.Equal(have, want.Bytes()) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return renameio.WriteFile(file, want.Bytes(), 0o644, renameio.WithTempDir(filepath.Dir(file)), renameio.IgnoreUmask())
}
