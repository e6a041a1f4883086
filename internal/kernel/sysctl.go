package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// procSys is where sysctls are files; net below it is that of the network
// namespace of the thread that opens it (proc(5)).
const procSys = "/proc/sys"

// errNoSysctl is ENOENT in the operator's words.
type errNoSysctl struct{ err error }

func (errNoSysctl) Error() string {
	return "not supported by this kernel, or the interface is gone: no such file"
}
func (e errNoSysctl) Unwrap() error { return e.err }

// readSysctl returns a value with single spaces between its words.
func readSysctl(path string) (string, error) {
	if err := checkSysctlPath(path); err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(procSys, path))
	if err != nil {
		return "", sysctlError(err)
	}
	return strings.Join(strings.Fields(string(b)), " "), nil
}

func writeSysctl(path, value string) error {
	if err := checkSysctlPath(path); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(procSys, path), os.O_WRONLY, 0)
	if err != nil {
		return sysctlError(err)
	}
	_, err = f.WriteString(value + "\n")
	return sysctlError(errors.Join(err, f.Close()))
}

// checkSysctlPath keeps a path from a damaged ledger below net.
func checkSysctlPath(path string) error {
	if !strings.HasPrefix(path, "net/") || !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return fmt.Errorf("sysctl path %q: not a path below net", path)
	}
	return nil
}

// sysctlError drops the path that the caller names anyway.
func sysctlError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errNoSysctl{unix.ENOENT}
	}
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// sysctlLink splits a path at the name of the link whose value it is.
func sysctlLink(path string) (before, link, after string, ok bool) {
	parts := strings.SplitN(path, "/", 5)
	if len(parts) < 5 || parts[0] != "net" || parts[2] != "conf" && parts[2] != "neigh" || parts[3] == "all" || parts[3] == "default" {
		return "", "", "", false
	}
	return strings.Join(parts[:3], "/") + "/", parts[3], "/" + parts[4], true
}

// place is where a sysctl's value lives, whatever its link is called.
func (l *links) place(path string) (sysctlPlace, error) {
	before, name, after, ok := sysctlLink(path)
	if !ok {
		return sysctlPlace{Path: path}, nil
	}
	index := l.index(name)
	if index == 0 {
		return sysctlPlace{}, errNoSysctl{unix.ENOENT}
	}
	return sysctlPlace{Path: before + "*" + after, Link: index}, nil
}

// path is where that place is now, "" when its link is gone.
func (l *links) path(p sysctlPlace) string {
	if p.Link == 0 {
		return p.Path
	}
	before, _, after, ok := sysctlLink(p.Path)
	name := l.name(p.Link)
	if !ok || name == "" {
		return ""
	}
	return before + name + after
}

// applySysctls writes values, the ledger first, and gives one error a step.
func (h *Host) applySysctls(steps []state.Step) []error {
	errs := make([]error, len(steps))
	var due []int
	noted := make([]sysctlPlace, len(steps))
	along := make([][]state.Sysctl, len(steps))
	for i, s := range steps {
		o, ok := s.Object.(state.Sysctl)
		if !ok {
			errs[i] = fmt.Errorf("apply %s: not a sysctl", s.Object.Kind())
			continue
		}
		var found string
		place, err := h.links.place(o.Path)
		if err == nil {
			found, err = readSysctl(o.Path)
		}
		switch {
		case s.Op == state.Restore && errors.Is(err, unix.ENOENT):
			// Gone with its link, and the value with it.
		case err != nil:
			errs[i] = fmt.Errorf("%s sysctl %s: %w", s.Op, o, err)
		case s.Op == state.Restore:
			noted[i] = place
			if h.ledger.ownsSysctl(place, found) {
				along[i] = h.giveBackAlong(o.Path, found, o.Value)
				due = append(due, i)
			}
		case found != o.Value:
			h.ledger.reload()
			h.noteAlong(o.Path, found)
			h.ledger.noteSysctl(place, found, o.Value)
			due = append(due, i)
		}
	}
	if err := h.ledger.save(); err != nil {
		for _, i := range due {
			errs[i] = fmt.Errorf("%s sysctl %s: %w", steps[i].Op, steps[i].Object, err)
		}
		return errs
	}
	for _, i := range due {
		o := steps[i].Object.(state.Sysctl)
		failed := h.expectSysctl(o)
		write := func() error { return writeSysctl(o.Path, o.Value) }
		if steps[i].Op == state.Restore {
			write = func() error { return h.restoreSysctl(o, along[i]) }
		}
		if err := write(); err != nil {
			failed()
			errs[i] = fmt.Errorf("%s sysctl %s: %w", steps[i].Op, o, err)
			noted[i] = sysctlPlace{}
		}
	}
	for _, p := range noted {
		h.ledger.forgetSysctl(p)
	}
	if err := h.ledger.save(); err != nil {
		for i, p := range noted {
			if p.Path != "" {
				errs[i] = errors.Join(errs[i], err)
			}
		}
	}
	return errs
}

// expectSysctl tells the listener of a value that the kernel will announce. The
// result takes it back.
func (h *Host) expectSysctl(o state.Sysctl) (failed func()) {
	parts := strings.Split(o.Path, "/")
	value, err := strconv.ParseInt(o.Value, 10, 32)
	if len(parts) != 5 || parts[2] != "conf" || err != nil {
		return func() {}
	}
	index := h.links.index(parts[3])
	switch parts[3] {
	case "all":
		index = netconfAll
	case "default":
		index = netconfDefault
	}
	return h.links.listener.expectValue(netconfKey{ipv6: parts[1] == "ipv6", index: index, value: parts[4]}, int32(value))
}
