package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// account is what there is to tell of one pass, step by step.
type account struct {
	*loop
	names   state.Names
	reason  string
	repairs map[stepKey]bool

	failures []ReportStep
	told     map[string]bool  // failures, each in its words
	missing  map[stepKey]bool // steps that were not done
}

// enter tells what became of a step.
func (a *account) enter(o kernel.Outcome) {
	switch {
	case o.Err != nil:
		a.enterFailure(o.Step, o.Err.Error(), true)
	case o.Held == kernel.GaveWay:
		// The next pass is about to begin, and goes on with it.
		a.missing[keyOf(o.Step)] = true
	case o.Held != "":
		a.enterFailure(o.Step, o.Held, false)
	default:
		a.enterStep(o.Step)
	}
}

// enterStep tells of a step that is done.
func (a *account) enterStep(step state.Step) {
	drift := a.repairs[keyOf(step)]
	if drift {
		a.report.Repairs++
	}
	kind := step.Object.Kind().String()
	for object := range strings.SplitSeq(step.Object.Spell(a.names), "\n") {
		a.report.add(ReportStep{Time: time.Now(), Op: step.Op.String(), Kind: kind, Object: object, Reason: a.reason, Drift: drift})
		attrs := append(a.attrs(step, object), "reason", a.reason)
		if drift {
			attrs = append(attrs, "drift", true)
		}
		a.Log.Info(step.Op.String()+" "+kind, attrs...)
	}
}

// enterFailure tells of a step that is not done: in the log once, and in every
// report until it is.
func (a *account) enterFailure(step state.Step, because string, refused bool) {
	kind := step.Object.Kind().String()
	object := step.Object.Spell(a.names)
	a.missing[keyOf(step)] = true
	since := time.Now()
	if failed := a.retries[keyOf(step)]; failed != nil {
		since = failed.since
	}
	a.failures = append(a.failures, ReportStep{Time: since, Op: step.Op.String(), Kind: kind, Object: object, Error: because})
	text := step.Op.String() + " " + object + ": " + because
	if !a.loop.told[text] && !a.told[text] {
		if refused {
			a.Log.Error(step.Op.String()+" "+kind, append(a.attrs(step, object), "reason", a.reason, "error", because)...)
		} else {
			a.Log.Warn("hold "+kind, append(a.attrs(step, object), "because", because)...)
		}
	}
	a.told[text] = true
}

func (a *account) attrs(step state.Step, object string) []any {
	attrs := []any{step.Object.Kind().String(), object}
	if isIPv6(step.Object) {
		attrs = append(attrs, "family", state.IPv6)
	}
	if step.Origin != "" {
		attrs = append(attrs, "profile", step.Origin)
	}
	return attrs
}

// warnFights names the likely other of a fight, once.
func (l *loop) warnFights(fought []*fight) {
	for _, f := range fought {
		attrs := []any{"object", f.object()}
		if f.other != "" {
			attrs = append(attrs, "likely", f.other)
		}
		l.Log.Warn("somebody else keeps undoing this; repairs go on more slowly", append(attrs, "every", fightPause)...)
	}
}

// tellProblems logs problems when they come and when they go.
func (l *loop) tellProblems(problems []state.Problem) {
	before, now := map[string]bool{}, map[string]bool{}
	for _, p := range l.report.Problems {
		before[p.Subject+": "+p.Text] = true
	}
	for _, p := range problems {
		text := p.Subject + ": " + p.Text
		if !before[text] && !now[text] {
			level := slog.LevelWarn
			if p.Error {
				level = slog.LevelError
			}
			l.Log.Log(context.Background(), level, "problem", "subject", p.Subject, "text", p.Text, "profile", p.Origin)
		}
		now[text] = true
	}
	for _, p := range l.report.Problems {
		if text := p.Subject + ": " + p.Text; !now[text] && before[text] {
			before[text] = false
			l.Log.Info("problem solved", "subject", p.Subject, "was", p.Text)
		}
	}
	l.report.Problems = append([]state.Problem{}, problems...)
}

// publish tells status and systemd where the daemon stands.
func (l *loop) publish() {
	if err := l.report.write(l.RunDir); err != nil {
		l.Log.Warn("publish status", "error", err)
	}
	if now := l.summary(); now != l.status {
		l.status = now
		l.notify("STATUS=" + now)
	}
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
		words = append(words, count(len(l.config.Uplinks), "uplink"))
	}
	failing := state.Errors(l.report.Problems)
	if failing > 0 {
		words = append(words, count(failing, "error"))
	}
	if n := len(l.report.Problems) - failing; n > 0 {
		words = append(words, count(n, "problem"))
	}
	if n := len(l.report.Failures); n > 0 {
		words = append(words, count(n, "step")+" to be tried again")
	}
	if n := len(l.report.Fights); n > 0 {
		words = append(words, count(n, "object")+" undone again and again")
	}
	if l.report.ConfigError != "" {
		first, _, _ := strings.Cut(l.report.ConfigError, "\n")
		words = append(words, first)
	}
	return strings.Join(words, ", ")
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
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
