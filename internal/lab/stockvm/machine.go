package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab/vm"
)

// machine is a virtual machine that does one job.
type machine struct {
	kernel     vm.Kernel
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
	first, err := m.initramfs()
	if err != nil {
		return result{}, err
	}
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running, err := vm.Machine{
		Kernel: m.kernel, CPUs: m.cpus, Memory: m.memory, KernelArgs: m.kernelArgs, Initramfs: first, Port: portName, Console: m.console,
		// Nothing is written to the machine's files.
		Devices: []string{
			"-fsdev", "local,id=machine,path=/,security_model=none,multidevs=remap,readonly=on",
			"-device", "virtio-9p-pci,fsdev=machine,mount_tag=" + mountTag,
		},
	}.Start(ctx)
	if err != nil {
		return result{}, err
	}
	forwarded := make(chan struct{})
	go func() { defer close(forwarded); m.forward(ctx, running.Port) }()

	res, err := m.follow(running.Port, start)
	cancel()
	// It was killed, if it has not ended by itself: the report counts.
	_ = running.Wait()
	<-forwarded
	if err == nil {
		return res, nil
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if text := running.ConsoleEnd(); text != "" {
		err = fmt.Errorf("%w. The end of its console:\n%s", err, text)
	}
	return result{}, err
}

// jobFile is where the guest finds its job.
const jobFile = "/job"

// bootModules reach the machine's files, and the report's port.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// initramfs is the guest's first file system, which depends on the job.
func (m machine) initramfs() (vm.Initramfs, error) {
	j := m.job
	j.Release, j.ModuleDir = m.kernel.Release, m.kernel.Modules
	text, err := json.Marshal(j)
	if err != nil {
		return vm.Initramfs{}, fmt.Errorf("write job: %w", err)
	}
	return vm.Initramfs{
		// A program that was started by another name for itself, or whose file is
		// replaced, is still this one.
		Init:    "/proc/self/exe",
		Modules: bootModules,
		Folders: []string{machineFolder, writtenFolder, rootFolder},
		Files:   map[string][]byte{jobFile: text},
	}, nil
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
		kind, data, err := vm.Receive(port)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return result{}, errSilent
		}
		if err != nil {
			return result{}, err
		}
		switch kind {
		case vm.ReportStarted:
			res.started = time.Since(start)
		case vm.ReportStdout:
			_, err = m.stdout.Write(data)
		case vm.ReportStderr:
			_, err = m.stderr.Write(data)
		case vm.ReportFile:
			if file != nil {
				err = file.Close()
			}
			if err == nil {
				file, err = m.create(data)
			}
		case vm.ReportData:
			_, err = file.Write(data)
		case vm.ReportExit:
			var signal int
			res.code, signal, err = vm.ParseExit(data)
			res.signal, res.ended = syscall.Signal(signal), time.Since(start)
			if file != nil && err == nil {
				err = file.Close()
			}
			return res, err
		case vm.ReportFailure:
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
