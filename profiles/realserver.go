package profiles

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
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

// Device is the one of the tunnel's module that takes packets for a VIP from
// anybody, where they come to an outer address of a family.
func (t Tunnel) Device(vip, outer netip.Addr) string {
	switch {
	case t.Kind == "gre" && outer.Is6():
		return "ip6gre0"
	case t.Kind == "gre":
		return "gre0"
	case outer.Is6():
		return "ip6tnl0"
	case vip.Is6():
		return "sit0"
	}
	return "tunl0"
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
	r.Interface = serverLink(raw.Interface, r.Mode)
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
		b.claimDevices(raw, role, r, vips, dips)
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

// serverLink reads the name of an interface for VIPs. An alias is how a VIP was
// put by hand on one with neighbours.
func serverLink(f field[string], m Forwarding) string {
	base, _, alias := strings.Cut(f.v, ":")
	if !f.ok || !alias || base == "lo" && m == DR || linkName(base) != nil {
		name, _ := link(f)
		return name
	}
	where := "lo, or name a dummy interface of your own"
	if m == Tun {
		where = "the tunnel's device"
	}
	f.at.bad(fmt.Sprintf("%q is not the name of an interface", f.v),
		fmt.Sprintf("an alias is an address of %s, where neighbours would find the VIP: leave the key out, and it is put on %s", base, where))
	return ""
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
	case r.Mode == Tun && tunnels && raw.Director.at != nil:
		f.at.bad(fmt.Sprintf("%s takes packets of anybody out of their tunnel, whatever `director` says", r.Interface),
			"leave `interface` out, and sisod makes a device for each director; or name one that is not there yet; or leave `director` out")
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

// device is one that VIPs of a role come out of, or are put on.
type device struct {
	holder
	node   *node // that says so
	name   string
	open   bool // it takes packets of anybody
	closed bool // packets of anybody must not come by it
	dummy  bool
}

// claimDevices records the devices of a real server, and complains when another
// one makes of them what they must not be here.
func (b *builder) claimDevices(raw rawRealServer, role string, r RealServer, vips, dips []placedAddress) {
	if r.Mode == DR {
		if _, tunnels := carriers[r.Interface]; r.Interface != "" && r.Interface != "lo" && !tunnels {
			b.claimDevice(device{holder: holder{role, raw.Interface.at.pos()}, node: raw.Interface.at, name: r.Interface, dummy: true})
		}
		return
	}
	if !slices.Contains(encapsulations, r.Tunnel.Kind) {
		return
	}
	if raw.Director.at == nil {
		for _, v := range vips {
			name, at := cmp.Or(r.Interface, r.Tunnel.Device(v.addr, v.addr)), v.at
			if r.Interface != "" {
				at = raw.Interface.at
			}
			b.claimDevice(device{holder: holder{role, at.pos()}, node: at, name: name, open: true})
		}
		return
	}
	if r.Interface != "" {
		b.claimDevice(device{holder: holder{role, raw.Interface.at.pos()}, node: raw.Interface.at, name: r.Interface})
	}
	for _, d := range dips {
		for _, v := range vips {
			b.claimDevice(device{holder: holder{role, d.at.pos()}, node: d.at, name: r.Tunnel.Device(v.addr, d.addr), closed: true})
		}
	}
}

func (b *builder) claimDevice(d device) {
	for _, o := range b.roles.devices {
		switch {
		case o.name != d.name || o.role == d.role:
			continue
		case o.open && d.closed:
			d.node.bad(fmt.Sprintf("%s takes packets of anybody out of their tunnel for %s, at %s, whomever `director` names here", d.name, o.role, o.at),
				"there is one such device on a host: give both a `director`, or neither")
		case o.closed && d.open:
			d.node.bad(fmt.Sprintf("%s takes packets of anybody out of their tunnel here, those for %s too, whatever its `director` says, at %s", d.name, o.role, o.at),
				"there is one such device on a host: give both a `director`, or neither")
		case o.dummy != d.dummy && !d.closed && !o.closed:
			d.node.bad(fmt.Sprintf("%s is where %s, at %s, has its VIP, in another mode", d.name, o.role, o.at),
				"a tunnel's device is no dummy interface: give one of the two another name, or leave `interface` out")
		default:
			continue
		}
		return
	}
	b.roles.devices = append(b.roles.devices, d)
}
