//go:build stock

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// directByHand makes the host a director as an administrator does it, for the
// IPv4 VIP: method is the option of ipvsadm.
func directByHand(t *testing.T, l *lab.LVS, method string, vipPort, realPort uint16, vip lab.Addresses) {
	t.Helper()
	ip(t, l.Director, "address", "add", vip.V4.String()+"/32", "dev", "eth0")
	service := vip.At(false, vipPort).String()
	run(t, l.Director, "ipvsadm", "-A", "-t", service, "-s", "rr")
	for _, r := range l.RealAddresses {
		run(t, l.Director, "ipvsadm", "-a", "-t", service, "-r", r.At(false, realPort).String(), method)
	}
}

func shell(t *testing.T, h *lab.Host, script string) string {
	t.Helper()
	return run(t, h, "sh", "-ec", script)
}

// counter is a counter of a host's, as nstat names it.
func counter(t *testing.T, h *lab.Host, name string) int {
	t.Helper()
	words := strings.Fields(run(t, h, "nstat", "-asz", name))
	for i, w := range words {
		if w == name {
			n, err := strconv.Atoi(words[i+1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no counter %s in %v", name, words)
	return 0
}

// unanswered asks, and there must be no answer.
func unanswered(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	page, err := from.Fetch(t.Context(), to, 0, brief)
	if !errors.Is(err, lab.ErrNoReply) {
		t.Fatalf("the fault is not there: %s answered (%v)", page.Server, err)
	}
}

// TestStockTunnelServesWhateverTheFilterWas: the real server drops what comes
// out of the tunnel when the greater of the filters of all and tunl0 is 1.
func TestStockTunnelServesWhateverTheFilterWas(t *testing.T) {
	t.Parallel()
	l := newLVS(t, true)
	vip := l.VIP.At(false, lab.Port)
	directByHand(t, l, "-i", lab.Port, lab.Port, l.VIP)
	for _, h := range l.RealServers {
		shell(t, h, "cd /proc/sys/net/ipv4/conf; echo 1 > all/arp_ignore; echo 2 > all/arp_announce; ip link set tunl0 up; ip address add "+l.VIP.V4.String()+"/32 dev tunl0")
		writeProfile(t, h, "lvs.toml", spell(l, "[real_server.web]\nmode = \"tun\"\nvip = \"VIP4\"\n"))
	}
	for all := range 3 {
		for tunl0 := range 3 {
			what := fmt.Sprintf("all=%d tunl0=%d", all, tunl0)
			for _, h := range l.RealServers {
				if err := h.Sysctl(fmt.Sprintf("net/ipv4/conf/all/rp_filter=%d", all), fmt.Sprintf("net/ipv4/conf/tunl0/rp_filter=%d", tunl0)); err != nil {
					t.Fatal(err)
				}
			}
			found := snapshots(t, l.RealServers[:]...)
			if max(all, tunl0) == 1 {
				before := counter(t, l.RealServers[0], "TcpExtIPReversePathFilter") + counter(t, l.RealServers[1], "TcpExtIPReversePathFilter")
				unanswered(t, l.Client, vip)
				contains(t, run(t, l.Director, "ipvsadm", "-Lnc"), "SYN_RECV")
				if after := counter(t, l.RealServers[0], "TcpExtIPReversePathFilter") + counter(t, l.RealServers[1], "TcpExtIPReversePathFilter"); after <= before {
					t.Errorf("%s: IPReversePathFilter stays %d", what, after)
				}
			} else {
				spread(t, l.Client, l.ClientAddress.V4, vip, 2)
			}
			for _, h := range l.RealServers {
				apply(t, h, 0)
			}
			spread(t, l.Client, l.ClientAddress.V4, vip, 2)
			for _, h := range l.RealServers {
				if got := strings.TrimSpace(shell(t, h, "cat /proc/sys/net/ipv4/conf/all/rp_filter")); got != strconv.Itoa(all) {
					t.Errorf("%s: all is %s after apply", what, got)
				}
			}
			asFound(t, found, l.RealServers[:]...)
			if t.Failed() {
				explain(t, l)
				t.Fatal(what)
			}
		}
	}
}

// hardwareAddress is that of a host's eth0.
func hardwareAddress(t *testing.T, h *lab.Host) string {
	t.Helper()
	return strings.TrimSpace(shell(t, h, "cat /sys/class/net/eth0/address"))
}

// claimed is whom the router takes a VIP for.
func claimed(t *testing.T, l *lab.LVS, vip netip.Addr) string {
	t.Helper()
	words := strings.Fields(ip(t, l.Router, "neigh", "show", "to", vip.String(), "dev", "lan"))
	for i, w := range words {
		if w == "lladdr" {
			return words[i+1]
		}
	}
	return "nobody"
}

const forgetNeighbours = "ip neigh flush all"

// TestStockDirectRoutingKeepsTheDirectorInTheWay: a real server that says that
// it has the VIP is asked by clients itself, and nobody notices.
func TestStockDirectRoutingKeepsTheDirectorInTheWay(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, sysctls string }{
		{"arp_ignore on lo alone", "echo 1 > lo/arp_ignore; echo 2 > lo/arp_announce; echo 2 > all/arp_announce"},
		{"arp_announce missing", "echo 1 > all/arp_ignore"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLVS(t, false)
			vip := l.VIP.At(false, lab.Port)
			directByHand(t, l, "-g", lab.Port, lab.Port, l.VIP)
			director := hardwareAddress(t, l.Director)
			for _, h := range l.RealServers {
				shell(t, h, "cd /proc/sys/net/ipv4/conf; "+c.sysctls+"; ip address add "+l.VIP.V4.String()+"/32 dev lo")
			}
			witness, err := l.Director.Capture()
			if err != nil {
				t.Fatal(err)
			}
			// Who answers first is chance; announcing is not.
			wait(t, func() error {
				shell(t, l.Router, forgetNeighbours)
				for _, h := range l.RealServers {
					shell(t, h, forgetNeighbours)
				}
				if _, err := l.Client.Fetch(t.Context(), vip, 0, patient); err != nil {
					t.Fatal(err)
				}
				if claimed(t, l, l.VIP.V4) == director {
					return errors.New("the router still takes the director for the VIP")
				}
				return nil
			})
			witness.Reset()
			page, err := l.Client.Fetch(t.Context(), vip, 0, patient)
			if err != nil {
				t.Fatal(err)
			}
			if n := witness.Count(func(p lab.Packet) bool { return p.Dst == vip }); n != 0 {
				t.Fatalf("the fault is not there: %s answered, and the director saw %d packets", page.Server, n)
			}

			found := snapshots(t, l.RealServers[:]...)
			for _, h := range l.RealServers {
				writeProfile(t, h, "lvs.toml", spell(l, "[real_server.web]\nmode = \"dr\"\nvip = \"VIP4\"\n"))
				apply(t, h, 0)
			}
			shell(t, l.Router, forgetNeighbours)
			for range 6 {
				for _, h := range l.RealServers {
					shell(t, h, forgetNeighbours)
				}
				witness.Reset()
				spread(t, l.Client, l.ClientAddress.V4, vip, 2)
				if n := witness.Count(func(p lab.Packet) bool { return p.Dst == vip }); n == 0 {
					t.Error("the director is passed by after apply")
				}
				if who := claimed(t, l, l.VIP.V4); who != director {
					t.Errorf("the router takes %s for the VIP, want the director %s", who, director)
				}
				shell(t, l.Router, forgetNeighbours)
			}
			asFound(t, found, l.RealServers[:]...)
		})
	}
}

// TestStockNATServesClientsOfTheRealServersNetwork: the real server answers a
// neighbour straight, from an address that it never asked.
func TestStockNATServesClientsOfTheRealServersNetwork(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	vip := l.VIP.At(false, 8000)
	directByHand(t, l, "-m", 8000, lab.Port, l.VIP)
	shell(t, l.Director, "echo 1 > /proc/sys/net/ipv4/ip_forward")
	witness, err := l.Neighbour.Capture()
	if err != nil {
		t.Fatal(err)
	}
	unanswered(t, l.Neighbour, vip)
	if n := witness.Count(func(p lab.Packet) bool {
		return !p.Out && p.Protocol == lab.TCP && (p.Src == l.RealAddresses[0].At(false, lab.Port) || p.Src == l.RealAddresses[1].At(false, lab.Port))
	}); n == 0 {
		t.Error("the fault is another: no reply came from a real server's own address")
	}
	shell(t, l.Director, "ipvsadm -C; ip address del "+l.VIP.V4.String()+"/32 dev eth0; echo 0 > /proc/sys/net/ipv4/ip_forward")

	hosts := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	found := snapshots(t, hosts...)
	for i, h := range hosts {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].director))
		if i > 0 {
			writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		}
		apply(t, h, 0)
	}
	for range 2 { // redirects come after some packets
		spread(t, l.Neighbour, l.NeighbourAddress.V4, vip, 6)
		spread(t, l.Neighbour, l.NeighbourAddress.V6, l.VIP.At(true, 8000), 6)
	}
	if n := witness.Count(func(p lab.Packet) bool { return p.Protocol == lab.ICMP && p.Type == 5 }); n != 0 {
		t.Errorf("%d redirects", n)
	}
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, hosts...)
}

