package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// change is a system call that changes something outside the process.
type change struct {
	number int    // from 1
	what   string // "netlink NEWRULE", "rename /run/sisod/ledger.json"
}

// verdict is what becomes of a process that is about to make a change.
type verdict int

const (
	proceed verdict = iota
	kill            // SIGKILL: the call is not made
)

// traced runs sisod on a host under ptrace(2). decide is called, while the
// whole program stands still, before every change: a netlink request that is
// not a question, a file that is written, renamed, made or removed. Standard
// output and error are no changes.
func traced(t testing.TB, h *lab.Host, decide func(change) verdict, args ...string) result {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "output")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	r := result{}
	// The tracer is the thread that starts the program.
	err := h.Do(func() error {
		tr := tracer{decide: decide, entered: map[int]bool{}}
		code, err := tr.run(append([]string{program}, args...), files[0].Fd(), files[1].Fd())
		r.code = code
		return err
	})
	if err != nil {
		t.Fatalf("trace sisod %s: %v", strings.Join(args, " "), err)
	}
	for i, text := range []*string{&r.stdout, &r.stderr} {
		b, err := os.ReadFile(files[i].Name())
		if err != nil {
			t.Fatal(err)
		}
		*text = string(b)
	}
	return r
}

// killed is the code of a result that SIGKILL ended.
const killed = -1

type tracer struct {
	decide  func(change) verdict
	leader  int
	entered map[int]bool // threads inside a system call
	changes int
	dead    bool // killed, and not to be asked about again
}

// syscallStop marks a stop at a system call (PTRACE_O_TRACESYSGOOD).
const syscallStop = unix.SIGTRAP | 0x80

func (tr *tracer) run(argv []string, stdout, stderr uintptr) (code int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	tr.leader, err = syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   append(os.Environ(), "GOMAXPROCS=1"),
		Files: []uintptr{null.Fd(), stdout, stderr},
		Sys:   &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return 0, err
	}
	first := true
	for {
		var status unix.WaitStatus
		// __WNOTHREAD: other tests' children are theirs.
		pid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		switch {
		case status.Exited() && pid == tr.leader:
			return status.ExitStatus(), nil
		case status.Signaled() && pid == tr.leader:
			if status.Signal() == unix.SIGKILL {
				return killed, nil
			}
			return 0, fmt.Errorf("ended by %s", status.Signal())
		case !status.Stopped():
			continue
		}
		if first {
			first = false
			if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
				return 0, fmt.Errorf("set options: %w", err)
			}
		}
		signal := 0
		switch status.StopSignal() {
		case syscallStop:
			tr.atSyscall(pid)
		case unix.SIGTRAP, unix.SIGSTOP:
			// The exec, a new thread, and a thread's first stop.
		default:
			signal = int(status.StopSignal())
		}
		if err := unix.PtraceSyscall(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("go on: %w", err)
		}
	}
}

// syscallInfo is struct ptrace_syscall_info at the entry of a call (linux/ptrace.h).
type syscallInfo struct {
	Op   uint8
	_    [3]uint8
	Arch uint32
	_    [2]uint64 // instruction and stack pointer
	Nr   uint64
	Args [6]uint64
}

// atSyscall looks at a call that a thread is about to make.
func (tr *tracer) atSyscall(pid int) {
	var c syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(pid), unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c)), 0, 0)
	if errno != 0 || c.Op != unix.PTRACE_SYSCALL_INFO_ENTRY || tr.dead {
		return
	}
	what := tr.describe(pid, c)
	if what == "" {
		return
	}
	tr.changes++
	if tr.decide(change{tr.changes, what}) == kill {
		tr.dead = true
		// The process is stopped here and has not been waited for: the number is its.
		_ = unix.Kill(tr.leader, unix.SIGKILL)
	}
}

// describe names a call that changes something, "" for any other.
func (tr *tracer) describe(pid int, c syscallInfo) string {
	path := func(arg int) string { return tr.text(pid, c.Args[arg]) }
	switch c.Nr {
	case unix.SYS_SENDTO:
		header := make([]byte, 20)
		if n, err := unix.PtracePeekData(pid, uintptr(c.Args[1]), header); err != nil || n < len(header) {
			return "netlink message that cannot be read"
		}
		kind := binary.NativeEndian.Uint16(header[4:])
		name := map[uint16]string{
			unix.RTM_NEWROUTE: "NEWROUTE", unix.RTM_DELROUTE: "DELROUTE", unix.RTM_NEWRULE: "NEWRULE", unix.RTM_DELRULE: "DELRULE",
			unix.RTM_NEWLINK: "NEWLINK", unix.RTM_SETLINK: "SETLINK",
		}[kind]
		switch {
		// The kinds come in fours: new, delete, get, set (linux/rtnetlink.h).
		case kind >= unix.RTM_BASE && (kind-unix.RTM_BASE)%4 == 2:
			return ""
		case name == "":
			name = fmt.Sprint(kind)
		}
		return "netlink " + name
	case unix.SYS_WRITE, unix.SYS_PWRITE64:
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, c.Args[0]))
		if c.Args[0] <= 2 || err != nil || !filepath.IsAbs(target) {
			return "" // output, and what wakes up threads
		}
		return "write " + target
	case unix.SYS_OPENAT:
		if c.Args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0 {
			return "create " + path(1)
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "rename " + path(3)
	case unix.SYS_UNLINKAT:
		return "remove " + path(1)
	case unix.SYS_MKDIRAT:
		return "mkdir " + path(1)
	case unix.SYS_FCHMOD, unix.SYS_FCHMODAT:
		return "chmod"
	case unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_FTRUNCATE, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_MOUNT:
		return fmt.Sprintf("system call %d", c.Nr)
	}
	return ""
}

// text is a string of the traced program.
func (tr *tracer) text(pid int, address uint64) string {
	b := make([]byte, 256)
	n, err := unix.PtracePeekData(pid, uintptr(address), b)
	if err != nil && n == 0 {
		return "?"
	}
	s, _, _ := strings.Cut(string(b[:n]), "\x00")
	return s
}
