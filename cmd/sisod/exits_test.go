package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// get asks the kernel where a packet would go: "ip route get" with words.
func get(t *testing.T, h *lab.Host, words, want string) {
	t.Helper()
	args := append([]string{"route", "get"}, strings.Fields(words)...)
	if err := errWant(want+" ", strings.Join(strings.Fields(ip(t, h, args...)), " ")+" "); err != nil {
		t.Errorf("ip route get %s: %v; the host has\n%s", words, err, decisions(t, h))
	}
}

func TestNetworkBehindLeavesByItsUplink(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		t.Run(fmt.Sprintf("rp_filter %d", filter), func(t *testing.T) { networkBehind(t, filter) })
	}
}

func networkBehind(t *testing.T, filter int) {
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter})
	lan, err := two.AddLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	// The way of a forwarded conversation is that at the host's uplinks. A
	// strict filter drops the request of one whose reply would leave elsewhere.
	forwarded := func(out string, answered bool) []conversation {
		var list []conversation
		for i, to := range lan.Address.All() {
			way := out
			if filter == 1 && i == 0 && out != "em2" {
				way = ""
			}
			for _, u := range two.Uplinks {
				list = append(list, conversations(u.Client, u.Remote.All()[i], to, "em2", way, answered)...)
			}
		}
		return list
	}
	// The host itself is a neighbour of the LAN.
	var inside []conversation
	for i, own := range lan.Address.All() {
		for _, u := range two.Uplinks {
			inside = append(inside, conversations(lan.Host, own, u.Address.All()[i], lan.Link, lan.Link, true)...)
		}
	}
	converse(t, two.Host, "before", forwarded("em1", false), inside)
	writeProfile(t, two.Host, "isp.toml", twoProfile+"sources = [\"198.51.100.128/25\", \"2001:db8:2:1::/64\"]\n")
	apply(t, two.Host, 0)
	converse(t, two.Host, "after", forwarded("em2", true), inside, everyWay(two, true, false))

	// The longest prefix is asked first, whoever's it is.
	writeProfile(t, two.Host, "isp.toml", `[uplink.isp1]
interface = "em1"
sources   = ["198.51.100.130/32", "2001:db8:2:1::2/128"]
[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
sources   = ["198.51.100.128/25", "2001:db8:2:1::/64"]
`)
	apply(t, two.Host, 0)
	get(t, two.Host, "203.0.113.140 from 198.51.100.130 iif lan0", "via 192.0.2.1 dev em1")
	get(t, two.Host, "203.0.113.140 from 198.51.100.131 iif lan0", "via 198.51.100.1 dev em2")
	get(t, two.Host, "2001:db8:c2::10 from 2001:db8:2:1::2 iif lan0", "via 2001:db8:1::1 dev em1")
	get(t, two.Host, "2001:db8:c2::10 from 2001:db8:2:1::3 iif lan0", "via 2001:db8:2::1 dev em2")
	converse(t, two.Host, "longest prefix", forwarded("em1", false), inside)
}

