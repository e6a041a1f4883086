package routing

import (
	"testing"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// While a plan is carried out, rules still lead to the table of an uplink that
// leaves: its number must not be a newcomer's in the same pass.
func TestNumberOfALeavingTableIsNotGivenAwayAtOnce(t *testing.T) {
	c := &profiles.Config{Settings: profiles.DefaultSettings, Uplinks: []profiles.Uplink{{Name: "fresh", Interface: "em1"}}}
	first := c.Settings.Table
	assigned := Assign(c, state.Facts{OwnTables: map[string]uint32{"leaving": first}})
	if n, _ := assigned.Number("fresh"); n != first+1 {
		t.Errorf("fresh has number %d, want %d", n, first+1)
	}
	// Once the record is gone, the number is free.
	assigned = Assign(c, state.Facts{})
	if n, _ := assigned.Number("fresh"); n != first {
		t.Errorf("fresh has number %d, want %d", n, first)
	}
}
