package kernel

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/state"
)

// markEntry is a mark that connections may carry.
type markEntry struct {
	Owner  string `json:"owner"`
	Number uint32 `json:"number"`
	Mask   uint32 `json:"mask"`
}

// marks are the numbers that are given.
func (g *ledger) marks() map[state.Mark]bool {
	g.reload()
	marks := map[state.Mark]bool{}
	for _, e := range g.page.Marks {
		if m := state.Mark(e); m.Number > 0 && bits.OnesCount32(m.Mask) > 1 {
			marks[m] = true
		}
	}
	return marks
}

// tabled reports whether there may be a table of nf_tables.
func (g *ledger) tabled() bool {
	g.reload()
	return g.page.NFTable
}

// noteTable records that a table of nf_tables is about to be made, or is gone.
func (g *ledger) noteTable(there bool) error {
	if err := g.claim(); err != nil {
		return err
	}
	if g.page.NFTable == there {
		return nil
	}
	g.page.NFTable, g.dirty = there, true
	return g.save()
}

// noteMark records that a mark is given, or not any more.
func (g *ledger) noteMark(m state.Mark, given bool) error {
	if err := g.claim(); err != nil {
		return err
	}
	g.page.Marks = slices.DeleteFunc(g.page.Marks, func(e markEntry) bool { return state.Mark(e) == m })
	if given {
		g.page.Marks = append(g.page.Marks, markEntry(m))
	}
	slices.SortFunc(g.page.Marks, func(a, b markEntry) int {
		return cmp.Or(strings.Compare(a.Owner, b.Owner), cmp.Compare(a.Number, b.Number))
	})
	g.dirty = true
	return g.save()
}
