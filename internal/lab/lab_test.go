package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// lifetime is what counts down by itself in the words of iproute2.
var lifetime = regexp.MustCompile(`"(valid|preferred)_life_time":[0-9]+|expires [0-9]+sec`)

// machine is what this machine has where a lab could leave something: its
// own network as iproute2 tells it, folders, and mounts. What others may change
// meanwhile, such as named namespaces, is left out.
func machine(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, args := range []string{"-j link", "-j address", "-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
		fmt.Fprintf(&all, "ip %s:\n%s\n", args, lifetime.ReplaceAll(out, nil))
	}
	for _, pattern := range []string{behind + "*", "/etc/iproute2/*", "/etc/iproute2/*/*", "/etc/sisod*", "/run/sisod*", "/var/lib/sisod*"} {
		fmt.Fprintln(&all, glob(t, pattern))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		point := strings.Fields(line)[4]
		if slices.Contains([]string{"/etc", "/etc/iproute2", "/run", "/sys", "/var/lib"}, point) || strings.HasPrefix(point, behind) {
			all.WriteString(line)
		}
	}
	return all.String()
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// namespace names the network namespace of a host as the kernel does.
func namespace(t *testing.T, h *Host) string {
	t.Helper()
	var name string
	err := h.Do(func() (err error) {
		name, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// holders are the threads and file descriptors of the whole machine that hold
// one of the namespaces.
func holders(t *testing.T, namespaces ...string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		for _, p := range glob(t, pattern) {
			// A process that is gone meanwhile holds nothing.
			if target, err := os.Readlink(p); err == nil && slices.Contains(namespaces, target) {
				found = append(found, p)
			}
		}
	}
	return found
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	before := machine(t)
	goroutines := runtime.NumGoroutine()
	two, err := NewTwoUplinks(t.Context(), TwoUplinksOptions{})
	if err != nil {
		t.Fatal(err)
	}
	capture(t, two.Host)
	sleeper, err := two.Host.Start(exec.Command("sh", "-c", "sleep 3600 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	hosts := []*Host{two.Host, two.Uplinks[0].Router, two.Uplinks[1].Router, two.Uplinks[0].Client, two.Uplinks[1].Client}
	var namespaces []string
	for _, h := range hosts {
		namespaces = append(namespaces, namespace(t, h))
	}
	if len(holders(t, namespaces...)) < len(hosts) {
		t.Fatalf("holders of %v are not found while the lab is open", namespaces)
	}
	if during := machine(t); during != before {
		t.Errorf("open lab shows on the machine:\n%s\nbefore:\n%s", during, before)
	}

	if err := two.Lab.Close(); err != nil {
		t.Error(err)
	}
	if err := two.Lab.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if err := sleeper.Wait(); err == nil {
		t.Error("program ended by itself, want it killed")
	}
	err = Wait(t.Context(), func() error {
		if left := holders(t, namespaces...); len(left) > 0 {
			return fmt.Errorf("namespaces are held by %v", left)
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			return fmt.Errorf("%d goroutines, %d before", n, goroutines)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if after := machine(t); after != before {
		t.Errorf("machine after the lab:\n%s\nbefore:\n%s", after, before)
	}
	for what, err := range map[string]error{
		"Do":    two.Host.Do(func() error { return nil }),
		"Start": func() error { _, err := two.Host.Start(exec.Command("true")); return err }(),
	} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s on a closed host: %v, want %v", what, err, fs.ErrClosed)
		}
	}
}

// resident starts the test binary as another process that has a lab, and
// returns it with the process that runs in the lab.
func resident(t *testing.T) (*exec.Cmd, int, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), residentEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	var pid int
	if _, err := fmt.Fscan(bufio.NewReader(out), &pid); err != nil {
		t.Fatalf("read process of resident: %v", err)
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return cmd, pid, name
}

func TestNothingIsLeftAfterTheProcessIsKilled(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd, pid, name := resident(t)
			if len(holders(t, name)) == 0 {
				t.Fatal("namespace has no holder while the process lives")
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its end is what was asked for
			err := Wait(t.Context(), func() error {
				if left := holders(t, name); len(left) > 0 {
					return fmt.Errorf("namespace of process %d is held by %v", pid, left)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLabsRunInParallel(t *testing.T) {
	var wait sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wait.Go(func() {
			two, err := NewTwoUplinks(t.Context(), TwoUplinksOptions{})
			if err != nil {
				errs[i] = err
				return
			}
			_, err = two.Uplinks[0].Client.Ask(t.Context(), Request{Protocol: TCP, To: twoPort(two)})
			errs[i] = errors.Join(err, two.Lab.Close())
		})
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestNewHostWithoutPrivilegeSaysWhatItNeeds(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A copy that another user can reach, run by that user.
	copied := filepath.Join(t.TempDir(), "lab.test")
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(copied); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(copied)
	cmd.Env, cmd.Dir = append(os.Environ(), residentEnv+"=1"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("needs root")) {
		t.Errorf("lab of nobody: %v, output %q", err, out)
	}
}
