package kernel

import (
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// mainOfLink is what others told the host about one interface.
type mainOfLink struct {
	gateways []state.LearnedGateway // best first
	routes   []state.Route          // of main
	skipped  int                    // further ones
}

// Expire has the next Read of PartExpired look at main's routes on an interface
// again. The kernel has no index of routes by interface: with a hundred thousand of
// others, looking at all interfaces takes far longer than looking at one.
func (h *Host) Expire(link string) {
	if h.expired == nil {
		h.expired = map[string]bool{}
	}
	h.expired[link] = true
}

// expireMoved marks what a change of links or addresses, from those of the
// snapshot to those that were read now, may have changed in main.
func (h *Host) expireMoved() {
	moved := map[string]bool{}
	for _, l := range outer(h.cached.Facts.Links, h.links.all()) {
		moved[l.Name] = true
		if l.PointToPoint && !slices.Contains(h.query.Interfaces, l.Name) {
			// A VPN's, which may hold the halves of a default.
			h.stale |= PartMain
		}
	}
	for _, a := range outer(h.cached.Facts.Addresses, h.links.addresses()) {
		moved[a.Link] = true
	}
	for link := range moved {
		h.Expire(link)
	}
	h.stale |= PartExpired
}

// outer returns the members that are in one of two lists only.
func outer[T comparable](a, b []T) []T {
	in := map[T]int{}
	for _, x := range a {
		in[x] |= 1
	}
	for _, x := range b {
		in[x] |= 2
	}
	var out []T
	for x, where := range in {
		if where != 3 {
			out = append(out, x)
		}
	}
	return out
}

// readMain reads what main has on the interfaces: on all of them, and the routes
// that decide before sisod, when all of PartMain is stale.
func (h *Host) readMain() error {
	whole := h.stale&PartMain != 0
	if whole || len(h.mains) == 0 {
		h.mains = map[string]mainOfLink{}
	}
	_, own, err := h.readNames()
	if err != nil {
		return err
	}
	sisods := map[uint32]bool{}
	for _, number := range own {
		sisods[number] = true
	}
	mains := map[string]mainOfLink{}
	for _, link := range h.followed() {
		m, known := h.mains[link]
		if !known || h.expired[link] {
			if m, err = h.learnGateways(link, sisods); err != nil {
				return err
			}
		}
		mains[link] = m
	}
	if whole {
		if h.cached.Facts.Final, err = h.finalRoutes(h.query.Interfaces); err != nil {
			return err
		}
		if h.cached.Facts.Strays, err = h.strays(h.query.Interfaces); err != nil {
			return err
		}
	}
	h.mains, h.expired = mains, nil
	f := &h.cached.Facts
	f.Gateways, f.Main, f.MainSkipped = nil, nil, map[string]int{}
	for _, link := range h.followed() {
		m := mains[link]
		f.Gateways = append(f.Gateways, m.gateways...)
		f.Main = append(f.Main, m.routes...)
		if m.skipped > 0 {
			f.MainSkipped[link] = m.skipped
		}
	}
	h.stale &^= PartMain | PartExpired
	return nil
}

// followed are the interfaces whose routes in main are learned.
func (h *Host) followed() []string {
	links := slices.Clone(h.query.Interfaces)
	if h.query.Everywhere {
		for _, l := range h.links.all() {
			if l.Up && !l.Loopback && !slices.Contains(links, l.Name) {
				links = append(links, l.Name)
			}
		}
	}
	return links
}

// learnGateways looks for the ways out of an interface that others told the
// host, best first, in this order: main's defaults; where it has none, the
// defaults of other tables; where there are none, the leases of DHCP clients. With
// them come main's other routes on the interface.
func (h *Host) learnGateways(link string, sisods map[uint32]bool) (mainOfLink, error) {
	var m mainOfLink
	index := h.links.index(link)
	if index == 0 {
		return m, nil
	}
	for _, f := range state.Families {
		learned, routes, left, err := h.mainOf(f, index, link)
		if err != nil {
			return m, err
		}
		if len(learned) == 0 && !slices.Contains(h.query.Named, LinkFamily{link, f}) {
			if learned, err = h.defaultsElsewhere(f, index, link, sisods); err != nil {
				return m, err
			}
		}
		m.gateways = append(m.gateways, best(learned)...)
		if len(learned) == 0 && f == state.IPv4 {
			m.gateways = append(m.gateways, h.leaseGateways(index, link)...)
		}
		m.routes = append(m.routes, routes...)
		m.skipped += left
	}
	return m, nil
}
