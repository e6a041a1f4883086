//go:build stock

package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab/vm"
)

// folder is where program is, for TestMain to remove.
var folder string

// program is stockvm, built, with a kernel in its cache.
var program = sync.OnceValues(func() (string, error) {
	var err error
	if folder, err = os.MkdirTemp("", "stockvm-test-"); err != nil {
		return "", err
	}
	path := filepath.Join(folder, "stockvm")
	for _, args := range [][]string{{"go", "build", "-o", path, "."}, {path, "build"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", errors.New(strings.Join(args, " ") + ": " + err.Error() + ": " + string(out))
		}
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if folder != "" {
		os.RemoveAll(folder)
	}
	os.Exit(code)
}

func stockvm(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

// exitCode is that of a program that has ended.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return exit.ExitCode()
}

func TestStockKernelHasWhatTestsExpect(t *testing.T) {
	for name, pkg := range map[string]string{
		"ip": "iproute2", "ping": "iputils-ping", "nft": "nftables", "ipvsadm": "ipvsadm",
		"curl": "curl", "tcpdump": "tcpdump", "keepalived": "keepalived",
	} {
		if _, err := vm.Find(name); err != nil {
			t.Errorf("%v: apt-get install %s", err, pkg)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := stockvm(t, "run", "-times", "-timeout", "3m", "-modules", "veth", "-fetch", "written", "--", "sh", "testdata/stock.sh", "two words", `a "quoted" *`)
	t.Cleanup(func() { os.RemoveAll("written") })
	cmd.Env = append(os.Environ(), "LAB_TEST=as is", "LAB_FILE="+file)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if code := exitCode(t, cmd.Run()); code != 7 {
		t.Fatalf("exit code %d, want 7; standard output:\n%sstandard error:\n%s", code, &stdout, &stderr)
	}
	t.Logf("%s%s", &stdout, &stderr)
	first, rest, _ := strings.Cut(stderr.String(), "\n")
	if first != "wrong" || !strings.HasPrefix(rest, "stockvm: the program started after ") {
		t.Errorf("standard error is %q", &stderr)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "host\n" {
		t.Errorf("a file of the machine is %q (%v) now", text, err)
	}
	for name, want := range map[string]string{"one": "one\n", "two": "two\n"} {
		if text, err := os.ReadFile(filepath.Join("written", name)); err != nil || string(text) != want {
			t.Errorf("%s was brought back as %q (%v), want %q", name, text, err, want)
		}
	}
}

func TestGoTestRunsOnTheStockKernel(t *testing.T) {
	vm := stockvm(t, "exec")
	profile := filepath.Join(t.TempDir(), "cover.out")
	cmd := exec.Command("go", "test", "-count=1", "-v", "-run", "^(TestOutputs|TestReport)", "-coverprofile", profile,
		"-exec", strings.Join(vm.Args, " "), ".")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: TestOutputs") {
		t.Errorf("no test ran:\n%s", out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "/outputs.go:") {
		t.Errorf("coverage profile is\n%s", text)
	}
}

func TestPanicOfTheGuestIsReported(t *testing.T) {
	code, said, stderr := onceReady(t, "echo c >/proc/sysrq-trigger")
	if code != exitOwn {
		t.Errorf("exit code %d, want %d", code, exitOwn)
	}
	for _, want := range []string{errSilent.Error(), "Kernel panic - not syncing: sysrq triggered crash"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in the output:\n%s", want, stderr)
		}
	}
	if said != "ready\n" {
		t.Errorf("before it the program said %q", said)
	}
}

func TestMissingModuleIsReported(t *testing.T) {
	out, err := stockvm(t, "run", "-modules", "nosuchmodule", "true").CombinedOutput()
	if code := exitCode(t, err); code != exitOwn {
		t.Errorf("exit code %d, want %d", code, exitOwn)
	}
	if !strings.Contains(string(out), "load module nosuchmodule: ") {
		t.Errorf("output:\n%s", out)
	}
}

func TestSignalsReachTheProgram(t *testing.T) {
	code, _, stderr := onceReady(t, "kill -KILL $$")
	if code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d, want %d", code, 128+int(syscall.SIGKILL))
	}
	if !strings.Contains(stderr, "SIGKILL") {
		t.Errorf("standard error is %q", stderr)
	}
}

// onceReady sends SIGQUIT to a program that has said that it is ready, and then
// does what is to be done.
func onceReady(t *testing.T, do string) (code int, said, stderr string) {
	t.Helper()
	cmd := stockvm(t, "run", "sh", "-c", `trap '`+do+`' QUIT; echo ready; while :; do sleep 0.1; done`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errors bytes.Buffer
	cmd.Stderr = &errors
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 16)
	n, err := stdout.Read(line)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Error(err)
	}
	return exitCode(t, cmd.Wait()), string(line[:n]), errors.String()
}

func TestTimeoutIsReported(t *testing.T) {
	out, err := stockvm(t, "run", "-timeout", "300ms", "true").CombinedOutput()
	if code := exitCode(t, err); code != exitOwn {
		t.Errorf("exit code %d, want %d", code, exitOwn)
	}
	if !strings.Contains(string(out), "time is up after 300ms") {
		t.Errorf("output:\n%s", out)
	}
}

func TestQemuDiesWithStockvm(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		t.Run(s.String(), func(t *testing.T) {
			cmd := stockvm(t, "run", "sleep", "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			machine := child(t, cmd.Process.Pid, vm.Qemu)
			if err := cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
			err := cmd.Wait()
			if s != syscall.SIGKILL {
				if code := exitCode(t, err); code != 128+int(s) {
					t.Errorf("exit code %d, want %d", code, 128+int(s))
				}
			}
			ends(t, machine)
		})
	}
}

func TestStockvmDiesWithItsParent(t *testing.T) {
	run := stockvm(t, "run", "sleep", "1000")
	cmd := exec.Command("sh", append([]string{"-c", `"$@" & wait`, "sh"}, run.Args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stock := child(t, cmd.Process.Pid, "stockvm")
	machine := child(t, stock, vm.Qemu)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	ends(t, stock)
	ends(t, machine)
}

func TestProgramsOfTheGuestsOwnFoldersAreRefused(t *testing.T) {
	if _, err := newJob([]string{"/proc/self/exe"}, nil, nil); err == nil || !strings.Contains(err.Error(), "has its own /proc") {
		t.Errorf("error is %v", err)
	}
	if _, err := newJob([]string{"nosuchprogram"}, nil, nil); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error is %v", err)
	}
}

// child waits until a process has a child that runs a program.
func child(t *testing.T, parent int, name string) int {
	t.Helper()
	var found int
	wait(t, func() bool {
		lists, err := filepath.Glob("/proc/" + strconv.Itoa(parent) + "/task/*/children")
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range lists {
			text, err := os.ReadFile(list)
			if err != nil {
				continue
			}
			for _, pid := range strings.Fields(string(text)) {
				exe, err := os.Readlink("/proc/" + pid + "/exe")
				if err == nil && filepath.Base(exe) == name {
					found, err = strconv.Atoi(pid)
					return err == nil
				}
			}
		}
		return false
	})
	return found
}

// ends waits until a process is gone, and ends it if it stays.
func ends(t *testing.T, pid int) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone
		}
	})
	wait(t, func() bool {
		// A process that nobody has waited for is a zombie, without a program.
		_, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
		return errors.Is(err, fs.ErrNotExist)
	})
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come to that in 30s")
		case <-tick.C:
		}
	}
}
