//go:build stock

package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// TestStockTunnelRepliesGoAsMainDecides: without an uplink replies take main's
// way, be it a routing daemon's or two at once, and uploads do not stall where
// nobody may tell that a packet is too large.
func TestStockTunnelRepliesGoAsMainDecides(t *testing.T) {
	l := newLVS(t, true)
	gateways := [2][2]string{}
	for i, h := range l.RealServers {
		near := [2]string{fmt.Sprintf("10.1.%d.1", i), fmt.Sprintf("2001:db8:b%d::1", i)}
		far := [2]string{fmt.Sprintf("10.1.%d.7", i), fmt.Sprintf("2001:db8:b%d::7", i)}
		both := func(a [2]string) []string { return []string{a[0] + "/24", a[1] + "/64"} }
		if err := l.Lab.Link(lab.End{Host: l.Router, Link: h.Name + "b", Addresses: both(near)}, lab.End{Host: h, Link: "eth1", Addresses: both(far)}); err != nil {
			t.Fatal(err)
		}
		gateways[i] = near
		if err := h.Sysctl("net/ipv4/fib_multipath_hash_policy=1", "net/ipv6/fib_multipath_hash_policy=1"); err != nil {
			t.Fatal(err)
		}
	}
	run(t, l.Router, "nft", `table inet filter { chain forward { type filter hook forward priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }`)
	hosts := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	var first, second [2]*lab.Capture
	for i := range l.RealServers {
		var err error
		if first[i], err = l.Router.Capture(l.RouterLinks[i]); err != nil {
			t.Fatal(err)
		}
		if second[i], err = l.Router.Capture(l.RealServers[i].Name + "b"); err != nil {
			t.Fatal(err)
		}
	}
	for _, way := range []struct {
		name    string
		main    func(i, f int) []string // arguments of ip route replace
		by      [2]bool                 // the first way, the second
		largest [2]uint16               // MSS of IPv4, IPv6
	}{
		{"a multipath default", func(i, f int) []string {
			original := []string{fmt.Sprintf("10.0.%d.1", i+1), fmt.Sprintf("2001:db8:a%d::1", i+1)}[f]
			return []string{"default", "nexthop", "via", original, "dev", "eth0", "nexthop", "via", gateways[i][f], "dev", "eth1"}
		}, [2]bool{true, true}, [2]uint16{1440, 1400}},
		// More exact than the default, which stays.
		{"a routing daemon's route", func(i, f int) []string {
			return []string{[]string{"198.51.100.0/24", "2001:db8:c1::/64"}[f], "via", gateways[i][f], "dev", "eth1", "proto", "bgp"}
		}, [2]bool{false, true}, [2]uint16{1440, 1400}},
	} {
		for i, h := range l.RealServers {
			for f, option := range []string{"-4", "-6"} {
				ip(t, h, append([]string{option, "route", "replace"}, way.main(i, f)...)...)
			}
		}
		found := snapshots(t, hosts...)
		for i, h := range hosts {
			text := modes()[2].director
			if i > 0 {
				text = "[real_server.web]\nmode = \"tun\"\nvip = [\"VIP4\", \"VIP6\"]\n"
			}
			writeProfile(t, h, "lvs.toml", spell(l, text))
			apply(t, h, 0)
		}
		for f, v6 := range []bool{false, true} {
			vip := l.VIP.At(v6, lab.Port)
			synAcks := func(list [2]*lab.Capture, p func(lab.Packet) bool) int {
				n := 0
				for _, c := range list {
					n += c.Count(func(k lab.Packet) bool {
						return !k.Out && k.Src == vip && k.Flags&(lab.SYN|lab.ACK) == lab.SYN|lab.ACK && p(k)
					})
				}
				return n
			}
			every := func(lab.Packet) bool { return true }
			for _, c := range append(first[:], second[:]...) {
				c.Reset()
			}
			fill := func() {
				if page, err := l.Client.Fetch(t.Context(), vip, upload, 2*patient); err != nil || page.Bytes != upload {
					t.Errorf("%s: upload to %s: %+v %v", way.name, vip, page, err)
				}
			}
			fill()
			fill()
			// Which of two ways a connection takes is its ports' chance.
			if way.by[0] && way.by[1] {
				wait(t, func() error {
					if _, err := l.Client.Fetch(t.Context(), vip, 0, patient); err != nil {
						t.Fatal(err)
					}
					if synAcks(first, every) == 0 || synAcks(second, every) == 0 {
						return errors.New("replies take one of the two ways")
					}
					return nil
				})
			} else if a, b := synAcks(first, every), synAcks(second, every); a != 0 || b == 0 {
				t.Errorf("%s: %d replies of %s went by the first way and %d by the second", way.name, a, vip, b)
			}
			large := func(p lab.Packet) bool { return p.MSS == 0 || p.MSS > way.largest[f] }
			if n := synAcks(first, large) + synAcks(second, large); n != 0 {
				t.Errorf("%s: %d SYN-ACKs of %s announce more than %d bytes", way.name, n, vip, way.largest[f])
			}
		}
		if t.Failed() {
			explain(t, l)
			t.FailNow()
		}
		asFound(t, found, hosts...)
	}
}
