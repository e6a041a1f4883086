package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// daemonPatience is how long a test waits for what the daemon does. The daemon
// has pauses of its own: fight limiter, back-off.
const daemonPatience = 40 * time.Second

// started starts sisod run on a host and waits until it is ready.
func started(t testing.TB, h *lab.Host, env ...string) (*lab.Process, *lab.Lines) {
	t.Helper()
	p, log := startDaemon(t, h, env...)
	ready(t, h)
	return p, log
}

// ready waits for the end of the first pass.
func ready(t testing.TB, h *lab.Host) {
	t.Helper()
	patiently(t, func() error {
		st := daemonStatus(t, h)
		if st.Daemon == nil || st.Daemon.LastPass.IsZero() {
			return errors.New("the daemon has not done a pass")
		}
		return nil
	})
}

// daemonStatus is what sisod status says, whatever its exit code.
func daemonStatus(t testing.TB, h *lab.Host) status {
	t.Helper()
	r := sisod(t, h, "status", "-o", "json")
	var st status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatalf("sisod status -o json: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return st
}

// patiently is wait with daemonPatience.
func patiently(t testing.TB, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), daemonPatience)
	defer cancel()
	if err := lab.Wait(ctx, cond); err != nil {
		t.Fatal(err)
	}
}

// settled waits until sisod plan has nothing to do.
func settled(t testing.TB, h *lab.Host) {
	t.Helper()
	patiently(t, func() error {
		if r := sisod(t, h, "plan"); r.code != 0 {
			return fmt.Errorf("sisod plan: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		return nil
	})
}

// shows waits until an ip command prints a text.
func shows(t testing.TB, h *lab.Host, command, want string) {
	t.Helper()
	patiently(t, func() error {
		if out := ip(t, h, strings.Fields(command)...); !strings.Contains(out, want) {
			return fmt.Errorf("ip %s has no %q:\n%s", command, want, out)
		}
		return nil
	})
}

// lacks waits until an ip command does not print a text.
func lacks(t testing.TB, h *lab.Host, command, word string) {
	t.Helper()
	patiently(t, func() error {
		if out := ip(t, h, strings.Fields(command)...); strings.Contains(out, word) {
			return fmt.Errorf("ip %s still has %q:\n%s", command, word, out)
		}
		return nil
	})
}

// says waits for a line of a log with all the words.
func says(t testing.TB, log *lab.Lines, words ...string) {
	t.Helper()
	patiently(t, func() error {
		for line := range strings.Lines(log.String()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no line of the log has %q", words)
	})
}

// notifySocket is a service manager that keeps what it is told.
type notifySocket struct {
	path string
	conn *net.UnixConn
}

func newNotifySocket(t *testing.T) *notifySocket {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &notifySocket{path: filepath.Join(dir, "socket")}
	if n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.conn.Close() })
	return n
}

// next returns the next message.
func (n *notifySocket) next(t *testing.T) string {
	t.Helper()
	buffer := make([]byte, 4096)
	if err := n.conn.SetReadDeadline(time.Now().Add(daemonPatience)); err != nil {
		t.Fatal(err)
	}
	size, err := n.conn.Read(buffer)
	if err != nil {
		t.Fatalf("no message to the service manager: %v", err)
	}
	return string(buffer[:size])
}

// until returns the messages up to one that begins so.
func (n *notifySocket) until(t *testing.T, prefix string) []string {
	t.Helper()
	var got []string
	for {
		got = append(got, n.next(t))
		if strings.HasPrefix(got[len(got)-1], prefix) {
			return got
		}
	}
}

func TestDaemonTellsSystemd(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	n := newNotifySocket(t)
	p, log := startDaemon(t, h, "NOTIFY_SOCKET="+n.path, "WATCHDOG_USEC=1000000")

	first := n.until(t, "READY=1")
	if r := sisod(t, h, "plan"); r.code != 0 {
		t.Errorf("READY=1 before all was applied, sisod plan:\n%s%s", r.stdout, r.stderr)
	}
	contains(t, strings.Join(first, "\n"), "STATUS=2 uplinks")

	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	reloading := n.until(t, "RELOADING=1")
	var at, now unix.Timespec
	if _, err := fmt.Sscanf(reloading[len(reloading)-1], "RELOADING=1\nMONOTONIC_USEC=%d", &at.Nsec); err != nil {
		t.Errorf("%q: %v", reloading[len(reloading)-1], err)
	}
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	if age := now.Nano()/1000 - at.Nsec; age < 0 || age > time.Minute.Microseconds() {
		t.Errorf("MONOTONIC_USEC=%d is %d µs ago", at.Nsec, age)
	}
	n.until(t, "READY=1")

	// A profile that is broken is told in the status, and a reload of it ends all
	// the same.
	writeProfile(t, h, "isp.toml", "nonsense")
	contains(t, strings.Join(n.until(t, "STATUS=profiles do not load"), "\n"), "isp.toml:1:")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.until(t, "RELOADING=1")
	n.until(t, "READY=1")
	writeProfile(t, h, "isp.toml", smallProfile)
	n.until(t, "STATUS=2 uplinks")

	// Signs of life go on while another process has the lock.
	lock, err := h.Start(exec.Command("flock", "/run/sisod/lock", "sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	patiently(t, func() error {
		_, err := h.Run(t.Context(), "flock", "-n", "/run/sisod/lock", "true")
		if err == nil {
			return errors.New("the lock is free")
		}
		return nil
	})
	ip(t, h, "rule", "del", "pref", "11800")
	for range 4 {
		n.until(t, "WATCHDOG=1")
	}
	if words := log.String(); strings.Contains(words, "lock host") {
		t.Errorf("signs of life came after the lock was given up:\n%s", words)
	}
	lock.Kill()
	settled(t, h)
	says(t, log, "rule 11800 deleted", "drift=true")

	before := wholeSnapshot(t, h)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.until(t, "STOPPING=1")
	if err := p.Wait(); err != nil {
		t.Errorf("sisod run after SIGTERM: %v", err)
	}
	same(t, "after SIGTERM", wholeSnapshot(t, h), before)
	if st := daemonStatus(t, h); st.Daemon != nil {
		t.Errorf("status of a daemon that has ended: pid %d", st.Daemon.PID)
	}

	// What is right already is not touched by the next one.
	_, log = started(t, h)
	same(t, "after the next start", wholeSnapshot(t, h), before)
	if words := log.String(); strings.Contains(words, "msg=\"add") || strings.Contains(words, "replace") || strings.Contains(words, "delete") {
		t.Errorf("the second start changed something:\n%s", words)
	}
}
