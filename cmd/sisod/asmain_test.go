package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// TestRepliesOfATunnelsVIPGoAsMainDecides: no uplink is named, so that replies
// take a routing daemon's route, and both ways of a multipath one, and what they
// announce leaves room for the tunnel on each.
func TestRepliesOfATunnelsVIPGoAsMainDecides(t *testing.T) {
	t.Parallel()
	l := lab.New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("client", "server", "tunnel")
	if err != nil {
		t.Fatal(err)
	}
	client, server := hosts[0], hosts[1]
	for _, cable := range [][2]lab.End{
		{{Host: server, Link: "em1", Addresses: []string{"10.9.1.2/24", "2001:db8:1::2/64"}}, {Host: client, Link: "eth1", Addresses: []string{"10.9.1.1/24", "2001:db8:1::1/64"}}},
		{{Host: server, Link: "em2", Addresses: []string{"10.9.2.2/24", "2001:db8:2::2/64"}}, {Host: client, Link: "eth2", Addresses: []string{"10.9.2.1/24", "2001:db8:2::1/64"}}},
	} {
		if err := l.Link(cable[0], cable[1]); err != nil {
			t.Fatal(err)
		}
	}
	// Where packets come out of the tunnel makes no difference to replies.
	if err := l.PointToPoint(lab.End{Host: server, Link: "mine"}, lab.End{Host: hosts[2], Link: "eth0"}); err != nil {
		t.Fatal(err)
	}
	ip(t, server, "link", "set", "em2", "mtu", "1400")
	if err := client.Addr("lo", "198.51.100.1/32", "2001:db8:c::1/128"); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		"-4 route add default via 10.9.1.1 dev em1", "-6 route add default via 2001:db8:1::1 dev em1",
		"-4 route add 198.51.100.0/24 via 10.9.2.1 dev em2 proto bgp", "-6 route add 2001:db8:c::/64 via 2001:db8:2::1 dev em2 proto bgp",
	} {
		ip(t, server, strings.Fields(command)...)
	}
	ip(t, client, strings.Fields("-4 route add 203.0.113.1 via 10.9.1.2 src 198.51.100.1")...)
	ip(t, client, strings.Fields("-6 route add 2001:db8:5::1 via 2001:db8:1::2 src 2001:db8:c::1")...)
	if err := errors.Join(
		client.Sysctl("net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/eth1/rp_filter=0", "net/ipv4/conf/eth2/rp_filter=0"),
		server.Sysctl("net/ipv4/fib_multipath_hash_policy=1", "net/ipv6/fib_multipath_hash_policy=1"),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := server.ServeWeb(lab.Port); err != nil {
		t.Fatal(err)
	}
	found := snapshot(t, server)
	writeProfile(t, server, "web.toml", "[real_server.web]\nmode = \"tun\"\nvip = [\"203.0.113.1\", \"2001:db8:5::1\"]\ninterface = \"mine\"\n")
	apply(t, server, 0)

	witness, err := client.Capture("eth1", "eth2")
	if err != nil {
		t.Fatal(err)
	}
	vips := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), lab.Port), netip.AddrPortFrom(netip.MustParseAddr("2001:db8:5::1"), lab.Port)}
	room := map[netip.AddrPort]map[string]uint16{
		vips[0]: {"eth1": 1500 - 40 - 20, "eth2": 1400 - 40 - 20},
		vips[1]: {"eth1": 1500 - 60 - 40, "eth2": 1400 - 60 - 40},
	}
	// ways are the links that SYN-ACKs of a VIP came in by.
	ways := func(vip netip.AddrPort) map[string]bool {
		by := map[string]bool{}
		witness.Count(func(p lab.Packet) bool {
			if p.Src != vip || p.Out || p.Flags&lab.SYN == 0 {
				return false
			}
			by[p.Link] = true
			if p.MSS != room[vip][p.Link] {
				t.Errorf("%s announces %d bytes by %s, want %d", vip, p.MSS, p.Link, room[vip][p.Link])
			}
			return true
		})
		return by
	}
	ask := func(vip netip.AddrPort) {
		if _, err := client.Fetch(t.Context(), vip, 0, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	for _, vip := range vips {
		ask(vip)
		if by := ways(vip); by["eth1"] || !by["eth2"] {
			t.Errorf("replies of %s went by %v, and a routing daemon says eth2", vip, by)
		}
	}
	ip(t, server, strings.Fields("-4 route replace 198.51.100.0/24 nexthop via 10.9.1.1 dev em1 nexthop via 10.9.2.1 dev em2")...)
	ip(t, server, strings.Fields("-6 route del 2001:db8:c::/64 proto bgp")...)
	ip(t, server, strings.Fields("-6 route add 2001:db8:c::/64 nexthop via 2001:db8:1::1 dev em1 nexthop via 2001:db8:2::1 dev em2")...)
	apply(t, server, 0)
	for _, vip := range vips {
		// Which of the two a connection takes is its ports' chance.
		wait(t, func() error {
			ask(vip)
			if by := ways(vip); !by["eth1"] || !by["eth2"] {
				return errors.New("replies take one of two ways")
			}
			return nil
		})
	}
	expect(t, server, 0, "flush")
	for _, command := range []string{
		"-4 route replace 198.51.100.0/24 via 10.9.2.1 dev em2 proto bgp", "-6 route del 2001:db8:c::/64",
		"-6 route add 2001:db8:c::/64 via 2001:db8:2::1 dev em2 proto bgp",
	} {
		ip(t, server, strings.Fields(command)...)
	}
	same(t, "after flush", snapshot(t, server), found)
}
