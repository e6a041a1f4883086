package profiles

import (
	"net/netip"
	"slices"
	"time"
)

// Forwarding is how a director hands packets to real servers.
type Forwarding string

// The modes of LVS.
const (
	NAT     Forwarding = "nat"
	DR      Forwarding = "dr"
	Tun     Forwarding = "tun"
	FullNAT Forwarding = "fullnat"
)

// Translates reports whether the mode changes a packet's destination, so that
// ports may be mapped and replies must pass the director.
func (m Forwarding) Translates() bool { return m == NAT || m == FullNAT }

// RealServer is [real_server.NAME]: this host serves behind a director.
type RealServer struct {
	Name      string
	Pos       Position
	Mode      Forwarding
	VIPs      []At[netip.Addr] // tun and dr
	Services  []Port           // nat: narrows the return path to these
	Uplink    At[string]       // replies leave by this uplink; Value "": as main decides
	Directors []At[netip.Addr] // nat: the way back, one a family; tun: the outer sources that are let in; fullnat: its peers
	Interface string           // where the VIP is put; "" : tunl0, ip6tnl0, gre0, … or lo
	Tunnel    Tunnel           // tun
	MSSRoom   int              // fullnat: bytes that the director's segments leave free
}

// Tunnel is an encapsulation between director and real server.
type Tunnel struct {
	Kind string // "ipip", "gue" or "gre"
	Port uint16 // gue: the UDP port
}

// Port is one of `services`: a transport protocol and a port.
type Port struct {
	Pos      Position
	Protocol string // "tcp", "udp" or "sctp"
	Number   uint16 // 0: every port, with persistence
}

// Director is [director.NAME]: this host spreads connections.
type Director struct {
	Name        string
	Pos         Position
	Mode        Forwarding
	VIPs        []At[netip.Addr] // none with FWMark alone
	Scheduler   string
	Flags       []string // "fallback", "port"
	Services    []Port
	FWMark      uint32   // 0: by VIP and port
	Family      Families // of a firewall mark's service
	Interface   string   // where the VIP is put; "": somebody else's
	Uplink      At[string]
	Persistence time.Duration // 0: none
	Netmask     int           // prefix length that persistence looks at; 0: whole addresses
	OnePacket   bool
	Drain       time.Duration // how long a removed real server keeps its connections
	Tunnel      Tunnel
	SNAT        []At[netip.Addr] // fullnat: the sources towards real servers
	MSSRoom     int              // fullnat: bytes that clients' segments leave free; 0: left alone
	RealServers []Backend
}

// Backend is one of a director's real_servers.
type Backend struct {
	Pos     Position
	Address netip.Addr
	Port    uint16 // 0: the service's own
	Weight  int    // 0 to 65535, 1 unless given
	Upper   uint32 // connections; 0: no threshold
	Lower   uint32
}

// IPVS is [ipvs]: what a host has once.
type IPVS struct {
	Pos Position
	// Timeouts; 0 leaves the kernel's.
	TCP, TCPFin, UDP time.Duration
	Sync             *Sync
}

// Sync is the kernel's connection synchronisation.
type Sync struct {
	Pos       Position
	Master    bool
	Backup    bool
	Interface string
	ID        int // 0 to 255
}

// Table is the name of the routing table of the real server's return path, or
// "" when it needs none: the way back through the director (nat), or the uplink's
// with room for the tunnel (tun) or for the client's address (fullnat).
func (r RealServer) Table() string {
	if r.Mode == DR || r.AsMain() {
		return ""
	}
	return realServerTable + r.Name
}

// AsMain reports whether replies of a tunnelled VIP, or to a fullnat director, go as
// main decides, and are told by sisod's table of nftables to leave room.
func (r RealServer) AsMain() bool {
	return (r.Mode == Tun || r.Mode == FullNAT) && r.Uplink.Value == ""
}

// VIPs are the VIPs of all roles: addresses that are no source for anything else.
func (c *Config) VIPs() []netip.Addr {
	var out []netip.Addr
	for _, r := range c.RealServers {
		for _, v := range r.VIPs {
			out = append(out, v.Value)
		}
	}
	for _, d := range c.Directors {
		for _, v := range d.VIPs {
			out = append(out, v.Value)
		}
	}
	return out
}

// Placing are the interfaces that VIPs of directors are put on.
func (c *Config) Placing() []string {
	var names []string
	for _, d := range c.Directors {
		if d.Interface != "" && !slices.Contains(names, d.Interface) {
			names = append(names, d.Interface)
		}
	}
	return names
}

// Balances reports whether the kernel's balancer is needed.
func (c *Config) Balances() bool { return len(c.Directors) > 0 || c.IPVS != nil }

// ForwardsIPv6 reports whether a director makes the host a router of IPv6, on
// every interface that it has.
func (c *Config) ForwardsIPv6() bool {
	for _, d := range c.Directors {
		if d.Mode.Translates() && slices.ContainsFunc(d.RealServers, func(r Backend) bool { return r.Address.Is6() }) {
			return true
		}
	}
	return false
}
