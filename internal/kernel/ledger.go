package kernel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// defaultRunDir is where the ledger and the locks are.
const defaultRunDir = "/run/sisod"

// ledgerFile is the name of the ledger below the run folder.
const ledgerFile = "ledger.json"

// ledger remembers what objects without an owner mark were like before sisod
// changed them. Every other process that changes this host for sisod keeps
// the same file, so it is read again whenever it is another file than before;
// who writes holds the Lock.
type ledger struct {
	path string
	log  *slog.Logger
	here origin

	page    page
	written []byte // the file's content
	stamp   stamp
	dirty   bool
	told    map[any]bool // entries whose loss was logged
	absent  map[any]bool // entries whose object was seen to be gone
	// elsewhere: the file is another network namespace's of this boot.
	elsewhere bool
}

// origin is the boot and the network namespace that values were found in.
type origin struct {
	Boot      string `json:"boot"`
	Namespace string `json:"namespace"`
}

// page is the ledger's content.
type page struct {
	origin
	Sysctls []sysctlEntry `json:"sysctls,omitempty"`
	Along   []alongEntry  `json:"sysctls_along,omitempty"`
	Groups  []groupEntry  `json:"link_groups,omitempty"`
	Known   []knownEntry  `json:"known_gateways,omitempty"`
	Marks   []markEntry   `json:"marks,omitempty"`
	NFTable bool          `json:"nft_table,omitempty"` // there may be one of sisod's
	Tables  []uint32      `json:"tables,omitempty"`    // all that may hold routes of sisod's; none: not known
	roles
}

// sysctlPlace names a sysctl so that a rename of its link does not matter:
// with a Link, the name in Path is "*".
type sysctlPlace struct {
	Path string `json:"path"`
	Link int    `json:"link,omitempty"` // interface index
}

type sysctlEntry struct {
	sysctlPlace
	Found string `json:"found"`
	Set   string `json:"set"`
	// Prior is what sisod had set before Set: until the change is done, and
	// nobody can say when a killed process had done it, both are sisod's.
	Prior *string `json:"prior,omitempty"`
}

type groupEntry struct {
	Link  int     `json:"link"` // interface index
	Found uint32  `json:"found"`
	Set   uint32  `json:"set"`
	Prior *uint32 `json:"prior,omitempty"`
}

type knownEntry struct {
	Uplink    string       `json:"uplink"`
	Interface string       `json:"interface"`
	Family    state.Family `json:"family"`
	Via       netip.Addr   `json:"via"` // "": point-to-point
}

// markEntry is a mark that connections may carry.
type markEntry struct {
	Owner  string `json:"owner"`
	Number uint32 `json:"number"`
	Mask   uint32 `json:"mask"`
}

func (e sysctlEntry) owns(value string) bool {
	return value == e.Set || e.Prior != nil && value == *e.Prior
}

func (e groupEntry) owns(group uint32) bool {
	return group == e.Set || e.Prior != nil && group == *e.Prior
}

// stamp tells one version of a file from another.
type stamp struct {
	inode    uint64
	size     int64
	modified time.Time
}

