//go:build stock

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// drifted fails the test unless a status tells of a step that begins and
// contains so.
func drifted(t *testing.T, st status, text string, op, kind, object string) {
	t.Helper()
	if !slices.ContainsFunc(st.Drift, func(d driftStatus) bool {
		return d.Op == op && d.Kind == kind && strings.Contains(d.Object, object)
	}) {
		t.Errorf("status tells of %+v, want %s %s %s", st.Drift, op, kind, object)
	}
	if !slices.ContainsFunc(slices.Collect(strings.Lines(text)), func(l string) bool {
		return strings.Contains(l, "to "+op+" "+kind) && strings.Contains(l, object)
	}) {
		t.Errorf("status has no line \"to %s %s … %s\":\n%s", op, kind, object, text)
	}
}

// repaired waits until the daemon tells of a repair, as text and JSON.
func repaired(t *testing.T, h *lab.Host, op, kind, object string) {
	t.Helper()
	patiently(t, func() error {
		st := daemonStatus(t, h)
		for _, s := range st.Daemon.Steps {
			if s.Drift && s.Op == op && s.Kind == kind && strings.Contains(s.Object, object) {
				return nil
			}
		}
		return fmt.Errorf("no repair %s %s %s in %+v", op, kind, object, st.Daemon.Steps)
	})
}

