//go:build stock

package main

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// patient is how long a request that must succeed may take: the kernel is
// emulated, and a lost SYN is sent again after a second.
const patient = 5 * time.Second

// brief is how long a request that must fail is waited for.
const brief = 1500 * time.Millisecond

// loadLVS has the kernel load what tests stand on, so that devices and sysctls
// of modules are there before a host is looked at, whatever the tests beside it load.
func loadLVS(t *testing.T) {
	t.Helper()
	for _, m := range []string{"ip_vs", "ip_vs_rr", "ipip", "ip_gre", "sit", "ip6_tunnel", "ip6_gre", "fou", "fou6", "sctp", "nf_conntrack", "ip_vs_lblc", "ip_vs_lblcr"} {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			t.Fatalf("modprobe %s: %v %s", m, err, out)
		}
	}
}

func newLVS(t *testing.T, routed bool) *lab.LVS {
	t.Helper()
	loadLVS(t)
	l, err := lab.NewLVS(t.Context(), routed)
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, l.Lab)
	// What a device gets when it is up for the first time, a queue and IPv6, it
	// keeps.
	for _, h := range l.RealServers {
		for _, device := range []string{"tunl0", "gre0", "ip6tnl0", "ip6gre0"} {
			ip(t, h, "link", "set", device, "up")
			ip(t, h, "link", "set", device, "down")
		}
	}
	return l
}

// lvsSnapshot is snapshot with what belongs to IPVS, and forwarding.
func lvsSnapshot(t *testing.T, h *lab.Host) string {
	t.Helper()
	return snapshot(t, h) + run(t, h, "ipvsadm", "-Sn") +
		run(t, h, "sh", "-c", "cd /proc/sys/net/ipv4 && grep . ip_forward vs/* 2>/dev/null || true") +
		run(t, h, "ip", "fou", "show")
}

func snapshots(t *testing.T, hosts ...*lab.Host) []string {
	t.Helper()
	var all []string
	for _, h := range hosts {
		all = append(all, lvsSnapshot(t, h))
	}
	return all
}

// asFound flushes hosts, which must then be as they were.
func asFound(t *testing.T, found []string, hosts ...*lab.Host) {
	t.Helper()
	for i, h := range hosts {
		expect(t, h, 0, "flush")
		same(t, h.Name+" after flush", lvsSnapshot(t, h), found[i])
	}
}

// spread asks n times; servers must take turns, and see who asks.
func spread(t *testing.T, from *lab.Host, own netip.Addr, to netip.AddrPort, n int) {
	t.Helper()
	var order []string
	for range n {
		page, err := from.Fetch(t.Context(), to, 0, patient)
		if err != nil {
			t.Error(err)
			return
		}
		order = append(order, page.Server)
		if page.Peer.Addr() != own {
			t.Errorf("%s saw %s, want the client %s", page.Server, page.Peer, own)
		}
	}
	for i := 1; i < len(order); i++ {
		if order[i] == order[i-1] {
			t.Errorf("by round robin, servers were %v", order)
			return
		}
	}
}

type mode struct {
	name     string
	routed   bool
	port     uint16 // of the VIP
	director string
	real     string
	through  bool      // replies pass the director
	tunnel   [2]string // the device that requests come out of, v4 and v6
	families []bool    // v6?
}

// modes are the examples, with the lab's addresses.
func modes() []mode {
	both := []bool{false, true}
	return []mode{
		{name: "nat", port: 8000, through: true, families: both, director: `
			[uplink.service]
			interface = "eth0"
			[director.web]
			mode = "nat"
			vip = ["VIP4", "VIP6"]
			interface = "eth0"
			services = ["tcp/8000"]
			scheduler = "rr"
			real_servers = [
			  { address = "RS14", port = 80 }, { address = "RS24", port = 80 },
			  { address = "RS16", port = 80 }, { address = "RS26", port = 80 },
			]`, real: `
			[real_server.web]
			mode = "nat"
			director = ["DIR4", "DIR6"]
			services = ["tcp/80"]`},
		{name: "dr", port: 80, families: both, director: tunOrDR("dr", "", true), real: `
			[real_server.web]
			mode = "dr"
			vip = ["VIP4", "VIP6"]`},
		{name: "tun", routed: true, port: 80, families: both, tunnel: [2]string{"tunl0", "ip6tnl0"},
			director: tunOrDR("tun", "", true), real: `
			[uplink.china]
			interface = "eth0"
			[real_server.web]
			mode = "tun"
			vip = ["VIP4", "VIP6"]
			uplink = "china"`},
		{name: "tun by main, from this director alone", routed: true, port: 80, families: both,
			director: tunOrDR("tun", "", true), real: `
			[real_server.web]
			mode = "tun"
			vip = ["VIP4", "VIP6"]
			director = ["DIR4", "DIR6"]`},
		{name: "tun over the other family", routed: true, port: 80, families: both,
			tunnel: [2]string{"rs0v4-four", "rs0v6-six"}, director: overTheOther("", ""), real: otherFamilys("", "")},
		{name: "gre", routed: true, port: 80, families: both, tunnel: [2]string{"gre0", "ip6gre0"},
			director: tunOrDR("tun", `encapsulation = "gre"`, true), real: `
			[real_server.web]
			mode = "tun"
			vip = ["VIP4", "VIP6"]
			encapsulation = "gre"`},
		{name: "gue", routed: true, port: 80, families: both, tunnel: [2]string{"tunl0", "ip6tnl0"},
			director: tunOrDR("tun", gue, true), real: `
			[real_server.web]
			mode = "tun"
			vip = ["VIP4", "VIP6"]
			` + gue},
		{name: "IPv4 by gre, IPv6 by gue, each over the other family", routed: true, port: 80, families: both,
			tunnel: [2]string{"rs0v4-four", "rs0v6-six"}, director: overTheOther(gre, gue), real: otherFamilys(gre, gue)},
		{name: "IPv4 by gue, IPv6 by gre, each over the other family", routed: true, port: 80, families: both,
			tunnel: [2]string{"rs0v4-four", "rs0v6-six"}, director: overTheOther(gue, gre), real: otherFamilys(gue, gre)},
	}
}

