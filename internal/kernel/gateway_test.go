package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// learned spells what was learned about the interfaces of twoUplinks.
func learned(t *testing.T, h *Host, interfaces ...string) (gateways, main []string, skipped map[string]int) {
	t.Helper()
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	h.query.Interfaces, h.stale = interfaces, PartMain
	if err := h.readMain(); err != nil {
		t.Fatal(err)
	}
	for _, x := range h.cached.Facts.Gateways {
		via := "device"
		if x.Via.IsValid() {
			via = x.Via.String()
		}
		if x.OnLink {
			via += " onlink"
		}
		gateways = append(gateways, fmt.Sprintf("%s %s %s: %s", x.Link, x.Family, via, x.Source))
	}
	for _, r := range h.cached.Facts.Main {
		main = append(main, r.String())
	}
	return gateways, main, h.cached.Facts.MainSkipped
}

func wantLearned(t *testing.T, h *Host, interfaces []string, want ...string) {
	t.Helper()
	if got, _, _ := learned(t, h, interfaces...); !slices.Equal(got, want) {
		t.Errorf("learned\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestGatewaysOfMainComeFirst(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	em1, both := []string{"em1"}, []string{"em1", "em2", "absent0"}
	wantLearned(t, h, both)
	ipInput(t, "-batch -", `
route add default via 192.0.2.1 table 100 proto static metric 5
route add default via 192.0.2.3 table 100 proto dhcp metric 1
route add default via 192.0.2.4 table 101 proto bird
route add default via 192.0.2.5 table 102 proto 115
route add default via 198.51.100.1 table 100 metric 7
`)
	ipInput(t, "-6 -batch -", `
route add default via 2001:db8:1::3 table 100
`)
	// Without a default in main, other tables' count; a daemon's and sisod's do not.
	wantLearned(t, h, both,
		"em1 IPv4 192.0.2.3: table 100 (dhcp)", "em1 IPv4 192.0.2.1: table 100 (static)",
		"em1 IPv6 2001:db8:1::3: table 100 (boot)", "em2 IPv4 198.51.100.1: table 100 (boot)")
	// A table that sisod has named is never asked.
	mustApply(t, h.applyNames([]state.Step{{Op: state.Add, Object: state.TableName{Number: 100, Name: "china"}}}))
	wantLearned(t, h, both)

	ipInput(t, "-batch -", `
route add default via 192.0.2.1 proto static metric 200
route add default via 192.0.2.6 proto dhcp metric 100
route add default via 192.0.2.9 proto 115 metric 10
route add default dev em1 metric 5
route add 203.0.113.1 dev em1
route add default via 203.0.113.1 dev em1 onlink proto bird metric 300
`)
	ipInput(t, "-6 -batch -", `
route add default via 2001:db8:1::1 proto static metric 2000
route add default via 2001:db8:1::5 proto static metric 1000
`)
	wantLearned(t, h, em1,
		"em1 IPv4 192.0.2.6: main (dhcp)", "em1 IPv4 192.0.2.1: main (static)", "em1 IPv4 203.0.113.1 onlink: main (bird)",
		"em1 IPv6 2001:db8:1::5: main (static)", "em1 IPv6 2001:db8:1::1: main (static)")

	// Where nobody is resolved, the device alone is a way out.
	ip(t, "link set em1 arp off")
	if got, _, _ := learned(t, h, "em1"); got[0] != "em1 IPv4 device: main (boot)" {
		t.Errorf("without ARP: %q", got)
	}

	// Of a multipath default each interface has its own.
	ip(t, "route flush 0/0")
	ip(t, "-6 route flush default")
	ip(t, "route add default proto static nexthop via 192.0.2.1 weight 2 nexthop via 198.51.100.1")
	ip(t, "-6 route add default proto static nexthop via 2001:db8:1::1 nexthop via 2001:db8:2::1")
	wantLearned(t, h, both,
		"em1 IPv4 192.0.2.1: main (static)", "em1 IPv6 2001:db8:1::1: main (static)",
		"em2 IPv4 198.51.100.1: main (static)", "em2 IPv6 2001:db8:2::1: main (static)")
}

// advertise sends a router advertisement from an address of peer1, with the
// preference bits of RFC 4191.
func advertise(t *testing.T, router string, preference byte) {
	t.Helper()
	ip(t, "addr add "+router+"/64 dev peer1 nodad")
	peer, err := net.InterfaceByName("peer1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		t.Fatal(err)
	}
	from := &unix.SockaddrInet6{ZoneId: uint32(peer.Index), Addr: netip.MustParseAddr(router).As16()}
	if err := unix.Bind(s, from); err != nil {
		t.Fatal(err)
	}
	const lifetime = 1800 // seconds, in the two bytes behind the flags
	packet := []byte{134, 0, 0, 0, 64, preference << 3, lifetime >> 8, lifetime & 255, 0, 0, 0, 0, 0, 0, 0, 0}
	to := &unix.SockaddrInet6{ZoneId: uint32(peer.Index), Addr: netip.MustParseAddr("ff02::1").As16()}
	if err := unix.Sendto(s, packet, 0, to); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for !strings.Contains(strings.Join(ip(t, "-6 route show default"), "\n"), router+" ") {
		if time.Now().After(deadline) {
			t.Fatalf("the advertisement of %s did not arrive", router)
		}
	}
}

func TestAdvertisedRoutersAreRankedByPreference(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	setSysctl(t, "net/ipv6/conf/em1/accept_ra_from_local", "1")
	advertise(t, "fe80::a", 3) // low
	advertise(t, "fe80::b", 0) // medium
	advertise(t, "fe80::c", 1) // high
	wantLearned(t, h, []string{"em1"},
		"em1 IPv6 fe80::c: main (ra)", "em1 IPv6 fe80::b: main (ra)", "em1 IPv6 fe80::a: main (ra)")
}

func TestLeasesAreTheLastResort(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	em1 := []string{"em1"}
	lease := fmt.Sprintf("run/systemd/netif/leases/%d", h.links.index("em1"))
	writeFiles(t, h.options.Root, map[string]string{lease: "ADDRESS=192.0.2.2\nROUTER=192.0.2.1 203.0.113.1\n"})
	source := "lease of systemd-networkd (/" + lease + ")"
	wantLearned(t, h, em1, "em1 IPv4 192.0.2.1: "+source, "em1 IPv4 203.0.113.1 onlink: "+source)
	ip(t, "route add default via 192.0.2.9 table 100")
	wantLearned(t, h, em1, "em1 IPv4 192.0.2.9: table 100 (boot)")
	ip(t, "route flush table 100")
	// The lease of an address that is not there was given up.
	ip(t, "addr del 192.0.2.2/24 dev em1")
	wantLearned(t, h, em1)
}

// NetworkManager writes its files anew while it restarts, and leaves the address.
func TestLeaseLastsAsLongAsItsAddress(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	if err := h.links.read(); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("run/NetworkManager/devices/%d", h.links.index("em1"))
	write := func(text string) { writeFiles(t, h.options.Root, map[string]string{file: text}) }
	const device, address = "[device]\nmanaged=true\n", "[dhcp4]\ndhcp4.ip_address=192.0.2.2\n"
	em1, want := []string{"em1"}, "em1 IPv4 192.0.2.1: lease of NetworkManager (/"+file+")"
	write(device + address + "dhcp4.routers=192.0.2.1\n")
	wantLearned(t, h, em1, want)
	write(device)
	wantLearned(t, h, em1, want)
	if err := os.Remove(filepath.Join(h.options.Root, file)); err != nil {
		t.Fatal(err)
	}
	wantLearned(t, h, em1, want)
	// A lease that names none is another thing.
	write(device + address)
	wantLearned(t, h, em1)
	write(device)
	wantLearned(t, h, em1)
	write(device + address + "dhcp4.routers=192.0.2.1\n")
	wantLearned(t, h, em1, want)
	write(device)
	ip(t, "addr del 192.0.2.2/24 dev em1")
	wantLearned(t, h, em1)
	ip(t, "addr add 192.0.2.2/24 dev em1")
	wantLearned(t, h, em1)
}

func TestMainRoutesOfAnInterface(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	ipInput(t, "-batch -", `
route add default via 192.0.2.1
route add 10.1.0.0/16 via 192.0.2.3 src 192.0.2.2 metric 7 mtu 1400
route add 10.2.0.0/16 via 192.0.2.3 proto dhcp
route add 10.3.0.0/16 via 192.0.2.3 proto bird
route add 10.4.0.0/16 via 192.0.2.3 proto redirect
route add 10.5.0.0/16 via 192.0.2.3 proto 115
route add 10.6.0.0/16 nexthop via 192.0.2.3 nexthop via 198.51.100.3
route add 10.7.0.0/16 via 198.51.100.3
route add 10.8.0.0/16 dev em1 scope link proto static
route add unreachable 10.9.0.0/16
route add 10.10.0.0/16 via 192.0.2.3 table 100
`)
	ipInput(t, "-6 -batch -", `
route add 2001:db8:7::/48 via 2001:db8:1::1 proto ra
`)
	_, main, skipped := learned(t, h, "em1")
	want := []string{
		"10.8.0.0/16 dev em1 table main",
		"192.0.2.0/24 dev em1 table main src 192.0.2.2",
		"10.1.0.0/16 via 192.0.2.3 dev em1 table main src 192.0.2.2 metric 7 mtu 1400",
		"10.2.0.0/16 via 192.0.2.3 dev em1 table main",
		"2001:db8:1::/64 dev em1 table main metric 256",
		"fe80::/64 dev em1 table main metric 256",
		"2001:db8:7::/48 via 2001:db8:1::1 dev em1 table main",
	}
	if !slices.Equal(main, want) || len(skipped) != 0 {
		t.Errorf("main's routes on em1\n\t%s\nwant\n\t%s\nskipped %v", strings.Join(main, "\n\t"), strings.Join(want, "\n\t"), skipped)
	}

	// A whole national routing table is not carried along, connected networks are.
	ipInput(t, "-batch -", floodRoutes(mainRoutesLimit+500, "proto static metric 9"))
	ip(t, "route add 172.16.0.0/12 dev em1 scope link")
	_, main, skipped = learned(t, h, "em1")
	if n := len(main); n != mainRoutesLimit+3 {
		t.Errorf("%d routes, want %d of IPv4 and 3 of IPv6", n, mainRoutesLimit)
	}
	if !slices.Contains(main, "172.16.0.0/12 dev em1 table main") {
		t.Error("a connected network was left out for routes by a gateway")
	}
	if skipped["em1"] != 505 {
		t.Errorf("skipped %v, want 505 on em1", skipped)
	}
}

// Main is looked at for one interface, or as a whole, as the events ask for.
func TestMainIsReadAgainWhereItExpired(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	q := Query{Interfaces: []string{"em1", "em2"}}
	vias := func(parts Parts) string {
		t.Helper()
		var list []string
		for _, g := range readHost(t, h, q, parts).Facts.Gateways {
			list = append(list, g.Via.String())
		}
		return strings.Join(list, " ")
	}
	if got := vias(AllParts); got != "" {
		t.Fatalf("gateways %q before there are any", got)
	}
	ip(t, "route add default via 192.0.2.1")
	ip(t, "route add default via 198.51.100.1 metric 7")
	if got := vias(PartExpired); got != "" {
		t.Errorf("gateways %q, and nothing expired", got)
	}
	h.Expire("em2")
	if got := vias(PartExpired); got != "198.51.100.1" {
		t.Errorf("gateways %q after em2 expired", got)
	}
	// Main loses nothing by an address that comes; what it loses by one that goes is
	// found without being named.
	ip(t, "addr add 192.0.2.77/24 dev em1")
	if got := vias(PartLinks); got != "198.51.100.1" {
		t.Errorf("gateways %q after em1 got an address", got)
	}
	ip(t, "addr del 192.0.2.77/24 dev em1")
	if got := vias(PartLinks); got != "192.0.2.1 198.51.100.1" {
		t.Errorf("gateways %q after em1 lost an address", got)
	}
	ip(t, "route del default via 192.0.2.1")
	ip(t, "route del default via 198.51.100.1")
	if got := vias(PartMain); got != "" {
		t.Errorf("gateways %q after a look at everything", got)
	}
	// A gateway that is known from elsewhere is not looked for in other tables.
	ip(t, "route add default via 192.0.2.1 table 100")
	if got := vias(PartMain); got != "192.0.2.1" {
		t.Errorf("gateways %q, and one is in table 100", got)
	}
	q.Named = []LinkFamily{{"em1", state.IPv4}}
	if got := vias(0); got != "" {
		t.Errorf("gateways %q, and nobody needs one", got)
	}
}
