// Package vm is what virtual machines on Debian's stock kernel are made of: the
// kernel's package in a cache, a first file system with the modules and the
// program that begin, qemu's command line, and the messages between a guest and
// its host.
//
// It knows Debian's packages, qemu and how a Linux machine starts; what a guest
// is for is said elsewhere.
package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Qemu is the emulator.
const Qemu = "qemu-system-x86_64"

// consoleLimit is how much of the end of the console is kept, in bytes.
const consoleLimit = 4096

// Machine is a virtual machine before it starts. Nothing in it is a network.
type Machine struct {
	Kernel     Kernel
	CPUs       int
	Memory     int // MiB
	KernelArgs string
	Initramfs  Initramfs
	Port       string    // by which the guest opens its connection to the host
	Devices    []string  // of qemu's command line, besides the port and the console
	Console    io.Writer // may be nil
	// Silence is how long the guest may say nothing; 0: three minutes. Once in a few
	// hundred times an emulated kernel does not come up, and the machine is started anew.
	Silence time.Duration
}

// starts is how often a machine is started that says nothing.
const starts = 3

// Running is a machine that was started.
type Running struct {
	Port *os.File // the host's end of the guest's port

	console *Tail
	cmd     *exec.Cmd
	release func()
}

// Start starts a machine, which ends with ctx, and waits for the guest's first word.
// It must be called on a thread that lives as long as the process.
func (m Machine) Start(ctx context.Context) (*Running, error) {
	// Its modules are loaded while the machine runs.
	unlock, err := Lock(m.Kernel.Root, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	for range starts {
		var r *Running
		if r, err = m.start(ctx); err != nil {
			break
		}
		if err = r.await(cmp.Or(m.Silence, 3*time.Minute)); err == nil {
			r.release = unlock
			return r, nil
		}
		err = fmt.Errorf("%w; the end of its console:\n%s", err, r.ConsoleEnd())
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait() // killed
		r.Port.Close()
	}
	unlock()
	return nil, err
}

// await waits until the guest has said something, or has ended.
func (r *Running) await(limit time.Duration) error {
	raw, err := r.Port.SyscallConn()
	if err != nil {
		return err
	}
	if err := r.Port.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	if err != nil {
		return fmt.Errorf("wait for the guest's first word: none in %s, %d times: %w", limit, starts, err)
	}
	return r.Port.SetReadDeadline(time.Time{})
}

func (m Machine) start(ctx context.Context) (*Running, error) {
	path, err := Find(Qemu)
	if err != nil {
		return nil, err
	}
	image, err := m.Initramfs.open(ctx, m.Kernel)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	r := &Running{Port: ours, console: &Tail{Limit: consoleLimit}}
	r.cmd = exec.CommandContext(ctx, path, m.args()...)
	r.cmd.ExtraFiles = []*os.File{theirs, image} // 3 and 4
	r.cmd.SysProcAttr = diesWithUs()
	r.cmd.Stdout = r.console
	if m.Console != nil {
		r.cmd.Stdout = io.MultiWriter(r.console, m.Console)
	}
	r.cmd.Stderr = r.cmd.Stdout
	if err := r.cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	return r, nil
}

// Wait waits until the machine has ended by itself, or with its context.
func (r *Running) Wait() error {
	err := r.cmd.Wait()
	r.Port.Close()
	r.release()
	return err
}

// ConsoleEnd is the end of what the kernel and its guest wrote to the console.
func (r *Running) ConsoleEnd() string { return r.console.String() }

// args is qemu's command line.
func (m Machine) args() []string {
	return append([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// With qboot the kernel starts a second earlier than with SeaBIOS.
		"-machine", "q35", "-bios", "qboot.rom", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,fd=3", "-device", "virtserialport,chardev=port,name=" + m.Port,
		"-kernel", m.Kernel.Image, "-initrd", "/proc/self/fd/4",
		"-append", strings.TrimSpace(strings.Join(kernelArgs[:], " ") + " rdinit=" + GuestInit + " " + m.KernelArgs),
	}, m.Devices...)
}

// kernelArgs is how the guest's kernel differs from one with Debian's
// command line.
var kernelArgs = [...]string{
	"console=ttyS0", "quiet",
	// Qemu ends with the kernel. An oops is a panic: what comes after one
	// proves nothing.
	"panic=-1", "oops=panic",
	// Without it the kernel mistrusts an emulated counter, and every look at
	// the clock costs microseconds instead of nanoseconds.
	"tsc=reliable",
	// On a busy machine the emulated timer may not tick while the kernel tries
	// it out, and then there is no kernel.
	"no_timer_check",
	// The emulator translates code anew wherever else it is mapped: a program
	// starts twice as fast in the same place.
	"norandmaps",
}

// socketPair is a connection for the guest's port.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	// So that waiting can end.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "port of the guest"), nil
}
