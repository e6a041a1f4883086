// Guest is what the boot test has in its virtual machine besides Debian: the
// program that the kernel starts, which finds Debian's disk and hands over to
// systemd, and a service that runs commands for the test.
//
// It knows nothing of sisod: what the test sees, the programs that it runs have
// seen.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab/vm"
	"github.com/sisod/sisod/packaging/boot/order"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = begin()
	} else {
		err = serve()
	}
	fmt.Fprintln(os.Stderr, "guest:", err)
	os.Exit(1)
}

// begin hands over to the systemd of the disk. Its end would be the kernel's.
func begin() error {
	if err := vm.LoadModules(); err != nil {
		return err
	}
	const disk = "/disk"
	if err := vm.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return err
	}
	if err := vm.Mount("/dev/vda", disk, "ext4", unix.MS_NOATIME, ""); err != nil {
		return err
	}
	// The service is this program: the disk may have an earlier one.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		self, err = os.ReadFile(vm.GuestInit)
	}
	if err != nil {
		return fmt.Errorf("read own program: %w", err)
	}
	place := filepath.Join(disk, order.Program)
	if err := os.Remove(place); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write own program: %w", err)
	}
	if err := os.WriteFile(place, self, 0o755); err != nil {
		return fmt.Errorf("write own program: %w", err)
	}
	if err := os.Chdir(disk); err != nil {
		return err
	}
	if err := vm.Mount("/dev", disk+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := vm.Mount(disk, "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter disk: %w", err)
	}
	const systemd = "/lib/systemd/systemd"
	return fmt.Errorf("start systemd: %w", unix.Exec(systemd, []string{systemd}, os.Environ()))
}

// serve runs one command after the other, as long as the machine is there.
func serve() error {
	port, err := vm.OpenPort(order.Port)
	if err != nil {
		return err
	}
	report := &vm.Reporter{W: port}
	if err := report.Send(vm.ReportStarted, nil); err != nil {
		return err
	}
	for {
		_, text, err := vm.Receive(port)
		if err != nil {
			return err
		}
		var c order.Command
		if err := json.Unmarshal(text, &c); err != nil {
			return fmt.Errorf("read order: %w", err)
		}
		if err := execute(c, report); err != nil {
			return err
		}
	}
}

// execute runs a command to its end, or writes a file.
func execute(c order.Command, report *vm.Reporter) error {
	if c.File != "" {
		err := os.MkdirAll(filepath.Dir(c.File), 0o755)
		if err == nil {
			flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
			if c.Append {
				flags = os.O_WRONLY | os.O_APPEND
			}
			var f *os.File
			if f, err = os.OpenFile(c.File, flags, os.FileMode(c.Mode)); err == nil {
				_, err = f.Write(c.Content)
				err = errors.Join(err, f.Close())
			}
		}
		return end(report, 0, err)
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = speaker{report, vm.ReportStdout}, speaker{report, vm.ReportStderr}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return end(report, exit.ExitCode(), nil)
	}
	return end(report, 0, err)
}

func end(report *vm.Reporter, code int, err error) error {
	if err != nil {
		return report.Send(vm.ReportFailure, []byte(err.Error()))
	}
	return report.Send(vm.ReportExit, vm.ExitData(code, 0))
}

// speaker sends what is written to it as messages of a kind.
type speaker struct {
	report *vm.Reporter
	kind   byte
}

var _ io.Writer = speaker{}

func (s speaker) Write(b []byte) (int, error) { return len(b), s.report.Send(s.kind, b) }
