package state

import (
	"fmt"
	"net/netip"
)

// Nexthop is a next hop that stands by itself, under a number that routes name
// in its place. A million of them are led by another gateway by one message.
type Nexthop struct {
	ID       uint32
	Family   Family     // of the gateway; without one, of the routes
	Via      netip.Addr // zero Addr: the device is the way
	Dev      string
	OnLink   bool // Via is taken to be on Dev whatever the routes say
	Protocol uint8
}

// LongSet is from how many prefixes on a set of routes is long: so long that it
// is written when nothing else waits any more, and that routes by a nexthop
// object are worth what they hide, their gateway, from whoever looks at them.
// Below, writing all of them takes a few milliseconds.
const LongSet = 1000

// Numbers of nexthop objects. The kernel itself, and routing daemons, count from
// 1 on; sisod's begin with its owner mark.
const (
	firstNexthop     = Protocol * 10_000_000
	lastNexthopTable = 99_999_999
)

// NexthopID is the number of the nexthop object of an uplink's table and a
// family. It is made of the table's number, which is recorded, and so stays
// what it is. There is none for tables with more than eight digits.
func NexthopID(table uint32, f Family) (id uint32, ok bool) {
	if table == TableUnspec || table > lastNexthopTable {
		return 0, false
	}
	return firstNexthop + table*10 + uint32(f), true
}

// IsNexthopID reports whether a number is that of a nexthop object of sisod's for
// routes of a family.
func IsNexthopID(id uint32, f Family) bool {
	n := id - firstNexthop
	return id > firstNexthop && n%10 == uint32(f) && n/10 > 0 && n/10 <= lastNexthopTable
}

// Kind is KindNexthop.
func (Nexthop) Kind() Kind { return KindNexthop }

// String is the nexthop as ip nexthop spells it.
func (n Nexthop) String() string {
	return fmt.Sprintf("id %d %s", n.ID, Hop{Via: n.Via, Dev: n.Dev, OnLink: n.OnLink})
}

// Spell is String.
func (n Nexthop) Spell(Names) string { return n.String() }

// Commands is one ip nexthop.
func (n Nexthop) Commands(op Op, _ Names) []string {
	if op.Removes() {
		return []string{fmt.Sprintf("ip nexthop del id %d", n.ID)}
	}
	return []string{fmt.Sprintf("%s nexthop replace %s protocol %d", n.Family.command(), n, n.Protocol)}
}
