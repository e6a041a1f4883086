package lvs

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

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

// fallback is the device that takes a tunnel's packets from anybody.
func fallback(kind string, inner state.Family, outer state.Family) string {
	switch {
	case kind == "gre" && outer == state.IPv6:
		return "ip6gre0"
	case kind == "gre":
		return "gre0"
	case outer == state.IPv6:
		return "ip6tnl0"
	case inner == state.IPv6:
		return "sit0"
	}
	return "tunl0"
}

var deviceTypes = map[string]string{"tunl0": "ipip", "gre0": "gre", "ip6tnl0": "ip6tnl", "sit0": "sit", "ip6gre0": "ip6gre"}

// tunnels are the devices that decapsulate a VIP's packets: the module's own,
// which takes them from anybody, or one for each director that is named. The
// first is where an IPv6 VIP is put. None: they cannot be, and that is told.
func (b *builder) tunnels(r *profiles.RealServer, vip netip.Addr) []state.Device {
	var out []state.Device
	if len(r.Directors) == 0 {
		name := cmp.Or(r.Interface, fallback(r.Tunnel.Kind, family(vip), family(vip)))
		kind, known := deviceTypes[name]
		switch {
		case known:
			out = append(out, state.Device{Name: name, Type: kind})
		case b.isThere(name):
			out = append(out, state.Device{Name: name})
		default:
			b.problem(subject(r), r.Pos, "interface %s is not there; name the director, and sisod makes it a tunnel of its own: director = [ … ]", name)
			return nil
		}
	}
	for i, d := range r.Directors {
		shared := fallback(r.Tunnel.Kind, family(vip), family(d.Value))
		name := b.freeName(r.Name, family(vip), i, out)
		named := false
		// The module's own device takes packets from anybody, whatever it is told.
		if i == 0 && r.Interface != "" && deviceTypes[r.Interface] == "" && !b.asOther(r.Interface, deviceTypes[shared]) {
			name, named = r.Interface, true
		}
		device := state.Device{Name: name, Type: deviceTypes[shared], Remote: d.Value}
		if have, ok := b.between(device, named); ok {
			device = have
		}
		out = append(out, device)
		if l, ok := b.link(shared); ok && l.Up {
			b.problem(subject(r), d.Pos, "device %s is up, so encapsulated packets of anybody are let in beside those of %s; set it down if nothing else needs it: ip link set %s down", shared, d.Value, shared)
		}
	}
	if r.Tunnel.Kind == "gue" {
		for _, f := range b.outerFamilies(r, out[0]) {
			out = append(out, state.Device{Type: "gue", EncapPort: r.Tunnel.Port, EncapFamily: f})
		}
	}
	return out
}

// outerFamilies are the families in which a role's packets come: its directors',
// the tunnel's, or for a device that is not sisod's those of the host's addresses.
func (b *builder) outerFamilies(r *profiles.RealServer, tunnel state.Device) []state.Family {
	in := map[state.Family]bool{}
	for _, d := range r.Directors {
		in[family(d.Value)] = true
	}
	switch {
	case len(in) > 0:
	case tunnel.Type == "":
		for _, a := range b.facts.Addresses {
			in[family(a.Prefix.Addr())] = true
		}
	default:
		in[map[bool]state.Family{true: state.IPv6, false: state.IPv4}[strings.HasPrefix(tunnel.Type, "ip6")]] = true
	}
	return slices.Sorted(maps.Keys(in))
}

// between is the device of the same type to the same director that is asked for
// already: over IPv6, and with GRE, one takes both families, and the kernel
// refuses a second one with the same ends. One that sisod has made stays as it
// is, whatever place in whose list its director has now, unless it is to have
// another name.
func (b *builder) between(like state.Device, named bool) (state.Device, bool) {
	for d := range b.Devices {
		if d.Type == like.Type && d.Remote == like.Remote {
			return d, true
		}
	}
	for d := range b.observed.Devices {
		if d.Type == like.Type && d.Remote == like.Remote && !named {
			return d, true
		}
	}
	return state.Device{}, false
}

// asOther reports whether a name is asked for already as a device of another
// type: that of a VIP of the other family.
func (b *builder) asOther(name, kind string) bool {
	for d := range b.Devices {
		if d.Name == name && d.Type != kind {
			return true
		}
	}
	return false
}

// freeName is a name for the device to the director at place i. The device of
// one that had the place before has its name still.
func (b *builder) freeName(role string, inner state.Family, i int, besides []state.Device) string {
	taken := func(name string) bool {
		named := func(d state.Device) bool { return d.Name == name }
		return slices.ContainsFunc(besides, named) || slices.ContainsFunc(slices.Collect(maps.Keys(b.Devices)), named) ||
			slices.ContainsFunc(slices.Collect(maps.Keys(b.observed.Devices)), named)
	}
	for taken(deviceName(role, inner, i)) {
		i++
	}
	return deviceName(role, inner, i)
}

