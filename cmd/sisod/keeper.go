package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// keeperCapabilities are those of the daemon's unit.
const keeperCapabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW

// becomeKeeper makes a command of root's one of the user whose the run folder
// is, when that is another one: the daemon's. A command then sees what the daemon
// sees, leases above all, and leaves no file that the daemon cannot replace; and
// root never writes into a folder that somebody else can put links into. It
// starts the program anew, so it must come before everything that has an effect.
func (p *places) becomeKeeper() error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(p.run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find whose the run folder is: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if owner.Uid == 0 {
		return nil
	}
	return fmt.Errorf("go on as the user %d, whose %s is: %w", owner.Uid, p.run, startAnewAs(int(owner.Uid), int(owner.Gid)))
}

// startAnewAs starts the running program once more, in its place, as another
// user with the daemon's capabilities. It returns only with an error.
func startAnewAs(uid, gid int) error {
	// Capabilities are a thread's; the one that calls execve(2) passes its own on.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := syscall.Setgroups(groupsOf(uid, gid)); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	data[0] = unix.CapUserData{Effective: keeperCapabilities, Permitted: keeperCapabilities, Inheritable: keeperCapabilities}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	for _, c := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("pass capabilities on: %w", err)
		}
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// groupsOf are the groups of a user, by /etc/group, as systemd gives them to the
// daemon.
func groupsOf(uid, gid int) []int {
	groups := []int{gid}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return groups
	}
	ids, err := u.GroupIds()
	if err != nil {
		return groups
	}
	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil && n != gid {
			groups = append(groups, n)
		}
	}
	return groups
}
