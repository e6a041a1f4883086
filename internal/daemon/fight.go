package daemon

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/sisod/sisod/internal/kernel"
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
	objects map[stepKey]*fight
	last    inForce
}

// fight is one object that was repaired within the window.
type fight struct {
	step    state.Step
	repairs []time.Time
	// slow: the limit was reached, and the object has not been left alone for a
	// whole window since.
	slow  bool
	other string // who undoes it, "" when that is not known
}

// inForce is what a pass left behind in the kernel.
type inForce struct {
	state.State
	missing map[stepKey]bool // but for these, which were wanted and not done
	index   map[string]int   // of each link
}

func newFights() *fights { return &fights{objects: map[stepKey]*fight{}} }

// forget makes the next pass one that repairs nothing: what is missing then, the
// host's administrator took away.
func (f *fights) forget() { f.last = inForce{} }

// remember takes in what a pass has left behind.
func (f *fights) remember(desired state.State, links []state.Link, missing map[stepKey]bool) {
	f.last = inForce{desired, missing, map[string]int{}}
	for _, l := range links {
		f.last.index[l.Name] = l.Index
	}
}

// referee postpones the repairs that come too often. Of what it allows, repairs
// are those that bring back what somebody else undid; fought are the objects
// whose limit has been reached right now.
func (f *fights) referee(steps []state.Step, t trigger, links []state.Link, now time.Time) (allowed []state.Step, repairs map[stepKey]bool, waiting []postponed, fought []*fight) {
	repairs = map[stepKey]bool{}
	for _, s := range steps {
		key := keyOf(s)
		if !f.isRepair(s, t, links) {
			allowed = append(allowed, s)
			continue
		}
		one := f.objects[key]
		if one == nil {
			one = &fight{}
			f.objects[key] = one
		}
		one.step = s
		one.repairs = slices.DeleteFunc(one.repairs, func(at time.Time) bool { return now.Sub(at) >= fightWindow })
		if !one.slow && len(one.repairs) >= fightRepairs {
			one.slow = true
			fought = append(fought, one)
		}
		if one.slow && len(one.repairs) > 0 && now.Before(one.last().Add(fightPause)) {
			waiting = append(waiting, postponed{s, "somebody else keeps undoing it"})
			continue
		}
		one.repairs = append(one.repairs, now)
		repairs[key] = true
		allowed = append(allowed, s)
	}
	return allowed, repairs, waiting, fought
}

// identify takes the sender of the last event for the other of the fights that
// a pass has just repaired in. It looks early: a program that runs one command
// and ends is gone by the time of a warning.
func (f *fights) identify(repairs map[stepKey]bool, peer uint32) {
	for key := range repairs {
		if one := f.objects[key]; peer != 0 && one.other == "" && len(one.repairs) >= fightRepairs/2 {
			one.other = kernel.ProcessOf(peer)
		}
	}
}

func (f *fight) last() time.Time { return f.repairs[len(f.repairs)-1] }

// over ends the fights whose object has been left alone for a window, and
// returns those that had come to the limit.
func (f *fights) over(now time.Time) (ended []*fight) {
	for key, one := range f.objects {
		if now.Sub(one.last()) < fightWindow {
			continue
		}
		delete(f.objects, key)
		if one.slow {
			ended = append(ended, one)
		}
	}
	return ended
}

// slow lists the fights that have come to the limit.
func (f *fights) slow() []*fight {
	var list []*fight
	for _, one := range f.objects {
		if one.slow {
			list = append(list, one)
		}
	}
	slices.SortFunc(list, func(a, b *fight) int { return cmp.Compare(a.object(), b.object()) })
	return list
}

// object names what the fight is about.
func (f *fight) object() string {
	words := f.step.Object.Kind().String() + " " + f.step.Object.Spell(nil)
	if isIPv6(f.step.Object) {
		words = "IPv6 " + words
	}
	return words
}

// String is the fight on one line.
func (f *fight) String() string {
	if f.other == "" {
		return f.object() + " (undone again and again)"
	}
	return f.object() + " (undone again and again, by " + f.other + " as it seems)"
}

// next is when the fights need a pass that no event asks for: the next repair of
// one that waits, or the end of one that was told.
func (f *fights) next(waiting []postponed, now time.Time) time.Time {
	var next time.Time
	for _, w := range waiting {
		if one := f.objects[keyOf(w.step)]; one != nil {
			next = earliest(next, one.last().Add(fightPause))
		}
	}
	for _, one := range f.objects {
		if one.slow {
			next = earliest(next, one.last().Add(fightWindow))
		}
	}
	return next
}

// isRepair reports whether a step brings back what was there after the pass
// before: somebody else undid it. What the kernel took away with a link or an
// address nobody undid.
func (f *fights) isRepair(s state.Step, t trigger, links []state.Link) bool {
	if f.last.missing[keyOf(s)] {
		return false
	}
	switch o := s.Object.(type) {
	case state.Rule:
		return s.Op == state.Add && f.last.Rules[o]
	case state.RouteSet:
		if s.Op.Removes() || t.links {
			return false
		}
		return f.last.Routes[o.Way].Has(o.Dsts.At(0))
	case state.Nexthop:
		return !s.Op.Removes() && !t.links && f.last.Nexthops[o.ID] == o
	case state.LinkGroup:
		return s.Op == state.Replace && f.last.Groups[o.Link] == o.Group && !f.replaced(links, o.Link)
	case state.Sysctl:
		if s.Op != state.Replace || f.last.Sysctls[o.Path] != o.Value {
			return false
		}
		return !slices.ContainsFunc(strings.Split(o.Path, "/"), func(name string) bool { return f.replaced(links, name) })
	case state.TableName:
		return s.Op == state.Add && f.last.Names[o]
	case state.NFTable:
		return !s.Op.Removes() && f.last.NFTable.Text == o.Text
	case state.Device:
		return s.Op == state.Add && f.last.Devices[o]
	case state.VIP:
		return s.Op == state.Add && f.last.VIPs[o] && !f.replaced(links, o.Link)
	case state.LinkUp:
		was, known := f.last.Up[o.Link]
		return s.Op == state.Replace && known && was == o.Up && !f.replaced(links, o.Link)
	case state.Timeouts:
		return s.Op == state.Replace && f.last.Timeouts == o
	case state.SyncDaemon:
		return !s.Op.Removes() && f.last.Syncs[o.Master] == o
	case state.Service:
		return !s.Op.Removes() && f.last.Services[o.ServiceKey] == o
	case state.Destination:
		return !s.Op.Removes() && f.last.Destinations[o.DestinationKey] == o
	}
	return false
}

// replaced reports whether a link is another one than that of its name in the
// pass before.
func (f *fights) replaced(links []state.Link, name string) bool {
	i := slices.IndexFunc(links, func(l state.Link) bool { return l.Name == name })
	return i >= 0 && f.last.index[name] != links[i].Index
}
