package lvs

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// fullNATs give the connections of fullnat directors an address of this host as
// their source, where the balancer has put that of the real server in the place
// of the VIP. Their replies come back here from wherever the real server is.
//
// Only where a connection was directed to when it began tells the ones of a
// service from others (net/netfilter/ipvs/ip_vs_nfct.c leaves that in the
// connection's record): the packet itself has a real server's address, which a
// DNAT or a client behind may ask for too.
func (b *builder) fullNATs() {
	var packets state.NFRules
	for i := range b.config.Directors {
		d := &b.config.Directors[i]
		if d.Mode != profiles.FullNAT || b.facts.IPVS.Missing != "" {
			continue
		}
		if why := b.facts.NFT.Missing; why != "" {
			b.problem("director "+d.Name, d.Pos, "mode fullnat needs nf_tables, which this kernel does not give: %s; real servers see the clients' addresses, and answer past this host", why)
			continue
		}
		for _, f := range state.Families {
			pool := b.pool(d, f)
			if len(pool) == 0 {
				continue
			}
			for _, match := range b.firstPackets(d, f) {
				for _, rule := range takeTurns(match, pool) {
					packets.Translate = append(packets.Translate, b.Ask(d.Pos.Short(), rule))
				}
			}
		}
		for _, rule := range b.clamps(d) {
			packets.Forwarded = append(packets.Forwarded, b.Ask(d.Pos.Short(), rule))
		}
		b.capacity(d)
	}
	// Services of every port come last: others of the VIP are not theirs.
	slices.SortStableFunc(packets.Translate, func(x, y state.NFRule) int { return cmp.Compare(everyPort(x), everyPort(y)) })
	slices.SortStableFunc(packets.Forwarded, func(x, y state.NFRule) int { return cmp.Compare(everyPort(x), everyPort(y)) })
	if len(packets.Translate) > 0 || len(packets.Forwarded) > 0 {
		b.AddPackets(packets)
	}
}

// everyPort is 1 for a rule that matches every port of a VIP.
func everyPort(r state.NFRule) int {
	for _, s := range r {
		if o, ok := s.(state.NFOriginal); ok && o.Port == 0 {
			return 1
		}
	}
	return 0
}

// pool are the sources of a family that are on this host; others are told.
func (b *builder) pool(d *profiles.Director, f state.Family) []netip.Addr {
	var pool []netip.Addr
	for _, s := range d.SNAT {
		if family(s.Value) != f {
			continue
		}
		here := slices.ContainsFunc(b.facts.Addresses, func(a state.Address) bool { return a.Prefix.Addr() == s.Value })
		for v := range b.VIPs {
			here = here || v.Addr == s.Value
		}
		if here {
			pool = append(pool, s.Value)
		} else {
			b.problem("director "+d.Name, s.Pos, "snat %s is no address of this host, so replies to it would not come back; it is not used until it is", s.Value)
		}
	}
	return pool
}

// services are the keys of a director's services that are sisod's, in order.
func (b *builder) services(d *profiles.Director) []state.ServiceKey {
	var keys []state.ServiceKey
	for _, key := range ServicesOf(d) {
		if _, ours := b.Services[key]; ours {
			keys = append(keys, key)
		}
	}
	return keys
}

// firstPackets matches the first packets of a director's connections in a
// family, as they leave for real servers.
func (b *builder) firstPackets(d *profiles.Director, f state.Family) []state.NFRule {
	var list []state.NFRule
	for _, key := range b.services(d) {
		switch {
		case key.Family != f:
		case key.Mark != 0:
			for _, r := range d.RealServers {
				if family(r.Address) == f {
					list = append(list, state.NFRule{b.marked(key), state.NFRedirected{Addr: r.Address}})
				}
			}
		default:
			list = append(list, b.others(key)...)
			list = append(list, state.NFRule{original(key)})
		}
	}
	return list
}

// others let what is another service's pass a service of every port.
func (b *builder) others(key state.ServiceKey) []state.NFRule {
	if key.Port != 0 {
		return nil
	}
	var list []state.NFRule
	for o := range b.Services {
		if o.Addr == key.Addr && o.Protocol == key.Protocol && o.Port != 0 && !b.isFullNAT(o) {
			list = append(list, state.NFRule{original(o), state.NFAccept{}})
		}
	}
	for o := range b.facts.IPVS.Foreign {
		if o.Addr == key.Addr && o.Protocol == key.Protocol && o.Port != 0 {
			list = append(list, state.NFRule{original(o), state.NFAccept{}})
		}
	}
	slices.SortFunc(list, func(x, y state.NFRule) int { return cmp.Compare(x.String(), y.String()) })
	return list
}

func (b *builder) isFullNAT(key state.ServiceKey) bool {
	return slices.ContainsFunc(b.config.Directors, func(d profiles.Director) bool {
		return d.Mode == profiles.FullNAT && slices.Contains(ServicesOf(&d), key)
	})
}

func original(key state.ServiceKey) state.NFOriginal {
	return state.NFOriginal{Protocol: uint8(key.Protocol), Addr: key.Addr, Port: key.Port}
}

