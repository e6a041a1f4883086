package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LoadModules loads the modules of an Initramfs, in the guest.
func LoadModules() error {
	list, err := os.ReadFile(modulesFile)
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(filepath.Join(moduleFolder, name))
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// portPatience is how long the port may take to appear after its driver.
const portPatience = 30 * time.Second

// MountDevices mounts what OpenPort looks into.
func MountDevices() error {
	if err := Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return err
	}
	return Mount("sysfs", "/sys", "sysfs", 0, "")
}

// OpenPort opens the port that the machine was given with that name.
func OpenPort(port string) (*os.File, error) {
	// The driver learns of its ports from messages that come later, and there
	// may be no udev to tell of them: the kernel does (lib/kobject_uevent.c).
	events, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open port: listen for devices: %w", err)
	}
	defer unix.Close(events)
	if err := unix.Bind(events, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, fmt.Errorf("open port: listen for devices: %w", err)
	}
	for end := time.Now().Add(portPatience); ; {
		if f, err := openNamed(port); f != nil || err != nil {
			return f, err
		}
		left := unix.NsecToTimeval(int64(time.Until(end)))
		if left.Nano() <= 0 {
			return nil, fmt.Errorf("open port: none is named %s", port)
		}
		if err := unix.SetsockoptTimeval(events, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left); err != nil {
			return nil, fmt.Errorf("open port: listen for devices: %w", err)
		}
		// What it says, and that some of it was lost, comes to the same: look again.
		_, _, err := unix.Recvfrom(events, make([]byte, 1), 0)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return nil, fmt.Errorf("open port: listen for devices: %w", err)
		}
	}
}

// openNamed opens the port of that name; without one there is neither file nor
// error.
func openNamed(port string) (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		if name, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(name)) != port {
			continue
		}
		f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("open port: %w", err)
		}
		return f, nil
	}
	return nil, nil
}

// Mount is mount(2) with an error that names the place.
func Mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