// openLedger reads the ledger of the calling thread's network namespace. A
// ledger of another boot or namespace counts as empty.
func openLedger(dir string, log *slog.Logger) (*ledger, error) {
	if dir == "" {
		dir = defaultRunDir
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &ledger{path: filepath.Join(dir, ledgerFile), log: log, told: map[any]bool{}, absent: map[any]bool{}}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	g.here.Boot = strings.TrimSpace(string(boot))
	if g.here.Namespace, err = namespaceIdentity(); err != nil {
		return nil, fmt.Errorf("read identity of network namespace: %w", err)
	}
	g.page.origin = g.here
	if err := g.refresh(); err != nil {
		return nil, err
	}
	return g, nil
}

// namespaceIdentity is the cookie of the calling thread's network namespace
// (SO_NETNS_COOKIE, since Linux 5.14), which no later one gets; before that the
// inode of the namespace, which may be used again.
func namespaceIdentity() (string, error) {
	// Any socket tells it; one of netlink the daemon's unit allows.
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err == nil {
		cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		unix.Close(s)
		if err == nil {
			return fmt.Sprintf("cookie %d", cookie), nil
		}
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("inode %d", st.Ino), nil
}

// refresh reads the file when it is not the one that was read or written last.
func (g *ledger) refresh() error {
	if g.dirty {
		return nil
	}
	now, err := stampOf(g.path)
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	if now == g.stamp {
		return nil
	}
	g.page, g.written, g.stamp, g.elsewhere = page{origin: g.here}, nil, now, false
	clear(g.absent)
	if now == (stamp{}) {
		return nil
	}
	content, err := os.ReadFile(g.path)
	if err != nil {
		g.stamp = stamp{}
		return fmt.Errorf("read ledger: %w", err)
	}
	g.written = content
	p := page{}
	if err := json.Unmarshal(content, &p); err != nil || p.Boot == "" || p.Namespace == "" {
		g.setAside(err)
		return nil
	}
	g.elsewhere = p.Boot == g.here.Boot && p.Namespace != g.here.Namespace
	if p.origin == g.here {
		g.page = p
	}
	return nil
}

// claim refuses a ledger that is another network namespace's of this boot: to
// write it would lose what is to be given back there.
func (g *ledger) claim() error {
	if err := g.refresh(); err != nil {
		return err
	}
	if g.elsewhere {
		return fmt.Errorf("%s belongs to another network namespace: give this one folders of its own (--run-dir, --state-dir, --iproute2-dir), or remove the file if that namespace is gone", g.path)
	}
	return nil
}

// setAside keeps a damaged ledger for a human to read.
func (g *ledger) setAside(why error) {
	if why == nil {
		why = errors.New("boot or namespace missing")
	}
	aside := g.path + ".damaged"
	err := os.Rename(g.path, aside)
	g.log.Error("ledger is damaged: values that sisod changed before cannot be given back by flush",
		"file", g.path, "kept_as", aside, "cause", why, "rename", err)
	if err == nil {
		g.stamp, g.written = stamp{}, nil
	}
}

func stampOf(path string) (stamp, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return stamp{}, nil
	}
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: st.Size(), modified: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s, nil
}

// save writes the ledger when it says something new.
func (g *ledger) save() error {
	if !g.dirty {
		return nil
	}
	slices.SortFunc(g.page.Sysctls, func(a, b sysctlEntry) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), a.Link-b.Link)
	})
	slices.SortFunc(g.page.Groups, func(a, b groupEntry) int { return a.Link - b.Link })
	g.tidy()
	content, err := json.MarshalIndent(g.page, "", "  ")
	if err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	content = append(content, '\n')
	if bytes.Equal(content, g.written) {
		g.dirty = false
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(g.path), 0o755); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := renameio.WriteFile(g.path, content, 0o644, renameio.WithTempDir(filepath.Dir(g.path)), renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	g.dirty, g.written = false, content
	if g.stamp, err = stampOf(g.path); err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	return nil
}

// reload is refresh for those who cannot return an error: an unreadable
// ledger leaves what was known.
func (g *ledger) reload() {
	if err := g.refresh(); err != nil {
		g.log.Warn("ledger not read again", "error", err)
	}
}

// before returns what can still be given back: values that are as sisod set
// them. What somebody else has changed since is theirs. read reads a sysctl.
func (g *ledger) before(l *links, read func(path string) (string, error)) state.Before {
	g.reload()
	b := state.Before{Groups: map[string]uint32{}, Sysctls: map[string]string{}, Up: g.upBefore(l)}
	for _, link := range l.all() {
		i := g.groupAt(link.Index)
		if i < 0 {
			continue
		}
		e := g.page.Groups[i]
		if link.Group != e.Found && e.owns(link.Group) {
			b.Groups[link.Name] = e.Found
		}
	}
	for _, e := range g.page.Sysctls {
		path := l.path(e.sysctlPlace)
		if path == "" {
			continue
		}
		value, err := read(path)
		if err == nil && value != e.Found && e.owns(value) {
			b.Sysctls[path] = e.Found
		}
	}
	return b
}