// takeTurns spreads what matches over sources; a rule that accepts stays alone.
func takeTurns(match state.NFRule, pool []netip.Addr) []state.NFRule {
	if slices.Contains(match, state.NFStatement(state.NFAccept{})) {
		return []state.NFRule{match}
	}
	var rules []state.NFRule
	for i, a := range pool {
		r := slices.Clone(match)
		// Each rule counts what the ones before have left.
		if left := len(pool) - i; left > 1 {
			r = append(r, state.NFTurn{Of: uint32(left)})
		}
		rules = append(rules, append(r, state.NFSourceNAT{Addr: a}))
	}
	return rules
}

// keepTranslating keeps the chain of translations while connections of services
// drain that had one. What it says is never asked of them any more, but when the
// last such chain of a host goes, the kernel translates nothing (net/netfilter/
// nf_nat_core.c, nf_nat_unregister_fn).
func (b *builder) keepTranslating(drained []state.ServiceKey) {
	var packets state.NFRules
	for _, key := range drained {
		match := state.NFRule{original(key)}
		if key.Mark != 0 {
			match = state.NFRule{b.marked(key)}
		}
		if strings.Contains(b.observed.NFTable.Text, match.String()+" ") {
			packets.Translate = append(packets.Translate, append(match, state.NFAccept{}))
		}
	}
	if len(packets.Translate) > 0 {
		slices.SortFunc(packets.Translate, func(x, y state.NFRule) int { return cmp.Compare(x.String(), y.String()) })
		b.AddPackets(packets)
	}
}

// marked matches the packets of a mark's service.
func (b *builder) marked(key state.ServiceKey) state.NFMark {
	return state.NFMark{Mask: ^b.config.Settings.MarkMask, Value: key.Mark}
}

// clamps lower what SYN-ACKs of a director's services announce, so that full
// segments of clients leave room. Replies pass here before the balancer writes
// the VIP into them (it does so at the priority of source NAT).
func (b *builder) clamps(d *profiles.Director) []state.NFRule {
	if d.MSSRoom == 0 {
		return nil
	}
	var list []state.NFRule
	for _, key := range b.services(d) {
		if key.Protocol != state.TCP || key.Mark != 0 {
			continue
		}
		list = append(list, b.others(key)...)
		// Where all ways are as wide, that towards the client counts. A narrower one
		// to a real server would have no room.
		size := b.roomFor(b.standsOn(d, key.Addr), key.Family, d.MSSRoom, 0)
		for _, r := range d.RealServers {
			if family(r.Address) == key.Family {
				link, _ := b.towards(r.Address)
				size = b.roomFor(link, key.Family, d.MSSRoom, size)
			}
		}
		list = append(list, state.NFRule{state.NFDirection{Reply: true}, original(key), state.NFSynAck{}, state.NFMaxSegment{Size: uint16(size)}})
	}
	return list
}

// standsOn is the interface of a VIP, "" when it is not known.
func (b *builder) standsOn(d *profiles.Director, vip netip.Addr) string {
	if d.Interface != "" {
		return d.Interface
	}
	for _, a := range b.facts.Addresses {
		if a.Prefix.Addr() == vip {
			return a.Link
		}
	}
	return ""
}

// fullNATted serves requests that have a director's own address as their source.
// What is announced to those addresses leaves room for the client's: as main
// decides, or by an uplink.
func (b *builder) fullNATted(r *profiles.RealServer) {
	for _, d := range r.Directors {
		if r.AsMain() {
			b.returns = append(b.returns, returnPath{r, d})
		} else {
			b.roomByUplink(r, d)
		}
	}
}

// roomByUplink leads replies to a director by the way that the uplink has to it.
// The MSS of a SYN-ACK is that of its route, so each director has one of its own,
// in a table of the role.
func (b *builder) roomByUplink(r *profiles.RealServer, d profiles.At[netip.Addr]) {
	f, table, from := family(d.Value), b.tables[r.Table()], b.tables[r.Uplink.Value]
	if !b.active(from, f) {
		b.problem(subject(r), r.Uplink.Pos, "uplink %s has no way out for %s yet; replies to %s go as main decides, without the room", r.Uplink.Value, f, d.Value)
		return
	}
	ways := slices.DeleteFunc(slices.Collect(b.Routes.All()), func(way state.Route) bool { return way.Table != from })
	way, found := towardsBy(ways, d.Value)
	hop, single := way.Hops.Single()
	if !found || !single {
		b.problem(subject(r), d.Pos, "no route to the director %s is known yet; what is announced to it leaves no room", d.Value)
		return
	}
	way.Dst, way.Table = netip.PrefixFrom(d.Value, d.Value.BitLen()), table
	way.AdvMSS = b.roomFor(hop.Dev, f, r.MSSRoom, way.AdvMSS)
	if slices.Contains(b.config.VIPs(), way.Src) {
		way.Src = netip.Addr{}
	}
	b.route(way, d.Pos.Short())
	rule := b.row(f, state.RowRoom, table)
	rule.To = way.Dst
	b.rule(rule, d.Pos.Short())
}

// towardsBy is the route that a table of these has for an address.
func towardsBy(routes []state.Route, to netip.Addr) (best state.Route, found bool) {
	for _, r := range routes {
		if r.Type != state.Unicast || !r.Dst.Contains(to) {
			continue
		}
		if !found || cmp.Or(cmp.Compare(best.Dst.Bits(), r.Dst.Bits()), cmp.Compare(r.Metric, best.Metric)) < 0 {
			best, found = r, true
		}
	}
	return best, found
}
