package kernel

import (
	"maps"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// sweep finds sisod's routes in other tables than those that have been read.
//
// The kernel tells of all tables or of one. Where long lists are, all of them would be
// a million routes a second time: then those tables are read that the ledger records.
func (h *Host) sweep(known []uint32) (state.Routes, error) {
	filters := []routeFilter{{protocol: state.Protocol}}
	recorded := h.ledger.recordedTables()
	h.sweptAll = len(recorded) == 0 || len(h.query.Expected) == 0
	if !h.sweptAll {
		filters = nil
		for _, table := range recorded {
			if !slices.Contains(known, table) {
				filters = append(filters, routeFilter{table: table})
			}
		}
	}
	swept := state.Routes{}
	for _, f := range state.Families {
		for _, filter := range filters {
			filter.family = f
			own, _, err := h.readTable(filter, known...)
			if err != nil {
				return nil, err
			}
			maps.Copy(swept, own)
		}
	}
	return swept, nil
}

// RecordTables records, on disk too, the tables that the routes of a state are about to
// be written to. The record begins when all tables have been swept, and ends with a
// state that has no routes. Appliers call it under Lock, after Read.
func (h *Host) RecordTables(wanted state.State) error {
	recorded := h.ledger.recordedTables()
	tables := slices.Clone(recorded)
	if len(recorded) == 0 {
		if !h.sweptAll {
			return nil
		}
		for way := range h.cached.Observed.Routes {
			tables = append(tables, way.Table)
		}
	}
	for way := range wanted.Routes {
		tables = append(tables, way.Table)
	}
	if len(wanted.Routes) == 0 {
		tables = nil
	}
	return h.ledger.recordTables(slices.Compact(slices.Sorted(slices.Values(tables))))
}

// recordedTables are all tables that may hold routes of sisod's; none: that is not known.
func (g *ledger) recordedTables() []uint32 {
	g.reload()
	return g.page.Tables
}

// recordTables replaces the record when it differs.
func (g *ledger) recordTables(tables []uint32) error {
	if slices.Equal(tables, g.page.Tables) {
		return nil
	}
	g.page.Tables, g.dirty = tables, true
	return g.save()
}
