package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ProcessOf names the process that has the netlink socket with that port in
// the network namespace of the calling thread, by its comm (proc(5)). It returns ""
// when there is none any more, or when it cannot be told: a program that runs
// one command and ends is gone by then.
func ProcessOf(portID uint32) string {
	inode := netlinkSocket(portID)
	if inode == "" {
		return ""
	}
	// The first socket of a process gets its number for a port. That has to do
	// where the sockets of others cannot be seen: the daemon's unit is not root.
	first := strconv.FormatUint(uint64(portID), 10)
	pids := []string{first}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			pids = append(pids, e.Name())
		}
	}
	for _, pid := range pids {
		has, err := hasSocket(pid, inode)
		if !has && (pid != first || !errors.Is(err, fs.ErrPermission)) {
			continue
		}
		if comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm")); err == nil {
			return string(bytes.TrimSpace(comm))
		}
	}
	return ""
}

// netlinkSocket is the inode of the route socket with that port, as
// /proc/net/netlink lists it: sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode.
func netlinkSocket(portID uint32) string {
	content, err := os.ReadFile("/proc/thread-self/net/netlink")
	if err != nil {
		return ""
	}
	port := strconv.FormatUint(uint64(portID), 10)
	for line := range strings.Lines(string(content)) {
		f := strings.Fields(line)
		if len(f) >= 10 && f[1] == "0" && f[2] == port && f[9] != "0" {
			return f[9]
		}
	}
	return ""
}

func hasSocket(pid, inode string) (bool, error) {
	dir := filepath.Join("/proc", pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	want := fmt.Sprintf("socket:[%s]", inode)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == want {
			return true, nil
		}
	}
	return false, nil
}
