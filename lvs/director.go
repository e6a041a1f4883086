package lvs

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// director adds one [director.NAME].
func (b *builder) director(d *profiles.Director) {
	b.directorVIPs(d)
	if why := b.facts.IPVS.Missing; why != "" {
		b.problem("director "+d.Name, d.Pos, "%s", why)
		return
	}
	b.directorSysctls(d)
	backends, origins := backendsOf(d)
	for _, r := range d.RealServers {
		if network, is := b.broadcastOf(r.Address); is {
			b.problem("director "+d.Name, r.Pos, "the real server %s is left out: it is the broadcast address of %s on %s, and IPVS takes none; give the address of a host", r.Address, network.Prefix.Masked(), network.Link)
			backends = slices.DeleteFunc(backends, func(dest state.Destination) bool { return dest.Addr == r.Address })
		}
	}
	for _, p := range placesOf(d) {
		b.service(d, p.key, p.pos, backends, origins)
	}
	for _, v := range d.VIPs {
		m := state.MarkedVIP{Mark: d.FWMark, Addr: v.Value}
		if _, ours := b.limits[m.Service()]; ours && d.FWMark != 0 {
			b.MarkedVIPs[m] = time.Time{}
		}
	}
}

// place is a service that a director asks for, and where.
type place struct {
	key state.ServiceKey
	pos profiles.Position
}

// placesOf are the services that a director asks for, in the profile's order.
func placesOf(d *profiles.Director) []place {
	places := make([]place, 0, len(d.VIPs)*len(d.Services)+len(state.Families))
	if d.FWMark != 0 {
		for _, f := range state.Families {
			if f == state.IPv4 && d.Family.IPv4 || f == state.IPv6 && d.Family.IPv6 {
				places = append(places, place{state.ServiceKey{Family: f, Mark: d.FWMark}, d.Pos})
			}
		}
	}
	for _, v := range d.VIPs {
		for _, p := range d.Services {
			key := state.ServiceKey{Family: family(v.Value), Protocol: state.TransportNamed(p.Protocol), Addr: v.Value, Port: p.Number}
			places = append(places, place{key, p.Pos})
		}
	}
	return places
}

// ServicesOf are the services that a director asks for, in the profile's order.
func ServicesOf(d *profiles.Director) []state.ServiceKey {
	places := placesOf(d)
	keys := make([]state.ServiceKey, len(places))
	for i, p := range places {
		keys[i] = p.key
	}
	return keys
}

// backendsOf are a director's real servers, as destinations that have no service
// yet, and no port where it is the service's; and where each was asked for.
func backendsOf(d *profiles.Director) ([]state.Destination, map[netip.AddrPort]string) {
	backends, origins := make([]state.Destination, len(d.RealServers)), map[netip.AddrPort]string{}
	for i, r := range d.RealServers {
		dest := state.Destination{
			DestinationKey: state.DestinationKey{Addr: r.Address, Port: r.Port},
			Weight:         r.Weight, Upper: r.Upper, Lower: r.Lower,
		}
		switch d.Mode {
		case profiles.NAT, profiles.FullNAT:
			dest.Forward = state.Masquerade
		case profiles.DR:
			dest.Forward = state.DirectTo
		case profiles.Tun:
			dest.Forward = state.TunnelTo
			dest.TunnelType = map[string]state.TunnelType{"gue": state.TunnelGUE, "gre": state.TunnelGRE}[d.Tunnel.Kind]
			dest.TunnelPort = d.Tunnel.Port
		}
		backends[i], origins[netip.AddrPortFrom(r.Address, r.Port)] = dest, r.Pos.Short()
	}
	return backends, origins
}

// broadcastOf is the connected network that an address is the broadcast address
// of (net/ipv4/fib_frontend.c, fib_add_ifaddr).
func (b *builder) broadcastOf(a netip.Addr) (state.Address, bool) {
	for _, own := range b.facts.Addresses {
		l, _ := b.link(own.Link)
		if l.Up && a.Is4() && own.Prefix.Bits() <= 30 && own.Prefix.Contains(a) && !own.Prefix.Masked().Contains(a.Next()) {
			return own, true
		}
	}
	return state.Address{}, false
}

