package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/profiles"
)

// keeperCapabilities are those of the daemon's unit.
const keeperCapabilities = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW

// becomeKeeper makes a command of root's one of the user whose the run folder
// is, when that is another one: the daemon's. A command then sees what the daemon
// sees, leases above all, and leaves no file that the daemon cannot replace; and
// root never writes into a folder that somebody else can put links into. It
// starts the program anew, so it must come before everything that has an effect.
func (p *places) becomeKeeper() error {
	uid, gid, other, err := p.keeper()
	if err != nil || !other {
		return err
	}
	return fmt.Errorf("go on as the user %d, whose %s is: %w", uid, p.run, startAnewAs(uid, gid))
}

// keeper tells root whose the run folder is; other is false when that is root, when
// there is none, and for all other users.
func (p *places) keeper() (uid, gid int, other bool, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, false, nil
	}
	info, err := os.Stat(p.run)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("find whose the run folder is: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return int(owner.Uid), int(owner.Gid), owner.Uid != 0, nil
}

// unreadable complains of what root can read and the daemon's user cannot: the
// folders and files of a configuration.
func (p *places) unreadable(dir string, files []string) error {
	uid, gid, other, err := p.keeper()
	if err != nil || !other {
		return err
	}
	var paths []string
	for _, path := range append([]string{dir, filepath.Join(dir, profiles.ProfilesDir)}, files...) {
		// Its folders are those of where a link leads to. An absent folder is in order.
		if path, err := filepath.EvalSymlinks(path); err == nil {
			paths = append(paths, path)
		}
	}
	name, group := strconv.Itoa(uid), strconv.Itoa(gid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	var bad profiles.Errors
	blamed := map[string]bool{}
	err = lookAs(uid, gid, func() {
		for _, path := range paths {
			path, right, err := obstacle(path)
			if err == nil || blamed[path] {
				continue
			}
			blamed[path] = true
			bad = append(bad, &profiles.Error{
				Pos: profiles.Position{File: path}, Text: fmt.Sprintf("the daemon's user, %s, cannot read this: %v", name, err),
				Hint: fmt.Sprintf("let everybody read it, or that user's group alone:\nchmod a+%s %s\nchgrp %s %s && chmod g+%s %s", right, path, group, path, right, path),
			})
		}
	})
	if err != nil {
		return fmt.Errorf("look as the user %s, whose %s is: %w", name, p.run, err)
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// obstacle is what keeps the caller from reading a file or folder, that itself or a
// folder above, and the rights that it takes there, as chmod(1) has them.
func obstacle(path string) (at, right string, err error) {
	for i := 1; i < len(path); i++ {
		if path[i] != '/' {
			continue
		}
		if _, err := os.Stat(path[:i] + "/."); err != nil {
			return path[:i], "x", cause(err)
		}
	}
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
	}
	stat, errStat := os.Stat(path)
	if errStat != nil || !stat.IsDir() {
		return path, "r", cause(err)
	}
	if err == nil {
		_, err = os.Stat(path + "/.")
	}
	return path, "rx", cause(err)
}

// cause is an error without the path, which stands elsewhere.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// lookAs runs f, which must start no goroutine, with what a user may read.
func lookAs(uid, gid int, f func()) error {
	groups := groupsOf(uid, gid)
	done := make(chan error)
	go func() {
		// Never unlocked: the thread sees with another one's eyes, and ends with this.
		runtime.LockOSThread()
		err := unix.Setgroups(groups)
		if err == nil {
			err = errors.Join(unix.Setfsgid(gid), unix.Setfsuid(uid))
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
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
