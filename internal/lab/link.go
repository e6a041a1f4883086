package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a cable: a host's interface with its addresses.
type End struct {
	Host *Host
	Link string
	// Addresses are "192.0.2.1/24", or "192.0.2.1 peer 192.0.2.2" for one whose
	// other end is a single address.
	Addresses []string
}

// Link lays a cable, a veth pair, between two ends, sets both up and waits
// until both have a carrier and their link-local address.
func (l *Lab) Link(a, b End) error {
	return l.cable(&netlink.Veth{LinkAttrs: netlink.NewLinkAttrs()}, a, b)
}

// PointToPoint is Link for two ends that have no addresses on the link and
// ask for none, as a tunnel's: no ARP, no neighbour discovery, no link-local
// address. Whatever is sent at one end arrives at the other.
func (l *Lab) PointToPoint(a, b End) error {
	// An interface without ARP sends to its own hardware address; the other end
	// takes that for itself when it has the same one.
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerHardwareAddr: mac}
	veth.HardwareAddr = mac
	return l.cable(veth, a, b)
}

func (l *Lab) cable(veth *netlink.Veth, a, b End) error {
	veth.Name, veth.PeerName, veth.PeerNamespace = a.Link, b.Link, netlink.NsFd(b.Host.net)
	if err := a.Host.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s of %s to %s of %s: %w", a.Link, a.Host.Name, b.Link, b.Host.Name, err)
	}
	pointToPoint := veth.PeerHardwareAddr != nil
	for _, end := range []End{a, b} {
		if pointToPoint {
			if err := end.Host.silence(end.Link); err != nil {
				return err
			}
		}
		if err := end.Host.Addr(end.Link, end.Addresses...); err != nil {
			return err
		}
	}
	for _, end := range []End{a, b} {
		if err := end.Host.Up(end.Link); err != nil {
			return err
		}
	}
	for _, end := range []End{a, b} {
		if err := Wait(l.ctx, func() error { return end.Host.serves(end.Link, !pointToPoint) }); err != nil {
			return err
		}
	}
	return nil
}

// silence makes a link one that resolves no neighbours.
func (h *Host) silence(link string) error {
	if err := h.Sysctl("net/ipv6/conf/" + link + "/addr_gen_mode=1"); err != nil {
		return err
	}
	dev, err := h.link(link)
	if err != nil {
		return err
	}
	if err := h.links.LinkSetARPOff(dev); err != nil {
		return fmt.Errorf("set %s of %s arp off: %w", link, h.Name, err)
	}
	return nil
}

// serves says what keeps a link from carrying packets of both families.
func (h *Host) serves(link string, linkLocal bool) error {
	dev, err := h.link(link)
	if err != nil {
		return err
	}
	if dev.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return fmt.Errorf("%s of %s has no carrier", link, h.Name)
	}
	if err := h.settled(dev); err != nil || !linkLocal {
		return err
	}
	addrs, err := h.links.AddrList(dev, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list addresses of %s of %s: %w", link, h.Name, err)
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s of %s has no link-local address", link, h.Name)
}

// Bridge adds a bridge over links that exist, sets it up and gives it
// addresses.
func (h *Host) Bridge(name string, ports []string, addresses ...string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := h.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s of %s: %w", name, h.Name, err)
	}
	bridge, err := h.link(name)
	if err != nil {
		return err
	}
	for _, port := range ports {
		dev, err := h.link(port)
		if err != nil {
			return err
		}
		if err := h.links.LinkSetMaster(dev, bridge); err != nil {
			return fmt.Errorf("set %s of %s master %s: %w", port, h.Name, name, err)
		}
	}
	if err := h.Addr(name, addresses...); err != nil {
		return err
	}
	if err := h.Up(name); err != nil {
		return err
	}
	if len(ports) == 0 {
		return nil
	}
	return Wait(h.lab.ctx, func() error { return h.serves(name, true) })
}

// Addr adds addresses, spelled as in End, to a link. On a link that has a carrier
// they answer when it returns.
func (h *Host) Addr(link string, addresses ...string) error {
	dev, err := h.link(link)
	if err != nil {
		return err
	}
	for _, text := range addresses {
		a, err := parseAddress(text)
		if err != nil {
			return fmt.Errorf("add address to %s of %s: %w", link, h.Name, err)
		}
		if err := h.links.AddrAdd(dev, a); err != nil {
			return fmt.Errorf("add address %s to %s of %s: %w", text, link, h.Name, err)
		}
	}
	if dev.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
		return nil
	}
	return Wait(h.lab.ctx, func() error { return h.settled(dev) })
}

// settled says which address of a link does not answer yet: without duplicate
// address detection too, the kernel takes an IPv6 address into use behind the
// back of whoever adds it (net/ipv6/addrconf.c, addrconf_dad_work).
func (h *Host) settled(dev netlink.Link) error {
	addrs, err := h.links.AddrList(dev, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list addresses of %s of %s: %w", dev.Attrs().Name, h.Name, err)
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return fmt.Errorf("%s of %s on %s is tentative", a.IP, dev.Attrs().Name, h.Name)
		}
	}
	return nil
}