// prune takes out of the ledger what is not as sisod set it: it was given back
// by another hand, or is somebody else's now. Were it kept, a value that comes
// to be sisod's own again by chance would be given back as if it were. What is
// not wanted either stays as it is, and that is told. It must be called under
// the lock.
func (g *ledger) prune(l *links, wanted state.State, timeouts state.Timeouts) error {
	if err := g.refresh(); err != nil {
		return err
	}
	groups := slices.DeleteFunc(slices.Clone(g.page.Groups), func(e groupEntry) bool {
		i := slices.IndexFunc(l.all(), func(link state.Link) bool { return link.Index == e.Link })
		if i < 0 {
			return true
		}
		now := l.all()[i]
		if _, asked := wanted.Groups[now.Name]; !asked && !e.owns(now.Group) && now.Group != e.Found {
			g.tell(groupEntry{Link: e.Link, Found: e.Found, Set: e.Set}, "link group", fmt.Sprintf("dev %s group", now.Name), e.Set, now.Group)
		}
		return !e.owns(now.Group)
	})
	sysctls := slices.DeleteFunc(slices.Clone(g.page.Sysctls), func(e sysctlEntry) bool {
		path := l.path(e.sysctlPlace)
		if path == "" {
			return true
		}
		value, err := readSysctl(path)
		if _, asked := wanted.Sysctls[path]; !asked && err == nil && !e.owns(value) && value != e.Found {
			g.tell(sysctlEntry{sysctlPlace: e.sysctlPlace, Found: e.Found, Set: e.Set}, "sysctl", path, e.Set, value)
		}
		return err == nil && !e.owns(value)
	})
	if e, now := g.page.Timeouts, secondsOf(timeouts); e != nil && timeouts != (state.Timeouts{}) && wanted.Timeouts == (state.Timeouts{}) && !e.owns(now) && now != e.Found {
		g.tell(timeoutsEntry{Found: e.Found, Set: e.Set}, "ipvs timeouts", "timeouts", e.Set.timeouts(), timeouts)
	}
	if len(groups) == len(g.page.Groups) && len(sysctls) == len(g.page.Sysctls) {
		return nil
	}
	g.page.Groups, g.page.Sysctls, g.dirty = groups, sysctls, true
	g.page.Along = slices.DeleteFunc(g.page.Along, func(e alongEntry) bool { return g.sysctlAt(sysctlPlace{Path: e.Switch}) < 0 })
	return g.save()
}

// Prune forgets values that sisod set and that are somebody else's by now; it
// tells of those that are not wanted, which nobody will set again. Appliers
// call it under Lock, after Read.
func (h *Host) Prune(wanted state.State) error {
	return h.ledger.prune(h.links, wanted, h.cached.Observed.Timeouts)
}

// tell logs once that an entry is not sisod's any more.
func (g *ledger) tell(entry any, kind, object string, set, now any) {
	if !g.told[entry] {
		g.told[entry] = true
		g.log.Warn(kind+" was changed by somebody else: flush leaves it alone", "object", object, "set", set, "now", now)
	}
}

// ownsSysctl reports whether the value of a place is the one that sisod set.
func (g *ledger) ownsSysctl(p sysctlPlace, value string) bool {
	g.reload()
	i := g.sysctlAt(p)
	return i >= 0 && g.page.Sysctls[i].owns(value)
}

// ownsGroup reports whether the group of a link is the one that sisod set.
func (g *ledger) ownsGroup(index int, group uint32) bool {
	g.reload()
	i := g.groupAt(index)
	return i >= 0 && g.page.Groups[i].owns(group)
}

// sysctlFound is the value that a place had before sisod set one.
func (g *ledger) sysctlFound(p sysctlPlace) (value string, ok bool) {
	i := g.sysctlAt(p)
	if i < 0 {
		return "", false
	}
	return g.page.Sysctls[i].Found, true
}

// noteSysctl records a change that is about to be made.
func (g *ledger) noteSysctl(p sysctlPlace, found, set string) {
	g.reload()
	g.dirty = true
	i := g.sysctlAt(p)
	switch {
	case i < 0:
		g.page.Sysctls = append(g.page.Sysctls, sysctlEntry{sysctlPlace: p, Found: found, Set: set})
	case g.page.Sysctls[i].owns(found):
		g.page.Sysctls[i].Set, g.page.Sysctls[i].Prior = set, &found
	default:
		g.page.Sysctls[i] = sysctlEntry{sysctlPlace: p, Found: found, Set: set}
	}
}