// directorVIPs puts the VIPs on their interface, and leads their replies by
// their uplink: under a strict filter a client whose way back is another
// uplink would be dropped without a source rule.
func (b *builder) directorVIPs(d *profiles.Director) {
	for _, v := range d.VIPs {
		if d.Interface != "" {
			b.directorVIP(d, v)
		}
		uplink := d.Uplink.Value
		for _, u := range b.config.Uplinks {
			if uplink == "" && d.Interface != "" && u.Interface == d.Interface {
				uplink = u.Name
			}
		}
		if table := b.tables[uplink]; uplink != "" && b.active(table, family(v.Value)) {
			b.fromVIP(v.Value, table, v.Pos.Short())
		}
	}
}

// directorVIP puts a VIP on its director's interface. One that is there stays.
func (b *builder) directorVIP(d *profiles.Director, v profiles.At[netip.Addr]) {
	l, ok := b.link(d.Interface)
	switch there := b.observed.VIPs[state.VIP{Link: d.Interface, Addr: v.Value}]; {
	case !ok || !l.Up:
		b.problem("director "+d.Name, v.Pos, "interface %s for the VIP %s is %s", d.Interface, v.Value, map[bool]string{false: "not there", true: "down"}[ok])
		return
	case there:
	case b.facts.IPVS.Missing != "":
		// A host without IPVS does not take a VIP from a director that has it.
		return
	default:
		if end, waits := b.awaited(d.Interface); waits {
			b.problem("director "+d.Name, v.Pos, "VIP %s waits for NetworkManager to configure %s, until %s at the latest",
				v.Value, d.Interface, end.UTC().Format(time.RFC3339))
			return
		}
	}
	b.vip(d.Interface, v.Value, v.Pos.Short())
}

// awaitedLimit is how long a VIP waits for NetworkManager to configure its
// interface. DHCP, whose time in NetworkManager is 45 seconds, comes to its end in it.
const awaitedLimit = time.Minute

// awaited reports whether VIPs are not to be put on a link yet, and until when at
// the latest: NetworkManager takes an interface that has an address before any
// connection is active on it for somebody else's, and sets none of its own.
func (b *builder) awaited(link string) (end time.Time, waits bool) {
	since, awaited := b.facts.Awaited[link]
	if !awaited {
		return time.Time{}, false
	}
	since = b.sinceOrNow(since)
	if b.Awaited == nil {
		b.Awaited = map[string]time.Time{}
	}
	b.Awaited[link] = since
	end = since.Add(awaitedLimit)
	left := end.Sub(b.facts.Now)
	if left > 0 {
		b.later(left)
	}
	return end, left > 0
}

// directorSysctls sets what a mode needs of the host, and nothing else.
func (b *builder) directorSysctls(d *profiles.Director) {
	origin := d.Pos.Short()
	if d.Persistence > 0 {
		b.sysctl(vsQuiescent, "1", origin)
	}
	if !d.Mode.Translates() {
		return
	}
	// Masquerading after IPVS matches nothing without its connections in conntrack.
	b.sysctl(vsConntrack, "1", origin)
	b.sysctl(vsReroute, "1", origin)
	for _, r := range d.RealServers {
		link, _ := b.towards(r.Address)
		if r.Address.Is4() {
			b.sysctl(ipForward, "1", origin)
			// The kernel does this with the line above; said here, what was found
			// comes back (net/ipv4/devinet.c, inet_forward_change).
			b.sysctl(conf(state.IPv4, "all", "accept_redirects"), "0", origin)
			// A redirect would tell a real server the client's own address.
			b.sysctl(conf(state.IPv4, "all", "send_redirects"), "0", origin)
			if link != "" {
				b.sysctl(conf(state.IPv4, link, "send_redirects"), "0", origin)
			}
			continue
		}
		b.keepAdvertised(origin)
		b.sysctl(ip6Forward, "1", origin)
	}
}

func acceptRA(link string) string { return conf(state.IPv6, link, "accept_ra") }

