package daemon

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// Limits of repairing one object that somebody else keeps undoing.
const (
	fightWindow  = time.Minute
	fightRepairs = 10               // in the window, before sisod slows down
	fightPause   = 20 * time.Second // between repairs from then on
)

// fights counts, object by object, how often sisod has repaired what somebody
// else undid. Two programs that both insist would otherwise keep a host busy
// for nothing.
type fights struct {
	repairs map[string][]time.Time
	warned  map[string]time.Time
	last    state.Desired // of the pass before
}

func newFights() *fights {
	return &fights{repairs: map[string][]time.Time{}, warned: map[string]time.Time{}}
}

// referee drops from a plan the repairs that come too often. It returns the
// plan to apply, the repairs in it, those to warn about now, and how long to
// wait for the next repair of a dropped one (0: none was dropped).
func (f *fights) referee(plan state.Plan, desired state.Desired, now time.Time) (allowed state.Plan, repairs, warn []state.Step, wait time.Duration) {
	allowed = state.Plan{Names: plan.Names}
	for _, s := range plan.Steps {
		if !f.isRepair(s) {
			allowed.Steps = append(allowed.Steps, s)
			continue
		}
		key := s.Object.Spell(nil)
		times := slices.DeleteFunc(f.repairs[key], func(t time.Time) bool { return now.Sub(t) > fightWindow })
		if len(times) >= fightRepairs {
			if pause := fightPause - now.Sub(times[len(times)-1]); pause > 0 {
				if wait == 0 || pause < wait {
					wait = pause
				}
				if now.Sub(f.warned[key]) > 10*fightWindow {
					f.warned[key] = now
					warn = append(warn, s)
				}
				f.repairs[key] = times
				continue
			}
			times = times[1:]
		}
		f.repairs[key] = append(times, now)
		repairs = append(repairs, s)
		allowed.Steps = append(allowed.Steps, s)
	}
	for key, times := range f.repairs {
		if now.Sub(times[len(times)-1]) > fightWindow {
			delete(f.repairs, key)
		}
	}
	f.last = desired
	return allowed, repairs, warn, wait
}

// isRepair reports whether a step brings back what was wanted before and is
// still wanted: somebody else undid it. For a set of routes any member tells.
func (f *fights) isRepair(s state.Step) bool {
	switch o := s.Object.(type) {
	case state.Rule:
		return s.Op == state.Add && f.last.Rules[o]
	case state.RouteSet:
		if s.Op.Removes() {
			return false
		}
		_, found := slices.BinarySearchFunc(f.last.Routes[o.Way], o.Dsts[0], netip.Prefix.Compare)
		return found
	case state.LinkGroup:
		return s.Op == state.Replace && f.last.Groups[o.Link] == o.Group
	case state.Sysctl:
		return s.Op == state.Replace && f.last.Sysctls[o.Path] == o.Value
	case state.TableName:
		return s.Op == state.Add && f.last.Names[o]
	}
	return false
}
