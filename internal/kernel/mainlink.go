package kernel

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// fewLinks is how many interfaces are looked at in main one by one: the kernel then
// leaves out all that is on others, but goes through the whole table each time. For
// more of them one list of all that main has is less work.
const fewLinks = 2

// mainOfLink is what others told the host about one interface in one family.
type mainOfLink struct {
	defaults  []candidate   // of main
	elsewhere []candidate   // of other tables, where main has none
	connected []state.Route // of main
	others    []state.Route // of main, by a gateway
	total     int           // of connected and others, with those that are too many
	// advertised counts the defaults that routers told of.
	advertised int
	leases     []state.LearnedGateway
}

// routes are those that count, connected networks first.
func (m *mainOfLink) routes() []state.Route {
	routes := slices.Concat(m.connected, m.others)
	return routes[:min(len(routes), mainRoutesLimit)]
}

// from reports whether a route starts from the address.
func (m *mainOfLink) from(a netip.Addr) bool {
	starts := func(r state.Route) bool { return r.Src == a }
	return slices.ContainsFunc(m.connected, starts) || slices.ContainsFunc(m.others, starts)
}

// learned are the ways out, best first.
func (m *mainOfLink) learned() []state.LearnedGateway {
	switch {
	case len(m.defaults) > 0:
		return best(m.defaults)
	case len(m.elsewhere) > 0:
		return best(m.elsewhere)
	}
	return m.leases
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

// readMain reads what main has on the interfaces: on all of them, and the routes
// that decide before sisod, when all of PartMain is stale.
func (h *Host) readMain() error {
	whole := h.stale&PartMain != 0
	mains := map[LinkFamily]*mainOfLink{}
	var final []state.Route
	strays := map[string]state.Strays{}
	for _, f := range state.Families {
		w := mainWalk{host: h, family: f, whole: whole, links: map[int]string{}}
		for _, link := range h.followed() {
			key := LinkFamily{link, f}
			index := h.links.index(link)
			switch {
			case index == 0:
				mains[key] = &mainOfLink{}
			case whole || h.mains[key] == nil || h.expired[key]:
				w.links[index] = link
			default:
				mains[key] = h.mains[key]
			}
		}
		if err := w.walk(); err != nil {
			return err
		}
		for link, m := range w.found {
			mains[LinkFamily{link, f}] = m
		}
		final = append(final, w.final...)
		for link, s := range w.strays {
			t := strays[link]
			if t.Count == 0 {
				t.First = s.First
			}
			t.Count += s.Count
			strays[link] = t
		}
	}
	if whole {
		h.cached.Facts.Final, h.cached.Facts.Strays = final, strays
	}
	h.readLeases(mains)
	h.mains, h.expired, h.readdressed = mains, nil, nil
	f := &h.cached.Facts
	f.Gateways, f.Main, f.MainSkipped = nil, nil, map[string]int{}
	for _, link := range h.followed() {
		for _, family := range state.Families {
			m := mains[LinkFamily{link, family}]
			routes := m.routes()
			f.Gateways = append(f.Gateways, m.learned()...)
			f.Main = append(f.Main, routes...)
			if skipped := m.total - len(routes); skipped > 0 {
				f.MainSkipped[link] += skipped
			}
		}
	}
	return nil
}

// readLeases looks for gateways in leases where nobody else names one. They count as
// long as the interface has their address.
func (h *Host) readLeases(mains map[LinkFamily]*mainOfLink) {
	for key, m := range mains {
		again := m != h.mains[key] || h.readdressed[key.Link]
		if key.Family != state.IPv4 || !again {
			continue
		}
		m.leases = nil
		if index := h.links.index(key.Link); index != 0 && len(m.learned()) == 0 {
			m.leases = h.leaseGateways(index, key.Link)
		}
	}
}

// mainWalk is one look at main in a family, and at other tables for the interfaces
// that have no default there.
type mainWalk struct {
	host   *Host
	family state.Family
	links  map[int]string // whose routes are wanted, by index
	whole  bool           // what decides before sisod is wanted too

	found  map[string]*mainOfLink
	final  []state.Route
	strays map[string]state.Strays
}

func (w *mainWalk) walk() error {
	if len(w.links) == 0 && !w.whole {
		return nil
	}
	filters := []routeFilter{{}}
	if !w.whole && len(w.links) <= fewLinks {
		filters = nil
		for index := range w.links {
			filters = append(filters, routeFilter{oif: index})
		}
	}
	w.found, w.strays = map[string]*mainOfLink{}, map[string]state.Strays{}
	for _, filter := range filters {
		filter.family, filter.table, filter.skips = w.family, state.TableMain, w.skips
		begin := func() {
			w.final = nil
			clear(w.strays)
			for index, link := range w.links {
				if filter.oif == 0 || filter.oif == index {
					w.found[link] = &mainOfLink{}
				}
			}
		}
		begin()
		filter.restart = begin
		if err := w.host.conn.dumpRoutes(filter, w.take); err != nil {
			return fmt.Errorf("learn gateways: %w", err)
		}
	}
	for index, link := range w.links {
		if m := w.found[link]; m.advertised > 1 {
			if err := w.host.preferRouters(index, m.defaults); err != nil {
				return fmt.Errorf("learn gateway of %s: %w", link, err)
			}
		}
	}
	return w.elsewhere()
}

// skips reports whether a route is of no interest, from what costs little to see.
func (w *mainWalk) skips(g glance) bool {
	link, wanted := w.links[g.oif]
	switch {
	case g.bits <= 1:
		return false
	case g.kind != state.Unicast || g.several || !hostProtocol(g.protocol):
		return true
	case g.object:
		return false
	case wanted:
		m := w.found[link]
		if g.gateway && len(m.others) == mainRoutesLimit || !g.gateway && len(m.connected) == mainRoutesLimit {
			m.total++
			return true
		}
		return false
	}
	return !w.whole || !g.gateway || g.protocol != unix.RTPROT_BOOT && g.protocol != unix.RTPROT_STATIC
}

func (w *mainWalk) take(r observedRoute) bool {
	if w.whole {
		w.decides(r)
	}
	if r.Type != state.Unicast || r.Protocol == state.Protocol {
		return true
	}
	if r.Dst.Bits() == 0 {
		for index, link := range w.links {
			if m := w.found[link]; m != nil && r.Hops.By(link) {
				m.defaults = append(m.defaults, w.host.candidates(r, index, link)...)
				if r.Protocol == unix.RTPROT_RA {
					m.advertised++
				}
			}
		}
		return true
	}
	hop, single := r.Hops.Single()
	m := w.found[hop.Dev]
	if !single || m == nil || !hostProtocol(r.Protocol) {
		return true
	}
	m.total++
	if hop.Via.IsValid() {
		m.others = append(m.others, r.Route)
	} else {
		m.connected = append(m.connected, r.Route)
	}
	return true
}

// decides takes in a route that decides before a table of sisod's is asked.
//
// Rejecting ones are never suppressed, and the two halves of a default, which VPNs
// use, are no default. Routes to public networks by a gateway on a link that is no
// uplink decide replies of every uplink, and an operator who has them there mostly has
// a second provider in mind; routing daemons' are not looked at.
func (w *mainWalk) decides(r observedRoute) {
	final := rejects(r.Type) && r.Type != state.Throw
	if r.Dst.Bits() <= 1 && final || r.Dst.Bits() == 1 && w.byVPN(r) {
		w.final = append(w.final, r.Route)
	}
	hop, single := r.Hops.Single()
	if r.Protocol != unix.RTPROT_BOOT && r.Protocol != unix.RTPROT_STATIC || !single || !hop.Via.IsValid() ||
		r.Dst.Bits() == 0 || !public(r.Dst.Addr()) || slices.Contains(w.host.query.Interfaces, hop.Dev) {
		return
	}
	s := w.strays[hop.Dev]
	if s.Count++; s.Count == 1 {
		s.First = r.Route
	}
	w.strays[hop.Dev] = s
}

// byVPN reports whether a route leaves by a point-to-point link that is no uplink.
func (w *mainWalk) byVPN(r observedRoute) bool {
	for _, l := range w.host.links.all() {
		if l.PointToPoint && !slices.Contains(w.host.query.Interfaces, l.Name) && r.Hops.By(l.Name) {
			return true
		}
	}
	return false
}

// elsewhere looks for the defaults, in tables that are neither main nor sisod's, of
// interfaces that have none in main. All tables are gone through by a look at the
// whole; later only those that had one then, or of which an event told.
func (w *mainWalk) elsewhere() error {
	h := w.host
	lacking := map[int]string{}
	for index, link := range w.links {
		if len(w.found[link].defaults) == 0 && !slices.Contains(h.query.Named, LinkFamily{link, w.family}) {
			lacking[index] = link
		}
	}
	if w.whole {
		delete(h.elsewhere, w.family)
	}
	if len(lacking) == 0 {
		return nil
	}
	own, err := h.ownTables()
	if err != nil {
		return err
	}
	tables, known := h.elsewhere[w.family]
	var filters []routeFilter
	for table := range tables {
		filters = append(filters, routeFilter{table: table})
	}
	if !known {
		tables = map[uint32]bool{}
		// One origin after the other, so that the kernel leaves out a million routes of
		// sisod's own.
		for _, protocol := range hostProtocols {
			filters = append(filters, routeFilter{protocol: protocol})
		}
	}
	for _, filter := range filters {
		filter.family = w.family
		filter.skips = func(g glance) bool { return g.bits != 0 || g.kind != state.Unicast || !hostProtocol(g.protocol) }
		var found []observedRoute
		filter.restart = func() { found = nil }
		err := h.conn.dumpRoutes(filter, func(r observedRoute) bool {
			if r.Table != state.TableMain && r.Table != state.TableLocal && !own[r.Table] {
				found = append(found, r)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("learn gateways: %w", err)
		}
		for _, r := range found {
			tables[r.Table] = true
			for index, link := range lacking {
				m := w.found[link]
				m.elsewhere = append(m.elsewhere, h.candidates(r, index, link)...)
			}
		}
	}
	if h.elsewhere == nil {
		h.elsewhere = map[state.Family]map[uint32]bool{}
	}
	h.elsewhere[w.family] = tables
	return nil
}

// ownTables are the tables that have a name of sisod's.
func (h *Host) ownTables() (map[uint32]bool, error) {
	_, names, err := h.readNames()
	if err != nil {
		return nil, err
	}
	own := map[uint32]bool{}
	for _, number := range names {
		own[number] = true
	}
	return own, nil
}
