package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// Options are the places and the log of a daemon.
type Options struct {
	ConfigDir string // absolute
	StateDir  string
	RunDir    string
	Host      *kernel.Host
	Log       *slog.Logger
}

// Run keeps the kernel as the profiles say until ctx is done or SIGTERM
// comes; what was applied then stays. It returns an error only when it cannot
// start. It must be called by a thread in the network namespace of o.Host, and
// keeps that.
func Run(ctx context.Context, o Options) error {
	// Before anything else: a reload that comes early is not the end.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	release, err := o.Host.ClaimDaemon()
	if err != nil {
		return err
	}
	defer release()
	if err := o.Host.Release(); err != nil {
		return err
	}
	events, err := o.Host.Listen(ctx)
	if err != nil {
		return err
	}
	watch, err := newWatcher(o.Log)
	if err != nil {
		events.Close()
		return err
	}
	l := &loop{
		Options: o, events: events, stream: events.C(), watch: watch, hup: hup, fights: newFights(), retries: retries{},
		report: Report{
			Version: reportVersion, PID: os.Getpid(), Started: time.Now(),
			Steps: []ReportStep{}, Problems: []state.Problem{},
		},
		told: map[string]bool{}, announced: o.Host.Announced(),
	}
	var owned sync.WaitGroup
	owned.Go(func() { watch.run(ctx) })
	l.run(ctx)
	stop()
	owned.Wait()
	l.events.Close()
	return watch.close()
}

// Absolute makes a configuration folder's path independent of the working folder.
func Absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", dir, err)
	}
	return abs, nil
}
