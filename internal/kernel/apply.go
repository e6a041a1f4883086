package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// stopped is why a step was not tried after the context ended.
const stopped = "stopped"

// Apply carries out the steps of a plan in their order and returns what became
// of each, in the same order. report, which may be nil, is told of every step
// as soon as its outcome is known. A step that fails keeps no other from being
// tried but those that state.Undone holds. After the end of ctx what was sent is
// completed and the rest is held. An empty plan sends nothing.
func (h *Host) Apply(ctx context.Context, p state.Plan, report func(Outcome)) []Outcome {
	return h.ApplyUntil(ctx, p, report, nil)
}

// GaveWay is why a step was left in the middle, or not tried: something more urgent
// has come up.
const GaveWay = "gives way to something more urgent"

// ApplyUntil is Apply, which asks between slices of a long set of routes whether
// something more urgent has come up, and then leaves the rest of the plan.
func (h *Host) ApplyUntil(ctx context.Context, p state.Plan, report func(Outcome), pressing func() bool) []Outcome {
	if report == nil {
		report = func(Outcome) {}
	}
	a := &application{
		host: h, plan: p, report: report, pressing: pressing,
		outcomes: make([]Outcome, len(p.Steps)),
		order:    h.ruleOrders(), withdrawn: map[uint32]bool{}, written: map[tableOf]*written{},
	}
	for start := 0; start < len(p.Steps); {
		end := start + 1
		for end < len(p.Steps) && sameRun(p.Steps[start], p.Steps[end]) {
			end++
		}
		a.run(ctx, start, end)
		start = end
	}
	h.noteWritten(a.written)
	return a.outcomes
}

// sameRun reports whether two neighbouring steps may be sent together.
func sameRun(a, b state.Step) bool {
	return a.Object.Kind() == b.Object.Kind() && a.Op == b.Op
}

// application is one call of Apply.
type application struct {
	host     *Host
	plan     state.Plan
	report   func(Outcome)
	pressing func() bool // nil: nothing ever is
	gaveWay  bool
	outcomes []Outcome
	undone   state.Undone
	// withdrawn are the nexthops that are gone: so are the routes by them.
	withdrawn map[uint32]bool
	written   map[tableOf]*written
	// order is nil when the rules are not known as they are now.
	order map[state.Family]ruleOrder
}

// ceased is why nothing more is done, "" while it is.
func (a *application) ceased(ctx context.Context) string {
	switch {
	case a.gaveWay:
		return GaveWay
	case ctx.Err() != nil:
		return stopped
	}
	return ""
}

// settle notes and reports the outcome of a step.
func (a *application) settle(i int, held string, err error) {
	o := Outcome{Step: a.plan.Steps[i], Held: held, Err: err}
	if n, ok := o.Step.Object.(state.Nexthop); ok && o.Done() && o.Step.Op.Removes() {
		a.withdrawn[n.ID] = true
	}
	if !o.Done() {
		a.undone.Add(o.Step)
	}
	a.outcomes[i] = o
	a.report(o)
}

// run applies the steps from start to before end, which are of one kind and operation.
func (a *application) run(ctx context.Context, start, end int) {
	if why := a.ceased(ctx); why != "" {
		for i := start; i < end; i++ {
			a.settle(i, why, nil)
		}
		return
	}
	var steps []state.Step
	var places []int
	switch a.plan.Steps[start].Object.Kind() {
	case state.KindRoute:
		a.routes(ctx, start, end)
		return
	case state.KindRule:
		a.host.stale |= PartRules
		a.rules(ctx, start, end)
		return
	case state.KindService, state.KindDestination:
		a.host.stale |= PartIPVS
		a.balance(ctx, start, end)
		return
	}
	for i := start; i < end; i++ {
		if held := a.holds(i); held != "" {
			a.settle(i, held, nil)
			continue
		}
		steps, places = append(steps, a.plan.Steps[i]), append(places, i)
	}
	if len(steps) == 0 {
		return
	}
	var errs []error
	switch steps[0].Object.Kind() {
	case state.KindTableName:
		a.host.stale |= PartNames
		errs = a.host.applyNames(steps)
	case state.KindMark:
		a.host.stale |= PartValues
		errs = a.host.applyMarks(steps)
	case state.KindNFTable:
		a.host.stale |= PartNFT
		errs = a.host.applyNFTables(steps)
	case state.KindLinkGroup:
		a.host.stale |= PartLinks | PartValues
		errs = a.host.applyGroups(steps)
	case state.KindSysctl:
		a.host.stale |= PartValues
		errs = a.host.applySysctls(steps)
	case state.KindDevice:
		a.host.stale |= PartLinks | PartValues
		errs = a.host.applyDevices(steps)
	case state.KindLinkUp:
		a.host.stale |= PartLinks | PartValues
		errs = a.host.applyLinkUps(steps)
	case state.KindVIP:
		a.host.stale |= PartLinks | PartValues
		errs = a.host.applyVIPs(steps)
	case state.KindNexthop:
		a.host.expireNexthops(steps)
		errs = a.host.applyNexthops(steps)
	case state.KindTimeouts:
		a.host.stale |= PartIPVS
		errs = a.host.applyTimeouts(steps)
	case state.KindSyncDaemon:
		a.host.stale |= PartIPVS
		errs = a.host.applySyncDaemons(steps)
	}
	for k, err := range errs {
		a.settle(places[k], "", err)
	}
}

