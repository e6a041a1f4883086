package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const qemu = "qemu-system-x86_64"

// consoleLimit is how much of the end of the console an error shows, in
// bytes.
const consoleLimit = 4096

// machine is a virtual machine that does one job.
type machine struct {
	kernel     kernel
	cpus       int
	memory     int // MiB
	kernelArgs string
	job        job

	stdout, stderr io.Writer
	console        io.Writer        // may be nil
	signals        <-chan os.Signal // for the program
}

// result is how the program ended, and when, counted from the machine's start.
type result struct {
	code           int
	signal         syscall.Signal
	started, ended time.Duration
}

// errSilent is in the error of a machine that ended before the program did.
var errSilent = errors.New("the virtual machine ended without telling the program's exit code")

// run starts the machine, and ends it when the program in it has ended, or
// ctx. It must be called on a thread that lives as long as the process.
func (m machine) run(ctx context.Context) (result, error) {
	// Its modules are loaded while the machine runs.
	unlock, err := lock(m.kernel.root, unix.LOCK_SH)
	if err != nil {
		return result{}, err
	}
	defer unlock()
	start := time.Now()
	image, err := initramfs(ctx, m.kernel, m.job)
	if err != nil {
		return result{}, err
	}
	defer image.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return result{}, err
	}
	defer ours.Close()

	console := &tail{limit: consoleLimit}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path, err := find(qemu)
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, path, m.args()...)
	cmd.ExtraFiles = []*os.File{theirs, image} // 3 and 4
	cmd.SysProcAttr = diesWithUs()
	cmd.Stdout = console
	if m.console != nil {
		cmd.Stdout = io.MultiWriter(console, m.console)
	}
	cmd.Stderr = cmd.Stdout
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return result{}, fmt.Errorf("start qemu: %w", err)
	}
	forwarded := make(chan struct{})
	go func() { defer close(forwarded); m.forward(ctx, ours) }()

	res, err := m.follow(ours, start)
	cancel()
	// It was killed, if it has not ended by itself: the report counts.
	_ = cmd.Wait()
	<-forwarded
	if err == nil {
		return res, nil
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if text := console.String(); text != "" {
		err = fmt.Errorf("%w. The end of its console:\n%s", err, text)
	}
	return result{}, err
}

// args is qemu's command line. Nothing in it is a network, and nothing is
// written to the machine.
func (m machine) args() []string {
	return []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// With qboot the kernel starts a second earlier than with SeaBIOS.
		"-machine", "q35", "-bios", "qboot.rom", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=report,fd=3", "-device", "virtserialport,chardev=report,name=" + portName,
		"-fsdev", "local,id=machine,path=/,security_model=none,multidevs=remap,readonly=on",
		"-device", "virtio-9p-pci,fsdev=machine,mount_tag=" + mountTag,
		"-kernel", m.kernel.image, "-initrd", "/proc/self/fd/4",
		"-append", strings.TrimSpace(strings.Join(kernelArgs[:], " ") + " rdinit=" + guestInit + " " + m.kernelArgs),
	}
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

// follow reads the guest's report to its end.
func (m machine) follow(port io.Reader, start time.Time) (result, error) {
	var res result
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	for {
		kind, data, err := receive(port)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return result{}, errSilent
		}
		if err != nil {
			return result{}, err
		}
		switch kind {
		case reportStarted:
			res.started = time.Since(start)
		case reportStdout:
			_, err = m.stdout.Write(data)
		case reportStderr:
			_, err = m.stderr.Write(data)
		case reportFile:
			if file != nil {
				err = file.Close()
			}
			if err == nil {
				file, err = m.create(data)
			}
		case reportData:
			_, err = file.Write(data)
		case reportExit:
			var signal int
			res.code, signal, err = parseExit(data)
			res.signal, res.ended = syscall.Signal(signal), time.Since(start)
			if file != nil && err == nil {
				err = file.Close()
			}
			return res, err
		case reportFailure:
			return result{}, errors.New(string(data))
		default:
			err = fmt.Errorf("receive report: kind %q", kind)
		}
		if err != nil {
			return result{}, err
		}
	}
}

// create begins a file that the guest brings back.
func (m machine) create(data []byte) (*os.File, error) {
	if len(data) < 5 {
		return nil, errors.New("receive report: file without a name")
	}
	mode, path := fs.FileMode(binary.BigEndian.Uint32(data)).Perm(), string(data[4:])
	if path != filepath.Clean(path) || !wanted(path, m.job.Fetch) {
		return nil, fmt.Errorf("receive report: file %q was not asked for", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("bring back %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return nil, fmt.Errorf("bring back: %w", err)
	}
	return f, nil
}

// forward sends signals to the guest, as a byte each, until ctx ends.
func (m machine) forward(ctx context.Context, port io.Writer) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.signals:
			if _, err := port.Write([]byte{byte(s.(syscall.Signal))}); err != nil {
				return // the machine is ending
			}
		}
	}
}

// socketPair is a connection for the guest's port.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "report"), os.NewFile(uintptr(fds[1]), "port"), nil
}
