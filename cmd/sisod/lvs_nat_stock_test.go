//go:build stock

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// masquerade is what an administrator adds when replies do not pass the director.
const masquerade = `table ip masq { chain postrouting { type nat hook postrouting priority srcnat; tcp dport 80 masquerade; }; }`

// TestStockNATOfAVIPInNoNetwork: a client beside the real servers, and a VIP
// that is in no network of theirs. Each step of the administrator's is needed,
// and none is enough.
func TestStockNATOfAVIPInNoNetwork(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	l.VIP = lab.Addresses{V4: netip.MustParseAddr("100.222.111.1"), V6: netip.MustParseAddr("2001:db8:222::1")}
	vip := l.VIP.At(false, 8000)
	directByHand(t, l, "-m", 8000, lab.Port, l.VIP)
	shell(t, l.Director, "echo 1 > /proc/sys/net/ipv4/ip_forward; sysctl -qw net.ipv4.vs.conntrack=0")

	shell(t, l.Neighbour, "ip route del default; ip -6 route del default")
	if _, err := l.Neighbour.Fetch(t.Context(), vip, 0, brief); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("the fault is not there: a client without a route to the VIP: %v", err)
	}
	shell(t, l.Neighbour, fmt.Sprintf("ip route add %s via %s; ip -6 route add %s via %s", l.VIP.V4, l.DirectorAddress.V4, l.VIP.V6, l.DirectorAddress.V6))
	unanswered(t, l.Neighbour, vip)
	run(t, l.Director, "nft", masquerade)
	unanswered(t, l.Neighbour, vip)

	shell(t, l.Director, "ipvsadm -C; ip address del "+l.VIP.V4.String()+"/32 dev eth0; echo 0 > /proc/sys/net/ipv4/ip_forward")
	hosts := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	found := snapshots(t, hosts...)
	writeProfile(t, l.Director, "lvs.toml", spell(l, modes()[0].director))
	apply(t, l.Director, 0)
	page, err := l.Neighbour.Fetch(t.Context(), vip, 0, patient)
	if err != nil {
		t.Errorf("the administrator's masquerading matches: %v", err)
	} else if page.Peer.Addr() != l.DirectorAddress.V4 {
		t.Errorf("%s saw %s, want the director that masquerades", page.Server, page.Peer)
	}

	// With the real servers' way back nothing has to be masqueraded.
	run(t, l.Director, "nft", "delete table ip masq")
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
	}
	spread(t, l.Neighbour, l.NeighbourAddress.V4, vip, 4)
	spread(t, l.Neighbour, l.NeighbourAddress.V6, l.VIP.At(true, 8000), 4)
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, hosts...)
}

// advertise has the router say that it is the LAN's way out for so many
// seconds (RFC 4861, section 4.2).
func advertise(t *testing.T, l *lab.LVS, lifetime uint16) {
	t.Helper()
	index := strings.TrimSpace(shell(t, l.Router, "cat /sys/class/net/lan/ifindex"))
	var zone uint32
	if _, err := fmt.Sscan(index, &zone); err != nil {
		t.Fatal(err)
	}
	err := l.Router.Do(func() error {
		s, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		message := []byte{134, 0, 0, 0, 64, 0, byte(lifetime >> 8), byte(lifetime), 0, 0, 0, 0, 0, 0, 0, 0}
		return unix.Sendto(s, message, 0, &unix.SockaddrInet6{ZoneId: zone, Addr: netip.MustParseAddr("ff02::1").As16()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// advertised waits until the director has, or has not, taken its default from
// an advertisement.
func advertised(t *testing.T, l *lab.LVS, want bool) {
	t.Helper()
	wait(t, func() error {
		if have := strings.Contains(ip(t, l.Director, "-6", "route", "show", "default", "proto", "ra"), "dev eth0"); have != want {
			return fmt.Errorf("a default by router advertisement: %v, want %v", have, want)
		}
		return nil
	})
}

// TestStockDirectorKeepsAnAdvertisedGateway: a host that begins to forward
// forgets the gateways that advertised themselves, and takes no more.
func TestStockDirectorKeepsAnAdvertisedGateway(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	shell(t, l.Director, "ip -6 route del default; echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra")
	advertise(t, l, 1800)
	advertised(t, l, true)
	shell(t, l.Director, "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	advertised(t, l, false)
	shell(t, l.Director, "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	advertise(t, l, 1800)
	advertised(t, l, true)

	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
	}
	// Nothing but the director is asked for, and no uplink.
	director := modes()[0].director
	director = director[strings.Index(director, "[director."):]
	writeProfile(t, l.Director, "lvs.toml", spell(l, director))
	apply(t, l.Director, 0)
	advertised(t, l, true)
	spread(t, l.Client, l.ClientAddress.V6, l.VIP.At(true, 8000), 2)

	// The router goes, and comes back: passes in between change nothing.
	advertise(t, l, 0)
	advertised(t, l, false)
	apply(t, l.Director, 0)
	advertise(t, l, 1800)
	advertised(t, l, true)
	spread(t, l.Client, l.ClientAddress.V6, l.VIP.At(true, 8000), 2)

	expect(t, l.Director, 0, "flush")
	same(t, "accept_ra and forwarding after flush", shell(t, l.Director, "cd /proc/sys/net/ipv6/conf; cat eth0/accept_ra all/forwarding"), "1\n0\n")
	advertised(t, l, true)
}
