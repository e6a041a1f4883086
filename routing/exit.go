package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Exit is an uplink in one family: what it is made of now.
type Exit struct {
	Uplink    string
	Family    state.Family
	Interface string
	Table     uint32
	// Addresses are those that the uplink follows.
	Addresses []netip.Addr
	// Gateway is the way out; it counts only while Out is true.
	Gateway state.LearnedGateway
	// Out: there is a way out now, and routes lead to it.
	Out bool
	// Carrier: the way out's link has carrier. A way without carrier keeps its
	// own table and is no candidate for anything that can go elsewhere.
	Carrier bool
	// Active: a way out is or was known in this boot, so that rules and guard stand.
	Active bool
	// Trouble is why there is no way out now, "" when there is or when the
	// family is not in use on the interface.
	Trouble string

	profile   *profiles.Uplink
	vips      []netip.Addr // of all roles: no source of anything else
	link      state.Link
	here      []state.Address // the interface's, of the family, for the world
	addresses []state.Address
	networks  []state.Route // main's on this interface, those by the gateway left out
	src       netip.Addr    // for packets that leave by the gateway
}

func family(a netip.Addr) state.Family {
	if a.Is4() {
		return state.IPv4
	}
	return state.IPv6
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// exits works out every uplink in both families.
func exits(c *profiles.Config, t Tables, f state.Facts) []*Exit {
	var out []*Exit
	vips := c.VIPs()
	// Mostly nobody asks: main's routes start from the address that the exit has chosen.
	usable := sync.OnceValue(func() map[netip.Addr]bool {
		m := make(map[netip.Addr]bool, len(f.Addresses))
		for _, a := range f.Addresses {
			m[a.Prefix.Addr()] = m[a.Prefix.Addr()] || !a.Tentative
		}
		return m
	})
	here := byEnd(f.Addresses)
	for i := range c.Uplinks {
		u := &c.Uplinks[i]
		table, _ := t.Number(u.Name)
		for _, fam := range state.Families {
			if !u.Gateway.None && !u.Gateway.Auto && !given(u.Gateway, fam).IsValid() {
				continue
			}
			e := &Exit{Uplink: u.Name, Family: fam, Interface: u.Interface, Table: table, profile: u, vips: vips, here: here[end{u.Interface, fam}]}
			e.look(f, usable)
			out = append(out, e)
		}
	}
	return out
}

// given is the gateway that the profile names for a family.
func given(g profiles.Gateway, f state.Family) netip.Addr {
	if f == state.IPv6 {
		return g.IPv6
	}
	return g.IPv4
}

// look fills the exit from the facts. usable are the host's addresses that packets may
// start from.
func (e *Exit) look(f state.Facts, usable func() map[netip.Addr]bool) {
	last, known := f.Known[e.key()]
	// A point-to-point way out says nothing about a gateway that is to be learned.
	e.Active = known && (last.IsValid() || e.profile.Gateway.None || !given(e.profile.Gateway, e.Family).IsValid() && e.isPointToPoint(f))
	i := slices.IndexFunc(f.Links, func(l state.Link) bool { return l.Name == e.Interface })
	if i < 0 {
		e.Trouble = fmt.Sprintf("interface %s is not there", e.Interface)
		return
	}
	e.link = f.Links[i]
	e.follow()
	via, why := e.wayOut(f)
	if !e.link.Up && why != unused {
		// Whatever else is missing went with the link.
		why = fmt.Sprintf("interface %s is down", e.Interface)
	}
	if why != "" {
		e.Trouble = why
		if e.Active && e.link.Up {
			// Neighbours need no gateway: the DHCP server is one, the operator may be.
			e.surround(f, usable)
		}
		return
	}
	e.Gateway, e.Out, e.Active, e.Carrier = via, true, true, e.link.Carrier
	if !e.Carrier && e.Trouble == "" {
		e.Trouble = fmt.Sprintf("interface %s has no carrier", e.Interface)
	}
	e.src = e.source(via.Via)
	e.surround(f, usable)
}

// key is the exit's place among the known gateways.
func (e *Exit) key() state.GatewayKey {
	return state.GatewayKey{Uplink: e.Uplink, Interface: e.Interface, Family: e.Family}
}

func (e *Exit) isPointToPoint(f state.Facts) bool {
	return slices.ContainsFunc(f.Links, func(l state.Link) bool { return l.Name == e.Interface && l.PointToPoint })
}

// follow picks the addresses that the uplink answers for.
func (e *Exit) follow() {
	var named map[netip.Addr]bool
	if e.profile.Addresses != nil {
		named = map[netip.Addr]bool{}
		for _, a := range e.profile.Addresses {
			named[a] = true
		}
	}
	seen := make(map[netip.Addr]bool, len(e.here))
	e.Addresses, e.addresses = slices.Grow(e.Addresses, len(e.here)), slices.Grow(e.addresses, len(e.here))
	for _, a := range e.here {
		addr := a.Prefix.Addr()
		if named != nil && !named[addr] {
			continue
		}
		if !seen[addr] {
			seen[addr] = true
			e.Addresses = append(e.Addresses, addr)
			e.addresses = append(e.addresses, a)
		}
	}
}

// wayOut finds the gateway, or says why there is none.
func (e *Exit) wayOut(f state.Facts) (state.LearnedGateway, string) {
	g := e.profile.Gateway
	if g.None {
		if len(e.addresses) == 0 {
			return state.LearnedGateway{}, e.unlessUnused(fmt.Sprintf("interface %s has no %s address", e.Interface, e.Family))
		}
		return state.LearnedGateway{Link: e.Interface, Family: e.Family, Source: "profile (point-to-point)"}, ""
	}
	if via := given(g, e.Family); via.IsValid() {
		w := state.LearnedGateway{Link: e.Interface, Family: e.Family, Via: via, Source: "profile"}
		onLink, why := e.reach(via, f)
		w.OnLink = onLink
		if last := f.Known[e.key()]; why != "" && last.IsValid() && last != via {
			// A new gateway that cannot be must not cost the host the one that works.
			if lastOnLink, lastWhy := e.reach(last, f); lastWhy == "" {
				w.Via, w.OnLink, w.Source = last, lastOnLink, "used so far"
				e.Trouble = why + fmt.Sprintf("; %s, used so far, stays", last)
				return w, ""
			}
		}
		return w, why
	}
	for _, w := range f.Gateways {
		if w.Link != e.Interface || w.Family != e.Family {
			continue
		}
		if w.Via.IsValid() {
			covered := e.coveredByMain(w.Via, f)
			w.OnLink = !covered && !w.Via.IsLinkLocalUnicast()
		}
		return w, ""
	}
	if e.Active {
		why := fmt.Sprintf("the %s gateway of %s is gone: neither main, nor another table, nor a DHCP lease names one any more", e.Family, e.Interface)
		if last := f.Known[e.key()]; last.IsValid() {
			why += "; the last was " + last.String()
		}
		return state.LearnedGateway{}, why
	}
	return state.LearnedGateway{}, e.unlessUnused(fmt.Sprintf(
		"no %s gateway of %s is learned yet: neither main, nor another table, nor a DHCP lease names one; name it in gateway = [ \"auto\", \"ADDRESS\" ]", e.Family, e.Interface))
}

// unlessUnused is why, unless nothing on the interface speaks the family.
func (e *Exit) unlessUnused(why string) string {
	if e.Active || slices.ContainsFunc(e.Addresses, func(a netip.Addr) bool { return !a.IsPrivate() || a.Is4() }) {
		return why
	}
	return unused
}

// unused is the trouble of a family that the interface does not use: none of
// the operator's business.
const unused = "not in use"

// reach tells whether a gateway that the profile names can be on the
// interface, and whether the kernel has to be told so. A mistyped gateway
// must not take working replies away.
func (e *Exit) reach(via netip.Addr, f state.Facts) (onLink bool, why string) {
	if via.IsLinkLocalUnicast() || e.coveredByMain(via, f) {
		return false, ""
	}
	if len(e.here) == 0 {
		return false, fmt.Sprintf("interface %s has no %s address, so %s cannot be reached there", e.Interface, e.Family, via)
	}
	single := true
	for _, a := range e.here {
		if a.Prefix.Contains(via) || a.Peer.IsValid() && a.Peer.Contains(via) {
			return true, "" // its network is not in main (noprefixroute)
		}
		single = single && a.Prefix.IsSingleIP()
	}
	learned := slices.ContainsFunc(f.Gateways, func(g state.LearnedGateway) bool { return g.Link == e.Interface && g.Via == via })
	if single || learned || e.link.PointToPoint {
		return true, ""
	}
	return false, fmt.Sprintf("gateway %s is outside every network of %s (%s); correct it, or add a route to it: ip route add %s dev %s",
		via, e.Interface, e.networksOf(), via, e.Interface)
}

// end is one interface in one family.
type end struct {
	link   string
	family state.Family
}

// byEnd gathers the addresses that are for the world. The kernel lists those of an
// interface one after the other, so that most lists are parts of all, and not copied.
func byEnd(all []state.Address) map[end][]state.Address {
	found := map[end][]state.Address{}
	for from, to := 0, 0; from < len(all); from = to {
		first := &all[from]
		at := end{first.Link, family(first.Prefix.Addr())}
		for to = from + 1; to < len(all); to++ {
			if a := &all[to]; a.Link != at.link || a.LinkLocal != first.LinkLocal || family(a.Prefix.Addr()) != at.family {
				break
			}
		}
		switch {
		case first.LinkLocal:
		case found[at] == nil:
			found[at] = all[from:to:to]
		default:
			found[at] = append(found[at], all[from:to]...)
		}
	}
	return found
}

func (e *Exit) networksOf() string {
	text := ""
	for i, a := range e.here {
		if i > 0 {
			text += ", "
		}
		if i == 4 {
			return text + "…"
		}
		text += a.Prefix.Masked().String()
	}
	return text
}

// coveredByMain reports whether main has an on-link network around an address.
func (e *Exit) coveredByMain(via netip.Addr, f state.Facts) bool {
	return slices.ContainsFunc(f.Main, func(r state.Route) bool {
		hop, ok := r.Hops.Single()
		return ok && r.Family == e.Family && hop.Dev == e.Interface && !hop.Via.IsValid() && r.Dst.Contains(via)
	})
}

// source chooses the address that packets to a next hop start from. The zero
// Addr leaves it to the kernel.
func (e *Exit) source(via netip.Addr) netip.Addr {
	best, rank := netip.Addr{}, -1
	for _, a := range e.addresses {
		if a.Tentative || a.Deprecated || a.Temporary || slices.Contains(e.vips, a.Prefix.Addr()) {
			continue
		}
		r := 0
		if via.IsValid() && (a.Prefix.Contains(via) || a.Peer.IsValid() && a.Peer.Contains(via)) {
			r += 2
		}
		if !a.Secondary {
			r++
		}
		if r > rank {
			best, rank = a.Prefix.Addr(), r
		}
	}
	return best
}

// surround takes over what main knows of the interface, so that the uplink's
// table sends a neighbour's packets to the neighbour.
func (e *Exit) surround(f state.Facts, usable func() map[netip.Addr]bool) {
	lowest := map[netip.Prefix]state.Route{}
	for _, r := range f.Main {
		hop, ok := r.Hops.Single()
		if !ok || r.Family != e.Family || hop.Dev != e.Interface || r.Dst.Bits() == 0 {
			continue
		}
		if r.Dst.IsSingleIP() && slices.Contains(e.vips, r.Dst.Addr()) {
			continue // the kernel's, of an IPv6 VIP: no neighbour
		}
		if hop.Via.IsValid() && hop.Via == e.Gateway.Via {
			continue // the default of this table says the same
		}
		if have, ok := lowest[r.Dst]; !ok || r.Metric < have.Metric {
			lowest[r.Dst] = r
		}
	}
	for _, r := range lowest {
		hop, _ := r.Hops.Single()
		src := r.Src
		switch {
		case e.Family == state.IPv6 && r.Dst.Addr().IsLinkLocalUnicast():
			src = netip.Addr{}
		case !src.IsValid() || src != e.src && !usable()[src]:
			next := hop.Via
			if !next.IsValid() {
				next = r.Dst.Addr()
			}
			src = e.source(next)
		}
		e.networks = append(e.networks, state.Route{Dst: r.Dst, Way: state.Way{
			Family: e.Family, Table: e.Table, Metric: state.DefaultMetric(e.Family), Type: state.Unicast,
			Hops: state.HopsOf(hop), Src: src, MTU: r.MTU, AdvMSS: r.AdvMSS, Protocol: state.Protocol,
		}})
	}
	slices.SortFunc(e.networks, func(a, b state.Route) int { return a.Dst.Compare(b.Dst) })
}

// The states of an exit, as status shows them.
const (
	StateUp        = "up"
	StateNoCarrier = "no-carrier" // there is a way out, and nothing at its other end
	StateGuarded   = "guarded"    // the way out is gone; replies are unreachable, or main's (guard = false)
	StateWaiting   = "waiting"    // no way out was known yet; replies go as main decides
	StateUnused    = "unused"     // the interface does not speak the family
)

// State sums the exit up in one word.
func (e *Exit) State() string {
	switch {
	case e.Out && e.Carrier:
		return StateUp
	case e.Out:
		return StateNoCarrier
	case e.Active:
		return StateGuarded
	case e.Trouble == unused:
		return StateUnused
	}
	return StateWaiting
}

// hop is the exit's next hop.
func (e *Exit) hop() state.Hop {
	return state.Hop{Via: e.Gateway.Via, Dev: e.Interface, OnLink: e.Gateway.OnLink}
}

// leastIPv6MTU is the least MTU of IPv6 (RFC 8200, section 5).
const leastIPv6MTU = 1280

// way is how packets leave by the exit, in a table and with a metric.
func (e *Exit) way(table, metric uint32) state.Way {
	mtu := e.profile.MTU
	if e.Family == state.IPv6 && mtu < leastIPv6MTU {
		mtu = 0
	}
	return state.Way{
		Family: e.Family, Table: table, Metric: metric, Type: state.Unicast, Hops: state.HopsOf(e.hop()),
		Src: e.src, MTU: mtu, AdvMSS: e.profile.AdvMSS, Protocol: state.Protocol,
	}
}