// holds is why a step waits for those before it.
func (a *application) holds(i int) string {
	return a.undone.Holds(a.plan.Steps[i], a.plan.Names)
}

// wrap names what a step failed at.
func (a *application) wrap(op state.Op, o state.Object, err error) error {
	return fmt.Errorf("%s %s %s: %w", op, o.Kind(), o.Spell(a.plan.Names), err)
}

// gone reports whether a deletion found nothing to delete.
func gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }

// rules applies steps about rules, in batches.
func (a *application) rules(ctx context.Context, start, end int) {
	leaving := map[state.Rule]bool{}
	if a.plan.Steps[start].Op.Removes() {
		for _, s := range a.plan.Steps[start:end] {
			leaving[s.Object.(state.Rule)] = true
		}
	}
	for start < end {
		stop := min(end, start+batchMessages)
		if ctx.Err() != nil {
			for i := start; i < end; i++ {
				a.settle(i, stopped, nil)
			}
			return
		}
		a.ruleBatch(start, stop, leaving)
		start = stop
	}
}

func (a *application) ruleBatch(start, end int, leaving map[state.Rule]bool) {
	var (
		msgs  []message
		sent  []ruleChange
		steps []int
	)
	held := map[int]string{}
	failed := map[int][]error{}
	for i := start; i < end; i++ {
		step := a.plan.Steps[i]
		r := step.Object.(state.Rule)
		if held[i] = a.holds(i); held[i] != "" {
			continue
		}
		if err := checkRule(r); err != nil {
			failed[i] = append(failed[i], a.wrap(step.Op, r, err))
			continue
		}
		for _, change := range a.changes(step.Op, r, leaving) {
			body, err := appendRule(nil, change.rule)
			if err != nil {
				failed[i] = append(failed[i], a.wrap(change.op, change.rule, err))
				continue
			}
			m := message{kind: unix.RTM_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body}
			if change.op == state.Delete {
				m = message{kind: unix.RTM_DELRULE, body: body}
			}
			msgs, sent, steps = append(msgs, m), append(sent, change), append(steps, i)
		}
	}
	for k, err := range a.host.conn.do(msgs) {
		// The protocol is part of a rule's identity: one that exists is ours.
		done := err == nil || sent[k].op == state.Add && errors.Is(err, unix.EEXIST) || sent[k].op == state.Delete && gone(err)
		if !done {
			failed[steps[k]] = append(failed[steps[k]], a.wrap(sent[k].op, sent[k].rule, err))
		}
	}
	for i := start; i < end; i++ {
		a.settle(i, held[i], errors.Join(failed[i]...))
	}
}

// changes are the messages that carry out a step about a rule.
func (a *application) changes(op state.Op, r state.Rule, leaving map[state.Rule]bool) []ruleChange {
	order := a.order[r.Family]
	switch {
	case !op.Removes() && order != nil:
		return order.add(r)
	case !op.Removes():
		return []ruleChange{{state.Add, r}}
	case order != nil:
		return order.remove(r, leaving)
	}
	return []ruleChange{{state.Delete, r}}
}