// Up sets a link up, as "ip link set up".
func (h *Host) Up(link string) error {
	return h.set(link, "up", h.links.LinkSetUp)
}

// Down sets a link down.
func (h *Host) Down(link string) error {
	return h.set(link, "down", h.links.LinkSetDown)
}

func (h *Host) set(link, what string, change func(netlink.Link) error) error {
	dev, err := h.link(link)
	if err != nil {
		return err
	}
	if err := change(dev); err != nil {
		return fmt.Errorf("set %s of %s %s: %w", link, h.Name, what, err)
	}
	return nil
}

// Routes adds routes to main, each a destination ("default6" and "default4"
// are ::/0 and 0.0.0.0/0) and a gateway or, with "dev ", a link.
func (h *Host) Routes(routes ...[2]string) error {
	for _, r := range routes {
		if err := h.route(r[0], r[1]); err != nil {
			return fmt.Errorf("add route %s by %s on %s: %w", r[0], r[1], h.Name, err)
		}
	}
	return nil
}

func (h *Host) route(dst, by string) error {
	switch dst {
	case "default4":
		dst = "0.0.0.0/0"
	case "default6":
		dst = "::/0"
	}
	prefix, err := netip.ParsePrefix(dst)
	if err != nil {
		return err
	}
	// Protocol static (RTPROT_STATIC), as an administrator's route has it.
	r := &netlink.Route{Dst: ipNet(prefix), Protocol: unix.RTPROT_STATIC}
	if len(by) > 4 && by[:4] == "dev " {
		dev, err := h.link(by[4:])
		if err != nil {
			return err
		}
		r.LinkIndex, r.Scope = dev.Attrs().Index, netlink.SCOPE_LINK
		return h.links.RouteAdd(r)
	}
	gateway, err := netip.ParseAddr(by)
	if err != nil {
		return err
	}
	r.Gw = gateway.AsSlice()
	return h.links.RouteAdd(r)
}

// filterPriority is where AcceptOnly puts its rules: before main's.
const filterPriority = 100

// AcceptOnly makes a router drop, silently, what comes in by link from other
// sources than these, as a provider does with its customers (BCP 38).
func (h *Host) AcceptOnly(link string, sources ...netip.Prefix) error {
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		drop := netlink.NewRule()
		drop.Family, drop.Priority, drop.IifName, drop.Type = f, filterPriority+1, link, unix.RTN_BLACKHOLE
		if err := h.links.RuleAdd(drop); err != nil {
			return fmt.Errorf("add rule iif %s blackhole on %s: %w", link, h.Name, err)
		}
	}
	for _, s := range sources {
		pass := netlink.NewRule()
		pass.Family, pass.Priority, pass.IifName, pass.Src, pass.Table = family(s.Addr()), filterPriority, link, ipNet(s), unix.RT_TABLE_MAIN
		if err := h.links.RuleAdd(pass); err != nil {
			return fmt.Errorf("add rule from %s iif %s on %s: %w", s, link, h.Name, err)
		}
	}
	return nil
}

// Forward makes the host a router in both families.
func (h *Host) Forward() error {
	return h.Sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
}

// PortForward sends TCP and UDP that comes to an address and port of the host on to
// another one (destination NAT), with the program nft.
func (h *Host) PortForward(ctx context.Context, from, to netip.AddrPort) error {
	family := "ip"
	if from.Addr().Is6() {
		family = "ip6"
	}
	ruleset := fmt.Sprintf(`table %[1]s portforward {
	chain prerouting {
		type nat hook prerouting priority -100;
		%[1]s daddr %[2]s tcp dport %[3]d dnat to %[4]s
		%[1]s daddr %[2]s udp dport %[3]d dnat to %[4]s
	}
}`, family, from.Addr(), from.Port(), to)
	if _, err := h.Run(ctx, "nft", ruleset); errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("forward %s to %s: %w: install nftables", from, to, err)
	} else if err != nil {
		return fmt.Errorf("forward %s to %s: %w", from, to, err)
	}
	return nil
}

func (h *Host) link(name string) (netlink.Link, error) {
	dev, err := h.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s of %s: %w", name, h.Name, err)
	}
	return dev, nil
}

// parseAddress reads the spelling of End.Addresses.
func parseAddress(text string) (*netlink.Addr, error) {
	var local, peer string
	if n, _ := fmt.Sscanf(text, "%s peer %s", &local, &peer); n == 2 {
		l, err := netip.ParseAddr(local)
		if err != nil {
			return nil, err
		}
		p, err := netip.ParseAddr(peer)
		if err != nil {
			return nil, err
		}
		return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(l, l.BitLen())), Peer: ipNet(netip.PrefixFrom(p, p.BitLen()))}, nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return nil, err
	}
	return &netlink.Addr{IPNet: ipNet(prefix)}, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
