package lvs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// realServer adds one [real_server.NAME].
func (b *builder) realServer(r *profiles.RealServer) {
	switch r.Mode {
	case profiles.Tun:
		b.tunnelled(r)
	case profiles.DR:
		b.direct(r)
	case profiles.NAT:
		b.natted(r)
	case profiles.FullNAT:
		b.fullNATted(r)
	}
}

func subject(r *profiles.RealServer) string { return "real server " + r.Name }

// tunnelled serves VIPs that come in a tunnel. The inner packet comes in by the
// tunnel and its source is routed elsewhere: a strict reverse-path filter would
// drop it. The greater of `all` and the device counts, so loose on the device
// works whatever `all` is, and `all` is never lowered.
func (b *builder) tunnelled(r *profiles.RealServer) {
	origin := r.Pos.Short()
	for _, v := range r.VIPs {
		devices := b.tunnels(r, v.Value)
		if len(devices) == 0 {
			continue
		}
		for _, d := range devices {
			if d.Type != "" {
				b.device(d, origin)
			}
			if d.EncapPort != 0 {
				continue
			}
			if v.Value.Is4() {
				b.sysctl(conf(state.IPv4, d.Name, "rp_filter"), "2", origin)
			}
			b.up(d.Name, origin)
		}
		b.silence(v.Value, origin)
		on := make([]string, 0, len(devices))
		for _, d := range devices {
			on = append(on, d.Name)
		}
		b.elsewhere(r, v, on...)
		for i, d := range devices {
			// A device without an IPv4 address lets nothing in, however loose its
			// filter (net/ipv4/fib_frontend.c, __fib_validate_source).
			if d.EncapPort == 0 && (i == 0 || v.Value.Is4()) {
				b.vip(d.Name, v.Value, v.Pos.Short())
			}
		}
		b.returns = append(b.returns, returnPath{r, v})
	}
}

// direct serves VIPs whose packets come unchanged, with the director's choice
// in the Ethernet address. The VIP must be on the host, and no neighbour may
// learn that: in IPv6 an address on lo is not answered for
// (net/ipv6/ndisc.c, ndisc_recv_ns), in IPv4 it is unless silenced.
func (b *builder) direct(r *profiles.RealServer) {
	origin := r.Pos.Short()
	for _, v := range r.VIPs {
		link := cmp.Or(r.Interface, "lo")
		if link != "lo" {
			b.up(link, origin)
			d := state.Device{Name: link, Type: "dummy"}
			if b.observed.Devices[d] || !b.isThere(link) {
				b.device(d, origin)
			} else if b.answers(link, v.Value) {
				b.problem(subject(r), r.Pos, "interface %s has neighbours, who find the VIP %s there and go past the director; leave the key interface out, or name a dummy interface of your own", link, v.Value)
			}
		}
		b.silence(v.Value, origin)
		b.elsewhere(r, v, link)
		b.vip(link, v.Value, v.Pos.Short())
		if r.Uplink.Value == "" {
			continue
		}
		table := b.tables[r.Uplink.Value]
		if !b.active(table, family(v.Value)) {
			b.problem(subject(r), r.Uplink.Pos, "uplink %s has no way out for %s yet; replies go as main decides", r.Uplink.Value, family(v.Value))
			continue
		}
		b.fromVIP(v.Value, table, v.Pos.Short())
	}
}

// hasNeighbours reports whether somebody on a link may ask for addresses. A
// tunnel has none, and what is not there neither.
func (b *builder) hasNeighbours(link string) bool {
	l, there := b.link(link)
	return there && !l.Loopback && !l.NoARP && !l.PointToPoint
}

// answers reports whether neighbours on a link are told of an address there.
// Silence counts for IPv4 alone: neighbour discovery answers for every address
// of the link (net/ipv6/ndisc.c).
func (b *builder) answers(link string, a netip.Addr) bool {
	return b.hasNeighbours(link) && !(a.Is4() && b.quiet())
}

// elsewhere tells when a VIP stands on an interface with neighbours as well:
// they are answered for it there, whatever is silenced.
func (b *builder) elsewhere(r *profiles.RealServer, v profiles.At[netip.Addr], but ...string) {
	for _, a := range b.facts.Addresses {
		if a.Prefix.Addr() != v.Value || slices.Contains(but, a.Link) || b.observed.VIPs[state.VIP{Link: a.Link, Addr: v.Value}] || !b.answers(a.Link, v.Value) {
			continue
		}
		cure := fmt.Sprintf("take it away there: ip address del %s dev %s", a.Prefix, a.Link)
		if !a.Secondary && !a.Prefix.IsSingleIP() {
			cure = "if this is the host's own address there, the VIP is another one; if not, " + cure
		}
		b.problem(subject(r), v.Pos, "VIP %s stands on %s as well, and neighbours find it there and go past the director; %s", v.Value, a.Link, cure)
	}
}

// natted leads the replies of a nat real server back through the director,
// those to its own neighbours too, and leaves the host's default route alone.
func (b *builder) natted(r *profiles.RealServer) {
	for _, d := range r.Directors {
		f := family(d.Value)
		link, addresses := b.towards(d.Value)
		if link == "" {
			b.problem(subject(r), d.Pos, "no interface has a network around the director %s: a nat real server and its director share a network", d.Value)
			continue
		}
		if l, _ := b.link(link); !l.Up {
			b.problem(subject(r), d.Pos, "interface %s towards the director %s is down; until it is up, replies go as main decides: ip link set %s up", link, d.Value, link)
			continue
		}
		table := b.tables[r.Table()]
		b.route(state.Route{Dst: state.AnyDestination(f), Way: state.Way{
			Family: f, Table: table, Metric: state.DefaultMetric(f), Type: state.Unicast,
			Hops: state.HopsOf(state.Hop{Via: d.Value, Dev: link}), Protocol: state.Protocol,
		}}, d.Pos.Short())
		for _, a := range addresses {
			rule := b.row(f, state.RowReturn, table)
			rule.From = netip.PrefixFrom(a, a.BitLen())
			if len(r.Services) == 0 {
				b.rule(rule, d.Pos.Short())
			}
			for _, s := range r.Services {
				rule.IPProto = uint8(state.TransportNamed(s.Protocol))
				rule.SPort = state.PortRange{First: s.Number, Last: s.Number}
				b.rule(rule, s.Pos.Short())
			}
		}
	}
}

// towards is the link with a network around an address, and the host's own
// addresses on it.
func (b *builder) towards(to netip.Addr) (link string, own []netip.Addr) {
	bits := -1
	for _, a := range b.facts.Addresses {
		if p := a.Prefix.Masked(); p.Contains(to) && p.Bits() > bits && a.Prefix.Addr() != to {
			link, bits = a.Link, p.Bits()
		}
	}
	for _, a := range b.facts.Addresses {
		if a.Link == link && link != "" && family(a.Prefix.Addr()) == family(to) && !a.LinkLocal && a.Prefix.Contains(to) {
			own = append(own, a.Prefix.Addr())
		}
	}
	return link, own
}
