// Stockvm runs a program on Debian's stock kernel, in a small virtual machine
// that is emulated in software: for what the machine's own kernel lacks, such
// as IPVS, and for tests that shall hold on the kernel that users have.
//
//	stockvm build                     fetch the kernel into the cache
//	stockvm run -- ipvsadm -Ln        run a program on it
//	go test -exec "$PWD/bin/stockvm exec" ./...
//
// The program sees the machine's files, in the caller's working folder and
// with the caller's environment, and is root. What it writes stays in the
// virtual machine's memory and is gone with it, but for files that it was
// told to make by the flags of package testing or by -fetch.
//
// It knows Debian's packages, qemu and how a Linux machine starts, and
// nothing of networks or of sisod. Nothing may outlive it: it makes no file
// but in its cache, and qemu dies with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab/vm"
)

const usage = `Usage:
  stockvm build [-cache DIR]
  stockvm run [flags] [--] PROGRAM [ARGUMENT...]
  stockvm exec [flags] PROGRAM [ARGUMENT...]     the same, for go test -exec

build fetches the kernel that Debian's linux-image-amd64 depends on, if the
cache has another one. run runs PROGRAM on it as root, and fetches it when the
cache has none.

Flags of run:
`

// exitOwn is the code for stockvm's own errors. Everything else is the
// program's code, or 128 and the number of the signal that ended it.
const exitOwn = 125

func main() {
	if os.Getpid() == 1 && os.Args[0] == vm.GuestInit {
		guestMain()
	}
	// The signal for the death of qemu's parent is for the end of the thread
	// that started it: that must not be earlier than the process's.
	runtime.LockOSThread()
	os.Exit(command(os.Args[1:]))
}

func command(args []string) int {
	if len(args) == 0 {
		return fail(errors.New("no command: use build, run or exec, or stockvm run -h"))
	}
	switch name, args := args[0], args[1:]; name {
	case "build":
		return buildCommand(args)
	case "run", "exec":
		return runCommand(name, args)
	default:
		return fail(fmt.Errorf("no command %q: use build, run or exec", name))
	}
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "stockvm:", err)
	return exitOwn
}

// newFlags returns the flags that all commands have.
func newFlags(name string) (*flag.FlagSet, *string) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	return flags, flags.String("cache", "", "`folder` of the kernel; default sisod/stockvm in the user's cache folder")
}

func parse(flags *flag.FlagSet, args []string) (code int, ok bool) {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0, false
	case err != nil:
		return exitOwn, false // flags has said it
	}
	return 0, true
}

func buildCommand(args []string) int {
	flags, cache := newFlags("stockvm build")
	if code, ok := parse(flags, args); !ok {
		return code
	}
	if flags.NArg() > 0 {
		return fail(fmt.Errorf("build: %q is one argument too many", flags.Arg(0)))
	}
	ctx, stop := watch(context.Background(), nil)
	defer stop()
	err := vm.Needed()
	if err == nil {
		*cache, err = vm.CacheFolder(*cache)
	}
	if err != nil {
		return fail(err)
	}
	k, err := vm.BuildKernel(ctx, *cache, os.Stderr)
	if err != nil {
		return failOrSignal(ctx, fmt.Errorf("build: %w", err))
	}
	fmt.Println(k.Image)
	return 0
}

func runCommand(name string, args []string) int {
	flags, cache := newFlags("stockvm " + name)
	m := machine{stdout: os.Stdout, stderr: os.Stderr}
	flags.IntVar(&m.cpus, "cpus", 2, "`number` of processors")
	flags.IntVar(&m.memory, "memory", 2048, "memory in `MiB`; what the program writes is in there as well")
	flags.StringVar(&m.kernelArgs, "kernel-args", "", "`words` for the kernel's command line")
	modules := flags.String("modules", "", "`names` of kernel modules to load before the program starts; others are loaded on demand")
	timeout := flags.Duration("timeout", 15*time.Minute, "`time` after which the machine is ended, and the run has failed")
	console := flags.Bool("console", false, "show the kernel's console on standard error")
	times := flags.Bool("times", false, "tell on standard error how long everything took")
	var fetch []string
	flags.Func("fetch", "`path` of a file or folder to bring back when the program has written there; may be repeated", func(s string) error {
		fetch = append(fetch, s)
		return nil
	})
	if code, ok := parse(flags, args); !ok {
		return code
	}
	if *console {
		m.console = os.Stderr
	}
	if flags.NArg() == 0 {
		return fail(fmt.Errorf("%s: no program given", name))
	}

	forward := make(chan os.Signal, 1)
	signal.Notify(forward, unix.SIGQUIT)
	m.signals = forward
	ctx, stop := watch(context.Background(), timeout)
	defer stop()

	err := vm.Needed()
	if err == nil {
		*cache, err = vm.CacheFolder(*cache)
	}
	if err == nil {
		m.kernel, err = vm.FindKernel(ctx, *cache, os.Stderr)
	}
	if err == nil {
		m.job, err = newJob(flags.Args(), strings.FieldsFunc(*modules, func(r rune) bool { return r == ' ' || r == ',' }), fetch)
	}
	if err != nil {
		return failOrSignal(ctx, err)
	}
	start := time.Now()
	res, err := m.run(ctx)
	if err != nil {
		return failOrSignal(ctx, fmt.Errorf("run %s: %w", flags.Arg(0), err))
	}
	if *times {
		fmt.Fprintf(os.Stderr, "stockvm: the program started after %.2fs and ran %.2fs; in all %.2fs\n",
			res.started.Seconds(), (res.ended - res.started).Seconds(), time.Since(start).Seconds())
	}
	if res.signal != 0 {
		fmt.Fprintf(os.Stderr, "stockvm: %s was ended by %s\n", flags.Arg(0), unix.SignalName(res.signal))
		return 128 + int(res.signal)
	}
	return res.code
}

// failOrSignal tells err, and gives the code of the signal if that is why.
func failOrSignal(ctx context.Context, err error) int {
	code := fail(err)
	var s signalError
	if errors.As(context.Cause(ctx), &s) {
		return 128 + int(s.signal)
	}
	return code
}

// newJob says what the guest has to do for the caller.
func newJob(command, modules, fetch []string) (job, error) {
	path, err := exec.LookPath(command[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return job{}, fmt.Errorf("find program: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return job{}, fmt.Errorf("find working folder: %w", err)
	}
	j := job{
		Path: path, Args: command, Dir: dir, Env: os.Environ(),
		Modules: modules, Fetch: outputs(command[1:], dir, fetch),
	}
	for what, path := range map[string]string{"program": path, "working folder": dir} {
		if own := guestsOwn(path); own != "" {
			return job{}, fmt.Errorf("%s %s: the virtual machine has its own %s", what, path, own)
		}
	}
	for _, path := range j.Fetch {
		if own := guestsOwn(path); own != "" {
			return job{}, fmt.Errorf("bring back %s: the virtual machine has its own %s", path, own)
		}
	}
	return j, nil
}
