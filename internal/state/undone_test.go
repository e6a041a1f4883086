package state

import (
	"net/netip"
	"testing"
)

func TestNothingStandsOnWhatWasNotDone(t *testing.T) {
	vip := netip.MustParseAddr("203.0.113.1")
	key := ServiceKey{Family: IPv4, Protocol: TCP, Addr: vip, Port: 80}
	routes := RouteSet{Way: Way{Family: IPv4, Table: 100}}
	rule, other := NewRule(IPv4, 11800, 100), NewRule(IPv4, 11800, 101)
	var u Undone
	all := []Step{
		{Add, rule, "", nil}, {Add, other, "", nil}, {Delete, routes, "", nil}, {Add, Destination{DestinationKey: DestinationKey{Service: key}}, "", nil},
		{Replace, LinkUp{"rs0v4-a", true}, "", nil}, {Replace, Sysctl{"net/ipv4/conf/rs0v4-a/rp_filter", "2"}, "", nil},
		{Add, VIP{"rs0v4-a", netip.MustParseAddr("2001:db8::1")}, "", nil}, {Add, VIP{"lo", vip}, "", nil},
	}
	for _, s := range all {
		if why := u.Holds(s, nil); why != "" {
			t.Errorf("%s %s %s, with nothing undone", s.Op, s.Object.Spell(nil), why)
		}
	}
	for _, s := range []Step{
		{Add, routes, "", nil}, {Delete, rule, "", nil}, {Add, Service{ServiceKey: key}, "", nil}, {Add, Device{Name: "rs0v4-a", Type: "ipip"}, "", nil},
		{Replace, Sysctl{"net/ipv4/conf/all/arp_ignore", "1"}, "", nil},
	} {
		u.Add(s)
	}
	for i, want := range []string{
		"waits for the routes of table 100", "", "waits for the rules to table 100 to go", "waits for the service -t 203.0.113.1:80",
		"waits for the device rs0v4-a", "waits for the device rs0v4-a", "waits for the device rs0v4-a",
		"waits for the sysctl net/ipv4/conf/all/arp_ignore: neighbours would find the VIP here",
	} {
		if why := u.Holds(all[i], nil); why != want {
			t.Errorf("%s %s: %q, want %q", all[i].Op, all[i].Object.Spell(nil), why, want)
		}
	}
	// What takes back stands on nothing.
	for _, s := range []Step{
		{Delete, VIP{"lo", vip}, "", nil}, {Delete, VIP{"rs0v4-a", vip}, "", nil}, {Restore, LinkUp{"rs0v4-a", false}, "", nil},
		{Restore, Sysctl{"net/ipv4/conf/rs0v4-a/rp_filter", "0"}, "", nil}, {Delete, Destination{DestinationKey: DestinationKey{Service: key}}, "", nil},
	} {
		if why := u.Holds(s, nil); why != "" {
			t.Errorf("%s %s: %s", s.Op, s.Object.Spell(nil), why)
		}
	}
}
