package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// metaPackage is Debian's package that depends on the current kernel. The
// kernel of its cloud flavour has no 9p.
const metaPackage = "linux-image-amd64"

// Kernel is an unpacked package in the cache.
type Kernel struct {
	Root    string
	Release string // as uname -r has it
	Image   string
	Modules string // the folder of its modules
}

// currentName is the link in the cache to the folder of the kernel to use. A
// folder has the name and the version of its package, and is put into its
// place when it is complete.
const currentName = "current"

// CacheFolder is the folder of kernels: dir, or without one that of the user.
func CacheFolder(dir string) (string, error) {
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache folder: %w", err)
		}
		dir = filepath.Join(user, "sisod", "stockvm")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find cache folder: %w", err)
	}
	return abs, nil
}

// FindKernel returns the cache's kernel, and builds it when there is none.
func FindKernel(ctx context.Context, cache string, log io.Writer) (Kernel, error) {
	k, err := openKernel(filepath.Join(cache, currentName))
	if errors.Is(err, fs.ErrNotExist) {
		return BuildKernel(ctx, cache, log)
	}
	return k, err
}

// openKernel reads an unpacked package.
func openKernel(root string) (Kernel, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return Kernel{}, fmt.Errorf("find kernel: %w", err)
	}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("find kernel in %s: %d images in boot: remove the folder", root, len(images))
	}
	k := Kernel{Root: root, Image: images[0]}
	k.Release = strings.TrimPrefix(filepath.Base(k.Image), "vmlinuz-")
	if plain := filepath.Join(root, plainImage); exists(plain) {
		k.Image = plain
	}
	k.Modules = filepath.Join(root, "lib", "modules", k.Release)
	if _, err := os.Stat(filepath.Join(k.Modules, "modules.dep")); err != nil {
		return Kernel{}, fmt.Errorf("find kernel modules: %w: remove %s", err, root)
	}
	return k, nil
}

// BuildKernel brings the kernel that Debian has now into the cache, unless it
// is there.
func BuildKernel(ctx context.Context, cache string, log io.Writer) (Kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("make cache folder: %w", err)
	}
	unlock, err := Lock(cache, unix.LOCK_EX)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	if err := removeParts(cache); err != nil {
		return Kernel{}, err
	}

	pkg, err := kernelPackage(ctx)
	if err != nil {
		// Nothing to be had, but what was had before will do.
		if k, err := openKernel(filepath.Join(cache, currentName)); err == nil {
			return k, nil
		}
		if pkg, err = updatedPackage(ctx, log); err != nil {
			return Kernel{}, err
		}
	}
	if k, err := openKernel(filepath.Join(cache, pkg.folder())); err == nil {
		return k, makeCurrent(cache, pkg.folder())
	}
	fmt.Fprintf(log, "fetching %s %s into %s\n", pkg.name, pkg.version, cache)
	err = unpack(ctx, cache, pkg)
	var absent fetchError
	if errors.As(err, &absent) {
		// The lists are older than what the archive has.
		if pkg, err = updatedPackage(ctx, log); err == nil {
			err = unpack(ctx, cache, pkg)
		}
	}
	if err != nil {
		return Kernel{}, err
	}
	if err := makeCurrent(cache, pkg.folder()); err != nil {
		return Kernel{}, err
	}
	return openKernel(filepath.Join(cache, pkg.folder()))
}

// debianPackage is a package in one version.
type debianPackage struct{ name, version string }

func (p debianPackage) folder() string { return p.name + "_" + p.version }

// dependsOnImage finds the kernel in the dependencies of metaPackage.
var dependsOnImage = regexp.MustCompile(`(?m)^Depends:.*?\b(linux-image-[^ ,|]+) \(= ([^)]+)\)`)

// kernelPackage asks the lists of apt.
func kernelPackage(ctx context.Context) (debianPackage, error) {
	out, err := run(ctx, "", "apt-cache", "show", "--no-all-versions", metaPackage)
	if err != nil {
		return debianPackage{}, err
	}
	m := dependsOnImage.FindStringSubmatch(out)
	if m == nil {
		return debianPackage{}, fmt.Errorf("find kernel package: %s depends on no linux-image in one version", metaPackage)
	}
	return debianPackage{m[1], m[2]}, nil
}