// keepAdvertised has the kernel go on taking gateways from router
// advertisements, where it does (accept_ra is 1): forwarding would take them
// away and let none come again. Where a daemon takes them in its stead the
// value is 0 and stays.
func (b *builder) keepAdvertised(origin string) {
	if _, own := b.observed.Before.Sysctls[ip6Forward]; !own && b.facts.Sysctls[ip6Forward] != "0" {
		return // it was a router before
	}
	for _, l := range b.facts.Links {
		path := acceptRA(l.Name)
		_, kept := b.observed.Before.Sysctls[path]
		// Also while the gateway is away, and at boot before it has come.
		if kept || b.facts.Sysctls[path] == "1" && b.advertised(l.Name) {
			b.sysctl(path, "2", origin)
		}
	}
}

// advertised reports whether a gateway comes, or is to come, by router
// advertisements.
func (b *builder) advertised(link string) bool {
	return slices.ContainsFunc(b.facts.Gateways, func(g state.LearnedGateway) bool {
		return g.Link == link && g.Family == state.IPv6 && g.Via.IsLinkLocalUnicast()
	}) || slices.ContainsFunc(b.config.Uplinks, func(u profiles.Uplink) bool {
		return u.Interface == link && u.Gateway.Auto && !u.Gateway.IPv6.IsValid()
	})
}

// service adds a service and its destinations.
func (b *builder) service(d *profiles.Director, key state.ServiceKey, pos profiles.Position, backends []state.Destination, origins map[netip.AddrPort]string) {
	if foreign, taken := b.facts.IPVS.Foreign[key]; taken {
		b.problem("director "+d.Name, pos, "the service %s is there already and somebody else's (%s); it is left alone: remove it, or take it out of the profile", key.Option(), foreign)
		return
	}
	s := state.Service{ServiceKey: key, Scheduler: d.Scheduler, Netmask: key.Family.Bits()}
	if d.Persistence > 0 {
		s.Flags |= state.ServicePersistent
		s.Timeout = d.Persistence
		if d.Netmask != 0 {
			s.Netmask = d.Netmask
		}
	}
	if d.OnePacket {
		s.Flags |= state.ServiceOnePacket
	}
	for _, f := range d.Flags {
		s.Flags |= map[string]uint32{"fallback": state.ServiceSched1, "port": state.ServiceSched2}[f]
	}
	b.Services[key] = s
	b.limits[key] = d.Drain
	b.ServiceOrigins[key] = pos.Short()
	// A host that is listed by both its addresses, for VIPs of both families, is
	// not to be counted twice.
	ownFamily := slices.ContainsFunc(d.VIPs, func(v profiles.At[netip.Addr]) bool { return family(v.Value) != key.Family }) &&
		slices.ContainsFunc(d.RealServers, func(r profiles.Backend) bool { return family(r.Address) == key.Family })
	b.BackendOrigins[key] = origins
	for _, dest := range backends {
		if family(dest.Addr) != key.Family && (d.Mode != profiles.Tun || ownFamily) {
			continue
		}
		dest.Service = key
		if dest.Port == 0 {
			dest.Port = key.Port
		}
		b.Destinations[dest.DestinationKey] = dest
	}
}

// host adds what a host has once.
func (b *builder) host() {
	v := b.config.IPVS
	if v == nil {
		return
	}
	if why := b.facts.IPVS.Missing; why != "" {
		b.problem("ipvs", v.Pos, "%s", why)
		return
	}
	b.Timeouts = state.Timeouts{TCP: v.TCP, TCPFin: v.TCPFin, UDP: v.UDP}
	b.Origins[b.Timeouts] = v.Pos.Short()
	if v.Sync == nil {
		return
	}
	if _, ok := b.link(v.Sync.Interface); !ok {
		b.problem("ipvs", v.Sync.Pos, "interface %s of the connection synchronisation is not there", v.Sync.Interface)
		return
	}
	for _, role := range []struct{ asked, master bool }{{v.Sync.Master, true}, {v.Sync.Backup, false}} {
		if role.asked {
			s := state.SyncDaemon{Master: role.master, Link: v.Sync.Interface, ID: v.Sync.ID}
			b.Syncs[role.master] = s
			b.Origins[s] = v.Sync.Pos.Short()
		}
	}
}
