package lvs

import (
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// overhead is what an encapsulation adds to an inner packet, in bytes
// (RFC 2003, RFC 2473, RFC 2784, and UDP with the four bytes of GUE).
func overhead(kind string, outer state.Family) int {
	header := 20
	if outer == state.IPv6 {
		header = 40
	}
	switch kind {
	case "gre":
		return header + 4
	case "gue":
		return header + 8 + 4
	}
	return header
}

// defaultMTU stands in for a link whose MTU is not known.
const defaultMTU = 1500

// returnPath is the way of replies of a real server: from a tunnelled VIP, or to a
// director in mode fullnat.
type returnPath struct {
	role *profiles.RealServer
	end  profiles.At[netip.Addr] // the VIP, or the director
}

// match matches the packets of the way.
func (p returnPath) match() state.NFStatement {
	if p.role.Mode == profiles.FullNAT {
		return state.NFTarget{Addr: p.end.Value}
	}
	return state.NFSource{Addr: p.end.Value}
}

// overhead is the room that a VIP's tunnels, or the client's address, need, in
// bytes.
func (p returnPath) overhead() int {
	if p.role.Mode == profiles.FullNAT {
		return p.role.MSSRoom
	}
	if len(p.role.Directors) == 0 {
		return overhead(p.role.Tunnel.Kind, family(p.end.Value))
	}
	room := 0
	for _, d := range p.role.Directors {
		room = max(room, overhead(p.role.Tunnel.Kind, family(d.Value)))
	}
	return room
}

// roomyReturns have the replies of tunnelled VIPs announce an MSS that leaves
// room for the tunnel: a client's full segments would not fit through it, and
// where ICMP is filtered nobody would tell the client. Replies to a fullnat director
// leave room for what tells the client's address. The SYN-ACK is sent here, so it
// is here that the MSS is told.
func (b *builder) roomyReturns() {
	var packets state.NFRules
	for _, p := range b.returns {
		switch why := b.facts.NFT.Missing; {
		case p.role.Uplink.Value != "":
			b.byUplink(p)
		case why != "" && p.role.Mode == profiles.FullNAT:
			b.problem(subject(p.role), p.end.Pos, "to announce to the director %s that its segments are to leave room takes nf_tables, which this kernel does not give: %s; full ones have none for the client's address; name the uplink, whose routes then tell it: uplink = …", p.end.Value, why)
		case why != "":
			b.problem(subject(p.role), p.end.Pos, "to announce from VIP %s that its tunnel needs room takes nf_tables, which this kernel does not give: %s; where ICMP is filtered uploads stall; name the uplink, whose routes then tell it: uplink = …", p.end.Value, why)
		default:
			for _, rule := range b.announced(p) {
				packets.Outgoing = append(packets.Outgoing, b.Ask(p.end.Pos.Short(), rule))
			}
		}
	}
	if len(packets.Outgoing) > 0 {
		b.AddPackets(packets)
	}
}

// byUplink leads a VIP's replies by a table of its own, whose routes are those
// of the uplink, and tell the MSS.
func (b *builder) byUplink(p returnPath) {
	r, v, f := p.role, p.end, family(p.end.Value)
	table, from := b.tables[r.Table()], b.tables[r.Uplink.Value]
	if !b.active(from, f) {
		b.problem(subject(r), r.Uplink.Pos, "uplink %s has no way out for %s yet; replies go as main decides", r.Uplink.Value, f)
		return
	}
	var routes []state.Route
	for route := range b.Routes.All() {
		if route.Table == from && route.Family == f {
			routes = append(routes, route)
		}
	}
	for _, route := range routes {
		route.Table = table
		if hop, single := route.Hops.Single(); single {
			route.AdvMSS = b.roomFor(hop.Dev, f, p.overhead(), route.AdvMSS)
			if slices.Contains(b.config.VIPs(), route.Src) {
				route.Src = netip.Addr{}
			}
		}
		b.route(route, r.Pos.Short())
	}
	b.fromVIP(v.Value, table, v.Pos.Short())
}

// announced lowers the MSS in SYN-ACKs that leave as main decides.
// Main's own routes cannot tell it, and a copy of them would go another way when
// a routing daemon's, a multipath one or a rejecting one is not in it. Which
// interface it is comes out last, when a mark may have changed it. The kernel
// never raises what is announced (net/netfilter/nft_exthdr.c), so a rule for the
// widest link serves all that are as wide, and narrower ones have one more.
func (b *builder) announced(p returnPath) []state.NFRule {
	f := family(p.end.Value)
	size := func(link string) uint16 { return uint16(min(b.roomFor(link, f, p.overhead(), 0), math.MaxUint16)) }
	ways, widest := map[string]uint16{}, uint16(0)
	for _, l := range b.facts.Links {
		// Replies do not leave by what a role brings up, or has brought up.
		if _, raised := b.observed.Before.Up[l.Name]; l.Up && !l.Loopback && !b.Up[l.Name] && !raised {
			ways[l.Name] = size(l.Name)
			widest = max(widest, ways[l.Name])
		}
	}
	if len(ways) == 0 {
		widest = size("")
	}
	match := state.NFRule{p.match(), state.NFSynAck{}}
	list := []state.NFRule{append(slices.Clone(match), state.NFMaxSegment{Size: widest})}
	for _, link := range slices.Sorted(maps.Keys(ways)) {
		if ways[link] < widest {
			list = append(list, append(slices.Clone(match), state.NFInterface{Out: true, Name: link}, state.NFMaxSegment{Size: ways[link]}))
		}
	}
	return list
}

// roomFor is the MSS that leaves a full segment so many bytes, or what was asked
// for if that is less.
func (b *builder) roomFor(dev string, f state.Family, overhead int, asked uint32) uint32 {
	mtu := defaultMTU
	if l, ok := b.link(dev); ok && l.MTU > 0 {
		mtu = l.MTU
	}
	headers := 20 + 20
	if f == state.IPv6 {
		headers = 40 + 20
	}
	room := uint32(max(mtu-overhead-headers, 536))
	if asked != 0 && asked < room {
		return asked
	}
	return room
}
