package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/state"
)

// extent is a part of the routes in sisod's tables: zero fields mean all.
type extent struct {
	family state.Family
	table  uint32
	link   string // those by this interface
}

// Expires has the next Read look again at what an event tells of, as narrowly as it
// says. It returns the parts that this Read must name.
func (h *Host) Expires(e Event) Parts {
	parts := e.Parts
	if parts&PartMain != 0 && e.Link != "" {
		parts = parts&^PartMain | PartExpired
		h.expireMain(e.Link, e.Family)
		for _, tables := range h.elsewhere {
			if e.Table != 0 {
				tables[e.Table] = true
			}
		}
	}
	if parts&PartRoutes != 0 && (e.Link != "" || e.Table != 0) {
		parts = parts&^PartRoutes | PartExpired
		h.lost = append(h.lost, extent{e.Family, e.Table, e.Link})
	}
	return parts
}

// Expire has the next Read of PartExpired look again at the routes by an interface, of
// main and of sisod's. The kernel has no index of them: with a hundred thousand of
// others, looking at all interfaces takes far longer than looking at one.
func (h *Host) Expire(link string) {
	h.expireRoutes(link, 0)
}

// expireRoutes is Expire for one family; 0 is both.
func (h *Host) expireRoutes(link string, f state.Family) {
	h.expireMain(link, f)
	h.lost = append(h.lost, extent{family: f, link: link})
}

func (h *Host) expireMain(link string, only state.Family) {
	if h.expired == nil {
		h.expired = map[LinkFamily]bool{}
	}
	for _, f := range state.Families {
		if only == 0 || only == f {
			h.expired[LinkFamily{link, f}] = true
		}
	}
}

// expireNexthops has the next Read look again at the nexthops, and at the tables of
// routes by those that go.
func (h *Host) expireNexthops(steps []state.Step) {
	h.stale |= PartNexthops
	for _, s := range steps {
		n, ok := s.Object.(state.Nexthop)
		if !ok || !s.Op.Removes() {
			continue
		}
		for way := range h.cached.Observed.Routes {
			if way.Nexthop == n.ID {
				h.lost = append(h.lost, extent{family: way.Family, table: way.Table})
				h.stale |= PartExpired
			}
		}
	}
}

// expireMoved marks what a change of links or addresses, from those of the
// snapshot to those that were read now, may have changed elsewhere.
//
// IPv4 loses the routes of a link that goes down, or loses an address, in every table
// and without a notification. What comes with a link or an address is announced by
// itself; only a lease may count again.
func (h *Host) expireMoved() {
	before := &h.cached.Facts
	h.stale |= PartExpired
	names := map[int]string{}
	up := map[int]int{} // how many of the two looks saw a link up
	for _, l := range before.Links {
		names[l.Index] = l.Name
	}
	for _, l := range slices.Concat(before.Links, h.links.all()) {
		if l.Up {
			up[l.Index]++
		}
	}
	goneLinks, comeLinks := outer(before.Links, h.links.all())
	for _, link := range slices.Concat(goneLinks, comeLinks) {
		h.stale |= PartValues
		h.expireMain(link.Name, 0)
		if up[link.Index] < 2 {
			h.lost = append(h.lost, extent{link: link.Name})
		}
		if link.PointToPoint && !slices.Contains(h.query.Interfaces, link.Name) {
			// A VPN's, which may hold the halves of a default.
			h.stale |= PartMain
		}
		if was := names[link.Index]; was != "" && was != link.Name {
			h.stale |= PartRoutes
		}
	}
	gone, come := outer(before.Addresses, h.links.addresses())
	there := map[place]bool{}
	for _, a := range come {
		there[place{a.Link, a.Prefix}] = true
	}
	for _, a := range slices.Concat(gone, come) {
		if h.readdressed == nil {
			h.readdressed = map[string]bool{}
		}
		h.readdressed[a.Link] = true
		if there[place{a.Link, a.Prefix}] {
			continue
		}
		f := familyOfAddr(a.Prefix.Addr())
		h.expireRoutes(a.Link, f)
		for key, m := range h.mains {
			// Main also loses what starts from the address on other links.
			if m.from(a.Prefix.Addr()) {
				h.expireMain(key.Link, f)
			}
		}
	}
}

// place is where an address is.
type place struct {
	link   string
	prefix netip.Prefix
}

