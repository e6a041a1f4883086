package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab/vm"
)

// drain is how long output is waited for after the program has ended, when a
// child that it left still holds its pipes.
const drain = time.Second

// modprobe is where the kernel looks for it, too.
const modprobe = "/sbin/modprobe"

// execute runs the program of a job and reports what it says.
func execute(j job, port io.Reader, report *vm.Reporter) (code, signal int, err error) {
	if err := os.Chdir(j.Dir); err != nil {
		return 0, 0, fmt.Errorf("enter working folder: %w", err)
	}
	var done [2]<-chan error
	var write [2]*os.File
	for i, kind := range []byte{vm.ReportStdout, vm.ReportStderr} {
		if write[i], done[i], err = pipe(kind, report); err != nil {
			return 0, 0, err
		}
	}
	env := append(j.Env, "STOCKVM="+j.Release)
	pid, err := start(j.Path, j.Args, env, write[0], write[1])
	for _, w := range write {
		w.Close()
	}
	if err != nil {
		return 0, 0, err
	}
	if err := report.Send(vm.ReportStarted, nil); err != nil {
		return 0, 0, err
	}
	go signals(port, pid)
	status, err := reap(pid)
	if err != nil {
		return 0, 0, err
	}
	late, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	for _, d := range done {
		select {
		case err := <-d:
			if err != nil {
				return 0, 0, err
			}
		case <-late.Done():
		}
	}
	if status.Signaled() {
		return 0, int(status.Signal()), nil
	}
	return status.ExitStatus(), 0, nil
}

// pipe returns a pipe whose content is reported; done tells when it has ended.
func pipe(kind byte, report *vm.Reporter) (write *os.File, done <-chan error, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	c := make(chan error, 1)
	go func() {
		c <- report.Copy(kind, read)
		read.Close()
	}()
	return write, c, nil
}

// start starts a program in a session of its own. Package os/exec is of no
// use here: process 1 waits for everybody's children, in one place.
func start(path string, args, env []string, stdout, stderr *os.File) (pid int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	defer null.Close()
	pid, err = syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	return pid, nil
}

// reap waits for a child, and for the orphans that end meanwhile.
func reap(pid int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for process %d: %w", pid, err)
		case got == pid && (status.Exited() || status.Signaled()):
			return status, nil
		}
	}
}

// signals sends the program what the port brings, as long as the machine is
// there.
func signals(port io.Reader, pid int) {
	var b [1]byte
	for {
		if _, err := io.ReadFull(port, b[:]); err != nil {
			return
		}
		// It may have ended.
		_ = unix.Kill(pid, syscall.Signal(b[0]))
	}
}

// loadModule runs modprobe.
func loadModule(name string, env []string) error {
	said, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer said.Close()
	pid, err := start(modprobe, []string{"modprobe", "--", name}, env, write, write)
	write.Close()
	if err != nil {
		return err
	}
	text, err := io.ReadAll(said)
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	status, err := reap(pid)
	if err == nil && status.ExitStatus() != 0 {
		err = fmt.Errorf("load module %s: %s", name, bytes.TrimSpace(text))
	}
	return err
}

// bringBack reports the files at or below path that were written.
func bringBack(written *os.Root, path string, report *vm.Reporter) error {
	top := strings.TrimPrefix(path, "/")
	if top == "" {
		top = "."
	}
	err := fs.WalkDir(written.FS(), top, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := written.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		head := binary.BigEndian.AppendUint32(nil, uint32(st.Mode().Perm()))
		if err := report.Send(vm.ReportFile, append(head, filepath.Join("/", name)...)); err != nil {
			return err
		}
		return report.Copy(vm.ReportData, f)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was written there
	}
	return err
}
