package daemon

import (
	"testing"
	"time"

	"github.com/sisod/sisod/internal/kernel"
)

func TestUrgentEventsAreNotHeldUpByOthers(t *testing.T) {
	var pending trigger
	pending.event(kernel.Event{Parts: kernel.PartLinks}, kernel.PartLinks)
	now := pending.first
	if got := pending.wait(now); got != gatherQuiet {
		t.Errorf("an ordinary event gathers for %s, want %s", got, gatherQuiet)
	}
	if got := pending.wait(now.Add(gatherMost - time.Millisecond)); got != time.Millisecond {
		t.Errorf("%s are left at the end of the gathering, want 1ms", got)
	}
	pending.event(kernel.Event{Parts: kernel.PartLinks, Urgent: true}, kernel.PartLinks)
	urgent := pending.haste
	if got := pending.wait(urgent); got != gatherHaste {
		t.Errorf("an urgent event gathers for %s, want %s", got, gatherHaste)
	}
	pending.event(kernel.Event{Parts: kernel.PartLinks}, kernel.PartLinks)
	if got := pending.wait(urgent.Add(gatherHaste)); got != 0 {
		t.Errorf("a follower makes an urgent event wait %s longer", got)
	}
	if pending.take().haste.IsZero() || !pending.haste.IsZero() {
		t.Error("the haste does not go with the trigger")
	}
}
