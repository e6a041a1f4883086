package daemon

import (
	"time"

	"github.com/sisod/sisod/internal/state"
)

// stepKey tells a step from another one, across passes.
type stepKey struct {
	op     state.Op
	object any
}

// keyOf is the key of a step. Of several routes their way is the key, of a
// single one the route, and of a table of nftables its text.
func keyOf(s state.Step) stepKey {
	if set, ok := s.Object.(state.RouteSet); ok {
		if set.Dsts.Len() == 1 {
			return stepKey{s.Op, state.Route{Dst: set.Dsts.At(0), Way: set.Way}}
		}
		return stepKey{s.Op, set.Way}
	}
	if table, ok := s.Object.(state.NFTable); ok {
		return stepKey{s.Op, table.Text}
	}
	return stepKey{s.Op, s.Object}
}

// apartMost is how many routes of one step are looked at one by one. More of
// them are a list, and somebody who is at it is at all of it.
const apartMost = 32

// apart makes a step of each route of a short set: one route that somebody
// keeps deleting, or that the kernel refuses, is no reason to hold up others.
func apart(steps []state.Step) []state.Step {
	var out []state.Step
	for _, s := range steps {
		set, ok := s.Object.(state.RouteSet)
		if !ok || set.Dsts.Len() > apartMost {
			out = append(out, s)
			continue
		}
		for r := range set.All() {
			one := s
			one.Object = state.One(r)
			out = append(out, one)
		}
	}
	return out
}

// isIPv6 reports whether an object is of IPv6, which its spelling may not tell.
func isIPv6(o state.Object) bool {
	switch o := o.(type) {
	case state.Nexthop:
		return o.Family == state.IPv6
	case state.Rule:
		return o.Family == state.IPv6
	case state.RouteSet:
		return o.Family == state.IPv6
	}
	return false
}

// postponed is a step that is not tried in this pass.
type postponed struct {
	step    state.Step
	because string
}

// behind postpones what would run ahead of a postponed step, as applying does
// behind a failed one.
func behind(steps []state.Step, waiting []postponed, names state.Names) (allowed []state.Step, more []postponed) {
	var undone state.Undone
	for _, w := range waiting {
		undone.Add(w.step)
	}
	for _, s := range steps {
		if why := undone.Holds(s, names); why != "" {
			more = append(more, postponed{s, why})
			// What stands on it waits as well: a plan names it later.
			undone.Add(s)
			continue
		}
		allowed = append(allowed, s)
	}
	return allowed, more
}

// earliest is the first of two times; the zero time is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
