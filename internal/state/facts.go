package state

import (
	"net/netip"
	"time"
)

// Facts is what the host has and sisod does not decide. Everything is of one
// network namespace.
type Facts struct {
	Links     []Link
	Addresses []Address
	// Main holds main's routes whose only next hop is an uplink's interface,
	// defaults excluded, routing daemons' excluded.
	Main []Route
	// MainSkipped counts, by interface, routes of that kind left out of Main
	// because there were too many.
	MainSkipped map[string]int
	// Final are routes of main that decide replies before a table of sisod's is
	// asked: rejecting ones, and the halves of a default that VPNs use.
	Final []Route
	// Strays are main's routes to public networks by the gateway of an interface
	// that is no uplink, by interface.
	Strays map[string]Strays
	// Gateways are the learned ones, best first for each interface and family.
	Gateways []LearnedGateway
	// Known are the gateways in use, now or earlier in this boot.
	Known map[GatewayKey]netip.Addr
	// SystemTables are the names in rt_tables that are not sisod's.
	SystemTables map[string]uint32
	// OwnTables are the names that sisod has recorded.
	OwnTables map[string]uint32
	// ForeignRules are the rules of others among which are all that stand inside
	// sisod's window, and all that look at sisod's bits of marks.
	ForeignRules []Rule
	// ForeignRoutes are the routes of others in tables of sisod's.
	ForeignRoutes []Route
	IPVS          IPVSFacts
	NFT           NFTFacts
	Nexthops      NexthopFacts
	Sockets       SocketFacts
	// Marks are the numbers in use, now or earlier in this boot, by owner.
	Marks map[Mark]bool
	// Awaited are the links that NetworkManager is still to configure, and since when
	// their VIPs have been waiting for that; zero: they have not.
	Awaited map[string]time.Time
	// Now is when the facts were read.
	Now time.Time
	// FoundGroups are the groups that links were in before sisod moved them, by
	// name. A link that is not there is in a group of its owner's choice.
	FoundGroups map[string]uint32
	// Sysctls holds values that desired state depends on, by path.
	Sysctls map[string]string
}

// Link is an interface.
type Link struct {
	Name         string
	Index        int
	Group        uint32
	MTU          int  // bytes
	Up           bool // IFF_UP: the administrator's wish
	Carrier      bool // IFF_LOWER_UP
	Loopback     bool
	PointToPoint bool // IFF_POINTOPOINT
	NoARP        bool // IFF_NOARP: nobody there asks for addresses
}

// Address is an address of an interface.
type Address struct {
	Link       string
	Prefix     netip.Prefix // the address itself, with the length of its network
	Peer       netip.Prefix // point-to-point: the other end; zero Prefix: none
	LinkLocal  bool         // scope link or host: not for the world
	Secondary  bool         // IPv4: not the first of its network
	Temporary  bool         // IPv6 privacy address
	Tentative  bool         // IPv6: duplicate detection under way, or failed
	Deprecated bool         // its preferred lifetime is over
}

// Strays are routes of one kind, counted.
type Strays struct {
	Count int
	First Route
}

// LearnedGateway is a way out that somebody else told the host.
type LearnedGateway struct {
	Link   string
	Family Family
	Via    netip.Addr // zero Addr: point-to-point, the device is the way
	OnLink bool
	Main   bool   // main's default says so
	Metric uint32 // of the route that says so; 0 from a lease
	Source string // "main (dhcp)", "table 100 (static)", "lease of systemd-networkd"
}

// GatewayKey names the place of a gateway in Facts.Known: an uplink, the
// interface that it had then, and a family.
type GatewayKey struct {
	Uplink    string
	Interface string
	Family    Family
}

// Problem is a wish that is valid and cannot come true now.
type Problem struct {
	Subject string `json:"subject"`          // "uplink china", "rule 11400"
	Text    string `json:"text"`             // what, why, and what to do
	Origin  string `json:"origin,omitempty"` // the profile's place, "isp.toml:3"
	// Error: connections fail, or are about to.
	Error bool `json:"error,omitempty"`
}

// Errors is how many problems are errors.
func Errors(problems []Problem) int {
	n := 0
	for _, p := range problems {
		if p.Error {
			n++
		}
	}
	return n
}

// String is the problem on one line.
func (p Problem) String() string {
	s := p.Subject + ": " + p.Text
	if p.Origin != "" {
		s += " (" + p.Origin + ")"
	}
	return s
}

// NFTFacts is what is to know of nf_tables besides sisod's table.
type NFTFacts struct {
	// Missing is why there is no nf_tables for sisod, "" when there is.
	Missing string
	// Unread is why sisod's table is not known, "" when it is.
	Unread string
	// MarkUses are the rules of others that use sisod's bits of marks.
	MarkUses []MarkUse
	// MarksUnknown is why these are not known, "" when they are.
	MarksUnknown string
	// NoProxy is why packets cannot be given to transparent sockets, "" when they can.
	NoProxy string
}

// NexthopFacts is what is to know of nexthop objects besides sisod's.
type NexthopFacts struct {
	// Missing is why there are none in this kernel, "" when there may be.
	Missing string
	// Foreign are the numbers that others use.
	Foreign map[uint32]bool
}

// IPVSFacts is what the kernel's balancer has that is not sisod's to decide.
type IPVSFacts struct {
	// Missing is why there is no IPVS in this kernel, "" when there is.
	Missing string
	// Foreign are the services of others.
	Foreign map[ServiceKey]Service
	// Connections counts, for each destination of sisod's services that has any,
	// those that it has.
	Connections map[DestinationKey]Connections
	// Draining tells since when a destination takes no new connections because
	// it was removed from a profile.
	Draining map[DestinationKey]time.Time
	// Limits and MarkedVIPs are those of the last pass: Desired.Limits and
	// Desired.MarkedVIPs.
	Limits     map[ServiceKey]time.Duration
	MarkedVIPs map[MarkedVIP]time.Time
}

// MarkedVIP is a VIP of a service by firewall mark, whose key does not tell it.
type MarkedVIP struct {
	Mark uint32
	Addr netip.Addr
}

// Service is the service of the VIP.
func (m MarkedVIP) Service() ServiceKey {
	return ServiceKey{Family: familyOf(m.Addr), Mark: m.Mark}
}

// Connections are the counters of a destination.
type Connections struct {
	Active, Inactive, Persistent uint32
	// Closed are those of Inactive that are known to carry nothing any more. They
	// are counted of destinations alone that drain and have none active, and are TCP's.
	Closed uint32
}
