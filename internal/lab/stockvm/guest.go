package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab/vm"
)

// portName and mountTag are how the guest finds its devices.
const (
	portName = "report"
	mountTag = "machine"
)

// The guest's file system is an overlay: the machine's files, read-only, and
// what is written, in memory.
const (
	machineFolder = "/machine"
	writtenFolder = "/written"
	rootFolder    = "/root"
)

// hostname is the guest's.
const hostname = "stockvm"

// guestMain is the guest's process 1. It never returns: its end would be the
// kernel's.
func guestMain() {
	j, err := readJob()
	if err == nil {
		err = vm.LoadModules()
	}
	if err == nil {
		err = vm.MountDevices()
	}
	var port *os.File
	if err == nil {
		port, err = vm.OpenPort(portName)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "stockvm: "+err.Error())
		os.Exit(1) // the kernel panics, and qemu ends
	}
	report := &vm.Reporter{W: port}
	if err := guestRun(j, port, report); err != nil {
		// Without the port there is nobody to tell.
		_ = report.Send(vm.ReportFailure, []byte(err.Error()))
	}
	for {
		_ = unix.Pause() // the machine is killed
	}
}

func guestRun(j job, port *os.File, report *vm.Reporter) error {
	written, err := enterRoot()
	if err != nil {
		return fmt.Errorf("prepare the virtual machine: %w", err)
	}
	if err := furnish(j); err != nil {
		return fmt.Errorf("prepare the virtual machine: %w", err)
	}
	for _, name := range j.Modules {
		if err := loadModule(name, j.Env); err != nil {
			return err
		}
	}
	code, signal, err := execute(j, port, report)
	if err != nil {
		return err
	}
	for _, path := range j.Fetch {
		if err := bringBack(written, path, report); err != nil {
			return fmt.Errorf("bring back %s: %w", path, err)
		}
	}
	return report.Send(vm.ReportExit, vm.ExitData(code, signal))
}

func readJob() (job, error) {
	var j job
	text, err := os.ReadFile(jobFile)
	if err != nil {
		return j, fmt.Errorf("read job: %w", err)
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return j, fmt.Errorf("read job: %w", err)
	}
	return j, nil
}

// enterRoot makes the overlay the root of everything, kernel threads
// included, and returns the folder with what is written.
func enterRoot() (*os.Root, error) {
	// The overlay has to be the root of the mount namespace, and not only of
	// this process: entering a mount namespace leads to its root. And
	// process 1 shares its root with the kernel's own threads, until it makes
	// one that it does not share: so the kernel finds /sbin/modprobe there.
	if err := vm.Mount(mountTag, machineFolder, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose"); err != nil {
		return nil, err
	}
	if err := vm.Mount("tmpfs", writtenFolder, "tmpfs", 0, "mode=0755,size=90%"); err != nil {
		return nil, err
	}
	upper, work := writtenFolder+"/files", writtenFolder+"/work"
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := vm.Mount("overlay", rootFolder, "overlay", 0, "lowerdir="+machineFolder+",upperdir="+upper+",workdir="+work); err != nil {
		return nil, err
	}
	written, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	if err := os.Chdir(rootFolder); err != nil {
		return nil, err
	}
	if err := vm.Mount(rootFolder, "/", "", unix.MS_MOVE, ""); err != nil {
		return nil, err
	}
	if err := unix.Chroot("."); err != nil {
		return nil, fmt.Errorf("enter root: %w", err)
	}
	return written, os.Chdir("/")
}

// mounts are those of a Debian system after boot. They are made where the
// machine has them, over its own.
var mounts = [...]struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
	{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"tmpfs", "/run/lock", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777"},
	// What the machine's administrator does to modules is not the stock
	// kernel's.
	{"tmpfs", "/etc/modprobe.d", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=0755"},
}

// openFiles is the limit for the program, fs.nr_open's default.
const openFiles = 1 << 20

// furnish makes of the root a system that has booted.
func furnish(j job) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := vm.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return err
		}
	}
	modules := filepath.Join("/lib/modules", j.Release)
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	if err := vm.Mount(j.ModuleDir, modules, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	// Opening it loads tun.
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make /dev/net/tun: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFiles}); err != nil {
		return fmt.Errorf("set limit of open files: %w", err)
	}
	return loopbackUp()
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
