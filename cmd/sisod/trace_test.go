package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// change is a system call that changes something outside the process.
type change struct {
	number int    // from 1
	what   string // "netlink NEWRULE", "rename /run/sisod/ledger.json"
	alike  string // what, without the random name of a file that is renamed later
	nth    int    // of those that are alike, from 1
	// messages is how many netlink messages are sent at once, and drop has the
	// kernel pass over those from one on.
	messages int
	drop     func(from int)
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
// output and error are no changes, nor are packets.
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
		tr := tracer{decide: decide, protocols: map[string]string{}, alike: map[string]int{}, calls: map[int]uint64{}, again: map[int]uint64{}}
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
	decide    func(change) verdict
	leader    int
	protocols map[string]string // of netlink sockets, by their names in /proc
	changes   int
	alike     map[string]int
	calls     map[int]uint64 // the number of each thread's call
	again     map[int]uint64 // by thread: the number of a call that the kernel begins anew
	dead      bool           // killed, and not to be asked about again
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
		Sys:   &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return 0, err
	}
	first := true
	for {
		var status unix.WaitStatus
		// A group of its own, and __WNOTHREAD: other tests' children are theirs, those too
		// that this thread began for them before.
		pid, err := unix.Wait4(-tr.leader, &status, unix.WALL|unix.WNOTHREAD, nil)
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

// syscallInfo is struct ptrace_syscall_info (linux/ptrace.h).
type syscallInfo struct {
	Op   uint8
	_    [3]uint8
	Arch uint32
	_    [2]uint64 // instruction and stack pointer
	Nr   uint64    // at the end of a call: its result
	Args [6]uint64
}

// restartNoInterrupt is ERESTARTNOINTR (linux/errno.h), which only a tracer sees.
// A write to ip_forward ends so while another program holds the routing lock
// (net/ipv4/devinet.c).
const restartNoInterrupt = 513

// atSyscall looks at a call that a thread is about to make. One that the kernel
// begins anew is the same change.
func (tr *tracer) atSyscall(pid int) {
	var c syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(pid), unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c)), 0, 0)
	if errno == 0 && c.Op == unix.PTRACE_SYSCALL_INFO_EXIT {
		if int64(c.Nr) == -restartNoInterrupt {
			tr.again[pid] = tr.calls[pid]
		}
		return
	}
	if errno != 0 || c.Op != unix.PTRACE_SYSCALL_INFO_ENTRY || tr.dead {
		return
	}
	tr.calls[pid] = c.Nr
	// A signal's handler may come first, with calls of its own.
	if call, due := tr.again[pid]; due && call == c.Nr {
		delete(tr.again, pid)
		return
	}
	next := tr.describe(pid, c)
	if next.what == "" {
		return
	}
	tr.changes++
	next.number = tr.changes
	next.alike, _, _ = strings.Cut(next.what, "/.")
	tr.alike[next.alike]++
	next.nth = tr.alike[next.alike]
	if tr.decide(next) == kill {
		tr.dead = true
		// The process is stopped here and has not been waited for: the number is its.
		_ = unix.Kill(tr.leader, unix.SIGKILL)
	}
}

// describe names a call that changes something, "" for any other.
func (tr *tracer) describe(pid int, c syscallInfo) change {
	if c.Nr == unix.SYS_SENDTO {
		return tr.netlink(pid, c)
	}
	return change{what: tr.file(pid, c)}
}