// upload is larger than what a client sends before it hears of the path's MTU.
const upload = 300_000

// TestStockTunnelTakesUploadsWhereICMPIsFiltered: a full segment of the client
// does not fit into the tunnel, and nobody may tell.
func TestStockTunnelTakesUploadsWhereICMPIsFiltered(t *testing.T) {
	t.Parallel()
	l := newLVS(t, true)
	vip := l.VIP.At(false, lab.Port)
	directByHand(t, l, "-i", lab.Port, lab.Port, l.VIP)
	run(t, l.Router, "nft", `table inet filter { chain forward { type filter hook forward priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }`)
	for _, h := range l.RealServers {
		shell(t, h, "cd /proc/sys/net/ipv4/conf; echo 1 > all/arp_ignore; echo 2 > all/arp_announce; echo 2 > tunl0/rp_filter; ip link set tunl0 up; ip address add "+l.VIP.V4.String()+"/32 dev tunl0")
	}
	told, err := l.Director.Capture()
	if err != nil {
		t.Fatal(err)
	}
	spread(t, l.Client, l.ClientAddress.V4, vip, 2)
	if page, err := l.Client.Fetch(t.Context(), vip, upload, brief); !errors.Is(err, lab.ErrNoReply) {
		t.Fatalf("the fault is not there: %+v %v", page, err)
	}
	// Destination unreachable is type 3 (RFC 792).
	if n := told.Count(func(p lab.Packet) bool { return p.Out && p.Protocol == lab.ICMP && p.Type == 3 }); n == 0 {
		t.Error("the fault is another: the director never said that a packet is too large")
	}
	if n := l.Webs[0].Received() + l.Webs[1].Received(); n > upload/2 {
		t.Errorf("the upload came to %d bytes before it stalled", n)
	}
	shell(t, l.Director, "ipvsadm -C; ip address del "+l.VIP.V4.String()+"/32 dev eth0")
	for _, h := range l.RealServers {
		shell(t, h, "ip address del "+l.VIP.V4.String()+"/32 dev tunl0")
	}
	hosts := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	found := snapshots(t, hosts...)
	for i, h := range hosts {
		text := modes()[2].director
		if i > 0 {
			text = modes()[2].real
		}
		writeProfile(t, h, "lvs.toml", spell(l, text))
		apply(t, h, 0)
	}
	for _, v6 := range []bool{false, true} {
		for range 2 {
			page, err := l.Client.Fetch(t.Context(), l.VIP.At(v6, lab.Port), upload, 2*patient)
			if err != nil || page.Bytes != upload {
				t.Errorf("upload after apply: %+v %v", page, err)
			}
		}
	}
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, hosts...)
}

