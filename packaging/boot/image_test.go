//go:build boot

package boot

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/lab/vm"
)

// The recipe of the guest's disk: Debian, what the checks look with, the
// neighbours that sisod meets, and the files below testdata/disk.
const (
	suite     = "bookworm"
	mirror    = "http://deb.debian.org/debian"
	diskBytes = "1600M"
	// recipeVersion is for changes of what is not in the key otherwise.
	recipeVersion = "1"
)

var debianPackages = []string{
	"systemd", "systemd-sysv", "libpam-systemd", "udev", "dbus", "kmod", "procps",
	"iproute2", "nftables", "ipvsadm", "curl", "iputils-ping", "busybox-static", "dnsmasq-base",
	"keepalived", "network-manager", "ifupdown", "isc-dhcp-client", "docker.io", "rpm",
}

// moduleFolders are the kernel's modules that the disk gets.
var moduleFolders = []string{"kernel/net", "kernel/lib", "kernel/crypto", "kernel/arch", "kernel/fs/autofs", "kernel/fs/fuse", "kernel/fs/overlayfs", "kernel/drivers/net/*.ko*"}

// unneeded is what Debian has for people.
var unneeded = []string{"var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "debootstrap"}

// diskFiles are copied onto the disk; those in a folder named sbin are programs.
//
//go:embed testdata/disk
var diskFiles embed.FS

// programs are what the test runs on the machine, and Debian's packages that have them.
var programs = map[string]string{
	"debootstrap": "debootstrap", "mke2fs": "e2fsprogs", "depmod": "kmod", "systemctl": "systemd",
}

func needed() error {
	var missing []string
	for name, pkg := range programs {
		if _, err := vm.Find(name); err != nil {
			missing = append(missing, pkg)
		}
	}
	if missing == nil {
		return vm.Needed()
	}
	slices.Sort(missing)
	return fmt.Errorf("missing packages, as make boot-test installs them: apt-get install %s", strings.Join(missing, " "))
}

// disk returns the image of the guest's disk for a kernel. It is made once for a
// recipe and kept in the user's cache folder.
func disk(ctx context.Context, k vm.Kernel) (string, error) {
	key, err := recipeKey(k)
	if err != nil {
		return "", err
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	cache := filepath.Join(user, "sisod", "boot")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := vm.Lock(cache, vm.Exclusive)
	if err != nil {
		return "", err
	}
	defer unlock()
	image := filepath.Join(cache, "debian-"+key+".ext4")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	// Nothing but the last image is kept.
	former, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil {
		return "", err
	}
	for _, f := range former {
		if err := os.RemoveAll(f); err != nil {
			return "", err
		}
	}
	part, err := os.MkdirTemp(cache, "part-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(part)
	root := filepath.Join(part, "root")
	if err := fill(ctx, root, k); err != nil {
		return "", fmt.Errorf("make disk: %w", err)
	}
	fresh := filepath.Join(part, "image")
	if err := program(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, fresh, diskBytes); err != nil {
		return "", err
	}
	return image, os.Rename(fresh, image)
}

// recipeKey tells one recipe from another.
func recipeKey(k vm.Kernel) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, recipeVersion, suite, k.Release, diskBytes, debianPackages, moduleFolders, unneeded)
	err := eachDiskFile(func(path string, content []byte) error {
		fmt.Fprintf(h, "%s %d\n%s", path, len(content), content)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}

func eachDiskFile(do func(path string, content []byte) error) error {
	const top = "testdata/disk"
	return fs.WalkDir(diskFiles, top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := diskFiles.ReadFile(path)
		if err != nil {
			return err
		}
		return do(strings.TrimPrefix(path, top), content)
	})
}

// fill makes the tree of the disk.
func fill(ctx context.Context, root string, k vm.Kernel) error {
	fmt.Fprintf(os.Stderr, "boot test: making a disk with Debian %s, once\n", suite)
	err := program(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(debianPackages, ","), suite, root, mirror)
	if err != nil {
		return err
	}
	for _, path := range unneeded {
		if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
			return err
		}
	}
	modules := filepath.Join(root, "lib/modules", k.Release)
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	folders := "cd " + k.Modules + " && cp -a --parents modules.order modules.builtin* " + strings.Join(moduleFolders, " ") + " " + modules
	if err := program(ctx, "sh", "-c", folders); err != nil {
		return err
	}
	if err := program(ctx, "depmod", "--basedir", root, k.Release); err != nil {
		return err
	}
	err = eachDiskFile(func(path string, content []byte) error {
		mode := os.FileMode(0o644)
		switch {
		case filepath.Base(filepath.Dir(path)) == "sbin":
			mode = 0o755
		case filepath.Ext(path) == ".nmconnection":
			// NetworkManager takes none that others can read.
			mode = 0o600
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(root, path), content, mode)
	})
	if err != nil {
		return err
	}
	// Networkd is the manager, as on a server; the other neighbours are there and
	// do not run.
	for _, do := range [][]string{
		{"enable", "boot-guest.service", "world.service", "early-rules.service", "witness.service", "systemd-networkd.service", "systemd-networkd-wait-online.service"},
		{"disable", "NetworkManager.service", "NetworkManager-wait-online.service", "networking.service", "keepalived.service", "docker.service", "docker.socket", "containerd.service"},
		{"mask", "getty.target", "serial-getty@ttyS0.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "systemd-pstore.service", "e2scrub_reap.service", "e2scrub_all.timer"},
	} {
		if err := program(ctx, "systemctl", append([]string{"--root=" + root, "-q"}, do...)...); err != nil {
			return err
		}
	}
	return nil
}

// program runs a program of the machine's to its end.
func program(ctx context.Context, name string, args ...string) error {
	path, err := vm.Find(name)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}