// file names a call that changes a file.
func (tr *tracer) file(pid int, c syscallInfo) string {
	path := func(arg int) string { return tr.text(pid, c.Args[arg]) }
	switch c.Nr {
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

// netlink names a request that is not a question, "" for any other.
func (tr *tracer) netlink(pid int, c syscallInfo) change {
	protocol := tr.protocol(pid, c.Args[0])
	if protocol == "" {
		return change{}
	}
	data := make([]byte, c.Args[2])
	local := []unix.Iovec{{Base: unsafe.SliceData(data), Len: c.Args[2]}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(c.Args[1]), Len: len(data)}}, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return change{what: "netlink message that cannot be read"}
	}
	kind := binary.NativeEndian.Uint16(data[4:])
	what := routeRequest(kind)
	if protocol == protocolGeneric {
		what = genericRequest(kind, binary.NativeEndian.Uint16(data[6:]), data[unix.SizeofNlMsghdr])
	}
	var starts []int
	for at := 0; at+unix.SizeofNlMsghdr <= len(data); {
		starts = append(starts, at)
		at += max((int(binary.NativeEndian.Uint32(data[at:]))+3)&^3, unix.SizeofNlMsghdr)
	}
	return change{what: what, messages: len(starts), drop: func(from int) {
		for _, at := range starts[min(from, len(starts)):] {
			// What is no request is acknowledged, and nothing is done
			// (net/netlink/af_netlink.c, netlink_rcv_skb).
			word := binary.NativeEndian.AppendUint16(nil, unix.NLMSG_NOOP)
			if _, err := unix.PtracePokeData(pid, uintptr(c.Args[1])+uintptr(at)+4, word); err != nil {
				panic(fmt.Sprintf("change a message of the traced program: %v", err))
			}
		}
	}}
}

// routeRequest names a request of rtnetlink by its kind.
func routeRequest(kind uint16) string {
	name := map[uint16]string{
		unix.RTM_NEWROUTE: "NEWROUTE", unix.RTM_DELROUTE: "DELROUTE", unix.RTM_NEWRULE: "NEWRULE", unix.RTM_DELRULE: "DELRULE",
		unix.RTM_NEWLINK: "NEWLINK", unix.RTM_SETLINK: "SETLINK", unix.RTM_NEWADDR: "NEWADDR", unix.RTM_DELADDR: "DELADDR",
		unix.RTM_NEWNEXTHOP: "NEWNEXTHOP", unix.RTM_DELNEXTHOP: "DELNEXTHOP",
	}[kind]
	switch {
	// The kinds come in fours: new, delete, get, set (linux/rtnetlink.h).
	case kind >= unix.RTM_BASE && (kind-unix.RTM_BASE)%4 == 2:
		return ""
	case name == "":
		name = fmt.Sprint(kind)
	}
	return "netlink " + name
}

// genericCommands are the commands of generic netlink families that change
// something (linux/ip_vs.h, linux/fou.h).
var genericCommands = map[string]map[uint8]string{
	"IPVS": {
		1: "NEW_SERVICE", 2: "SET_SERVICE", 3: "DEL_SERVICE", 5: "NEW_DEST", 6: "SET_DEST", 7: "DEL_DEST",
		9: "NEW_DAEMON", 10: "DEL_DAEMON", 12: "SET_CONFIG",
	},
	"fou":    {1: "ADD", 2: "DEL"},
	"nlctrl": {},
}

// genericRequest names a request of generic netlink. Families have numbers that
// the kernel gives them when their module is loaded.
func genericRequest(kind, flags uint16, command uint8) string {
	if flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
		return ""
	}
	families, err := netlink.GenlFamilyList()
	i := slices.IndexFunc(families, func(f *netlink.GenlFamily) bool { return f.ID == kind })
	if err != nil || i < 0 || genericCommands[families[i].Name] == nil {
		return fmt.Sprintf("generic netlink %d, command %d", kind, command)
	}
	if name := genericCommands[families[i].Name][command]; name != "" {
		return "netlink " + families[i].Name + " " + name
	}
	return ""
}

// protocolGeneric is NETLINK_GENERIC as /proc/net/netlink has it.
var protocolGeneric = fmt.Sprint(unix.NETLINK_GENERIC)

// protocol is the netlink protocol of a socket of the traced program, "" for a
// socket of another kind.
func (tr *tracer) protocol(pid int, fd uint64) string {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if known := tr.protocols[name]; known != "" || err != nil {
		return known
	}
	inode := strings.TrimSuffix(strings.TrimPrefix(name, "socket:["), "]")
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(list)) {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(line); len(f) == 10 && f[9] == inode {
			tr.protocols[name] = f[1]
		}
	}
	return tr.protocols[name]
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
