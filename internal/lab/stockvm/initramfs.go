package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// guestInit is the program that the kernel starts: stockvm itself.
const guestInit = "/init"

// jobFile and moduleFolder are where the guest finds its job and the modules
// that it needs to reach the machine's files.
const (
	jobFile      = "/job"
	moduleFolder = "/modules"
)

// bootModules reach the machine's files, and the report's port; what they
// depend on comes with them.
var bootModules = [...]string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// initramfs returns a file, in memory, with the first file system of the
// guest. It depends on the job, and is made in milliseconds: it needs no
// cache.
func initramfs(ctx context.Context, k kernel, j job) (*os.File, error) {
	args := append([]string{"--config", "/dev/null", "--dirname", k.root, "--set-version", k.release, "--show-depends", "--all"}, bootModules[:]...)
	out, err := runProgram(ctx, "", "modprobe", args...)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "insmod" {
			continue // built into the kernel
		}
		name, _, _ := strings.Cut(filepath.Base(fields[1]), ".ko")
		if _, known := files[name]; !known {
			files[name] = fields[1]
			j.Boot = append(j.Boot, name)
		}
	}
	j.Release, j.ModuleDir = k.release, k.modules

	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make initramfs: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if err := writeInitramfs(ctx, f, files, j); err != nil {
		f.Close()
		return nil, fmt.Errorf("make initramfs: %w", err)
	}
	return f, nil
}

func writeInitramfs(ctx context.Context, f io.Writer, modules map[string]string, j job) error {
	w := bufio.NewWriter(f)
	c := &cpioWriter{w: w}
	for _, dir := range []string{"/dev", "/sys", machineFolder, writtenFolder, rootFolder, moduleFolder} {
		c.add(dir, unix.S_IFDIR|0o755, nil)
	}
	// A program that was started by another name for itself, or whose file is
	// replaced, is still this one.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read own program: %w", err)
	}
	c.add(guestInit, unix.S_IFREG|0o755, self)
	for _, name := range j.Boot {
		data, err := readModule(ctx, modules[name])
		if err != nil {
			return err
		}
		c.add(filepath.Join(moduleFolder, name), unix.S_IFREG|0o644, data)
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	c.add(jobFile, unix.S_IFREG|0o600, text)
	c.add("TRAILER!!!", 0, nil)
	return errors.Join(c.err, w.Flush())
}

// readModule returns a module as the kernel wants it. Since Debian 13 they
// are compressed.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if strings.HasSuffix(path, ".xz") {
		out, err := runProgram(ctx, "", "xz", "--decompress", "--stdout", path)
		return []byte(out), err
	}
	return os.ReadFile(path)
}

// cpioWriter writes the "new" format of cpio(5), which the kernel describes
// in Documentation/driver-api/early-userspace/buffer-format.rst.
type cpioWriter struct {
	w      io.Writer
	inode  int
	offset int
	err    error
}

func (c *cpioWriter) add(path string, mode uint32, data []byte) {
	c.inode++
	name := strings.TrimPrefix(path, "/") + "\x00"
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0))
	c.write([]byte(name))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) pad() { c.write(make([]byte, -c.offset&3)) }

func (c *cpioWriter) write(data []byte) {
	if c.err != nil {
		return
	}
	_, c.err = c.w.Write(data)
	c.offset += len(data)
}
