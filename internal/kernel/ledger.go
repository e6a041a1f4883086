package kernel

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
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
