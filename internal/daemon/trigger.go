package daemon

import (
	"slices"
	"time"

	"github.com/sisod/sisod/internal/kernel"
)

// shownReasons is how many reasons of one pass are told.
const shownReasons = 8

// trigger is what the next pass is for.
type trigger struct {
	parts   kernel.Parts
	sweep   bool
	reload  bool // the profiles are to be read again
	reasons []string
	// facts: links, gateways or wishes may be others than before, so that what
	// failed may work now.
	facts bool
	// links: the kernel itself may have taken routes away, with a link or an address.
	links bool
	// mild: others' routes in main changed, or events were lost; pressing: anything else
	// happened.
	mild, pressing bool
	carriers       map[string]bool // links that have their carrier again
	peer           uint32          // the last foreign sender of an event
	first          time.Time       // when it was pulled; zero: it was not
	haste          time.Time       // of the first urgent event; zero: there was none
}

// pull names parts that a pass has to read, and why. An empty reason is told
// by another one.
func (t *trigger) pull(parts kernel.Parts, reason string) {
	if t.first.IsZero() {
		t.first = time.Now()
	}
	t.parts |= parts
	if reason != "" && len(t.reasons) < shownReasons && !slices.Contains(t.reasons, reason) {
		t.reasons = append(t.reasons, reason)
	}
}

// event pulls the trigger for an event of the kernel, for parts that the host named.
func (t *trigger) event(e kernel.Event, parts kernel.Parts) {
	if e.Parts == kernel.AllParts {
		// It stands for all the others.
		t.reasons = nil
	}
	t.pull(parts, e.Reason)
	if e.Parts == kernel.PartMain || e.Parts == kernel.AllParts {
		t.mild = true
	} else {
		t.pressing = true
	}
	t.facts = t.facts || e.Parts&(kernel.PartLinks|kernel.PartMain) != 0
	t.links = t.links || e.Parts&kernel.PartLinks != 0
	if e.Carrier != "" {
		if t.carriers == nil {
			t.carriers = map[string]bool{}
		}
		t.carriers[e.Carrier] = true
	}
	if e.Peer != 0 {
		t.peer = e.Peer
	}
	if e.Urgent && t.haste.IsZero() {
		t.haste = time.Now()
	}
}

// wait is how long to gather further events after one that came now. What does not
// press waits until rest is over.
func (t *trigger) wait(now, rest time.Time) time.Duration {
	if !t.pressing && now.Before(rest) {
		return rest.Sub(now)
	}
	wait := min(gatherQuiet, gatherMost-now.Sub(t.first))
	if !t.haste.IsZero() {
		wait = min(wait, gatherHaste-now.Sub(t.haste))
	}
	return max(0, wait)
}

func (t *trigger) pulled() bool { return !t.first.IsZero() }

// take hands the trigger over to a pass.
func (t *trigger) take() trigger {
	taken := *t
	*t = trigger{}
	return taken
}

// owe leaves to the next pass what one could not read. It pulls nothing.
func (t *trigger) owe(failed trigger) {
	t.parts |= failed.parts
	t.sweep = t.sweep || failed.sweep
	t.facts = t.facts || failed.facts
	t.links = t.links || failed.links
	if t.carriers == nil {
		t.carriers = failed.carriers
	}
}
