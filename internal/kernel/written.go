package kernel

import (
	"maps"
	"slices"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// written is what one application has done to the routes of a table.
type written struct {
	changes []routeChange
	unclear bool // some failed, and there may be more of them or fewer
}

type routeChange struct {
	set     state.RouteSet
	removes bool
}

// note takes in what became of a step about routes, of which so many were sent.
func (w *written) note(o Outcome, sent int) {
	set := o.Step.Object.(state.RouteSet)
	switch {
	case o.Err != nil:
		w.unclear = true
	case sent > 0:
		set.Dsts = firstWritten(o.Step.Op, set, sent)
		w.changes = append(w.changes, routeChange{set, o.Step.Op.Removes()})
	}
}

// noteWritten takes what was written into what was read. A table is read again, but for
// one with a long set of which the kernel has acknowledged all: after a million
// routes the next event would wait for a million to be listed.
func (h *Host) noteWritten(tables map[tableOf]*written) {
	for at, w := range tables {
		known, read := h.tables[at]
		long := slices.ContainsFunc(w.changes, func(c routeChange) bool { return c.set.Dsts.Len() >= state.LongSet })
		for _, dsts := range known.own {
			long = long || dsts.Len() >= state.LongSet
		}
		if !read || w.unclear || !long {
			h.lost = append(h.lost, extent{family: at.family, table: at.table})
			h.stale |= PartExpired
			continue
		}
		for _, c := range w.changes {
			known = known.after(c)
			for way, dsts := range known.own {
				known.own[way] = h.shared(dsts)
			}
		}
		h.tables[at] = known
	}
	h.noteRoutes()
}

// shared is a long set, or the one of those that are expected that is the same. What is in
// memory once takes half of it, and is compared at once.
func (h *Host) shared(dsts prefix.Set) prefix.Set {
	for _, s := range h.query.Expected {
		if s.Len() == dsts.Len() && s.Equal(dsts) {
			return s
		}
	}
	return dsts
}

// after is what a table has after a change.
func (t tableRoutes) after(c routeChange) tableRoutes {
	own := maps.Clone(t.own)
	if own == nil {
		own = state.Routes{}
	}
	for way, dsts := range t.own {
		// What is written takes the place of what has the same metric.
		if way != c.set.Way && (c.removes || way.Metric != c.set.Metric) {
			continue
		}
		if own[way] = dsts.Without(c.set.Dsts); own[way].Len() == 0 {
			delete(own, way)
		}
	}
	if !c.removes {
		own.AddSet(c.set.Way, c.set.Dsts)
		t.foreign = slices.DeleteFunc(slices.Clone(t.foreign), func(r state.Route) bool {
			return r.Metric == c.set.Metric && c.set.Dsts.Has(r.Dst)
		})
	}
	return tableRoutes{own, t.foreign}
}