// deviceName is a name of at most 15 bytes (IFNAMSIZ), stable for a role: of a
// long or strange one a sum.
func deviceName(role string, inner state.Family, i int) string {
	const room = 8
	plain := strings.Trim(role, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
	if len(role) > room || !plain {
		sum := fnv.New32a()
		sum.Write([]byte(role))
		role = fmt.Sprintf("%08x", sum.Sum32())
	}
	return fmt.Sprintf("rs%dv%d-%s", i, inner, role)
}

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

// roomyReturn leads a VIP's replies by a table of its own, whose routes are
// those of the uplink, or main's, and advertise an MSS that leaves room for the
// tunnel: a client's full segments would not fit through it, and where ICMP is
// filtered nobody would tell the client. The SYN-ACK is sent here, so it is
// here that the MSS is told.
func (b *builder) roomyReturn(r *profiles.RealServer, v profiles.At[netip.Addr]) {
	f := family(v.Value)
	table := b.tables[r.Table()]
	room := 0
	for _, d := range r.Directors {
		room = max(room, overhead(r.Tunnel.Kind, family(d.Value)))
	}
	if len(r.Directors) == 0 {
		room = overhead(r.Tunnel.Kind, f)
	}
	var routes []state.Route
	if r.Uplink.Value != "" {
		from := b.tables[r.Uplink.Value]
		if !b.active(from, f) {
			b.problem(subject(r), r.Uplink.Pos, "uplink %s has no way out for %s yet; replies go as main decides", r.Uplink.Value, f)
			return
		}
		for route := range b.Routes.All() {
			if route.Table == from && route.Family == f {
				routes = append(routes, route)
			}
		}
	} else {
		routes = b.mains(f)
	}
	for _, route := range routes {
		route.Table = table
		if hop, single := route.Hops.Single(); single {
			route.AdvMSS = b.roomFor(hop.Dev, f, room, route.AdvMSS)
			if slices.Contains(b.config.VIPs(), route.Src) {
				route.Src = netip.Addr{}
			}
		}
		b.route(route, r.Pos.Short())
	}
	b.fromVIP(v.Value, table, v.Pos.Short())
}

// roomFor is the MSS that lets a full segment through the tunnel, or what was
// asked for if that is less.
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

// mains are main's routes, as a table of sisod's own would have them. Those of
// links that roles bring up are no way to a client: the kernel adds fe80::/64
// with a tunnel's device, so that every second pass would find something to do.
func (b *builder) mains(f state.Family) []state.Route {
	var out []state.Route
	seen := map[netip.Prefix]uint32{}
	for _, r := range slices.SortedFunc(slices.Values(b.facts.Main), func(x, y state.Route) int { return cmp.Compare(x.Metric, y.Metric) }) {
		hop, _ := r.Hops.Single()
		if _, again := seen[r.Dst]; r.Family != f || again || b.config.IsVIP(r.Dst) || b.wasVIP(r.Dst) || b.Up[hop.Dev] {
			continue
		}
		seen[r.Dst] = r.Metric
		r.Metric, r.Protocol = state.DefaultMetric(f), state.Protocol
		out = append(out, r)
	}
	best := -1
	for i, g := range b.facts.Gateways {
		if g.Family == f && g.Main && (best < 0 || g.Metric < b.facts.Gateways[best].Metric) {
			best = i
		}
	}
	if best >= 0 {
		g := b.facts.Gateways[best]
		out = append(out, state.Route{Dst: state.AnyDestination(f), Way: state.Way{
			Family: f, Metric: state.DefaultMetric(f), Type: state.Unicast, Protocol: state.Protocol,
			Hops: state.HopsOf(state.Hop{Via: g.Via, Dev: g.Link, OnLink: g.OnLink}),
		}})
	}
	return out
}

// wasVIP reports whether a destination is a VIP that is on the host still.
func (b *builder) wasVIP(dst netip.Prefix) bool {
	for v := range b.observed.VIPs {
		if dst.IsSingleIP() && v.Addr == dst.Addr() {
			return true
		}
	}
	return false
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
			if l, there := b.link(link); b.observed.Devices[d] || !there {
				b.device(d, origin)
			} else if !l.NoARP && !l.PointToPoint && !b.quiet() {
				b.problem(subject(r), r.Pos, "interface %s has neighbours, who find the VIP %s there and go past the director; leave the key interface out, or name a dummy interface of your own", link, v.Value)
			}
		}
		b.silence(v.Value, origin)
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
