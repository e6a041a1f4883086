package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Times of the loop.
const (
	gatherQuiet = 20 * time.Millisecond  // events that follow each other closer than this are one pass
	gatherMost  = 200 * time.Millisecond // and none of them waits longer than this
	retryFirst  = time.Second
	retryMost   = time.Minute
	fullPass    = 5 * time.Minute
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
// start.
func Run(ctx context.Context, o Options) error {
	release, err := o.Host.ClaimDaemon()
	if err != nil {
		return err
	}
	defer release()
	if err := o.Host.Release(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	events, err := o.Host.Listen(ctx)
	if err != nil {
		return err
	}
	defer events.Close()
	watch, err := newWatcher(o.Log)
	if err != nil {
		return err
	}
	defer watch.inner.Close()
	l := &loop{
		Options: o, events: events, watch: watch, fights: newFights(), good: lastGood{o.StateDir},
		report:   Report{Version: reportVersion, PID: os.Getpid(), Started: time.Now()},
		problems: map[string]bool{},
	}
	var owned sync.WaitGroup
	owned.Go(func() { watch.run(ctx) })
	defer owned.Wait()
	defer stop()
	l.run(ctx)
	return nil
}

// loop is the one goroutine that reconciles; everything else pulls a trigger.
type loop struct {
	Options
	events *kernel.Events
	watch  *watcher
	fights *fights
	good   lastGood
	config *profiles.Config // nil: nothing ever loaded, so nothing is touched
	onDisk bool             // config is what the disk says, not a kept copy

	pending  trigger
	retry    time.Duration // 0: the last pass left nothing to retry
	report   Report
	problems map[string]bool
}

// trigger is what the next pass is for.
type trigger struct {
	parts   kernel.Parts
	sweep   bool
	reload  bool
	reasons []string
	peer    uint32    // the last foreign sender of an event
	first   time.Time // of the oldest reason
	last    time.Time // of the newest
}

func (t *trigger) pull(parts kernel.Parts, reason string) {
	now := time.Now()
	if t.first.IsZero() {
		t.first = now
	}
	t.last = now
	t.parts |= parts
	if reason != "" && len(t.reasons) < 8 && !slices.Contains(t.reasons, reason) {
		t.reasons = append(t.reasons, reason)
	}
}

func (t *trigger) pulled() bool { return !t.first.IsZero() }

func (l *loop) run(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	full := time.NewTicker(fullPass)
	defer full.Stop()
	retry, gather := stopped(), stopped()
	defer retry.Stop()
	defer gather.Stop()
	alive, stopAlive := watchdog()
	defer stopAlive()

	l.load(false)
	l.pending.pull(kernel.AllParts, "start")
	l.pending.sweep = true
	wait := l.pass(ctx)
	setTimer(retry, wait)
	l.notify(daemon.SdNotifyReady)
	lastEvent := time.Now()
	for {
		select {
		case <-ctx.Done():
			l.notify(daemon.SdNotifyStopping)
			l.Log.Info("stop", "state", "stays in place")
			return
		case e, open := <-l.events.C():
			if !open {
				continue // the context is done
			}
			l.pending.pull(e.Parts, e.Reason)
			if e.Peer != 0 {
				l.pending.peer = e.Peer
			}
			// The first event is acted on at once, its followers are gathered.
			if now := time.Now(); now.Sub(lastEvent) < gatherQuiet {
				lastEvent = now
				gather.Reset(min(gatherQuiet, max(0, gatherMost-now.Sub(l.pending.first))))
				continue
			}
			lastEvent = time.Now()
		case <-gather.C:
			if time.Since(l.pending.last) < gatherQuiet && time.Since(l.pending.first) < gatherMost {
				gather.Reset(gatherQuiet)
				continue
			}
		case <-l.watch.changed:
			if l.config != nil && l.onDisk && !l.config.Settings.Watch {
				continue
			}
			l.pending.pull(0, "profile changed")
			l.pending.reload = true
		case <-hup:
			l.reloading()
			if err := l.Host.Release(); err != nil {
				l.Log.Error("release hold", "error", err)
			}
			l.pending.pull(kernel.AllParts, "reload")
			l.pending.reload = true
		case <-full.C:
			l.pending.pull(kernel.AllParts, "full pass")
			l.pending.sweep = true
		case <-retry.C:
			l.pending.pull(kernel.AllParts, "retry")
		case <-alive:
			l.notify(daemon.SdNotifyWatchdog)
			continue
		}
		if !l.pending.pulled() {
			continue
		}
		reloaded := false
		if l.pending.reload {
			reloaded = slices.Contains(l.pending.reasons, "reload")
			if !l.load(true) && l.pending.parts == 0 {
				l.pending = trigger{}
				continue
			}
			l.pending.parts |= kernel.AllParts
		}
		wait := l.pass(ctx)
		setTimer(retry, wait)
		if reloaded {
			l.notify(daemon.SdNotifyReady)
		}
	}
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func setTimer(t *time.Timer, d time.Duration) {
	if d > 0 {
		t.Reset(d)
	} else {
		t.Stop()
	}
}

// load reads the profiles. A configuration that does not load changes
// nothing: what is in force stays, and at the start the last good one stands
// in. It reports whether there is something new to apply.
func (l *loop) load(again bool) (changed bool) {
	c, err := profiles.Load("", l.ConfigDir)
	defer func() { l.watch.follow(l.ConfigDir, l.config) }()
	if err != nil {
		if l.report.ConfigError != err.Error() {
			l.Log.Error("load profiles: nothing is changed", "error", err.Error())
		}
		l.report.ConfigError = err.Error()
		l.onDisk = false
		if l.config == nil {
			l.standIn()
		}
		l.publish()
		return !again && l.config != nil
	}
	if again && l.report.ConfigError != "" {
		l.Log.Info("load profiles", "state", "good again")
	}
	l.report.ConfigError, l.report.LastGood = "", false
	l.config, l.onDisk = c, true
	// A long prefix list leaves twice its size behind when it is read.
	debug.FreeOSMemory()
	return true
}

// standIn takes the kept copy of the last good configuration.
func (l *loop) standIn() {
	kept, err := l.good.load(l.ConfigDir)
	switch {
	case err != nil:
		l.Log.Error("load last good configuration", "error", err.Error())
	case kept == nil:
		l.Log.Warn("no last good configuration is kept: the kernel is left as it is")
	default:
		l.Log.Warn("last good configuration stands in", "kept", l.good.root())
		l.config, l.report.LastGood = kept, true
	}
}

// pass reads what the trigger names, applies the difference, and returns how
// long to wait before the next try, or 0.
func (l *loop) pass(ctx context.Context) time.Duration {
	t := l.pending
	l.pending = trigger{}
	if l.config == nil {
		l.publish()
		return 0
	}
	unlock, err := l.Host.Lock(ctx)
	if err != nil {
		return l.failed("lock", err)
	}
	defer unlock()
	if l.Host.Held() {
		if !l.report.Held {
			l.Log.Info("hold still after flush", "until", "apply, reload or restart")
		}
		l.report.Held = true
		l.publish()
		return 0
	}
	if l.report.Held {
		// What somebody else applied meanwhile is not known here.
		l.report.Held = false
		t.parts |= kernel.AllParts
	}
	p, err := Look(ctx, l.Host, l.config, t.parts, t.sweep)
	if err != nil {
		return l.failed("read kernel", err)
	}
	l.events.SetInterest(l.config.Interfaces(), p.Tables)
	plan, repairs, warn, wait := l.fights.referee(p.Plan, p.Desired, time.Now())
	p.Plan = plan
	l.warnFights(warn, t.peer)
	reason := strings.Join(t.reasons, ", ")
	repaired := map[string]bool{}
	for _, s := range repairs {
		repaired[s.Object.Spell(nil)] = true
	}
	l.report.Repairs += len(repairs)
	l.report.Failures = nil
	failures := 0
	_, err = p.Apply(ctx, l.Host, func(o kernel.Outcome) {
		if !o.Done() {
			failures++
		}
		l.logStep(o, p.Plan.Names, reason, repaired[o.Step.Object.Spell(nil)])
	})
	if err != nil {
		return l.failed("apply", err)
	}
	l.report.LastPass = time.Now()
	l.tellProblems(p.Desired.Problems)
	if l.onDisk && failures == 0 {
		if err := l.good.keep(l.config, l.ConfigDir); err != nil {
			l.Log.Warn("keep last good configuration", "error", err)
		}
	}
	l.publish()
	if failures > 0 {
		return l.backOff()
	}
	l.retry = 0
	return wait
}

// failed tells why a pass did not come to its end, and when the next is due.
func (l *loop) failed(what string, err error) time.Duration {
	if errors.Is(err, context.Canceled) {
		return 0
	}
	wait := l.backOff()
	l.Log.Error(what, "error", err, "retry", wait)
	l.report.Failures = []ReportStep{{Time: time.Now(), Op: what, Error: err.Error()}}
	l.publish()
	return wait
}

func (l *loop) backOff() time.Duration {
	l.retry = min(max(2*l.retry, retryFirst), retryMost)
	return l.retry
}

func (l *loop) logStep(o kernel.Outcome, names state.Names, reason string, repair bool) {
	kind := o.Step.Object.Kind().String()
	for line := range strings.Lines(o.Step.Object.Spell(names)) {
		line = strings.TrimSuffix(line, "\n")
		s := ReportStep{Time: time.Now(), Op: o.Step.Op.String(), Kind: kind, Object: line, Reason: reason}
		attrs := []any{kind, line}
		if o.Step.Origin != "" {
			attrs = append(attrs, "profile", o.Step.Origin)
		}
		attrs = append(attrs, "reason", reason)
		if repair {
			attrs = append(attrs, "drift", true)
		}
		switch {
		case o.Err != nil:
			s.Error = o.Err.Error()
			l.report.Failures = append(l.report.Failures, s)
			l.Log.Error(s.Op+" "+kind, append(attrs, "error", o.Err)...)
			return // the error is the set's
		case o.Held != "":
			s.Error = o.Held
			l.report.Failures = append(l.report.Failures, s)
			l.Log.Warn("hold "+kind, append(attrs, "because", o.Held)...)
		default:
			l.report.add(s)
			l.Log.Info(s.Op+" "+kind, attrs...)
		}
	}
}

// warnFights names the likely other of a fight, once.
func (l *loop) warnFights(steps []state.Step, peer uint32) {
	for _, s := range steps {
		other := kernel.ProcessOf(peer)
		if other == "" {
			other = "unknown"
		}
		text := fmt.Sprintf("%s %s", s.Object.Kind(), s.Object.Spell(nil))
		l.Log.Warn("somebody else keeps undoing this; repairs go on more slowly", "object", text, "likely", other)
		text += " (undone by " + other + ")"
		if !slices.Contains(l.report.Fights, text) {
			l.report.Fights = append(l.report.Fights, text)
		}
	}
}

// tellProblems logs problems when they come and when they go.
func (l *loop) tellProblems(problems []state.Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		text := p.Subject + ": " + p.Text
		if !l.problems[text] && !now[text] {
			l.Log.Warn("problem", "subject", p.Subject, "text", p.Text, "profile", p.Origin)
		}
		now[text] = true
	}
	for _, text := range slices.Sorted(maps.Keys(l.problems)) {
		if !now[text] {
			l.Log.Info("problem solved", "was", text)
		}
	}
	l.problems, l.report.Problems = now, problems
}

// publish tells status and systemd where the daemon stands.
func (l *loop) publish() {
	if err := l.report.write(l.RunDir); err != nil {
		l.Log.Warn("publish status", "error", err)
	}
	l.notify("STATUS=" + l.summary())
}

func (l *loop) summary() string {
	var words []string
	switch {
	case l.report.Held:
		words = append(words, "holding still after flush")
	case l.report.LastGood:
		words = append(words, "profiles do not load, last good configuration in force")
	case l.report.ConfigError != "" && l.config == nil:
		words = append(words, "profiles do not load, nothing is changed")
	case l.report.ConfigError != "":
		words = append(words, "profiles do not load, the ones before stay in force")
	default:
		words = append(words, fmt.Sprintf("%d uplinks", len(l.config.Uplinks)))
	}
	if n := len(l.report.Problems); n > 0 {
		words = append(words, fmt.Sprintf("%d problems", n))
	}
	if n := len(l.report.Failures); n > 0 {
		words = append(words, fmt.Sprintf("%d steps failed", n))
	}
	if l.report.ConfigError != "" {
		first, _, _ := strings.Cut(l.report.ConfigError, "\n")
		words = append(words, first)
	}
	return strings.Join(words, ", ")
}

// notify tells systemd, when there is one.
func (l *loop) notify(message string) {
	if _, err := daemon.SdNotify(false, message); err != nil {
		l.Log.Warn("notify systemd", "error", err)
	}
}

// reloading tells systemd that READY=1 will follow; the monotonic time is
// needed by Type=notify-reload and harmless to Type=notify.
func (l *loop) reloading() {
	l.notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// watchdog ticks at half of the time that systemd allows between two signs of
// life; without a watchdog it never ticks.
func watchdog() (<-chan time.Time, func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return nil, func() {}
	}
	t := time.NewTicker(interval / 2)
	return t.C, t.Stop
}

// Absolute makes a configuration folder's path independent of the working folder.
func Absolute(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", dir, err)
	}
	return abs, nil
}