// The encapsulations that are not the default one.
const (
	gre = `encapsulation = "gre"`
	gue = "encapsulation = \"gue\"\nencapsulation_port = 6080"
)

// overTheOther is a director whose VIPs are served in tunnels of the other
// family, with more about each.
func overTheOther(four, six string) string {
	const director = `
			[director.%s]
			mode = "tun"
			vip = "%s"
			interface = "eth0"
			services = ["tcp/80"]
			scheduler = "rr"
			%s
			real_servers = [ { address = "%s" }, { address = "%s" } ]`
	return fmt.Sprintf(director, "four", "VIP4", four, "RS16", "RS26") + fmt.Sprintf(director, "six", "VIP6", six, "RS14", "RS24")
}

// otherFamilys is a real server of overTheOther.
func otherFamilys(four, six string) string {
	const real = `
			[real_server.%s]
			mode = "tun"
			vip = "%s"
			director = "%s"
			%s`
	return fmt.Sprintf(real, "four", "VIP4", "DIR6", four) + fmt.Sprintf(real, "six", "VIP6", "DIR4", six)
}

func tunOrDR(mode, more string, v6 bool) string {
	vip, real := `"VIP4"`, `{ address = "RS14" }, { address = "RS24" }`
	if v6 {
		vip, real = `["VIP4", "VIP6"]`, real+`, { address = "RS16" }, { address = "RS26" }`
	}
	return fmt.Sprintf(`
			[uplink.service]
			interface = "eth0"
			[director.web]
			mode = %q
			vip = %s
			interface = "eth0"
			services = ["tcp/80"]
			scheduler = "rr"
			%s
			real_servers = [ %s ]`, mode, vip, more, real)
}

// spell puts a lab's addresses into a profile.
func spell(l *lab.LVS, profile string) string {
	r := l.RealAddresses
	return strings.NewReplacer(
		"VIP4", l.VIP.V4.String(), "VIP6", l.VIP.V6.String(),
		"DIR4", l.DirectorAddress.V4.String(), "DIR6", l.DirectorAddress.V6.String(),
		"RS14", r[0].V4.String(), "RS24", r[1].V4.String(), "RS16", r[0].V6.String(), "RS26", r[1].V6.String(),
		"\t", "",
	).Replace(profile)
}

func TestStockModesServeWithTheClientsAddress(t *testing.T) {
	t.Parallel()
	for _, m := range modes() {
		t.Run(m.name, func(t *testing.T) {
			l := newLVS(t, m.routed)
			ours := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
			found := snapshots(t, ours...)
			for i, h := range ours {
				text := m.real
				if i == 0 {
					text = m.director
				} else if m.name == "nat" {
					// A redirect that came would be obeyed.
					if err := h.Sysctl("net/ipv4/conf/all/accept_redirects=1", "net/ipv4/conf/eth0/accept_redirects=1", "net/ipv6/conf/eth0/accept_redirects=1"); err != nil {
						t.Fatal(err)
					}
					found[i] = lvsSnapshot(t, h)
				}
				writeProfile(t, h, "lvs.toml", spell(l, text))
				apply(t, h, 0)
				if r := apply(t, h, 0); r.stdout != "nothing to do\n" {
					t.Errorf("%s: the second apply said %s%s", h.Name, r.stdout, r.stderr)
				}
			}
			var witnesses []*lab.Capture
			for _, h := range ours {
				c, err := h.Capture()
				if err != nil {
					t.Fatal(err)
				}
				witnesses = append(witnesses, c)
			}
			for _, v6 := range m.families {
				vip, client := l.VIP.At(v6, m.port), l.ClientAddress.At(v6, 0).Addr()
				for _, w := range witnesses {
					w.Reset()
				}
				spread(t, l.Client, client, vip, 8)
				replies := func(p lab.Packet) bool { return p.Protocol == lab.TCP && p.Dst.Addr() == client }
				if n := witnesses[0].Count(replies); (n > 0) != m.through {
					t.Errorf("%s: the director saw %d packets of replies", vip, n)
				}
				for i, w := range witnesses[1:] {
					if w.Count(replies) == 0 {
						t.Errorf("%s: no replies left rs%d", vip, i+1)
					}
					device := m.tunnel[map[bool]int{false: 0, true: 1}[v6]]
					if n := w.Count(func(p lab.Packet) bool { return p.Link == device && p.Dst == vip }); device != "" && n == 0 {
						t.Errorf("%s: no request came out of %s of rs%d", vip, device, i+1)
					}
				}
			}
			if t.Failed() {
				explain(t, l)
			}
			asFound(t, found, ours...)
		})
	}
}

// explain logs what hosts had when a test failed.
func explain(t *testing.T, l *lab.LVS) {
	t.Helper()
	for _, h := range []*lab.Host{l.Director, l.RealServers[0]} {
		t.Logf("%s: %s\n%s%s%s%s", h.Name, sisod(t, h, "show").stdout, sisod(t, h, "status").stdout,
			run(t, h, "ipvsadm", "-Lnc"), run(t, h, "ip", "-s", "-d", "link"),
			run(t, h, "sh", "-c", "nstat -asz | grep -vE ' 0 '"))
	}
	t.Logf("router: %s", run(t, l.Router, "ip", "neigh"))
}