func send(t *testing.T, p *lab.Process, s unix.Signal) {
	t.Helper()
	if err := p.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// TestStockWhatOthersUndoIsReportedAndRepaired: while the daemon cannot run,
// status tells what is wrong; when it can, all is as before, and told.
func TestStockWhatOthersUndoIsReportedAndRepaired(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	vip4, vip6 := l.VIP.V4.String(), l.VIP.V6.String()
	const foreign = "ipvsadm -A -t 203.0.113.200:81 -s wrr -p 60; ipvsadm -a -t 203.0.113.200:81 -r 203.0.113.10:81 -g -w 3"
	// more is what nobody had undone: a thing too much.
	const more = "-r 203.0.113.10:80"
	type damage struct {
		name, script     string
		op, kind, object string
	}
	for _, host := range []struct {
		host    *lab.Host
		profile string
		beside  string // somebody else's
		cases   []damage
	}{
		{l.RealServers[0], `
			[real_server.web]
			mode = "tun"
			vip = ["VIP4", "VIP6"]`, "ip link set tunl0 up; ip address add 203.0.113.201/32 dev tunl0; ip link set tunl0 down", []damage{
			{"VIP on tunl0", "ip address del " + vip4 + "/32 dev tunl0", "add", "address", vip4 + "/32 dev tunl0"},
			{"IPv6 VIP on ip6tnl0", "ip address del " + vip6 + "/128 dev ip6tnl0", "add", "address", vip6 + "/128 dev ip6tnl0"},
			{"tunl0 down", "ip link set tunl0 down", "replace", "link", "dev tunl0 up"},
			{"ip6tnl0 down, with its VIP", "ip link set ip6tnl0 down", "add", "address", vip6 + "/128 dev ip6tnl0"},
			{"filter of tunl0", "sysctl -qw net.ipv4.conf.tunl0.rp_filter=0", "replace", "sysctl", "net/ipv4/conf/tunl0/rp_filter=2"},
			{"arp_ignore of all", "sysctl -qw net.ipv4.conf.all.arp_ignore=0", "replace", "sysctl", "net/ipv4/conf/all/arp_ignore=1"},
		}},
		{l.RealServers[1], `
			[real_server.web]
			mode = "dr"
			vip = ["VIP4", "VIP6"]
			[real_server.gue]
			mode = "tun"
			vip = "203.0.113.202"
			encapsulation = "gue"
			encapsulation_port = 6080`, "ip address add 203.0.113.201/32 dev lo", []damage{
			{"VIP on lo", "ip address del " + vip4 + "/32 dev lo", "add", "address", vip4 + "/32 dev lo"},
			{"IPv6 VIP on lo", "ip address del " + vip6 + "/128 dev lo", "add", "address", vip6 + "/128 dev lo"},
			{"arp_announce of all", "sysctl -qw net.ipv4.conf.all.arp_announce=0", "replace", "sysctl", "net/ipv4/conf/all/arp_announce=2"},
			{"receiver of GUE", "ip fou del port 6080", "add", "device", "port 6080 gue"},
		}},
		{l.Director, `
			[director.web]
			mode = "nat"
			vip = ["VIP4", "VIP6"]
			interface = "eth0"
			services = ["tcp/8000", "udp/53"]
			scheduler = "wrr"
			real_servers = [ { address = "RS14", port = 80, weight = 3 }, { address = "RS24", port = 80 }, { address = "RS16", port = 80 } ]
			[ipvs]
			timeouts = { tcp = "700s" }
			`, "ip address add 203.0.113.200/32 dev eth0; " + foreign, []damage{
			{"VIP on eth0", "ip address del " + vip4 + "/32 dev eth0", "add", "address", vip4 + "/32 dev eth0"},
			{"IPv6 VIP on eth0", "ip address del " + vip6 + "/128 dev eth0", "add", "address", vip6 + "/128 dev eth0"},
			{"all of IPVS", "ipvsadm -C; " + foreign, "add", "service", "-t " + vip4 + ":8000 -s wrr"},
			{"weight", "ipvsadm -e -t " + vip4 + ":8000 -r 203.0.113.147:80 -m -w 9", "replace", "destination", "-t " + vip4 + ":8000 -r 203.0.113.147:80 -m -w 3"},
			{"service", "ipvsadm -D -u " + vip4 + ":53", "add", "service", "-u " + vip4 + ":53 -s wrr"},
			{"scheduler", "ipvsadm -E -t [" + vip6 + "]:8000 -s sed", "replace", "service", "-t [" + vip6 + "]:8000 -s wrr"},
			{"real server", "ipvsadm -d -t " + vip4 + ":8000 -r 203.0.113.148:80", "add", "destination", "-r 203.0.113.148:80"},
			{"a real server more", "ipvsadm -a -t " + vip4 + ":8000 " + more + " -m", "replace", "destination", more + " -m -w 0"},
			{"timeouts", "ipvsadm --set 900 0 0", "replace", "ipvs timeouts", "700"},
			{"forwarding", "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.accept_redirects=0", "replace", "sysctl", "net/ipv4/ip_forward=1"},
			{"conntrack of IPVS", "sysctl -qw net.ipv4.vs.conntrack=0", "replace", "sysctl", "net/ipv4/vs/conntrack=1"},
		}},
	} {
		h := host.host
		shell(t, h, host.beside)
		found := sortedLines(lvsSnapshot(t, h))
		writeProfile(t, h, "lvs.toml", spell(l, host.profile))
		p, log := started(t, h)
		settled(t, h)
		before := sortedLines(lvsSnapshot(t, h))
		for _, c := range host.cases {
			t.Run(h.Name+", "+c.name, func(t *testing.T) {
				send(t, p, unix.SIGSTOP)
				shell(t, h, c.script)
				said := expect(t, h, 2, "status").stdout
				drifted(t, daemonStatus(t, h), said, c.op, c.kind, c.object)
				send(t, p, unix.SIGCONT)
				patiently(t, func() error {
					if now := sortedLines(lvsSnapshot(t, h)); now != before {
						return errors.New(difference(t, before, now))
					}
					return nil
				})
				if !strings.HasPrefix(c.object, more) {
					repaired(t, h, c.op, c.kind, c.object)
				}
				contains(t, expect(t, h, 0, "status").stdout, "drift")
			})
		}
		if words := log.String(); strings.Contains(words, "level=ERROR") || strings.Contains(words, "level=WARN") {
			t.Errorf("repairing is no trouble:\n%s", words)
		}
		expect(t, h, 0, "flush")
		same(t, h.Name+" after flush", sortedLines(lvsSnapshot(t, h)), found)
	}
}

// TestStockTunnelsComeBackAfterTheirModule: the module takes tunl0 away, and with it
// the VIP and the device's sysctls.
func TestStockTunnelsComeBackAfterTheirModule(t *testing.T) {
	l := newLVS(t, true)
	directByHand(t, l, "-i", lab.Port, lab.Port, l.VIP)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, `
			[real_server.web]
			mode = "tun"
			vip = "VIP4"`))
	}
	ours, other := l.RealServers[0], l.RealServers[1]
	started(t, ours)
	apply(t, other, 0)
	settled(t, ours)
	vip := l.VIP.At(false, lab.Port)
	spread(t, l.Client, l.ClientAddress.V4, vip, 4)

	if out, err := exec.Command("rmmod", "ipip").CombinedOutput(); err != nil {
		t.Fatalf("rmmod ipip: %v %s", err, out)
	}
	repaired(t, ours, "add", "device", "tunl0 type ipip")
	settled(t, ours)
	tunl0 := ip(t, ours, "address", "show", "dev", "tunl0")
	contains(t, tunl0, "inet "+l.VIP.V4.String()+"/32", "UP")
	if got := strings.TrimSpace(shell(t, ours, "cat /proc/sys/net/ipv4/conf/tunl0/rp_filter")); got != "2" {
		t.Errorf("rp_filter of tunl0 is %s", got)
	}
	repaired(t, ours, "add", "address", l.VIP.V4.String()+"/32 dev tunl0")
	// The other one has no daemon, and status tells what it lacks.
	said := expect(t, other, 2, "status").stdout
	drifted(t, daemonStatus(t, other), said, "add", "address", l.VIP.V4.String()+"/32 dev tunl0")
	drifted(t, daemonStatus(t, other), said, "replace", "sysctl", "net/ipv4/conf/tunl0/rp_filter=2")
	apply(t, other, 0)
	spread(t, l.Client, l.ClientAddress.V4, vip, 4)

	// Given back is what it was when it came: as on a host that nobody touched.
	values := func(h *lab.Host) string {
		return shell(t, h, "cd /proc/sys/net/ipv4/conf; grep . tunl0/*; ip -o address show dev tunl0; ip -o link show tunl0 | grep -o '<.*>'")
	}
	for _, h := range l.RealServers {
		expect(t, h, 0, "flush")
		same(t, h.Name+" after flush", values(h), values(l.Neighbour))
	}
}
