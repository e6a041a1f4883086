package kernel

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// slice is how many routes are written between two questions whether something more
// urgent has come up: some fifty milliseconds' work.
const slice = 8192

// routes applies steps about route sets. Small sets share a batch, a long one
// is sent batch by batch, so that memory does not grow with it.
func (a *application) routes(ctx context.Context, start, end int) {
	w := routeWriter{application: a, next: start, failures: map[int]*routeFailures{}}
	for i := start; i < end; i++ {
		step := a.plan.Steps[i]
		set := step.Object.(state.RouteSet)
		if why := a.ceased(ctx); why != "" {
			w.skip(i, why)
			continue
		}
		if held := a.holds(i); held != "" {
			w.skip(i, held)
			continue
		}
		if step.Op.Removes() && a.withdrawn[set.Nexthop] {
			w.flush()
			w.conclude(i, "", set.Dsts.Len())
			w.next = i + 1
			continue
		}
		sent, asked := 0, 0
		for dst := range inOrder(step.Op, set) {
			if w.full() {
				w.flush()
				if ctx.Err() != nil {
					break
				}
				if sent >= asked+slice && a.pressing != nil {
					asked = sent
					if a.gaveWay = a.pressing(); a.gaveWay {
						break
					}
				}
			}
			w.put(i, set, dst)
			sent++
		}
		if sent < set.Dsts.Len() && a.gaveWay {
			w.conclude(i, GaveWay, sent)
			w.next = i + 1
			continue
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

// inRounds reports whether the routes of a step are written in rounds. The kernel's
// trie of IPv4 (net/ipv4/fib_trie.c) doubles its nodes as they fill: routes that come in
// their order fill one end, and it makes them anew all the time. 100,000 in rounds take
// half as long, 1,000,000 a third. The tree of IPv6 is quicker with neighbours together.
func inRounds(op state.Op, set state.RouteSet) bool {
	return !op.Removes() && set.Family == state.IPv4 && set.Dsts.Len() >= state.LongSet
}

// inOrder lists the routes of a step in the order in which they are written.
func inOrder(op state.Op, set state.RouteSet) iter.Seq[netip.Prefix] {
	if inRounds(op, set) {
		return set.Dsts.Rounds()
	}
	return set.Dsts.All()
}

// firstWritten are the n routes of a step that are written first.
func firstWritten(op state.Op, set state.RouteSet, n int) prefix.Set {
	if inRounds(op, set) {
		return set.Dsts.FirstOfRounds(n)
	}
	return set.Dsts.First(n)
}

// routeWriter gathers routes of several steps into batches.
type routeWriter struct {
	*application
	batch    batch
	entries  []routeEntry // of the batch
	mold     mold
	failures map[int]*routeFailures
	next     int // the first step that is not settled
	done     int // all steps before it are in entries or sent
}

// routeEntry is a route in the batch.
type routeEntry struct {
	step int
	dst  netip.Prefix
}

// mold is the body of a message about a route of one step, which fits every
// other route of it but for the destination.
type mold struct {
	step int // of the plan; the body is empty when there is none
	body []byte
}

// RTA_DST is the first attribute that appendRoute writes.
const moldAddress = unix.SizeofRtMsg + unix.SizeofNlAttr

// take keeps the body of a route that has been encoded.
func (m *mold) take(step int, dst netip.Prefix, body []byte) {
	m.step, m.body = step, m.body[:0]
	if dst.Bits() > 0 {
		m.body = append(m.body, body...)
	}
}

// cast appends the body of another route of the step. It is false for one that
// has to be encoded: what appendRoute refuses, or says in another form.
func (m *mold) cast(b []byte, step int, dst netip.Prefix, f state.Family) ([]byte, bool) {
	if len(m.body) == 0 || m.step != step || dst.Bits() <= 0 || dst.Addr().BitLen() != f.Bits() || f == state.IPv6 && dst != dst.Masked() {
		return b, false
	}
	start := len(b)
	b = append(b, m.body...)
	b[start+1] = byte(dst.Bits())
	if f == state.IPv4 {
		a := dst.Addr().As4()
		copy(b[start+moldAddress:], a[:])
	} else {
		a := dst.Addr().As16()
		copy(b[start+moldAddress:], a[:])
	}
	return b, true
}

// put encodes a route into the batch.
func (w *routeWriter) put(step int, set state.RouteSet, dst netip.Prefix) {
	removes := w.plan.Steps[step].Op.Removes()
	if removes {
		w.batch.begin(unix.RTM_DELROUTE, 0)
	} else {
		w.batch.begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	start := len(w.batch.bytes)
	body, fits := w.mold.cast(w.batch.bytes, step, dst, set.Family)
	if !fits {
		encode := appendRoute
		if removes {
			encode = appendRouteRemoval
		}
		var err error
		if body, err = encode(body, dst, set.Way, w.host.links.index); err != nil {
			w.batch.drop()
			// A route goes with its link.
			if !removes || !errors.Is(err, unix.ENODEV) {
				w.failuresOf(step).note(state.Route{Dst: dst, Way: set.Way}, err)
			}
			return
		}
		w.mold.take(step, dst, body[start:])
	}
	w.batch.bytes = body
	w.batch.end()
	w.entries = append(w.entries, routeEntry{step, dst})
}

// full reports whether the batch is to be sent before another route is put in.
func (w *routeWriter) full() bool {
	return len(w.entries) >= w.host.conn.batch || len(w.batch.bytes) > batchBytes-largestRoute
}

// flush sends the batch and settles the steps that are complete.
func (w *routeWriter) flush() {
	w.host.conn.deliver(&w.batch, func(i int, err error) {
		e := w.entries[i]
		step := w.plan.Steps[e.step]
		r := state.Route{Dst: e.dst, Way: step.Object.(state.RouteSet).Way}
		if !(step.Op.Removes() && (gone(err) || withNexthop(r, err))) {
			w.failuresOf(e.step).note(r, err)
		}
	})
	w.batch.reset()
	w.entries = w.entries[:0]
	for ; w.next < w.done; w.next++ {
		w.conclude(w.next, "", w.plan.Steps[w.next].Object.(state.RouteSet).Dsts.Len())
	}
}

// skip settles a step that is not tried.
func (w *routeWriter) skip(i int, why string) {
	w.flush()
	w.settle(i, why, nil)
	w.next = i + 1
}

// conclude settles a step of which so many routes were sent, or are gone by themselves.
func (w *routeWriter) conclude(i int, held string, sent int) {
	w.settle(i, held, w.failed(i))
	set := w.plan.Steps[i].Object.(state.RouteSet)
	at := tableOf{set.Family, set.Table}
	if w.written[at] == nil {
		w.written[at] = &written{}
	}
	w.written[at].note(w.outcomes[i], sent)
}

// failed is what failed of a step, nil when nothing did.
func (w *routeWriter) failed(i int) error {
	step := w.plan.Steps[i]
	f := w.failures[i]
	if f == nil {
		return nil
	}
	delete(w.failures, i)
	return f.join(w.application, step.Op, step.Object.(state.RouteSet))
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
