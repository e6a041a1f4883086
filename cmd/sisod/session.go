package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/profiles"
)

// session is one command at work: the profiles loaded, the kernel open.
type session struct {
	places *places
	config *profiles.Config
	host   *kernel.Host
}

// collectLate has garbage collected for the first time when the heap is 32 MiB,
// and from then on as always: most commands end before that, and collecting a
// small heap again and again was a fifth of their work.
func collectLate() {
	if os.Getenv("GOGC") != "" {
		return
	}
	const percentOf4MiB = 800
	usual := debug.SetGCPercent(percentOf4MiB)
	runtime.AddCleanup(new([4]*int), func(percent int) { debug.SetGCPercent(percent) }, usual)
}

// open loads the profiles and opens the kernel.
func (p *places) open() (*session, error) {
	collectLate()
	if err := p.becomeKeeper(); err != nil {
		return nil, err
	}
	dir, err := daemon.Absolute(p.config)
	if err != nil {
		return nil, err
	}
	config, err := profiles.Load("", dir)
	if err != nil {
		return nil, err
	}
	host, err := p.openHost(newLog(slog.LevelWarn))
	if err != nil {
		return nil, err
	}
	return &session{p, config, host}, nil
}

func (p *places) openHost(log *slog.Logger) (*kernel.Host, error) {
	if err := p.becomeKeeper(); err != nil {
		return nil, err
	}
	return kernel.Open(kernel.Options{RunDir: p.run, IPRoute2Dir: p.iproute2, Log: log})
}

func (s *session) close() { s.host.Close() }

// look reads everything and plans.
func (s *session) look(ctx context.Context) (daemon.Pass, error) {
	return daemon.Look(ctx, s.host, s.config, kernel.AllParts, true, nil)
}

// newLog writes lines for people; under systemd the journal has the time.
func newLog(level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}

// outliveReaders keeps a command that changes the kernel at work when nobody
// reads its words any more: "sisod apply | head -1" must not stop half way.
func outliveReaders() { signal.Ignore(syscall.SIGPIPE) }

// mayChange refuses early, before half of a plan is done.
func mayChange(verb string) error {
	var header unix.CapUserHeader
	header.Version = unix.LINUX_CAPABILITY_VERSION_3
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("%s changes the kernel's routing and needs CAP_NET_ADMIN: run it as root, e.g. with sudo", verb)
	}
	return nil
}

// problemsText is what a person reads about problems.
func problemsText(pal palette, pass daemon.Pass) []string {
	var lines []string
	for _, p := range pass.Desired.Problems {
		word := pal.warn("problem") + "  "
		if p.Error {
			word = pal.bad("error") + "    "
		}
		line := word + p.Subject + ": " + p.Text
		if p.Origin != "" {
			line += pal.dim("  " + p.Origin)
		}
		lines = append(lines, line)
	}
	return lines
}

// age is a time ago, short; the zero time is never.
func age(t time.Time) string {
	switch d := time.Since(t); {
	case t.IsZero():
		return "never"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

// plural is "1 step" or "3 steps".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
