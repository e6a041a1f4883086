package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// TestRepliesGoAsMainDecides: a real server's role names no uplink, so that replies
// take a routing daemon's route, and both ways of a multipath one, and what they
// announce leaves room on each.
func TestRepliesGoAsMainDecides(t *testing.T) {
	for _, c := range []struct {
		name, profile string
		asked         [2]string // IPv4, IPv6
		room          [2]uint16 // bytes
	}{
		{"of a tunnel's VIP", "mode = \"tun\"\nvip = [\"203.0.113.1\", \"2001:db8:5::1\"]\ninterface = \"mine\"",
			[2]string{"203.0.113.1", "2001:db8:5::1"}, [2]uint16{20, 40}},
		{"to a fullnat director", "mode = \"fullnat\"\ndirector = [\"198.51.100.1\", \"2001:db8:c::1\"]\nmss_room = 16",
			[2]string{"10.9.1.2", "2001:db8:1::2"}, [2]uint16{16, 16}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			goAsMainDecides(t, "[real_server.web]\n"+c.profile+"\n", c.asked, c.room)
		})
	}
}

// goAsMainDecides asks a server's addresses from somebody to whom it has two ways.
func goAsMainDecides(t *testing.T, profile string, asked [2]string, room [2]uint16) {
	t.Helper()
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
	ip(t, client, "-4", "route", "add", asked[0], "via", "10.9.1.2", "dev", "eth1", "onlink", "src", "198.51.100.1")
	ip(t, client, "-6", "route", "add", asked[1], "via", "2001:db8:1::2", "dev", "eth1", "onlink", "src", "2001:db8:c::1")
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
	writeProfile(t, server, "web.toml", profile)
	apply(t, server, 0)

	witness, err := client.Capture("eth1", "eth2")
	if err != nil {
		t.Fatal(err)
	}
	vips := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(asked[0]), lab.Port), netip.AddrPortFrom(netip.MustParseAddr(asked[1]), lab.Port)}
	announced := map[netip.AddrPort]map[string]uint16{
		vips[0]: {"eth1": 1500 - 40 - room[0], "eth2": 1400 - 40 - room[0]},
		vips[1]: {"eth1": 1500 - 60 - room[1], "eth2": 1400 - 60 - room[1]},
	}
	// ways are the links that SYN-ACKs of a VIP came in by.
	ways := func(vip netip.AddrPort) map[string]bool {
		by := map[string]bool{}
		witness.Count(func(p lab.Packet) bool {
			if p.Src != vip || p.Out || p.Flags&lab.SYN == 0 {
				return false
			}
			by[p.Link] = true
			if p.MSS != announced[vip][p.Link] {
				t.Errorf("%s announces %d bytes by %s, want %d", vip, p.MSS, p.Link, announced[vip][p.Link])
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
		wait(t, func() error {
			if len(ways(vip)) == 0 {
				return errors.New("no reply was captured")
			}
			return nil
		})
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
