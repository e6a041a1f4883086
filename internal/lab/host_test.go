package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHostHasItsOwnFiles(t *testing.T) {
	l := New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	a, b := hosts[0], hosts[1]
	const files = "/run/sisod/ledger /etc/sisod/sisod.toml /etc/iproute2/rt_tables.d/lab.conf /var/lib/sisod/last"
	script := `set -e; for f in ` + files + `; do mkdir -p ${f%/*}; echo "4242 labtable" > $f; done; ip rule add lookup labtable; ip rule`
	out, err := a.Run(t.Context(), "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "lookup labtable") {
		t.Errorf("ip rule does not know the name of the host's table:\n%s", out)
	}
	for _, f := range strings.Fields(files) {
		// In the same host, from Go; elsewhere it is not there.
		err := a.Do(func() error { _, err := os.Stat(f); return err })
		if err != nil {
			t.Errorf("file of a: %v", err)
		}
		err = b.Do(func() error { _, err := os.Stat(f); return err })
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a is seen by b: %v", f, err)
		}
		if _, err := os.Stat(f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a is seen by the machine: %v", f, err)
		}
	}
	// Asked, not tried: a fault must not cost the machine a file.
	for _, f := range []string{"/etc/passwd", "/var/lib/dpkg", behind + "/etc", behind + "/var/lib"} {
		err := a.Do(func() error { return unix.Access(f, unix.W_OK) })
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("may write %s of the machine: %v, want %v", f, err, unix.EROFS)
		}
	}
	for host, want := range map[*Host]string{a: "a0", b: "b0"} {
		if err := host.Bridge(want, nil); err != nil {
			t.Fatal(err)
		}
		if out, err := host.Run(t.Context(), "ls", "/sys/class/net"); err != nil || strings.Join(strings.Fields(out), " ") != want+" lo" {
			t.Errorf("/sys/class/net of %s is %q (%v), want %s and lo", host.Name, out, err, want)
		}
		if err := host.Sysctl("net/ipv4/conf/" + want + "/rp_filter=2"); err != nil {
			t.Error(err)
		}
		if out, err := host.Run(t.Context(), "cat", "/proc/sys/net/ipv4/conf/"+want+"/rp_filter"); err != nil || out != "2\n" {
			t.Errorf("rp_filter of %s is %q (%v), want 2", host.Name, out, err)
		}
	}
	if err := a.Sysctl("net/ipv4/conf/nosuch/rp_filter=1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sysctl of no link: %v, want %v", err, fs.ErrNotExist)
	}
}

func TestDoRunsAwayFromTheFirstThread(t *testing.T) {
	l := New(t.Context())
	closeLab(t, l)
	h, err := l.Host("a")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 200 {
		wait.Go(func() {
			err := h.Do(func() error {
				if syscall.Gettid() == os.Getpid() {
					return errors.New("runs on the first thread")
				}
				if here, err := os.Getwd(); err != nil || here != dir {
					return fmt.Errorf("working folder is %s (%v), want %s", here, err, dir)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != own {
		t.Errorf("the process is in %s (%v), was in %s", now, err, own)
	}
	for _, task := range glob(t, "/proc/self/task/*/ns/net") {
		if name, err := os.Readlink(task); err == nil && name != own && name != namespace(t, h) {
			t.Errorf("thread %s is in %s", task, name)
		}
	}
	// The host's own thread and descriptor are left, and no thread of Do.
	err = Wait(t.Context(), func() error {
		if held := holders(t, namespace(t, h)); len(held) > 2 {
			return fmt.Errorf("namespace is held by %d threads and descriptors: %v", len(held), held)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	err = h.Do(func() error { runtime.Goexit(); return nil })
	if !errors.Is(err, errGoexit) {
		t.Errorf("Do of a function that ends its goroutine: %v, want %v", err, errGoexit)
	}
}

// whenRunning calls then once the script that it gives to run is being
// executed, and returns when both have.
func whenRunning(t *testing.T, then func(), run func(script string)) {
	t.Helper()
	marker := filepath.Join(t.TempDir(), "running")
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := Wait(t.Context(), func() error { _, err := os.Stat(marker); return err }); err != nil {
			t.Error(err)
		}
		then()
	})
	run("> " + marker + "; sleep 3600; echo")
	wait.Wait()
}

func TestRunTellsHowAProgramEnded(t *testing.T) {
	l := New(t.Context())
	closeLab(t, l)
	h, err := l.Host("a")
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Run(t.Context(), "sh", "-c", "echo said; echo wrong >&2; exit 3")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || exit.Stderr != "wrong\n" || out != "said\n" {
		t.Errorf("exit 3: output %q, error %v (%+v)", out, err, exit)
	}
	if _, err := h.Run(t.Context(), "nosuchprogram"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("no program: %v, want %v", err, exec.ErrNotFound)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	var ended time.Time
	whenRunning(t, func() { ended = time.Now(); cancel(cause) }, func(script string) {
		if _, err := h.Run(ctx, "sh", "-c", script); !errors.Is(err, cause) {
			t.Errorf("cancelled run: %v, want %v", err, cause)
		}
	})
	if took := time.Since(ended); took > drain/2 {
		t.Errorf("run ended %v after it was cancelled: a child of the program was left", took)
	}
}

func TestRunEndsWithTheLab(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := New(ctx)
	closeLab(t, l)
	h, err := l.Host("a")
	if err != nil {
		t.Fatal(err)
	}
	whenRunning(t, cancel, func(script string) {
		if _, err := h.Run(t.Context(), "sh", "-c", script); !errors.Is(err, context.Canceled) {
			t.Errorf("run in a cancelled lab: %v, want %v", err, context.Canceled)
		}
	})
	if _, err := l.Host("b"); !errors.Is(err, context.Canceled) {
		t.Errorf("host in a cancelled lab: %v, want %v", err, context.Canceled)
	}
}
