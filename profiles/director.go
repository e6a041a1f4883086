package profiles

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// serviceKey is the identity of a service in the kernel.
type serviceKey struct {
	addr   netip.Addr
	port   Port   // without its place
	mark   uint32 // with family, instead of addr and port
	family string
}

// schedulers are the kernel's (net/netfilter/ipvs/ip_vs_*.c).
var schedulers = []string{"rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "twos"}

// DefaultScheduler and DefaultDrain are those of a director that gives none.
const (
	DefaultScheduler = "wlc"
	DefaultDrain     = time.Minute
)

// director judges one [director.NAME].
func (b *builder) director(raw rawDirector, c *Config) Director {
	role := "director " + raw.at.name
	known := keysOf[rawDirector]()
	d := Director{Name: raw.at.name, Pos: raw.at.pos(), Mode: mode(raw.Mode, raw.at, role, known), Scheduler: DefaultScheduler, Drain: DefaultDrain}
	d.OnePacket = raw.OnePacket.v
	vips, vipsOK := addressList(raw.VIP, role)
	placed, servicesOK := services(raw.Services, `a director without services does nothing: services = ["tcp/80"], or fwmark`)
	b.mark(raw, role, &d, known)
	scheduler(raw, &d)
	b.directorInterface(raw, &d)
	d.Uplink = b.leaveBy(raw.Uplink, vips, c)
	d.Persistence, _ = duration(raw.Persistence, time.Second)
	if v, ok := duration(raw.Drain, 0); ok {
		d.Drain = v
	}
	d.Tunnel = tunnel(d.Mode, raw.Encapsulation, raw.EncapsulationPort)
	d.VIPs, d.Services = placedValues(vips), ports(placed)
	b.vipNeeded(raw, role, known)
	onlyWith(raw, d, placed)
	back := b.backends(raw, role, &d, placed, known)
	if vipsOK {
		b.families(raw, role, &d, vips, back)
	}
	netmask(raw, &d, vips)
	b.fullNAT(raw, role, &d, back, known)
	b.claimServices(role, raw, d, vips, placed, servicesOK)
	for _, v := range vips {
		uplink := d.Uplink.Value
		if o, ok := b.interfaces[d.Interface]; ok && uplink == "" {
			uplink = o.uplink
		}
		b.claimVIP(placedVIP{placedAddress: v, director: true, iface: d.Interface, uplink: uplink})
	}
	return d
}

// mark judges the firewall mark, and that there is one of mark and services.
func (b *builder) mark(raw rawDirector, role string, d *Director, known []string) {
	if raw.Services.at == nil && raw.FWMark.at == nil {
		if !misspelt(raw.at, "services", known) && !misspelt(raw.at, "fwmark", known) {
			raw.at.badKey(role+" has no services", `add the line services = ["tcp/80"], or fwmark = 1 for all packets with that mark`)
		}
		return
	}
	if raw.Services.at != nil && raw.FWMark.at != nil {
		raw.FWMark.at.badKey("a director has services or fwmark, not both", "remove one of the two; packets with the mark are one service, whatever their ports")
	}
	v, ok := within(raw.FWMark, 1, 0xffffffff, "the whole mark of a packet, as the firewall sets it")
	if own := b.settings.MarkMask; ok && v&own != 0 {
		raw.FWMark.at.bad(fmt.Sprintf("fwmark %#x has bits of mark_mask %#08x, which are sisod's", v, own),
			fmt.Sprintf("take a number of other bits, such as %d, or move mark_mask in sisod.toml", ^own&-^own))
		return
	}
	d.FWMark = v
}

func scheduler(raw rawDirector, d *Director) {
	const flags = "fallback (a real server of weight 0 is passed over) and port (source ports count too) are flags of sh and mh"
	if f := raw.Scheduler; f.ok {
		d.Scheduler = f.v
		if !slices.Contains(schedulers, f.v) {
			hint := "the kernel's are " + strings.Join(schedulers, ", ")
			if best := near(f.v, schedulers); best != "" {
				hint = fmt.Sprintf("did you mean %q? %s", best, hint)
			}
			f.at.bad(fmt.Sprintf("scheduler cannot be %q", f.v), hint)
		}
	}
	for _, f := range raw.SchedulerFlags.items {
		word := strings.TrimPrefix(strings.TrimPrefix(f.v, "sh-"), "mh-")
		switch {
		case !f.ok:
		case f.v != "fallback" && f.v != "port" && (word == "fallback" || word == "port"):
			f.at.bad(fmt.Sprintf("scheduler_flags cannot have %q", f.v), fmt.Sprintf("without the scheduler's name: %q", word))
		case word != "fallback" && word != "port":
			f.at.bad(fmt.Sprintf("scheduler_flags cannot have %q", f.v), flags)
		case slices.Contains(d.Flags, f.v):
			f.at.bad(fmt.Sprintf("the flag %s stands twice", f.v), "remove one of the two")
		default:
			d.Flags = append(d.Flags, f.v)
		}
	}
	if len(d.Flags) > 0 && slices.Contains(schedulers, d.Scheduler) && d.Scheduler != "sh" && d.Scheduler != "mh" {
		raw.SchedulerFlags.at.badKey(fmt.Sprintf("scheduler %s has no flags", d.Scheduler), flags)
	}
}

func (b *builder) directorInterface(raw rawDirector, d *Director) {
	name, ok := link(raw.Interface)
	if !ok {
		return
	}
	if name == "lo" {
		raw.Interface.at.bad("on lo the VIP of a director is not found by its clients", "the interface towards them answers for it; when somebody else puts the VIP there, leave the key out")
		return
	}
	d.Interface = name
}

// vipNeeded complains about a director without a VIP, and about keys that mean nothing
// without one.
func (b *builder) vipNeeded(raw rawDirector, role string, known []string) {
	switch {
	case raw.VIP.at != nil || misspelt(raw.at, "vip", known):
	case raw.FWMark.at == nil:
		raw.at.badKey(role+" has no vip", `add the line vip = "203.0.113.145", the address that clients ask for`)
	default:
		for _, k := range []*node{raw.Interface.at, raw.Uplink.at} {
			if k != nil {
				k.badKey(fmt.Sprintf("%s needs vip", k.name), "it says where the VIP stands, or its replies leave")
			}
		}
	}
}

// onlyWith judges what asks for persistence, or for udp.
func onlyWith(raw rawDirector, d Director, placed []placedPort) {
	for _, p := range placed {
		if p.Number == 0 && raw.Persistence.at == nil {
			p.at.bad(fmt.Sprintf("%s is every port, which needs persistence", p), `add the line persistence = "300s"`)
		}
		if d.OnePacket && p.Protocol != "udp" {
			raw.OnePacket.at.badKey(fmt.Sprintf("one_packet is for udp, and service %s is not", p), "remove it, or make a director of its own for the udp services")
			return
		}
	}
}

// netmask reads how many bits of a client's address persistence looks at. A
// mark's packets are of its real servers' family where no VIP tells it.
func netmask(raw rawDirector, d *Director, vips []placedAddress) {
	f := raw.PersistenceNetmask
	if f.at == nil {
		return
	}
	if raw.Persistence.at == nil {
		f.at.badKey("persistence_netmask needs persistence", `add the line persistence = "300s"`)
	}
	of, both, one := d.Family, "VIPs", "VIP is"
	if len(vips) == 0 {
		both, one = "real servers", "real servers are"
	}
	for _, v := range vips {
		of.add(v.addr)
	}
	if of.IPv4 && of.IPv6 {
		f.at.badKey(fmt.Sprintf("persistence_netmask cannot be of %s of both families", both), "make a director for each family")
		return
	}
	longest := int64(128)
	if of.IPv4 {
		longest = 32
	}
	switch v := f.at.value.(type) {
	case int64:
		if v < 1 || v > longest {
			f.at.bad(fmt.Sprintf("persistence_netmask must be 1 to %d, not %d", longest, v), "clients whose addresses agree in so many bits go to the same real server")
			return
		}
		d.Netmask = int(v)
	case string:
		a, err := netip.ParseAddr(v)
		if err != nil || !a.Is4() {
			f.at.bad(fmt.Sprintf("persistence_netmask cannot be %q", v), `a prefix length such as 24, or, for IPv4, a mask such as "255.255.255.0"`)
			return
		}
		if of.IPv6 {
			f.at.bad(fmt.Sprintf("persistence_netmask %q is IPv4, and the %s IPv6", v, one), "a prefix length, such as 64")
			return
		}
		o := a.As4()
		mask := uint32(o[0])<<24 | uint32(o[1])<<16 | uint32(o[2])<<8 | uint32(o[3])
		ones := bits.LeadingZeros32(^mask)
		if ones == 0 || mask<<ones != 0 {
			f.at.bad(fmt.Sprintf("persistence_netmask %q is not a mask", v), "a mask begins with ones and ends with zeroes: 255.255.255.0 is 24")
			return
		}
		d.Netmask = ones
	default:
		f.at.mistyped(want{"a prefix length", "number"})
	}
}

// claimServices complains about services that another director has.
func (b *builder) claimServices(role string, raw rawDirector, d Director, vips []placedAddress, placed []placedPort, good bool) {
	if !good {
		return
	}
	claim := func(at *node, what func() string, key serviceKey) bool {
		if o, taken := b.roles.services[key]; taken {
			at.bad(fmt.Sprintf("%s is that of %s already, at %s", what(), o.role, o.at), "a service has one list of real servers: join the two")
			return false
		}
		b.roles.services[key] = holder{role, at.pos()}
		return true
	}
	for _, f := range []struct {
		asked bool
		name  string
	}{{d.Family.IPv4, "IPv4"}, {d.Family.IPv6, "IPv6"}} {
		marked := func() string { return fmt.Sprintf("the service of fwmark %d (%s)", d.FWMark, f.name) }
		if d.FWMark != 0 && f.asked && !claim(raw.FWMark.at, marked, serviceKey{mark: d.FWMark, family: f.name}) {
			return
		}
	}
	for _, p := range placed {
		for _, v := range vips {
			served := func() string { return fmt.Sprintf("service %s of VIP %s", p, v.addr) }
			if !claim(p.at, served, serviceKey{addr: v.addr, port: Port{Protocol: p.Protocol, Number: p.Number}}) {
				break
			}
		}
	}
}
