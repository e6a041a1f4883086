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
	if got := pending.wait(now, time.Time{}); got != gatherQuiet {
		t.Errorf("an ordinary event gathers for %s, want %s", got, gatherQuiet)
	}
	if got := pending.wait(now.Add(gatherMost-time.Millisecond), time.Time{}); got != time.Millisecond {
		t.Errorf("%s are left at the end of the gathering, want 1ms", got)
	}
	pending.event(kernel.Event{Parts: kernel.PartLinks, Urgent: true}, kernel.PartLinks)
	urgent := pending.haste
	if got := pending.wait(urgent, time.Time{}); got != gatherHaste {
		t.Errorf("an urgent event gathers for %s, want %s", got, gatherHaste)
	}
	pending.event(kernel.Event{Parts: kernel.PartLinks}, kernel.PartLinks)
	if got := pending.wait(urgent.Add(gatherHaste), time.Time{}); got != 0 {
		t.Errorf("a follower makes an urgent event wait %s longer", got)
	}
	if pending.take().haste.IsZero() || !pending.haste.IsZero() {
		t.Error("the haste does not go with the trigger")
	}
}

func TestOthersInMainDoNotKeepTheDaemonBusy(t *testing.T) {
	start := time.Now()
	end := start.Add(60 * time.Millisecond)
	rest := restAfter(start, end)
	var pending trigger
	pending.event(kernel.Event{Parts: kernel.PartMain}, kernel.PartExpired)
	if got := pending.wait(end, rest); got != restShare*60*time.Millisecond {
		t.Errorf("the next default of a routing daemon waits %s", got)
	}
	pending.event(kernel.Event{Parts: kernel.PartLinks}, kernel.PartLinks)
	if got := pending.wait(end, rest); got > gatherQuiet {
		t.Errorf("a link waits %s for a routing daemon", got)
	}
	if rest := restAfter(start, start.Add(restFrom/2)); !rest.IsZero() {
		t.Errorf("after a short pass there is a rest until %s", rest)
	}
}
