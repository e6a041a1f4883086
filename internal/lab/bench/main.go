// Bench measures sisod beside the programs that people use today, in one run on
// one machine, and writes what it found as a table, as JSON, as a plot, and into
// the README.
//
//	bench                          everything, ten to twenty-five minutes
//	bench -only prefixes,flap      parts of it, printed only
//	bench -list                    the parts
//
// It runs sisod's static binary as anybody would, with profiles and lists in
// files, on hosts of a lab, and looks from outside: at the clock, at /proc, at
// what the kernel tells a listener, at packets. It knows nothing of how sisod
// does its work. What needs IPVS, and what is told of systemd-networkd, is
// measured on Debian's stock kernel in a virtual machine, where this program runs
// as its own guest.
//
// The programs of one row take turns, and a figure is the median of the runs.
// The floor is a writer of its own here (raw.go): messages that were encoded
// before the clock starts, hundreds a send.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// bench is one run.
type bench struct {
	ctx    context.Context
	sisod  string // the binary under test
	dir    string // for lists and batch files, removed at the end
	runs   int
	where  string
	report *report
	log    *log.Logger
}

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	sisod := flags.String("sisod", "bin/sisod", "the `binary` under test")
	stockvm := flags.String("stockvm", "bin/stockvm", "the `program` that runs the guest; make stockvm makes it")
	only := flags.String("only", "", "`parts` to run, with commas; their table is printed, and no file but -json written")
	runs := flags.Int("runs", 5, "`number` of runs that a median is of")
	out := flags.String("out", "", "`folder` for bench.json and bench.svg")
	readme := flags.String("readme", "", "`file` whose section between the markers becomes the table")
	jsonFile := flags.String("json", "", "`file` for the figures alone")
	guest := flags.Bool("guest", false, "run the virtual machine's parts: this is the virtual machine")
	from := flags.String("from", "", "measure nothing: make table and plot of these `files` of earlier runs, with commas; the later count")
	list := flags.Bool("list", false, "print the parts")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *list {
		for _, p := range parts {
			fmt.Printf("%-10s %s\n", p.name, p.tells)
		}
		return nil
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if *from != "" {
		all := &report{}
		for path := range strings.SplitSeq(*from, ",") {
			r, err := readReport(path)
			if err != nil {
				return err
			}
			all.merge(r)
		}
		return publish(all, *out, *readme)
	}
	if *runs < 1 {
		return fmt.Errorf("-runs %d: at least one", *runs)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	b := &bench{ctx: ctx, runs: *runs, where: onHost, report: &report{}, log: log.New(os.Stderr, "bench: ", log.Ltime)}
	if *guest {
		b.where = inVM
	}
	if b.sisod, err = filepath.Abs(*sisod); err != nil {
		return err
	}
	if _, err := os.Stat(b.sisod); err != nil {
		return fmt.Errorf("find sisod: %w: make build makes it", err)
	}
	// A list that others can write is not to be trusted, and sisod does not.
	if b.dir, err = os.MkdirTemp("/var/tmp", "sisod-bench-"); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(b.dir)
	// This process must not take the processors' time while others are measured:
	// it collects its garbage between the runs.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(4 << 30)

	err = b.measure(chosen, *stockvm)
	if err != nil && *out != "" {
		// What was measured can be published with what is measured again.
		*jsonFile = filepath.Join(filepath.Dir(own()), "bench-unfinished.json")
		err = fmt.Errorf("%w\nmeasure that part again with -only and -json, and give both files to -from: the rest is in %s", err, *jsonFile)
	}
	if *jsonFile != "" {
		err = errors.Join(err, b.report.write(*jsonFile))
	}
	if err != nil {
		fmt.Fprint(os.Stderr, "What was measured:\n", b.report.list())
		return err
	}
	if *guest {
		return nil
	}
	if *only != "" {
		*out, *readme = "", ""
	}
	return publish(b.report, *out, *readme)
}

// choose finds the parts that were asked for; none is all.
func choose(only string) ([]part, error) {
	if only == "" {
		return parts, nil
	}
	var chosen []part
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-only %s: no such part; -list lists them", name)
		}
		chosen = append(chosen, parts[i])
	}
	return chosen, nil
}

// measure runs the parts of this machine, then those of the virtual machine. A
// part that fails keeps no other one from being measured.
func (b *bench) measure(chosen []part, stockvm string) error {
	machine, err := b.machine()
	if err != nil {
		return err
	}
	b.report.Machines = map[string]machineFacts{b.where: machine}
	var inGuest []string
	var errs []error
	for _, p := range chosen {
		run := p.host
		if b.where == inVM {
			run = p.guest
		} else if p.guest != nil {
			inGuest = append(inGuest, p.name)
		}
		if run == nil {
			continue
		}
		b.log.Printf("%s: %s", p.name, p.tells)
		if err := run(b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			b.log.Print(errs[len(errs)-1])
		}
		if err := b.ctx.Err(); err != nil {
			return errors.Join(errs...)
		}
	}
	if len(inGuest) > 0 {
		errs = append(errs, b.measureInGuest(inGuest, stockvm))
	}
	return errors.Join(errs...)
}

// publish prints the table, and writes it where it is wanted.
func publish(r *report, out, readme string) error {
	fmt.Print(r.table())
	if out != "" {
		if err := os.MkdirAll(out, 0o755); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		if err := r.write(filepath.Join(out, "bench.json")); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, "bench.svg"), []byte(r.plot()), 0o644); err != nil {
			return fmt.Errorf("write plot: %w", err)
		}
	}
	if readme == "" {
		return nil
	}
	picture, err := filepath.Rel(filepath.Dir(readme), filepath.Join(out, "bench.svg"))
	if err != nil {
		return fmt.Errorf("find the plot from %s: %w", readme, err)
	}
	return updateReadme(readme, fmt.Sprintf("![time against the number of prefixes and of services](%s)\n\n%s", filepath.ToSlash(picture), r.table()))
}

// own is where this program is.
func own() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}
