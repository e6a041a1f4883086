package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockFile   = "lock"     // held while something is changed
	daemonFile = "run.lock" // held by the daemon for as long as it runs
	heldFile   = "held"     // there after a flush
	newsFile   = "applied"  // another content after each application that a command made

	// lockPatience is how long an applier waits for another one.
	lockPatience = 10 * time.Second
	lockInterval = 20 * time.Millisecond
)

// errLocked is a lock that another process has.
var errLocked = errors.New("locked")

func (h *Host) runDir() string { return cmp.Or(h.options.RunDir, defaultRunDir) }

// Lock keeps all other processes that change this host for sisod out until
// unlock is called. It waits up to 10 seconds, or until ctx is done, and then
// says who has it.
func (h *Host) Lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	path := filepath.Join(h.runDir(), lockFile)
	tick := time.NewTicker(lockInterval)
	defer tick.Stop()
	for {
		unlock, err = takeLock(path)
		if err == nil {
			h.tidy()
			if err := h.ledger.claim(); err != nil {
				unlock()
				return nil, err
			}
		}
		if !errors.Is(err, errLocked) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: held by %s: wait until that has finished, or end it if it hangs: %w",
				path, holder(path), context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// tidy removes files that a process which was killed has written and not yet
// given their name. Its caller has the Lock, so nobody is writing one now.
func (h *Host) tidy() {
	if h.tidied {
		return
	}
	h.tidied = true
	for _, file := range []string{h.namesPlace(), filepath.Join(h.runDir(), ledgerFile)} {
		// The pattern of package renameio.
		left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"[0-9]*"))
		for _, f := range left {
			err = errors.Join(err, os.Remove(f))
		}
		if err != nil {
			h.options.Log.Warn("remove what an interrupted process left", "error", err)
		}
	}
}

// ClaimDaemon makes the caller the only daemon with this run folder until
// release is called. It does not wait.
func (h *Host) ClaimDaemon() (release func(), err error) {
	path := filepath.Join(h.runDir(), daemonFile)
	release, err = takeLock(path)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("another sisod run (%s) keeps this host: stop it first (in another network namespace, use a --run-dir of its own)", holder(path))
	}
	return release, err
}

// DaemonRuns reports whether the process is the daemon with this run folder. It
// looks at the kernel's list of locks (proc(5), /proc/locks): a number may be
// another process's by now, and trying the lock could keep out a daemon that
// is just starting.
func DaemonRuns(runDir string, pid int) bool {
	stat, err := os.Stat(filepath.Join(cmp.Or(runDir, defaultRunDir), daemonFile))
	if err != nil {
		return false
	}
	sys, ok := stat.Sys().(*syscall.Stat_t)
	locks, err := os.ReadFile("/proc/locks")
	if !ok || err != nil {
		_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
		return err == nil
	}
	owner, inode := strconv.Itoa(pid), ":"+strconv.FormatUint(sys.Ino, 10)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && f[4] == owner && strings.HasSuffix(f[5], inode) {
			return true
		}
	}
	return false
}

// takeLock locks a file, with the process's number in it, or returns errLocked.
func takeLock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create run folder: %w", err)
	}
	// Who can open it, for reading alone, can lock it, and keep sisod out.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// The number is for the message of the one who waits; the lock holds without it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { f.Close() }, nil
}

// holder names the process that a lock file names.
func holder(path string) string {
	content, err := os.ReadFile(path)
	pid, err2 := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || err2 != nil {
		return "another process"
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		return fmt.Sprintf("pid %d, %s", pid, strings.TrimSpace(string(comm)))
	}
	return fmt.Sprintf("pid %d", pid)
}

// Hold tells a running daemon to keep still: the host was given back, and
// stays so until Release.
func (h *Host) Hold() error {
	path := filepath.Join(h.runDir(), heldFile)
	if err := os.MkdirAll(h.runDir(), 0o755); err != nil {
		return fmt.Errorf("create run folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return fmt.Errorf("hold still: %w", err)
	}
	return f.Close()
}

// Release ends Hold. Without one it does nothing.
func (h *Host) Release() error {
	if err := os.Remove(filepath.Join(h.runDir(), heldFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end holding still: %w", err)
	}
	return nil
}

// Held reports whether a daemon has to keep still. When that cannot be told,
// it has to.
func (h *Host) Held() bool {
	_, err := os.Lstat(filepath.Join(h.runDir(), heldFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// Announce tells a running daemon that its caller, which holds the Lock, is
// about to apply the profiles as they are now: what the daemon has read before
// is not what the operator wants any more.
func (h *Host) Announce() error {
	path := filepath.Join(h.runDir(), newsFile)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return fmt.Errorf("announce to the daemon: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d %d\n", os.Getpid(), time.Now().UnixNano())
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("announce to the daemon: %w", err)
	}
	return nil
}

// Announced tells one announcement from another; it is "" before the first.
func (h *Host) Announced() string {
	content, err := os.ReadFile(filepath.Join(h.runDir(), newsFile))
	if err != nil {
		return ""
	}
	return string(content)
}
