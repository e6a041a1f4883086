//go:build boot

package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab/vm"
	"github.com/sisod/sisod/packaging/boot/order"
)

// patience is how long a test waits for what must happen. The machine is
// emulated, and about ten times slower than the one it is on.
const patience = 4 * time.Minute

// contentChunk is how much of a file goes into one order.
const contentChunk = 256 << 10

// machine is a Debian with systemd. What is written to its disk outlives a
// reboot, and is gone with the test.
type machine struct {
	config  vm.Machine
	running *vm.Running
	ctx     context.Context
	manager string // who has the interfaces
}

// answer is what became of a command.
type answer struct {
	stdout, stderr string
	code           int
}

// bootModules reach the disk and the port.
var bootModules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4"}

// startMachine boots Debian.
func startMachine(ctx context.Context, dir string) (*machine, error) {
	cache, err := vm.CacheFolder("")
	if err != nil {
		return nil, err
	}
	k, err := vm.FindKernel(ctx, cache, os.Stderr)
	if err != nil {
		return nil, err
	}
	image, err := disk(ctx, k)
	if err != nil {
		return nil, err
	}
	copied, guest := filepath.Join(dir, "disk"), filepath.Join(dir, "guest")
	if err := program(ctx, "cp", "--sparse=always", "--reflink=auto", image, copied); err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's program: %w: %s", err, out)
	}
	m := &machine{ctx: ctx, manager: networkd, config: vm.Machine{
		Kernel: k, CPUs: 2, Memory: 1536, Port: order.Port,
		// With AppArmor in the kernel docker would want its programs.
		KernelArgs: "root=/dev/vda rw systemd.show_status=0 audit=0 apparmor=0",
		Initramfs:  vm.Initramfs{Init: guest, Modules: bootModules, Folders: []string{"/disk"}},
		Devices:    []string{"-drive", "file=" + copied + ",format=raw,if=virtio,cache=unsafe", "-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"},
	}}
	return m, m.start()
}

// start starts the machine and waits for its guest.
func (m *machine) start() error {
	started := make(chan error)
	go func() {
		// Qemu dies with the thread that starts it: this one stays.
		runtime.LockOSThread()
		var err error
		m.running, err = m.config.Start(m.ctx)
		started <- err
		if err == nil {
			<-m.ctx.Done()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	return m.await()
}

// await waits for the guest's first word.
func (m *machine) await() error {
	kind, _, err := vm.Receive(m.running.Port)
	if err != nil || kind != vm.ReportStarted {
		return fmt.Errorf("wait for Debian to start: %q, %w. The end of its console:\n%s", kind, err, m.running.ConsoleEnd())
	}
	return nil
}

// give gives an order and waits for its end.
func (m *machine) give(c order.Command) (answer, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return answer{}, err
	}
	if err := (&vm.Reporter{W: m.running.Port}).Send(vm.ReportData, text); err != nil {
		return answer{}, err
	}
	var stdout, stderr bytes.Buffer
	for {
		kind, data, err := vm.Receive(m.running.Port)
		if err != nil {
			return answer{}, fmt.Errorf("%w. The end of the console:\n%s", err, m.running.ConsoleEnd())
		}
		switch kind {
		case vm.ReportStdout:
			stdout.Write(data)
		case vm.ReportStderr:
			stderr.Write(data)
		case vm.ReportFailure:
			return answer{}, errors.New(string(data))
		case vm.ReportExit:
			code, _, err := vm.ParseExit(data)
			return answer{stdout.String(), stderr.String(), code}, err
		default:
			return answer{}, fmt.Errorf("the guest's program started anew: %q", kind)
		}
	}
}

// try runs a shell command line, whatever its exit code.
func (m *machine) try(t *testing.T, line string) answer {
	t.Helper()
	a, err := m.give(order.Command{Args: []string{"sh", "-c", line}})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return a
}

// run runs a shell command line that succeeds, and returns its output.
func (m *machine) run(t *testing.T, line string) string {
	t.Helper()
	a := m.try(t, line)
	if a.code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", line, a.code, a.stdout, a.stderr)
	}
	return strings.TrimSpace(a.stdout)
}

// write writes a file.
func (m *machine) write(t *testing.T, path, content string) {
	t.Helper()
	if err := m.put(path, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

// put writes a file, in pieces.
func (m *machine) put(path string, content []byte) error {
	for first := true; first || len(content) > 0; first = false {
		n := min(len(content), contentChunk)
		if _, err := m.give(order.Command{File: path, Mode: 0o644, Append: !first, Content: content[:n]}); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		content = content[n:]
	}
	return nil
}

// until waits for a shell command line to succeed, and returns its output.
func (m *machine) until(t *testing.T, line string) string {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		a := m.try(t, line)
		if a.code == 0 {
			return strings.TrimSpace(a.stdout)
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still exit code %d\n%s%s\n%s", line, a.code, a.stdout, a.stderr,
				m.try(t, "systemctl --no-pager status sisod; journalctl --no-pager -b -u sisod | tail -40; ip rule; ip -br address").stdout)
		}
	}
}

// reboot reboots the machine, and waits until it has come up.
func (m *machine) reboot(t *testing.T) {
	t.Helper()
	m.run(t, "systemctl --no-block reboot")
	// It ends by itself: qemu is told not to reboot.
	if err := m.running.Wait(); err != nil {
		t.Fatalf("reboot: %v. The end of the console:\n%s", err, m.running.ConsoleEnd())
	}
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	m.settle(t)
}

// settle waits until everything has started that starts at boot.
func (m *machine) settle(t *testing.T) {
	t.Helper()
	m.until(t, `state=$(systemctl is-system-running); test "$state" = running -o "$state" = degraded`)
}

// end ends the machine.
func (m *machine) end(cancel func()) {
	cancel()
	// It was killed.
	_ = m.running.Wait()
}
