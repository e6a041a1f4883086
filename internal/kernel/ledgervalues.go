package kernel

import (
	"fmt"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// sysctlPlace names a sysctl so that a rename of its link does not matter:
// with a Link, the name in Path is "*".
type sysctlPlace struct {
	Path string `json:"path"`
	Link int    `json:"link,omitempty"` // interface index
}

type sysctlEntry struct {
	sysctlPlace
	Found string `json:"found"`
	Set   string `json:"set"`
	// Prior is what sisod had set before Set: until the change is done, and
	// nobody can say when a killed process had done it, both are sisod's.
	Prior *string `json:"prior,omitempty"`
}

type groupEntry struct {
	Link  int     `json:"link"` // interface index
	Found uint32  `json:"found"`
	Set   uint32  `json:"set"`
	Prior *uint32 `json:"prior,omitempty"`
}

func (e sysctlEntry) owns(value string) bool {
	return value == e.Set || e.Prior != nil && value == *e.Prior
}

func (e groupEntry) owns(group uint32) bool {
	return group == e.Set || e.Prior != nil && group == *e.Prior
}

// before returns what can still be given back: values that are as sisod set
// them. What somebody else has changed since is theirs. read reads a sysctl.
func (g *ledger) before(l *links, read func(path string) (string, error)) state.Before {
	g.reload()
	b := state.Before{Groups: map[string]uint32{}, Sysctls: map[string]string{}, Up: g.upBefore(l)}
	for _, link := range l.all() {
		i := g.groupAt(link.Index)
		if i < 0 {
			continue
		}
		e := g.page.Groups[i]
		if link.Group != e.Found && e.owns(link.Group) {
			b.Groups[link.Name] = e.Found
		}
	}
	for _, e := range g.page.Sysctls {
		path := l.path(e.sysctlPlace)
		if path == "" {
			continue
		}
		value, err := read(path)
		if err == nil && value != e.Found && e.owns(value) {
			b.Sysctls[path] = e.Found
		}
	}
	return b
}

// prune takes out of the ledger what is not as sisod set it: it was given back
// by another hand, or is somebody else's now. Were it kept, a value that comes
// to be sisod's own again by chance would be given back as if it were. What is
// not wanted either stays as it is, and that is told. It must be called under
// the lock.
func (g *ledger) prune(l *links, wanted state.State, timeouts state.Timeouts) error {
	if err := g.refresh(); err != nil {
		return err
	}
	groups := slices.DeleteFunc(slices.Clone(g.page.Groups), func(e groupEntry) bool {
		i := slices.IndexFunc(l.all(), func(link state.Link) bool { return link.Index == e.Link })
		if i < 0 {
			return true
		}
		now := l.all()[i]
		if _, asked := wanted.Groups[now.Name]; !asked && !e.owns(now.Group) && now.Group != e.Found {
			g.tell(groupEntry{Link: e.Link, Found: e.Found, Set: e.Set}, "link group", fmt.Sprintf("dev %s group", now.Name), e.Set, now.Group)
		}
		return !e.owns(now.Group)
	})
	sysctls := slices.DeleteFunc(slices.Clone(g.page.Sysctls), func(e sysctlEntry) bool {
		path := l.path(e.sysctlPlace)
		if path == "" {
			return true
		}
		value, err := readSysctl(path)
		if _, asked := wanted.Sysctls[path]; !asked && err == nil && !e.owns(value) && value != e.Found {
			g.tell(sysctlEntry{sysctlPlace: e.sysctlPlace, Found: e.Found, Set: e.Set}, "sysctl", path, e.Set, value)
		}
		return err == nil && !e.owns(value)
	})
	if e, now := g.page.Timeouts, secondsOf(timeouts); e != nil && timeouts != (state.Timeouts{}) && wanted.Timeouts == (state.Timeouts{}) && !e.owns(now) && now != e.Found {
		g.tell(timeoutsEntry{Found: e.Found, Set: e.Set}, "ipvs timeouts", "timeouts", e.Set.timeouts(), timeouts)
	}
	if len(groups) == len(g.page.Groups) && len(sysctls) == len(g.page.Sysctls) {
		return nil
	}
	g.page.Groups, g.page.Sysctls, g.dirty = groups, sysctls, true
	g.page.Along = slices.DeleteFunc(g.page.Along, func(e alongEntry) bool { return g.sysctlAt(sysctlPlace{Path: e.Switch}) < 0 })
	return g.save()
}

// Prune forgets values that sisod set and that are somebody else's by now; it
// tells of those that are not wanted, which nobody will set again. Appliers
// call it under Lock, after Read.
func (h *Host) Prune(wanted state.State) error {
	return h.ledger.prune(h.links, wanted, h.cached.Observed.Timeouts)
}

// tell logs once that an entry is not sisod's any more.
func (g *ledger) tell(entry any, kind, object string, set, now any) {
	if !g.told[entry] {
		g.told[entry] = true
		g.log.Warn(kind+" was changed by somebody else: flush leaves it alone", "object", object, "set", set, "now", now)
	}
}

// ownsSysctl reports whether the value of a place is the one that sisod set.
func (g *ledger) ownsSysctl(p sysctlPlace, value string) bool {
	g.reload()
	i := g.sysctlAt(p)
	return i >= 0 && g.page.Sysctls[i].owns(value)
}

// ownsGroup reports whether the group of a link is the one that sisod set.
func (g *ledger) ownsGroup(index int, group uint32) bool {
	g.reload()
	i := g.groupAt(index)
	return i >= 0 && g.page.Groups[i].owns(group)
}

// sysctlFound is the value that a place had before sisod set one.
func (g *ledger) sysctlFound(p sysctlPlace) (value string, ok bool) {
	i := g.sysctlAt(p)
	if i < 0 {
		return "", false
	}
	return g.page.Sysctls[i].Found, true
}

// noteSysctl records a change that is about to be made.
func (g *ledger) noteSysctl(p sysctlPlace, found, set string) {
	g.reload()
	g.dirty = true
	i := g.sysctlAt(p)
	switch {
	case i < 0:
		g.page.Sysctls = append(g.page.Sysctls, sysctlEntry{sysctlPlace: p, Found: found, Set: set})
	case g.page.Sysctls[i].owns(found):
		g.page.Sysctls[i].Set, g.page.Sysctls[i].Prior = set, &found
	default:
		g.page.Sysctls[i] = sysctlEntry{sysctlPlace: p, Found: found, Set: set}
	}
}

// noteGroup records a change that is about to be made.
func (g *ledger) noteGroup(index int, found, set uint32) {
	g.reload()
	g.dirty = true
	i := g.groupAt(index)
	switch {
	case i < 0:
		g.page.Groups = append(g.page.Groups, groupEntry{Link: index, Found: found, Set: set})
	case g.page.Groups[i].owns(found):
		g.page.Groups[i].Set, g.page.Groups[i].Prior = set, &found
	default:
		g.page.Groups[i] = groupEntry{Link: index, Found: found, Set: set}
	}
}

// forgetSysctl removes an entry that has been given back.
func (g *ledger) forgetSysctl(p sysctlPlace) {
	if i := g.sysctlAt(p); i >= 0 {
		g.dirty = true
		g.page.Sysctls = slices.Delete(g.page.Sysctls, i, i+1)
	}
}

// forgetGroup removes an entry that has been given back.
func (g *ledger) forgetGroup(index int) {
	if i := g.groupAt(index); i >= 0 {
		g.dirty = true
		g.page.Groups = slices.Delete(g.page.Groups, i, i+1)
	}
}

func (g *ledger) sysctlAt(p sysctlPlace) int {
	return slices.IndexFunc(g.page.Sysctls, func(e sysctlEntry) bool { return e.sysctlPlace == p })
}

func (g *ledger) groupAt(index int) int {
	return slices.IndexFunc(g.page.Groups, func(e groupEntry) bool { return e.Link == index })
}
