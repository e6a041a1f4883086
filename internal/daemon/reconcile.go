package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// interest is what the stream of events has been told to look for.
type interest struct {
	interfaces []string
	tables     []uint32
}

// attend tells the stream of events what a pass is about to read, before it is
// read: what changes later is an event then.
func (l *loop) attend(interfaces []string, tables []uint32) {
	if slices.Equal(interfaces, l.listen.interfaces) && slices.Equal(tables, l.listen.tables) {
		return
	}
	l.events.SetInterest(interfaces, tables)
	l.listen = interest{interfaces, slices.Clone(tables)}
}

// restAfter is until when what does not press waits after a pass for its like: whoever
// changes main all the time, where it is large, must not keep this process busy.
func restAfter(start, end time.Time) time.Time {
	took := end.Sub(start)
	if took < restFrom {
		return time.Time{}
	}
	return end.Add(min(restShare*took, restMost))
}

// pass reads what the trigger names, applies the difference, and returns when
// the next pass is due that no event asks for; the zero time is never.
func (l *loop) pass(ctx context.Context) time.Time {
	t := l.pending.take()
	l.rechecks = false
	if l.left && len(t.reasons) == 0 {
		t.reasons = []string{"what was left"}
	}
	l.left = false
	if t.mild && !t.pressing {
		defer func(start time.Time) { l.rest = restAfter(start, time.Now()) }(time.Now())
	}
	if l.stream == nil {
		if err := l.listenAgain(ctx); err != nil {
			return l.failed("listen to kernel events", t, err)
		}
		t.parts |= kernel.AllParts | kernel.PartMarks
	}
	if l.config == nil {
		l.publish()
		return time.Time{}
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return l.failed("lock host", t, err)
	}
	defer unlock()
	if l.Host.Held() {
		if !l.report.Held {
			l.Log.Info("hold still after flush", "until", "apply, reload or restart")
		}
		l.report.Held = true
		l.news.drop()
		l.publish()
		return time.Time{}
	}
	l.resume(&t)
	p, err := Look(ctx, l.Host, l.config, t.parts, t.sweep, l.attend)
	if err != nil {
		return l.failed("read kernel", t, err)
	}
	l.breathe()
	return l.carryOut(ctx, p, t)
}

// resume takes in what other processes have done for sisod since the last pass:
// given the host back, or applied profiles, which are then in force.
func (l *loop) resume(t *trigger) {
	if now := l.Host.Announced(); now != l.announced {
		l.announced = now
		l.load()
		t.parts |= kernel.AllParts
		t.facts = true
		l.fights.forget()
	}
	if l.report.Held {
		l.report.Held = false
		t.parts |= kernel.AllParts | kernel.PartMarks
		t.facts = true
		l.fights.forget()
	}
}

// carryOut applies the plan of a pass, but for the steps that have to wait.
func (l *loop) carryOut(ctx context.Context, p Pass, t trigger) time.Time {
	now := time.Now()
	for _, f := range l.fights.over(now) {
		l.Log.Info("nobody undoes this any more", "object", f.object())
	}
	steps, refused := l.retries.hold(apart(p.Plan.Steps), t.facts, now)
	steps, repairs, limited, fought := l.fights.referee(steps, t, p.Facts.Links, now)
	l.fights.identify(repairs, t.peer)
	l.warnFights(fought)
	steps, waiting := behind(steps, slices.Concat(refused, limited), p.Plan.Names)
	p.Plan.Steps = steps

	a := account{loop: l, names: p.Plan.Names, reason: strings.Join(t.reasons, ", "), repairs: repairs, told: map[string]bool{}, missing: map[stepKey]bool{}}
	outcomes, err := p.applyUntil(ctx, l.Host, func(o kernel.Outcome) {
		l.breathe()
		// What SIGTERM cut off is no failure.
		if o.Done() || ctx.Err() == nil {
			a.enter(o)
		}
		l.left = l.left || o.Held == kernel.GaveWay
	}, l.pressing)
	if err != nil {
		return l.failed("apply", t, err)
	}
	for _, w := range refused {
		a.enterFailure(w.step, w.because, false)
	}
	for _, w := range waiting {
		a.enterFailure(w.step, w.because, false)
	}
	l.trouble = backOff{}
	l.told, l.report.Failures, l.report.Fights = a.told, a.failures, nil
	for _, f := range l.fights.slow() {
		l.report.Fights = append(l.report.Fights, f.String())
	}
	for _, o := range outcomes {
		l.retries.note(o, now)
	}
	// A repair that fails at first, because what took the thing away has not come
	// to its end, is one all the same when it succeeds.
	maps.DeleteFunc(a.missing, func(key stepKey, _ bool) bool { return repairs[key] })
	l.announce(p, outcomes, a.missing, t.carriers)
	l.fights.remember(p.Desired.State, p.Facts.Links, a.missing)
	l.report.LastPass = time.Now()
	l.tellProblems(p.Desired.Problems)
	l.proven = true
	l.publish()
	next := earliest(l.retries.next(), l.fights.next(limited, now))
	if recheck := now.Add(p.Desired.Recheck); p.Desired.Recheck > 0 && earliest(next, recheck).Equal(recheck) {
		next, l.rechecks = recheck, true
	}
	return next
}

// pressing takes in the events that have come during a pass. Whatever they are about,
// it may be done in milliseconds, and what the pass is at takes seconds.
func (l *loop) pressing() bool {
	l.breathe()
	for l.stream != nil {
		select {
		case e, open := <-l.stream:
			if open {
				l.hear(e)
			} else {
				l.deaf()
			}
			continue
		default:
		}
		break
	}
	return l.pending.pulled() || l.heeds && (len(l.hup) > 0 || len(l.watch.changed) > 0)
}

// announce tells neighbours again of VIPs that a pass has brought into force, and
// of those whose link has its carrier again.
func (l *loop) announce(p Pass, outcomes []kernel.Outcome, missing map[stepKey]bool, carriers map[string]bool) {
	added := map[state.VIP]bool{}
	for _, o := range outcomes {
		if v, ok := o.Step.Object.(state.VIP); ok && o.Done() && o.Step.Op == state.Add {
			added[v] = true
		}
	}
	vips := maps.Clone(p.Desired.VIPs)
	maps.DeleteFunc(vips, func(v state.VIP, _ bool) bool { return missing[stepKey{state.Add, v}] })
	l.Host.AnnounceAgain(l.news.note(vips, added, carriers, time.Now()))
}

// failed tells why a pass did not come to its end, leaves what it was for to the
// next one, and returns when that is due.
func (l *loop) failed(what string, t trigger, err error) time.Time {
	if errors.Is(err, context.Canceled) {
		return time.Time{}
	}
	l.pending.owe(t)
	now := time.Now()
	l.trouble.failed(now)
	text := what + ": " + err.Error()
	if !l.told[text] {
		l.Log.Error(what, "error", err, "retry", l.trouble.wait)
	}
	l.told = map[string]bool{text: true}
	l.report.Failures = []ReportStep{{Time: now, Op: what, Error: err.Error()}}
	l.publish()
	return l.trouble.due
}
