package profiles

import (
	"fmt"
	"net/netip"
	"slices"
)

// maxWeight is the largest weight that ipvsadm(8) takes.
const maxWeight = 65535

// maxThreshold is the largest number of connections that the kernel takes for
// one (net/netfilter/ipvs/ip_vs_ctl.c, INT_MAX).
const maxThreshold = 2147483647

// placedBackend is a real server of a director and where it stands.
type placedBackend struct {
	Backend
	at, address, port *node
}

// backends judges a director's real_servers.
func (b *builder) backends(raw rawDirector, role string, d *Director, placed []placedPort, known []string) []placedBackend {
	at := raw.RealServers.at
	switch {
	case at == nil && !misspelt(raw.at, "real_servers", known):
		raw.at.badKey(role+" has no real servers", `add real_servers = [{ address = "10.0.0.7" }, { address = "10.0.0.9" }]`)
	case at != nil && at.shape == array && len(at.elements) == 0:
		at.bad("real_servers is an empty list", "to take one out of service, leave it in with weight = 0: it keeps the connections that it has")
	}
	var out []placedBackend
	for _, r := range raw.RealServers.items {
		one, ok := backend(r)
		if !ok {
			continue
		}
		if i := slices.IndexFunc(out, func(o placedBackend) bool { return o.meets(one, placed) }); i >= 0 {
			one.at.bad(fmt.Sprintf("real server %s stands twice, first at %s", one.Address, out[i].Pos), "for a larger share, give it a larger weight; for another service, make another director")
			continue
		}
		one.mapping(d.Mode, placed, raw.FWMark.at != nil)
		out = append(out, one)
		d.RealServers = append(d.RealServers, one.Backend)
		b.roles.rips = append(b.roles.rips, placedAddress{one.Address, one.address, role})
	}
	return out
}

// backend judges one entry of real_servers.
func backend(raw rawBackend) (placedBackend, bool) {
	r := placedBackend{Backend: Backend{Pos: raw.at.pos(), Weight: 1}, at: raw.at, address: raw.Address.at, port: raw.Port.at}
	good := true
	if f := raw.Address; f.at == nil {
		if !misspelt(raw.at, "address", keysOf[rawBackend]()) {
			raw.at.bad("the real server has no address", `{ address = "10.0.0.7" }`)
		}
		good = false
	} else if both, err := netip.ParseAddrPort(f.v); err == nil {
		f.at.bad(fmt.Sprintf("%q has a port", f.v), fmt.Sprintf("the port has a key of its own: address = %q, port = %d", both.Addr(), both.Port()))
		good = false
	} else {
		r.Address, good = address(f)
	}
	if good && r.Address.Is6() && r.Address.IsLinkLocalUnicast() {
		raw.Address.at.bad(fmt.Sprintf("%s is a link-local address, which the kernel does not take for a real server", r.Address), "an address of the real server that does not depend on the interface")
		good = false
	}
	if v, ok := within(raw.Weight, 0, maxWeight, "the share of the connections; 0 takes no new ones and keeps those that it has"); ok {
		r.Weight = int(v)
	}
	if v, ok := within(raw.Port, 1, 65535, "leave the key out for the service's own port"); ok {
		r.Port = uint16(v)
	}
	const thresholds = "in connections: above upper no new ones come, until there are fewer than lower"
	upper, upperOK := within(raw.Upper, 1, maxThreshold, thresholds)
	lower, lowerOK := within(raw.Lower, 1, maxThreshold, thresholds)
	switch {
	case raw.Lower.at != nil && raw.Upper.at == nil:
		raw.Lower.at.badKey("lower needs upper", thresholds)
	case upperOK && lowerOK && lower > upper:
		raw.Lower.at.bad(fmt.Sprintf("lower %d is above upper %d", lower, upper), thresholds)
	default:
		r.Upper, r.Lower = upper, lower
	}
	return r, good
}

// meets reports whether two entries are one destination of some service.
func (r placedBackend) meets(o placedBackend, placed []placedPort) bool {
	if r.Address != o.Address {
		return false
	}
	return r.Port == o.Port || slices.ContainsFunc(placed, func(p placedPort) bool {
		return r.Port == 0 && o.Port == p.Number || o.Port == 0 && r.Port == p.Number
	})
}

// mapping complains about a port that differs from a service's where packets
// are handed on as they came.
func (r placedBackend) mapping(m Forwarding, placed []placedPort, marked bool) {
	if r.Port == 0 {
		return
	}
	for _, p := range placed {
		switch {
		case m.Translates() && p.Number == 0:
			r.port.bad(fmt.Sprintf("service %s is every port, which cannot become port %d", p, r.Port), "leave port out, and every port stays what it is")
			return
		case (m == DR || m == Tun) && p.Number != r.Port:
			r.port.bad(fmt.Sprintf("service %s cannot become port %d: mode %s hands packets on as they came", p, r.Port, m), `leave port out, or take mode = "nat"`)
			return
		}
	}
	if marked && (m == DR || m == Tun) {
		r.port.bad(fmt.Sprintf("packets with the mark cannot go to port %d: mode %s hands them on as they came", r.Port, m), `leave port out, or take mode = "nat"`)
	}
}

// families complains about real servers that a mode cannot reach from the
// families of the VIPs, and finds those of a mark's service.
func (b *builder) families(raw rawDirector, role string, d *Director, vips []placedAddress, back []placedBackend) {
	var asked, there Families
	for _, v := range vips {
		asked.add(v.addr)
	}
	for _, r := range back {
		there.add(r.Address)
	}
	if len(vips) == 0 {
		if raw.FWMark.at != nil && d.Mode == Tun && there.IPv4 && there.IPv6 {
			raw.FWMark.at.badKey("real servers of both families do not tell the family of the packets with the mark", "add the VIP that they are for: vip")
		}
		asked = there
	}
	if raw.FWMark.at != nil {
		d.Family = asked
	}
	for _, r := range back {
		crossing := !asked.has(r.Address) || d.Mode == Tun && asked.IPv4 && asked.IPv6
		switch {
		case len(vips) == 0 || !crossing:
		case d.Mode == Tun:
			b.roles.crossings = append(b.roles.crossings, placedAddress{r.Address, r.address, role})
		case d.Mode != "":
			r.address.bad(fmt.Sprintf("real server %s is %s, and the VIP is %s", r.Address, family(r.Address), family(vips[0].addr)),
				fmt.Sprintf("mode %s keeps the family of a packet; mode tun does not need to", d.Mode))
		}
	}
	// A bad real server may have been meant to be of the family that is missing.
	if unknown := len(back) == 0 || len(back) < len(raw.RealServers.at.elements); unknown || d.Mode == Tun || d.Mode == "" {
		return
	}
	for _, v := range vips {
		if !there.has(v.addr) {
			v.at.bad(fmt.Sprintf("VIP %s is %s, and no real server of %s is", v.addr, family(v.addr), role),
				fmt.Sprintf("add real servers with %s addresses, or remove the VIP: mode %s keeps the family of a packet", family(v.addr), d.Mode))
		}
	}
}

func (f *Families) add(a netip.Addr) {
	f.IPv4 = f.IPv4 || a.Is4()
	f.IPv6 = f.IPv6 || a.Is6()
}

func (f Families) has(a netip.Addr) bool { return a.Is4() && f.IPv4 || a.Is6() && f.IPv6 }
