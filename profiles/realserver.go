package profiles

import (
	"fmt"
	"slices"
)

// wayBack is what the replies of a nat real server are told by.
type wayBack struct {
	holder
	family string
	port   Port // no protocol: every port
}

// carriers are the devices that a tunnel's module brings with it, and the
// encapsulations that they take off. GUE hands its packets to IP in IP.
var carriers = map[string][]string{
	"tunl0": {"ipip", "gue"}, "sit0": {"ipip", "gue"}, "ip6tnl0": {"ipip", "gue"},
	"gre0": {"gre"}, "ip6gre0": {"gre"},
}

// carried is the family of the inner packets of devices that carry one alone.
var carried = map[string]string{"tunl0": "IPv4", "sit0": "IPv6"}

// realServer judges one [real_server.NAME].
func (b *builder) realServer(raw rawRealServer, c *Config) RealServer {
	role := "real server " + raw.at.name
	known := keysOf[rawRealServer]()
	r := RealServer{Name: raw.at.name, Pos: raw.at.pos(), Mode: mode(raw.Mode, raw.at, role, known)}
	vips, _ := addressList(raw.VIP, role)
	dips, dipsOK := addressList(raw.Director, role)
	placed, servicesOK := services(raw.Services, "leave the key out to lead replies of every port back")
	r.Interface, _ = link(raw.Interface)
	r.Tunnel = tunnel(r.Mode, raw.Encapsulation, raw.EncapsulationPort)
	if r.Mode != FullNAT && r.Mode != "" {
		misplaced(r.Mode, "it leaves room for the address of the client, which this mode does not hide", raw.MSSRoom.at)
	}
	switch r.Mode {
	case FullNAT:
		b.fullNATServer(raw, role, &r, dips, known)
	case NAT:
		misplaced(NAT, "the VIP stands on the director alone: a nat real server never sees it", raw.VIP.at, raw.Interface.at)
		misplaced(NAT, "replies go back through `director`, whichever uplinks there are", raw.Uplink.at)
		if raw.Director.at == nil && !misspelt(raw.at, "director", known) {
			raw.at.badKey(role+" has no director", `mode nat needs the way back: add the line director = "10.0.0.1", the director's address in this network`)
		}
		oneAFamily(dips)
		if dipsOK && servicesOK {
			b.waysBack(role, dips, placed)
		}
	case DR, Tun:
		misplaced(r.Mode, "it narrows the way back of mode nat; in this mode the VIP, which is their source, tells which replies are meant", raw.Services.at)
		if r.Mode == DR {
			misplaced(DR, "packets come as the client sent them, and do not tell which director passed them on", raw.Director.at)
		}
		if raw.VIP.at == nil && !misspelt(raw.at, "vip", known) {
			raw.at.badKey(role+" has no vip", `add the line vip = "203.0.113.145", the address that clients ask for`)
		}
		b.serverInterface(raw, &r, vips)
	}
	if r.Mode != NAT {
		r.Uplink = b.leaveBy(raw.Uplink, vips, c)
		for _, v := range vips {
			b.claimVIP(placedVIP{placedAddress: v, iface: r.Interface, uplink: r.Uplink.Value})
		}
	}
	b.roles.dips = append(b.roles.dips, dips...)
	r.VIPs, r.Directors, r.Services = placedValues(vips), placedValues(dips), ports(placed)
	return r
}

// oneAFamily complains about a second way back of a family.
func oneAFamily(dips []placedAddress) {
	for i, d := range dips {
		earlier := slices.IndexFunc(dips[:i], func(o placedAddress) bool { return o.addr.Is4() == d.addr.Is4() })
		if earlier >= 0 {
			d.at.bad(fmt.Sprintf("a second %s director, after %s", family(d.addr), dips[earlier].addr),
				"the way back of mode nat is one a family: directors that stand in for each other share an address for it")
		}
	}
}

// waysBack claims the ways back of a nat real server: a reply tells its port,
// and not which director sent the request.
func (b *builder) waysBack(role string, dips []placedAddress, placed []placedPort) {
	for _, p := range placed {
		if p.Number == 0 {
			p.at.bad(fmt.Sprintf("%s is every port", p), "to lead replies of every port back, leave `services` out")
			return
		}
	}
	for _, d := range dips {
		if len(placed) == 0 {
			b.claimWay(d.at, wayBack{holder: holder{role, d.at.pos()}, family: family(d.addr)})
		}
		for _, p := range placed {
			b.claimWay(p.at, wayBack{holder{role, p.at.pos()}, family(d.addr), Port{Protocol: p.Protocol, Number: p.Number}})
		}
	}
}

func (b *builder) claimWay(at *node, w wayBack) {
	for _, o := range b.roles.ways {
		if o.family != w.family || o.role == w.role || o.port != w.port && o.port.Protocol != "" && w.port.Protocol != "" {
			continue
		}
		which := "every port"
		if w.port.Protocol != "" {
			which = w.port.String()
		}
		at.bad(fmt.Sprintf("%s replies of %s go back by %s already, at %s", w.family, which, o.role, o.at),
			"a reply does not tell which director sent the request: give each real server `services` of its own, or join the two")
		return
	}
	b.roles.ways = append(b.roles.ways, w)
}

// serverInterface judges where a real server has its VIPs: nowhere that a
// neighbour would get an answer to its question for them.
func (b *builder) serverInterface(raw rawRealServer, r *RealServer, vips []placedAddress) {
	if r.Interface == "" {
		return
	}
	f := raw.Interface
	switch _, tunnels := carriers[r.Interface]; {
	case r.Mode == Tun && r.Interface == "lo":
		f.at.bad("lo takes nothing out of a tunnel", "leave the key out, and the right device is found")
		return
	case r.Mode == DR && tunnels:
		f.at.bad(fmt.Sprintf("%s is the device of a tunnel, and packets of mode dr come without one", r.Interface), `leave the key out, name a dummy interface of your own, or take mode = "tun"`)
		return
	}
	if o, ok := b.interfaces[r.Interface]; ok {
		f.at.bad(fmt.Sprintf("%s is the interface of uplink %s, and neighbours there would learn that the VIP is on this host", r.Interface, o.uplink),
			"they would go past the director: leave the key out, or name a dummy interface of your own")
		return
	}
	if kinds, tunnels := carriers[r.Interface]; r.Mode == Tun && tunnels && slices.Contains(encapsulations, r.Tunnel.Kind) && !slices.Contains(kinds, r.Tunnel.Kind) {
		f.at.bad(fmt.Sprintf("%s does not take off the encapsulation %s", r.Interface, r.Tunnel.Kind), "leave the key out, and the right device is found")
		return
	}
	for _, v := range vips {
		if only := carried[r.Interface]; r.Mode == Tun && only != "" && family(v.addr) != only {
			f.at.bad(fmt.Sprintf("%s carries %s alone, and VIP %s is %s", r.Interface, only, v.addr, family(v.addr)), "leave the key out, and every VIP gets the device of its family")
			return
		}
	}
}
