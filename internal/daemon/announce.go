package daemon

import (
	"slices"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// announceAgain is when a VIP that has appeared is announced once more: who is
// to hear it may not have listened at first, a switch that opens its port for
// instance.
var announceAgain = [...]time.Duration{time.Second, 5 * time.Second}

// announcements are of VIPs whose neighbours are told again where they are.
type announcements struct {
	due map[state.VIP][]time.Time
	// vips are in force since the pass before; nil before the first.
	vips map[state.VIP]bool
}

// note takes in what a pass has left behind, and returns the VIPs to announce
// right now: those on a link that is in carriers, which it has again. What the pass has added
// itself was announced then; of what another process has added, neighbours are
// told again as well.
func (a *announcements) note(vips, added map[state.VIP]bool, carriers map[string]bool, now time.Time) (again []state.VIP) {
	due := map[state.VIP][]time.Time{}
	for v := range vips {
		due[v] = a.due[v]
		if carriers[v.Link] {
			again = append(again, v)
		}
		if carriers[v.Link] || added[v] || a.vips != nil && !a.vips[v] {
			due[v] = nil
			for _, after := range announceAgain {
				due[v] = append(due[v], now.Add(after))
			}
		}
	}
	a.due, a.vips = due, vips
	return again
}

// take returns the VIPs that are due.
func (a *announcements) take(now time.Time) (vips []state.VIP) {
	for v, times := range a.due {
		left := slices.DeleteFunc(times, func(at time.Time) bool { return !at.After(now) })
		if len(left) < len(times) {
			vips = append(vips, v)
		}
		a.due[v] = left
	}
	return vips
}

// next is when some are due; the zero time is never.
func (a *announcements) next() (next time.Time) {
	for _, times := range a.due {
		if len(times) > 0 {
			next = earliest(next, times[0])
		}
	}
	return next
}

// drop forgets everything: the host was given back.
func (a *announcements) drop() { *a = announcements{vips: map[state.VIP]bool{}} }