// outer returns the members that only one of two lists has. What both begin and
// end with costs little.
func outer[T comparable](before, after []T) (gone, come []T) {
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	return without(before, after), without(after, before)
}

// without returns the members of a list that another one has not.
func without[T comparable](list, other []T) []T {
	others := make(map[T]bool, len(other))
	for _, x := range other {
		others[x] = true
	}
	var out []T
	for _, x := range list {
		if !others[x] {
			out = append(out, x)
		}
	}
	return out
}

// tableOf names the routes of a table that were read, in a family.
type tableOf struct {
	family state.Family
	table  uint32
}

// tableRoutes is what was read of a table: sisod's and others'.
type tableRoutes struct {
	own     state.Routes
	foreign []state.Route
}

func (x extent) compare(y extent) int {
	return cmp.Or(cmp.Compare(x.family, y.family), cmp.Compare(x.table, y.table), strings.Compare(x.link, y.link))
}

// readLost reads again what of sisod's tables may have changed.
func (h *Host) readLost() error {
	lost := h.lost
	slices.SortFunc(lost, extent.compare)
	for _, x := range slices.Compact(lost) {
		if err := h.sweepAgain(x); err != nil {
			return err
		}
		for at, known := range h.tables {
			if x.family != 0 && x.family != at.family || x.table != 0 && x.table != at.table {
				continue
			}
			// What a link had taken along was there; what comes is told with its table.
			if x.table == 0 && x.link != "" && !h.leads(known, x.link) {
				continue
			}
			if err := h.readAgain(at, x.link); err != nil {
				return err
			}
		}
	}
	h.lost = nil
	return nil
}

// sweepAgain reads again a table that is none of sisod's, and held routes of its.
func (h *Host) sweepAgain(x extent) error {
	kept := state.Routes{}
	for way, dsts := range h.swept {
		if x.table != way.Table || x.family != way.Family {
			kept[way] = dsts
		}
	}
	if len(kept) == len(h.swept) {
		return nil
	}
	own, _, err := h.readTable(routeFilter{family: x.family, table: x.table})
	if err != nil {
		return err
	}
	maps.Copy(kept, own)
	h.swept = kept
	return nil
}

// readAgain reads a table, or what of it leaves by one link.
func (h *Host) readAgain(at tableOf, link string) error {
	filter := routeFilter{family: at.family, table: at.table}
	fresh := tableRoutes{own: state.Routes{}}
	if link != "" {
		kept := h.tables[at]
		for way, dsts := range kept.own {
			if !h.by(way, link) {
				fresh.own[way] = dsts
			}
		}
		fresh.foreign = slices.DeleteFunc(slices.Clone(kept.foreign), func(r state.Route) bool { return h.by(r.Way, link) })
		if filter.oif = h.links.index(link); filter.oif == 0 || h.took(kept, link) {
			h.tables[at] = fresh
			return nil
		}
	}
	own, foreign, err := h.readTable(filter)
	if err != nil {
		return err
	}
	maps.Copy(fresh.own, own)
	fresh.foreign = append(fresh.foreign, foreign...)
	h.tables[at] = fresh
	return nil
}

// took reports whether a link that is down has taken all routes along that were by it:
// all but those that have other next hops as well. Looking for them in a long table
// takes half a second.
func (h *Host) took(t tableRoutes, link string) bool {
	up := slices.ContainsFunc(h.links.all(), func(l state.Link) bool { return l.Name == link && l.Up })
	if up {
		return false
	}
	alone := func(way state.Way) bool { return len(way.Hops.All()) < 2 || !way.Hops.By(link) }
	for way := range t.own {
		if !alone(way) {
			return false
		}
	}
	return !slices.ContainsFunc(t.foreign, func(r state.Route) bool { return !alone(r.Way) })
}

// leads reports whether a route of the table may be by the link.
func (h *Host) leads(t tableRoutes, link string) bool {
	for way := range t.own {
		if h.by(way, link) {
			return true
		}
	}
	return slices.ContainsFunc(t.foreign, func(r state.Route) bool { return h.by(r.Way, link) })
}

// by reports whether a way may be by the link. A nexthop goes with its link, and then
// nobody knows any more where it led.
func (h *Host) by(way state.Way, link string) bool {
	if way.Nexthop == 0 {
		return way.Hops.By(link)
	}
	hops, known := h.conn.nexthops.hops(way.Nexthop)
	return !known || hops.By(link)
}