func TestDestinationsPreferTheirUplinkAndFallBack(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	for _, u := range two.Uplinks {
		for _, h := range []*lab.Host{u.Client, u.Router} {
			if _, err := h.Serve(lab.Port); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A second address of the client is in the network, and not more exactly known.
	another := lab.Addresses{V4: netip.MustParseAddr("203.0.113.11"), V6: netip.MustParseAddr("2001:db8:c1::11")}
	if err := two.Uplinks[0].Client.Addr("eth0", another.V4.String()+"/25", another.V6.String()+"/64"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, two.Host, "profiles/far.zone", "# by the second uplink\n203.0.113.0/25\n2001:db8:c1::/64\n192.0.2.0/24\n2001:db8:1::/48\n")
	writeProfile(t, two.Host, "isp.toml", `[uplink.isp1]
interface = "em1"
to = ["203.0.113.10/32", "2001:db8:c1::10/128"]
[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
to = ["@far.zone", "203.0.113.128/25"]
`)
	by := func(what string, to lab.Addresses, uplink int) {
		t.Helper()
		// The first packet over a cable that was just mended may be lost.
		if err := lab.Wait(t.Context(), func() error { return unbound(t, two, to, uplink) }); err != nil {
			t.Errorf("%s: %v; the host has\n%s", what, err, decisions(t, two.Host))
		}
	}
	by("before", another, 0)
	apply(t, two.Host, 0)
	by("the longest prefix is the first uplink's", two.Uplinks[0].Remote, 0)
	by("the zone is the second's", another, 1)
	// A prefix around an uplink's own network does not take its neighbours away.
	by("neighbour of the first uplink", two.Uplinks[0].Gateway, 0)
	converse(t, two.Host, "replies", everyWay(two, true, false))

	cut(t, two.Uplinks[1])
	wait(t, func() error { return errWant("NO-CARRIER", ip(t, two.Host, "link", "show", "dev", "em2")) })
	apply(t, two.Host, 2)
	by("the second uplink is gone", another, 0)
	mend(t, two.Uplinks[1])
	apply(t, two.Host, 0)
	by("the second uplink is back", another, 1)
}

// segment is a host with two uplinks, of which em1 leads to a network with
// two routers: gw, main's default there, and side, the only way to some
// networks. Gw forwards nothing.
//
//	gw, side ==(bridge)== em1 - host - em2 -- other
type segment struct {
	host, gw, side, other *lab.Host
}

func newSegment(t *testing.T) segment {
	t.Helper()
	l := lab.New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("host", "switch", "gw", "side", "other")
	if err != nil {
		t.Fatal(err)
	}
	s, bridge := segment{hosts[0], hosts[2], hosts[3], hosts[4]}, hosts[1]
	for _, cable := range [][2]lab.End{
		{{Host: s.host, Link: "em1", Addresses: []string{"192.0.2.2/24", "2001:db8:1::2/64"}}, {Host: bridge, Link: "host"}},
		{{Host: s.gw, Link: "eth0", Addresses: []string{"192.0.2.1/24", "2001:db8:1::1/64"}}, {Host: bridge, Link: "gw"}},
		{{Host: s.side, Link: "eth0", Addresses: []string{"192.0.2.3/24", "2001:db8:1::3/64"}}, {Host: bridge, Link: "side"}},
		{{Host: s.host, Link: "em2", Addresses: []string{"198.51.100.2/24", "2001:db8:2::2/64"}}, {Host: s.other, Link: "eth0", Addresses: []string{"198.51.100.1/24", "2001:db8:2::1/64"}}},
	} {
		if err := l.Link(cable[0], cable[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := bridge.Bridge("br0", []string{"host", "gw", "side"}); err != nil {
		t.Fatal(err)
	}
	if err := s.side.Addr("lo", "10.1.1.1/32", "169.254.169.254/32", "fd00:1::1/128"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.side.Serve(lab.Port); err != nil {
		t.Fatal(err)
	}
	if _, err := s.host.Serve(lab.Port); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		"-4 route add default via 198.51.100.1 dev em2", "-6 route add default via 2001:db8:2::1 dev em2",
		"-4 route add default via 192.0.2.1 dev em1 metric 5000", "-6 route add default via 2001:db8:1::1 dev em1 metric 5000",
	} {
		ip(t, s.host, strings.Fields(command)...)
	}
	return s
}

func TestRoutesOfTheInterfaceWorkThroughTheUplinksTable(t *testing.T) {
	t.Parallel()
	s := newSegment(t)
	// As DHCP option 121, a cloud's agent and an operator leave them.
	for _, command := range []string{
		"-4 route add 10.0.0.0/8 via 192.0.2.3 dev em1 proto dhcp",
		"-4 route add 169.254.169.254 dev em1 proto dhcp scope link",
		"-6 route add fd00:1::/32 via 2001:db8:1::3 dev em1",
	} {
		ip(t, s.host, strings.Fields(command)...)
	}
	works := func(what string, targets ...string) {
		t.Helper()
		for _, text := range targets {
			to, source := netip.MustParseAddr(text), netip.MustParseAddr("192.0.2.2")
			if to.Is6() {
				source = netip.MustParseAddr("2001:db8:1::2")
			}
			for _, p := range protocols {
				// Bound to the address, bound to the device, and neither.
				for _, r := range []lab.Request{{From: source}, {Device: "em1"}, {}} {
					r.Protocol, r.To = p, netip.AddrPortFrom(to, lab.Port)
					if reply := ask(t, s.host, r); reply.Local.Addr() != source {
						t.Errorf("%s: %s starts from %s, want %s", what, r, reply.Local, source)
					}
				}
			}
		}
		// The other side begins: the reply has to find its way back.
		converse(t, s.host, what,
			conversations(s.side, netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("192.0.2.2"), "em1", "em1", true),
			conversations(s.side, netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("2001:db8:1::2"), "em1", "em1", true))
		run(t, s.host, "ping", "-c", "1", "-W", "5", "-I", "em1", linkLocal(t, s.side, "eth0"))
	}
	all := []string{"10.1.1.1", "169.254.169.254", "192.0.2.3", "fd00:1::1", "2001:db8:1::3"}
	works("before", all...)
	writeProfile(t, s.host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.isp2]\ninterface = \"em2\"\n")
	apply(t, s.host, 0)
	works("after", all...)

	// The same from the profile, for what main does not know.
	ip(t, s.host, "route", "del", "10.0.0.0/8")
	ip(t, s.host, "-6", "route", "del", "fd00:1::/32")
	writeProfile(t, s.host, "isp.toml", `[uplink.isp1]
interface = "em1"
routes    = [{ to = "10.0.0.0/8", via = "192.0.2.3" }, { to = "fd00:1::/32", via = "2001:db8:1::3" }]
[uplink.isp2]
interface = "em2"
`)
	apply(t, s.host, 0)
	for _, to := range []string{"10.1.1.1", "fd00:1::1"} {
		for _, p := range protocols {
			ask(t, s.host, lab.Request{Protocol: p, Device: "em1", To: netip.AddrPortFrom(netip.MustParseAddr(to), lab.Port)})
		}
	}
	converse(t, s.host, "routes of the profile",
		conversations(s.side, netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("192.0.2.2"), "em1", "em1", true),
		conversations(s.side, netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("2001:db8:1::2"), "em1", "em1", true))
}

func TestGatewayOutsideASingleAddress(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	for i, a := range two.Uplinks[1].Address.All() {
		bits := []string{"/25", "/64"}[i]
		ip(t, two.Host, "address", "del", a.String()+bits, "dev", "em2")
		ip(t, two.Host, "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "em2")
	}
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	apply(t, two.Host, 0)
	converse(t, two.Host, "after", everyWay(two, true, false))
	// The gateway itself is a neighbour that the host reaches.
	for _, a := range two.Uplinks[1].Gateway.All() {
		ask(t, two.Host, lab.Request{Protocol: lab.ICMP, Device: "em2", To: netip.AddrPortFrom(a, 0)})
	}
}

func TestPointToPointUplink(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{PointToPoint: true})
	converse(t, two.Host, "before", everyWay(two, false, false))
	writeProfile(t, two.Host, "isp.toml", "[uplink.isp1]\ninterface = \"em1\"\n[uplink.vpn]\ninterface = \"em2\"\ngateway = \"none\"\n")
	apply(t, two.Host, 0)
	converse(t, two.Host, "after", everyWay(two, true, false))
	for i, a := range two.Uplinks[0].Remote.All() {
		reply := ask(t, two.Host, lab.Request{Protocol: lab.ICMP, Device: "em2", To: netip.AddrPortFrom(a, 0)})
		if want := two.Uplinks[1].Address.All()[i]; reply.Local.Addr() != want {
			t.Errorf("bound to em2 starts from %s, want %s", reply.Local, want)
		}
	}
}

func TestSizesAreOnTheWire(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	second := two.Uplinks[1]
	writeProfile(t, two.Host, "isp.toml", twoProfile+"advmss = 1300\nmtu = 1380\n")
	apply(t, two.Host, 0)
	get(t, two.Host, "203.0.113.140 from 198.51.100.2", "mtu 1380 advmss 1300")
	get(t, two.Host, "2001:db8:c2::10 from 2001:db8:2::2", "mtu 1380 advmss 1300")

	// tcpdump reads the option of the SYN+ACK at the client.
	var text, said lab.Lines
	cmd := exec.Command("tcpdump", "--immediate-mode", "-l", "-n", "-i", "eth0", "tcp or ip6 proto 6")
	cmd.Stdout, cmd.Stderr = &text, &said
	dump, err := second.Client.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, func() error { return errWant("listening on", said.String()) })
	for _, a := range second.Address.All() {
		ask(t, second.Client, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(a, lab.Port)})
		wait(t, func() error {
			for line := range strings.Lines(text.String()) {
				if strings.Contains(line, a.String()+".80 >") && strings.Contains(line, "[S.]") {
					return errWant("mss 1300,", line)
				}
			}
			return errWant("a SYN+ACK of "+a.String(), text.String())
		})
	}
	if err := dump.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := dump.Wait(); err != nil {
		t.Errorf("tcpdump: %v: %s", err, &said)
	}

	// 28 bytes of headers in IPv4, 48 in IPv6.
	for _, ping := range []struct{ size, from, to string }{{"1352", "198.51.100.2", "203.0.113.140"}, {"1332", "2001:db8:2::2", "2001:db8:c2::10"}} {
		run(t, two.Host, "ping", "-c", "1", "-W", "5", "-M", "do", "-s", ping.size, "-I", ping.from, ping.to)
		bigger := ping.size[:3] + "3"
		if out, err := two.Host.Run(t.Context(), "ping", "-c", "1", "-W", "1", "-M", "do", "-s", bigger, "-I", ping.from, ping.to); err == nil {
			t.Errorf("ping of %s bytes from %s fits into mtu 1380: %s", bigger, ping.from, out)
		}
	}
}

func TestReversePathFilterIsSetAndGivenBack(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: 2})
	before := snapshot(t, two.Host)
	for value, word := range []string{"off", "strict", "loose"} {
		writeProfile(t, two.Host, "isp.toml", twoProfile+"rp_filter = \""+word+"\"\n")
		apply(t, two.Host, 0)
		for link, want := range map[string]string{"em2": string(rune('0' + value)), "em1": "2"} {
			if got := strings.TrimSpace(run(t, two.Host, "cat", "/proc/sys/net/ipv4/conf/"+link+"/rp_filter")); got != want {
				t.Errorf("rp_filter = %q: that of %s is %s, want %s", word, link, got, want)
			}
		}
		converse(t, two.Host, word, everyWay(two, true, false))
	}
	// What is no longer asked for is as it was, and flush gives all back.
	writeProfile(t, two.Host, "isp.toml", twoProfile+"rp_filter = \"strict\"\n")
	apply(t, two.Host, 0)
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	apply(t, two.Host, 0)
	if got := strings.TrimSpace(run(t, two.Host, "cat", "/proc/sys/net/ipv4/conf/em2/rp_filter")); got != "2" {
		t.Errorf("without the key rp_filter of em2 is %s, want 2 as found", got)
	}
	writeProfile(t, two.Host, "isp.toml", twoProfile+"rp_filter = \"off\"\n")
	apply(t, two.Host, 0)
	flush(t, two.Host)
	if after := snapshot(t, two.Host); after != before {
		t.Errorf("after flush:\n%s\nbefore apply:\n%s", after, before)
	}
}