func updatedPackage(ctx context.Context, log io.Writer) (debianPackage, error) {
	fmt.Fprintln(log, "updating the lists of apt")
	if _, err := run(ctx, "", "apt-get", "update", "-q"); err != nil {
		return debianPackage{}, fmt.Errorf("update the lists of apt: %w", err)
	}
	return kernelPackage(ctx)
}

// removeParts removes what a build that was killed has left.
func removeParts(cache string) error {
	parts, err := filepath.Glob(filepath.Join(cache, "part-*"))
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("remove incomplete kernel: %w", err)
		}
	}
	return nil
}

// fetchError is an error of the download.
type fetchError struct{ error }

func (e fetchError) Unwrap() error { return e.error }

// unpack puts the files of a package into its folder of the cache.
func unpack(ctx context.Context, cache string, pkg debianPackage) error {
	part, err := os.MkdirTemp(cache, "part-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(part)
	if err := download(ctx, part, pkg); err != nil {
		return fetchError{err}
	}
	debs, err := filepath.Glob(filepath.Join(part, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("fetch %s: %d packages came", pkg.name, len(debs))
	}
	root := filepath.Join(part, "root")
	if _, err := run(ctx, "", "dpkg-deb", "--extract", debs[0], root); err != nil {
		return err
	}
	// Debian is moving /lib: both are where one of them is.
	err = os.Symlink(filepath.Join("usr", "lib"), filepath.Join(root, "lib"))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link lib: %w", err)
	}
	releases, err := os.ReadDir(filepath.Join(root, "lib", "modules"))
	if err != nil || len(releases) != 1 {
		return fmt.Errorf("find modules of %s: %d folders: %v", pkg.name, len(releases), err)
	}
	if _, err := run(ctx, "", "depmod", "--basedir", root, releases[0].Name()); err != nil {
		return err
	}
	if err := extractImage(ctx, root); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	place := filepath.Join(cache, pkg.folder())
	if err := os.RemoveAll(place); err != nil {
		return fmt.Errorf("remove incomplete kernel: %w", err)
	}
	if err := os.Rename(root, place); err != nil {
		return fmt.Errorf("put kernel into the cache: %w", err)
	}
	_, err = openKernel(place)
	return err
}

// download puts the package's file into dir.
func download(ctx context.Context, dir string, pkg debianPackage) error {
	args := []string{"download", "-q"}
	if os.Getuid() == 0 {
		// Apt's own user need not reach the cache; the file is checked
		// against the signed lists all the same.
		args = append(args, "-o", "APT::Sandbox::User=root")
	}
	_, err := run(ctx, dir, "apt-get", append(args, pkg.name+"="+pkg.version)...)
	return err
}

// makeCurrent has the cache use folder, and removes what else is in it and
// is not in use.
func makeCurrent(cache, folder string) error {
	current, fresh := filepath.Join(cache, currentName), filepath.Join(cache, "fresh")
	if now, err := os.Readlink(current); err != nil || now != folder {
		if err := os.RemoveAll(fresh); err != nil {
			return fmt.Errorf("remove link: %w", err)
		}
		if err := os.Symlink(folder, fresh); err != nil {
			return fmt.Errorf("make link: %w", err)
		}
		if err := os.Rename(fresh, current); err != nil {
			return fmt.Errorf("make kernel current: %w", err)
		}
	}
	others, err := filepath.Glob(filepath.Join(cache, metaImages))
	if err != nil {
		return err
	}
	for _, other := range others {
		if filepath.Base(other) == folder {
			continue
		}
		unlock, err := Lock(other, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err == nil {
			err = os.RemoveAll(other)
			unlock()
		}
		if err != nil {
			return fmt.Errorf("remove former kernel: %w", err)
		}
	}
	return nil
}

// metaImages are the folders of kernels.
const metaImages = "linux-image-*_*"

// Exclusive and Shared are ways to Lock.
const (
	Exclusive = unix.LOCK_EX
	Shared    = unix.LOCK_SH
)

// Lock locks a file or folder with flock(2).
func Lock(path string, how int) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
