package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a computer of a lab. Its methods may be called at the same time.
type Host struct {
	Name string

	lab *Lab
	// thread is in the namespaces as long as the host exists. Programs are
	// started on it, and die with it.
	thread   *thread
	net, mnt int // file descriptors of the namespaces
	links    *netlink.Handle

	mu        sync.Mutex
	closed    bool
	processes map[*Process]bool
}

// baseline is set in every host before its first link, so that what the
// machine has set does not count. Duplicate address detection is off: an
// address serves at once.
var baseline = [...][2]string{
	{"net/ipv4/ip_forward", "0"},
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv4/conf/all/src_valid_mark", "0"},
	{"net/ipv4/conf/all/arp_ignore", "0"},
	{"net/ipv4/conf/all/arp_announce", "0"},
	{"net/ipv4/conf/all/accept_redirects", "0"},
	{"net/ipv4/conf/default/accept_redirects", "0"},
	{"net/ipv4/conf/all/send_redirects", "0"},
	{"net/ipv4/conf/default/send_redirects", "0"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/all/forwarding", "0"},
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/accept_redirects", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
	{"net/ipv6/conf/default/addr_gen_mode", "0"},
}

func newHost(l *Lab, name string) (*Host, error) {
	h := &Host{Name: name, lab: l, net: -1, mnt: -1, processes: map[*Process]bool{}}
	var err error
	h.thread, err = newThread(h.enterNew)
	if err == nil {
		err = h.wake()
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// enterNew makes the host's namespaces around the calling thread.
func (h *Host) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("make namespaces: %w: %w", err, ErrPrivilege)
		}
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := furnish(); err != nil {
		return err
	}
	for kind, fd := range map[string]*int{"net": &h.net, "mnt": &h.mnt} {
		var err error
		*fd, err = unix.Open("/proc/thread-self/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", kind, err)
		}
	}
	var err error
	if h.links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	return nil
}

// wake brings a new host into the state of baseline, with its loopback up.
func (h *Host) wake() error {
	err := h.thread.do(func() error {
		for _, v := range baseline {
			if err := writeSysctl(v[0], v[1]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.Up("lo")
}

// Do runs f on a thread of its own that is in the host's namespaces. What f
// opens stays the host's: sockets, and files below /proc and /sys. Goroutines
// that f starts are elsewhere.
func (h *Host) Do(f func() error) error {
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("enter host %s: %w", h.Name, err)
	}
	result := make(chan error, 1)
	onThread(func() {
		err := errGoexit
		defer func() { result <- err }()
		if err = h.enter(dir); err != nil {
			return
		}
		err = errGoexit
		err = f()
	})
	return <-result
}

// enter takes the calling thread into the host, for good.
func (h *Host) enter(dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("enter host %s: %w", h.Name, os.ErrClosed)
	}
	if err := unix.Setns(h.net, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace of %s: %w", h.Name, err)
	}
	// A mount namespace can only be entered by a thread whose root and
	// working folder are its own; entering moves both to "/".
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter mount namespace of %s: %w", h.Name, err)
	}
	if err := unix.Setns(h.mnt, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace of %s: %w", h.Name, err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter folder %s in %s: %w", dir, h.Name, err)
	}
	return nil
}

// Sysctl sets values below /proc/sys, each "net/ipv4/conf/em1/rp_filter=1".
func (h *Host) Sysctl(values ...string) error {
	return h.Do(func() error {
		for _, v := range values {
			path, value, ok := strings.Cut(v, "=")
			if !ok {
				return fmt.Errorf("set sysctl %q: no = in it", v)
			}
			if err := writeSysctl(path, value); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		}
		return nil
	})
}

func writeSysctl(path, value string) error {
	// Not os.WriteFile: a mistyped name must not ask procfs for a new file.
	f, err := os.OpenFile(filepath.Join("/proc/sys", path), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set sysctl %s=%s: %w", path, value, err)
	}
	return nil
}

// close ends the host's programs, then the host.
func (h *Host) close() {
	h.mu.Lock()
	h.closed = true
	processes := h.processes
	h.processes = map[*Process]bool{}
	h.mu.Unlock()
	for p := range processes {
		p.Kill()
	}
	for p := range processes {
		<-p.done
	}
	if h.thread != nil {
		h.thread.close()
	}
	if h.links != nil {
		h.links.Close()
	}
	for _, fd := range []int{h.net, h.mnt} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
