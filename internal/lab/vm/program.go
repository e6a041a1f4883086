package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// programs are what a machine is made with, and Debian's packages that have them.
var programs = [...]struct{ name, pkg string }{
	{Qemu, "qemu-system-x86"},
	{"depmod", "kmod"},
	{"modprobe", "kmod"},
	{"apt-get", "apt"},
	{"apt-cache", "apt"},
	{"dpkg-deb", "dpkg"},
	{"xz", "xz-utils"},
}

// Needed is an error that names every package that is missing.
func Needed() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("this machine is %s: only amd64 has a kernel here", runtime.GOARCH)
	}
	var names, missing []string
	for _, p := range programs {
		if _, err := Find(p.name); err != nil {
			names = append(names, p.name)
			if !slices.Contains(missing, p.pkg) {
				missing = append(missing, p.pkg)
			}
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("find %s: not installed: apt-get install %s", strings.Join(names, ", "), strings.Join(missing, " "))
}

// Find is exec.LookPath that looks where the administrator's programs are as
// well: a user's PATH often lacks them.
func Find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// run runs a program of Debian's in a folder to its end, and returns
// its standard output. What it had to say besides is in the error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	path, err := Find(name)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	said := &Tail{Limit: 4096}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Stdout, cmd.Stderr = &out, said
	cmd.SysProcAttr = diesWithUs()
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return out.String(), nil
}

// diesWithUs are the attributes of a child that must not outlive the thread
// that starts it, and that Ctrl-C on the terminal does not reach.
func diesWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
}
