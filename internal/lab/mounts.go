package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// behind is where a host finds the machine's own folders that shadow covers.
const behind = "/run/machine"

// furnish gives the calling thread's mount namespace, which must be its own,
// the file system of a host.
func furnish() error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return err
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC); err != nil {
		return err
	}
	if err := shadow("/etc", "iproute2", "sisod"); err != nil {
		return err
	}
	if err := shadow("/var/lib", "sisod"); err != nil {
		return err
	}
	// Newer iproute2 has its names in /usr/share alone.
	err := os.CopyFS("/etc/iproute2", os.DirFS(filepath.Join(behind, "/etc/iproute2")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("copy /etc/iproute2: %w", err)
	}
	return nil
}

// shadow replaces dir by a folder that shows the same entries, read-only, and
// has empty folders of its own: a mount point cannot be made in the machine's
// dir without changing the machine.
func shadow(dir string, own ...string) error {
	original := filepath.Join(behind, dir)
	if err := os.MkdirAll(original, 0o755); err != nil {
		return fmt.Errorf("make folder %s: %w", original, err)
	}
	if err := mount(dir, original, "", unix.MS_BIND|unix.MS_REC); err != nil {
		return err
	}
	if err := mount("", original, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return err
	}
	if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV); err != nil {
		return err
	}
	for _, name := range own {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("make folder %s/%s: %w", dir, name, err)
		}
	}
	entries, err := os.ReadDir(original)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", original, err)
	}
	for _, e := range entries {
		target := filepath.Join(original, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			// Its own target, which may be relative to dir.
			if target, err = os.Readlink(target); err != nil {
				return fmt.Errorf("read link: %w", err)
			}
		}
		err := os.Symlink(target, filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("show %s/%s: %w", dir, e.Name(), err)
		}
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr) error {
	data := ""
	if fstype == "tmpfs" {
		data = "mode=0755"
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