// noteGroup records a change that is about to be made.
func (g *ledger) noteGroup(index int, found, set uint32) {
	g.reload()
	g.dirty = true
	i := g.groupAt(index)
	switch {
	case i < 0:
		g.page.Groups = append(g.page.Groups, groupEntry{Link: index, Found: found, Set: set})
	case g.page.Groups[i].owns(found):
		g.page.Groups[i].Set, g.page.Groups[i].Prior = set, &found
	default:
		g.page.Groups[i] = groupEntry{Link: index, Found: found, Set: set}
	}
}

// forgetSysctl removes an entry that has been given back.
func (g *ledger) forgetSysctl(p sysctlPlace) {
	if i := g.sysctlAt(p); i >= 0 {
		g.dirty = true
		g.page.Sysctls = slices.Delete(g.page.Sysctls, i, i+1)
	}
}

// forgetGroup removes an entry that has been given back.
func (g *ledger) forgetGroup(index int) {
	if i := g.groupAt(index); i >= 0 {
		g.dirty = true
		g.page.Groups = slices.Delete(g.page.Groups, i, i+1)
	}
}

func (g *ledger) sysctlAt(p sysctlPlace) int {
	return slices.IndexFunc(g.page.Sysctls, func(e sysctlEntry) bool { return e.sysctlPlace == p })
}

func (g *ledger) groupAt(index int) int {
	return slices.IndexFunc(g.page.Groups, func(e groupEntry) bool { return e.Link == index })
}

// marks are the numbers that are given.
func (g *ledger) marks() map[state.Mark]bool {
	g.reload()
	marks := map[state.Mark]bool{}
	for _, e := range g.page.Marks {
		if m := state.Mark(e); m.Number > 0 && bits.OnesCount32(m.Mask) > 1 {
			marks[m] = true
		}
	}
	return marks
}

// tabled reports whether there may be a table of nf_tables.
func (g *ledger) tabled() bool {
	g.reload()
	return g.page.NFTable
}

// noteTable records that a table of nf_tables is about to be made, or is gone.
func (g *ledger) noteTable(there bool) error {
	if err := g.claim(); err != nil {
		return err
	}
	if g.page.NFTable == there {
		return nil
	}
	g.page.NFTable, g.dirty = there, true
	return g.save()
}

// noteMark records that a mark is given, or not any more.
func (g *ledger) noteMark(m state.Mark, given bool) error {
	if err := g.claim(); err != nil {
		return err
	}
	g.page.Marks = slices.DeleteFunc(g.page.Marks, func(e markEntry) bool { return state.Mark(e) == m })
	if given {
		g.page.Marks = append(g.page.Marks, markEntry(m))
	}
	slices.SortFunc(g.page.Marks, func(a, b markEntry) int {
		return cmp.Or(strings.Compare(a.Owner, b.Owner), cmp.Compare(a.Number, b.Number))
	})
	g.dirty = true
	return g.save()
}

// known are the gateways in use, now or earlier in this boot.
func (g *ledger) known() map[state.GatewayKey]netip.Addr {
	g.reload()
	known := map[state.GatewayKey]netip.Addr{}
	for _, e := range g.page.Known {
		known[state.GatewayKey{Uplink: e.Uplink, Interface: e.Interface, Family: e.Family}] = e.Via
	}
	return known
}

// remember replaces the known gateways, on disk too, when they differ.
func (g *ledger) remember(known map[state.GatewayKey]netip.Addr) error {
	if maps.Equal(known, g.known()) {
		return nil
	}
	g.page.Known = nil
	for k, via := range known {
		g.page.Known = append(g.page.Known, knownEntry{k.Uplink, k.Interface, k.Family, via})
	}
	slices.SortFunc(g.page.Known, func(a, b knownEntry) int {
		return cmp.Or(strings.Compare(a.Uplink, b.Uplink), int(a.Family)-int(b.Family))
	})
	g.dirty = true
	return g.save()
}

// Remember keeps the gateways in use for later passes and processes. It
// writes only what is new.
func (h *Host) Remember(known map[state.GatewayKey]netip.Addr) error {
	// What is known is read with the values.
	h.stale |= PartValues
	return h.ledger.remember(known)
}
