package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// announcements is how often an address is announced at once: one frame may be
// lost (RFC 4861, MAX_NEIGHBOR_ADVERTISEMENT).
const announcements = 3

// hardwareAddr is that of an Ethernet.
type hardwareAddr [6]byte

// broadcast is everybody on an Ethernet.
var broadcast = hardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// allNodes is everybody on a link, and where an Ethernet carries it (RFC 2464,
// section 7).
var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = hardwareAddr{0x33, 0x33, 0, 0, 0, 1}
)

// minimalFrame is the least that an Ethernet carries, without its checksum.
const minimalFrame = 60

// AnnounceVIPs tells the neighbours on their links where VIPs are now: by an ARP
// announcement (RFC 5227, section 3) or an unsolicited neighbour advertisement
// (RFC 4861, section 7.2.6), three times at once. Apply does it for VIPs that
// it adds; a daemon does it again later, and when a link has its carrier again.
//
// Left out are links without neighbours, links that are down, and those where
// the host does not answer for the address either. Without CAP_NET_RAW it says
// so in the log, and neighbours learn of the VIP when their entries expire.
func (h *Host) AnnounceVIPs(vips []state.VIP) {
	for _, v := range vips {
		if err := h.announce(v); err != nil {
			h.options.Log.Warn("VIP not announced: neighbours may go on sending to where it was", "vip", v.String(), "error", err)
		}
	}
}

// AnnounceAgain is AnnounceVIPs for those that are on their links still: it asks
// the kernel, because one that has moved is another host's to announce.
func (h *Host) AnnounceAgain(vips []state.VIP) {
	if len(vips) == 0 {
		return
	}
	there := map[state.VIP]bool{}
	err := h.links.conn.eachAddress(func() { clear(there) }, func(a seenAddress, _ seenAddressState) {
		there[state.VIP{Link: h.links.name(a.index), Addr: a.prefix.Addr()}] = true
	})
	if err != nil {
		h.options.Log.Warn("VIPs not announced again", "error", err)
		return
	}
	h.AnnounceVIPs(slices.DeleteFunc(vips, func(v state.VIP) bool { return !there[v] }))
}

func (h *Host) announce(v state.VIP) error {
	index := h.links.index(v.Link)
	if index == 0 {
		return nil
	}
	link, err := h.links.look(index)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read link: %w", err)
	}
	a := link.Attrs()
	if a.RawFlags&unix.IFF_UP == 0 || a.RawFlags&(unix.IFF_NOARP|unix.IFF_LOOPBACK|unix.IFF_POINTOPOINT) != 0 ||
		a.EncapType != "ether" || len(a.HardwareAddr) != len(hardwareAddr{}) || silent(v) {
		return nil
	}
	hardware := hardwareAddr(a.HardwareAddr)
	var frame []byte
	protocol, to := uint16(unix.ETH_P_ARP), broadcast
	if v.Addr.Is4() {
		frame = arpAnnouncement(hardware, v.Addr)
	} else {
		frame = neighbourAdvertisement(hardware, v.Addr, forwards(v.Link))
		protocol, to = unix.ETH_P_IPV6, allNodesMAC
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(s)
	address := &unix.SockaddrLinklayer{Protocol: uint16(wire16(protocol)), Ifindex: index, Halen: uint8(len(to))}
	copy(address.Addr[:], to[:])
	for range announcements {
		if err := unix.Sendto(s, frame, 0, address); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// silent reports whether the kernel does not answer ARP requests for a VIP on
// its own link (Documentation/networking/ip-sysctl.rst, arp_ignore: the greater
// of all and the interface; 1 still answers there; 2 wants the asker in the
// address's own network, which a host address does not have; 3 answers). The
// kernel has nothing of the kind for IPv6.
func silent(v state.VIP) bool {
	if v.Addr.Is6() {
		return false
	}
	level := 0
	for _, where := range []string{"all", v.Link} {
		value, err := readSysctl("net/ipv4/conf/" + where + "/arp_ignore")
		if n, bad := strconv.Atoi(value); err == nil && bad == nil {
			level = max(level, n)
		}
	}
	return level == 2 || level == 8
}

// forwards reports whether the host is a router on a link.
func forwards(link string) bool {
	value, err := readSysctl("net/ipv6/conf/" + link + "/forwarding")
	return err == nil && value != "0"
}

// arpAnnouncement is an ARP request for an address by the one who has it.
func arpAnnouncement(from hardwareAddr, a netip.Addr) []byte {
	ip := a.As4()
	b := appendEthernet(nil, broadcast, from, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, the lengths of their addresses, request
	b = append(append(b, from[:]...), ip[:]...)
	b = append(append(b, make([]byte, len(from))...), ip[:]...)
	return append(b, make([]byte, minimalFrame-len(b))...)
}

// neighbourAdvertisement is an unsolicited one that overrides what neighbours
// know.
func neighbourAdvertisement(from hardwareAddr, a netip.Addr, router bool) []byte {
	const (
		icmpv6            = 58
		advertisement     = 136
		flagRouter        = 0x80
		flagOverride      = 0x20
		targetLinkAddress = 2
		hopLimit          = 255
	)
	flags := byte(flagOverride)
	if router {
		flags |= flagRouter
	}
	source, destination := a.As16(), allNodes.As16()
	payload := []byte{advertisement, 0, 0, 0, flags, 0, 0, 0}
	payload = append(payload, source[:]...)
	payload = append(payload, targetLinkAddress, 1) // in units of 8 bytes
	payload = append(payload, from[:]...)
	// The checksum covers a pseudo header too (RFC 8200, section 8.1).
	pseudo := append(append([]byte(nil), source[:]...), destination[:]...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(payload))), 0, 0, 0, icmpv6)
	binary.BigEndian.PutUint16(payload[2:], checksum(append(pseudo, payload...)))

	b := appendEthernet(nil, allNodesMAC, from, unix.ETH_P_IPV6)
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, icmpv6, hopLimit)
	b = append(append(b, source[:]...), destination[:]...)
	return append(b, payload...)
}

func appendEthernet(b []byte, to, from hardwareAddr, protocol uint16) []byte {
	b = append(append(b, to[:]...), from[:]...)
	return binary.BigEndian.AppendUint16(b, protocol)
}

// checksum is the Internet's (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
