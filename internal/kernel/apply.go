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
	if report == nil {
		report = func(Outcome) {}
	}
	a := &application{
		host: h, plan: p, report: report,
		outcomes: make([]Outcome, len(p.Steps)),
		order:    h.ruleOrders(),
	}
	for start := 0; start < len(p.Steps); {
		end := start + 1
		for end < len(p.Steps) && sameRun(p.Steps[start], p.Steps[end]) {
			end++
		}
		a.run(ctx, start, end)
		start = end
	}
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
	outcomes []Outcome
	undone   state.Undone
	// order is nil when the rules are not known as they are now.
	order map[state.Family]*ruleOrder
}

// settle notes and reports the outcome of a step.
func (a *application) settle(i int, held string, err error) {
	o := Outcome{Step: a.plan.Steps[i], Held: held, Err: err}
	if !o.Done() {
		a.undone.Add(o.Step)
	}
	a.outcomes[i] = o
	a.report(o)
}

// run applies the steps from start to before end, which are of one kind and operation.
func (a *application) run(ctx context.Context, start, end int) {
	if ctx.Err() != nil {
		for i := start; i < end; i++ {
			a.settle(i, stopped, nil)
		}
		return
	}
	var steps []state.Step
	var places []int
	switch a.plan.Steps[start].Object.Kind() {
	case state.KindRoute:
		a.host.stale |= PartRoutes
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

// routes applies steps about route sets. Small sets share a batch, a long one
// is sent batch by batch, so that memory does not grow with it.
func (a *application) routes(ctx context.Context, start, end int) {
	w := routeWriter{application: a, next: start, failures: map[int]*routeFailures{}}
	for i := start; i < end; i++ {
		step := a.plan.Steps[i]
		set := step.Object.(state.RouteSet)
		if ctx.Err() != nil {
			w.flush()
			a.settle(i, stopped, nil)
			w.next = i + 1
			continue
		}
		if held := a.holds(i); held != "" {
			w.flush()
			a.settle(i, held, nil)
			w.next = i + 1
			continue
		}
		sent := 0
		for dst := range set.Dsts.All() {
			if len(w.entries) == batchMessages {
				w.flush()
				if ctx.Err() != nil {
					break
				}
			}
			w.put(i, state.Route{Dst: dst, Way: set.Way})
			sent++
		}
		if sent < set.Dsts.Len() {
			if sent == 0 {
				a.settle(i, stopped, nil)
				w.next = i + 1
				continue
			}
			w.failuresOf(i).stop(sent, ctx.Err())
		}
		w.done = i + 1
	}
	w.flush()
}

// routeWriter gathers routes of several steps into batches.
type routeWriter struct {
	*application
	entries  []routeEntry
	body     []byte
	failures map[int]*routeFailures
	next     int // the first step that is not settled
	done     int // all steps before it are in entries or sent
}

// routeEntry is a route in the batch; its message is body[from:to].
type routeEntry struct {
	step     int
	route    state.Route
	from, to int
}

// put encodes a route into the batch.
func (w *routeWriter) put(step int, r state.Route) {
	encode := appendRoute
	removes := w.plan.Steps[step].Op.Removes()
	if removes {
		encode = appendRouteRemoval
	}
	from := len(w.body)
	body, err := encode(w.body, r.Dst, r.Way, w.host.links.index)
	if err != nil {
		// A route goes with its link.
		if !removes || !errors.Is(err, unix.ENODEV) {
			w.failuresOf(step).note(r, err)
		}
		return
	}
	w.body = body
	w.entries = append(w.entries, routeEntry{step, r, from, len(body)})
}

// flush sends the batch and settles the steps that are complete.
func (w *routeWriter) flush() {
	msgs := make([]message, len(w.entries))
	for i, e := range w.entries {
		msgs[i] = message{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: w.body[e.from:e.to]}
		if w.plan.Steps[e.step].Op.Removes() {
			msgs[i] = message{kind: unix.RTM_DELROUTE, body: w.body[e.from:e.to]}
		}
	}
	for i, err := range w.host.conn.do(msgs) {
		e := w.entries[i]
		if err != nil && !(w.plan.Steps[e.step].Op.Removes() && gone(err)) {
			w.failuresOf(e.step).note(e.route, err)
		}
	}
	w.entries, w.body = w.entries[:0], w.body[:0]
	for ; w.next < w.done; w.next++ {
		w.settleRoutes(w.next)
	}
}

func (w *routeWriter) settleRoutes(i int) {
	step := w.plan.Steps[i]
	set := step.Object.(state.RouteSet)
	f := w.failures[i]
	if f == nil {
		w.settle(i, "", nil)
		return
	}
	delete(w.failures, i)
	w.settle(i, "", f.join(w.application, step.Op, set))
}

func (w *routeWriter) failuresOf(step int) *routeFailures {
	f := w.failures[step]
	if f == nil {
		f = &routeFailures{}
		w.failures[step] = f
	}
	return f
}

// spelledFailures is how many routes of one set are named in its error.
const spelledFailures = 3

// routeFailures are the routes of one set that failed.
type routeFailures struct {
	first   []routeFailure
	count   int
	sent    int
	stopped error
}

type routeFailure struct {
	route state.Route
	err   error
}

func (f *routeFailures) note(r state.Route, err error) {
	if f.count++; f.count <= spelledFailures {
		f.first = append(f.first, routeFailure{r, err})
	}
}

func (f *routeFailures) stop(sent int, err error) { f.sent, f.stopped = sent, err }

// join makes one error of the failures: each route in its own words, and the
// number of those that are left out.
func (f *routeFailures) join(a *application, op state.Op, set state.RouteSet) error {
	var errs []error
	for _, x := range f.first {
		errs = append(errs, a.wrap(op, state.One(x.route), x.err))
	}
	if f.count > len(f.first) {
		errs = append(errs, fmt.Errorf("%s route: %d more of %d failed", op, f.count-len(f.first), set.Dsts.Len()))
	}
	if f.stopped != nil {
		errs = append(errs, fmt.Errorf("%s route: stopped after %d of %d: %w", op, f.sent, set.Dsts.Len(), f.stopped))
	}
	return errors.Join(errs...)
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
