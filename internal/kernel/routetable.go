package kernel

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// readRoutes reads the tables that are asked for, and with a sweep what of sisod's
// is in any other.
func (h *Host) readRoutes() error {
	if h.stale&PartRoutes == 0 {
		if err := h.readLost(); err != nil {
			return err
		}
		h.noteRoutes()
		return nil
	}
	read := map[tableOf]tableRoutes{}
	tables := slices.Compact(slices.Sorted(slices.Values(h.query.Tables)))
	for _, f := range state.Families {
		for _, table := range tables {
			own, foreign, err := h.readTable(routeFilter{family: f, table: table})
			if err != nil {
				return err
			}
			read[tableOf{f, table}] = tableRoutes{own, foreign}
		}
	}
	var swept state.Routes
	if h.sweptAll = false; h.query.Sweep {
		var err error
		if swept, err = h.sweep(tables); err != nil {
			return err
		}
	}
	h.tables, h.swept, h.lost = read, swept, nil
	h.noteRoutes()
	return nil
}

// noteRoutes takes what was read of the tables into the snapshot.
func (h *Host) noteRoutes() {
	own := state.Routes{}
	maps.Copy(own, h.swept)
	var foreign []state.Route
	for _, f := range state.Families {
		for _, table := range slices.Compact(slices.Sorted(slices.Values(h.query.Tables))) {
			t := h.tables[tableOf{f, table}]
			maps.Copy(own, t.own)
			foreign = append(foreign, t.foreign...)
		}
	}
	h.cached.Observed.Routes, h.cached.Facts.ForeignRoutes = own, foreign
}

// readTable reads the routes that pass the filter, sisod's and others', but for
// those of tables that have been read.
func (h *Host) readTable(filter routeFilter, known ...uint32) (own state.Routes, foreign []state.Route, err error) {
	var (
		way      state.Way
		dsts     *prefix.Recall // of the way; nil: the route before was somebody else's, or known
		keep     bool           // the route before is to be kept
		gathered = map[state.Way]*prefix.Recall{}
	)
	filter.restart = func() { clear(gathered); foreign, dsts, keep = nil, nil, false }
	filter.another = func(dst netip.Prefix) {
		switch {
		case dsts != nil:
			dsts.Add(dst)
		case keep:
			foreign = append(foreign, state.Route{Dst: dst, Way: way})
		}
	}
	err = h.conn.dumpRoutes(filter, func(r observedRoute) bool {
		way, dsts, keep = r.Way, nil, !slices.Contains(known, r.Table)
		switch {
		case !keep:
		case r.Protocol != state.Protocol || r.Partial:
			foreign = append(foreign, r.Route)
		default:
			if dsts = gathered[way]; dsts == nil {
				dsts = prefix.Expect(h.expected(r.Dst))
				gathered[way] = dsts
			}
			dsts.Add(r.Dst)
		}
		return true
	})
	if err != nil {
		return nil, nil, err
	}
	own = state.Routes{}
	for w, b := range gathered {
		own[w] = b.Set()
	}
	return own, foreign, nil
}

// expected is the set whose prefixes the routes of a way lead to, as it seems by
// the first of them.
func (h *Host) expected(first netip.Prefix) prefix.Set {
	for _, s := range h.query.Expected {
		if s.Has(first) {
			return s
		}
	}
	return prefix.Set{}
}