// TestStockTunnelTakesPacketsOfItsDirectorsAlone: whoever sends an encapsulated
// packet writes its inner source, so that it matters who may.
func TestStockTunnelTakesPacketsOfItsDirectorsAlone(t *testing.T) {
	l := newLVS(t, true)
	vip, real := l.VIP.At(false, lab.Port), l.RealServers[0]
	// The neighbour is no director, and encapsulates by itself.
	shell(t, l.Neighbour, fmt.Sprintf("sysctl -qw net.ipv4.conf.all.rp_filter=2; ip link add by-hand type ipip local %s remote %s; ip link set by-hand up; ip route add %s dev by-hand src %[1]s",
		l.NeighbourAddress.V4, l.RealAddresses[0].V4, l.VIP.V4))
	found := snapshots(t, real)
	for _, c := range []struct {
		director string
		taken    bool
	}{
		{"", true},
		{`director = "DIR4"`, false},
		{fmt.Sprintf("director = [\"DIR4\", %q]", l.NeighbourAddress.V4), true},
		{`director = "DIR4"`, false},
	} {
		writeProfile(t, real, "lvs.toml", spell(l, "[real_server.web]\nmode = \"tun\"\nvip = \"VIP4\"\n"+c.director+"\n"))
		apply(t, real, 0)
		// The real server may say that nobody takes such packets there.
		if page, err := l.Neighbour.Fetch(t.Context(), vip, 0, patient); (err == nil) != c.taken {
			t.Errorf("with %q: %+v %v", c.director, page, err)
		}
	}
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, real)
}

// TestStockDirectRoutingNeedsTheVIPOnTheRealServer: without it packets for the
// VIP are nobody's there.
func TestStockDirectRoutingNeedsTheVIPOnTheRealServer(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	vip := l.VIP.At(false, lab.Port)
	directByHand(t, l, "-g", lab.Port, lab.Port, l.VIP)
	found := snapshots(t, l.RealServers[:]...)
	unanswered(t, l.Client, vip)
	dropped := 0
	for _, h := range l.RealServers {
		dropped += counter(t, h, "IpInAddrErrors")
	}
	if dropped == 0 {
		t.Error("the fault is another: no real server dropped a packet for its address")
	}
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, "[real_server.web]\nmode = \"dr\"\nvip = \"VIP4\"\n"))
		apply(t, h, 0)
	}
	spread(t, l.Client, l.ClientAddress.V4, vip, 4)
	asFound(t, found, l.RealServers[:]...)
	unanswered(t, l.Client, vip)
}
