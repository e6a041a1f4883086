package daemon

import (
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// Times between two tries of what failed: they double from the first to the most.
const (
	retryFirst = time.Second
	retryMost  = time.Minute
)

// backOff is how long something that failed is waited for.
type backOff struct {
	wait time.Duration // 0: it has not failed
	due  time.Time
}

// failed notes a failure. One before it was due, because something happened that
// might have cured it, makes no longer wait.
func (b *backOff) failed(now time.Time) {
	if b.wait != 0 && now.Before(b.due) {
		return
	}
	b.wait = min(max(2*b.wait, retryFirst), retryMost)
	b.due = now.Add(b.wait)
}

// retries are the steps that the kernel refused, each with its own back-off, so
// that one that can never be keeps no other from being tried.
type retries map[stepKey]*retry

type retry struct {
	backOff
	since time.Time
	err   error
}

// hold postpones the steps that are not due. With afresh everything is tried:
// the reason of the refusal may be gone.
func (r retries) hold(steps []state.Step, afresh bool, now time.Time) (allowed []state.Step, waiting []postponed) {
	wanted := map[stepKey]bool{}
	for _, s := range steps {
		key := keyOf(s)
		wanted[key] = true
		if failed := r[key]; failed != nil && !afresh && now.Before(failed.due) {
			waiting = append(waiting, postponed{s, failed.err.Error()})
			continue
		}
		allowed = append(allowed, s)
	}
	for key := range r {
		if !wanted[key] {
			delete(r, key)
		}
	}
	return allowed, waiting
}

// note takes in what became of a step.
func (r retries) note(o kernel.Outcome, now time.Time) {
	key := keyOf(o.Step)
	switch {
	case o.Done():
		delete(r, key)
	case o.Err != nil:
		if r[key] == nil {
			r[key] = &retry{since: now}
		}
		r[key].err = o.Err
		r[key].failed(now)
	}
}

// next is when the first of them is due.
func (r retries) next() time.Time {
	var next time.Time
	for _, failed := range r {
		next = earliest(next, failed.due)
	}
	return next
}
