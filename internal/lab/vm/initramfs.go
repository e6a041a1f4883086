package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// GuestInit is the program that the kernel starts.
const GuestInit = "/init"

// moduleFolder is where the first file system has the modules that the guest
// needs to reach the next one, and modulesFile their names in the order in
// which they need each other.
const (
	moduleFolder = "/modules"
	modulesFile  = "/modules.list"
)

// Initramfs is the first file system of a guest.
type Initramfs struct {
	Init    string   // the program that becomes GuestInit
	Modules []string // what the guest loads first; what they depend on comes with them
	Folders []string
	Files   map[string][]byte
}

// open returns the file system as a file in memory. It is made in
// milliseconds: it needs no cache.
func (i Initramfs) open(ctx context.Context, k Kernel) (*os.File, error) {
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make initramfs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if err := i.write(ctx, f, k); err != nil {
		f.Close()
		return nil, fmt.Errorf("make initramfs: %w", err)
	}
	return f, nil
}

func (i Initramfs) write(ctx context.Context, f io.Writer, k Kernel) error {
	w := bufio.NewWriter(f)
	c := &archive{w: w}
	for _, dir := range append([]string{"/dev", "/sys", moduleFolder}, i.Folders...) {
		c.add(dir, unix.S_IFDIR|0o755, nil)
	}
	program, err := os.ReadFile(i.Init)
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	c.add(GuestInit, unix.S_IFREG|0o755, program)
	if err := addModules(ctx, c, k, i.Modules); err != nil {
		return err
	}
	for path, content := range i.Files {
		c.add(path, unix.S_IFREG|0o600, content)
	}
	c.add("TRAILER!!!", 0, nil)
	return errors.Join(c.err, w.Flush())
}

// addModules adds modules, and those that they depend on.
func addModules(ctx context.Context, c *archive, k Kernel, names []string) error {
	args := append([]string{"--config", "/dev/null", "--dirname", k.Root, "--set-version", k.Release, "--show-depends", "--all"}, names...)
	out, err := run(ctx, "", "modprobe", args...)
	if err != nil {
		return err
	}
	var order []string
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "insmod" {
			continue // built into the kernel
		}
		name, _, _ := strings.Cut(filepath.Base(fields[1]), ".ko")
		if slices.Contains(order, name) {
			continue
		}
		order = append(order, name)
		data, err := readModule(ctx, fields[1])
		if err != nil {
			return err
		}
		c.add(filepath.Join(moduleFolder, name), unix.S_IFREG|0o644, data)
	}
	c.add(modulesFile, unix.S_IFREG|0o644, []byte(strings.Join(order, "\n")))
	return nil
}

// readModule returns a module as the kernel wants it. Since Debian 13 they
// are compressed.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		out, err := run(ctx, "", "xz", "--decompress", "--stdout", path)
		return []byte(out), err
	}
	return os.ReadFile(path)
}

// archive writes the "new" format of cpio(5), which the kernel describes
// in Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	w      io.Writer
	inode  int
	offset int
	err    error // the first of the writer's
}

func (c *archive) add(path string, mode uint32, data []byte) {
	c.inode++
	name := strings.TrimPrefix(path, "/") + "\x00"
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0))
	c.write([]byte(name))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *archive) pad() { c.write(make([]byte, -c.offset&3)) }

func (c *archive) write(data []byte) {
	if c.err != nil {
		return
	}
	_, c.err = c.w.Write(data)
	c.offset += len(data)
}
