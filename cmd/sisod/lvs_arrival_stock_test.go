//go:build stock

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// inOrder waits until status has nothing to say.
func inOrder(t *testing.T, h *lab.Host) {
	t.Helper()
	patiently(t, func() error {
		if r := sisod(t, h, "status"); r.code != 0 {
			return errors.New(r.stdout)
		}
		return nil
	})
}

// sysctlIs waits until a file below /proc/sys/net has a value.
func sysctlIs(t *testing.T, h *lab.Host, file, want string) {
	t.Helper()
	patiently(t, func() error {
		if got := strings.TrimSpace(shell(t, h, "cat /proc/sys/net/"+file)); got != want {
			return fmt.Errorf("%s of %s is %s, want %s", file, h.Name, got, want)
		}
		return nil
	})
}

// TestStockInterfacesThatArriveAreServed: a role whose interface is not there is a
// problem, and what it asks of the interface is applied when it comes, by itself.
func TestStockInterfacesThatArriveAreServed(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	late := func(h *lab.Host, link string, own, routers string) {
		t.Helper()
		err := l.Lab.Link(lab.End{Host: l.Router, Link: h.Name + "-" + link, Addresses: strings.Fields(routers)},
			lab.End{Host: h, Link: link, Addresses: strings.Fields(own)})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, profile, problem string
		host                   *lab.Host
		arrive, arrived        func(*testing.T, *lab.Host)
	}{
		{"the director's", `
			[director.web]
			mode = "nat"
			vip = ["VIP4", "VIP6"]
			interface = "late"
			services = ["tcp/8000"]
			scheduler = "rr"
			real_servers = [ { address = "10.77.0.7", port = 80 }, { address = "RS16" } ]`, "interface late for the VIP 203.0.113.145 is not there", l.Director,
			func(_ *testing.T, h *lab.Host) { late(h, "late", "10.77.0.1/24", "10.77.0.7/24") },
			func(t *testing.T, h *lab.Host) {
				shows(t, h, "address show dev late", l.VIP.V4.String()+"/32")
				shows(t, h, "address show dev late", l.VIP.V6.String()+"/128")
				// The real servers are behind it, so it sends them no redirects.
				sysctlIs(t, h, "ipv4/conf/late/send_redirects", "0")
			}},
		{"a tunnel of somebody else's", `
			[real_server.web]
			mode = "tun"
			vip = "VIP4"
			interface = "their-tunnel"`, "interface their-tunnel is not there", l.RealServers[0],
			func(t *testing.T, h *lab.Host) {
				ip(t, h, strings.Fields("link add their-tunnel type ipip remote 203.0.113.20 local 203.0.113.147")...)
			},
			func(t *testing.T, h *lab.Host) {
				shows(t, h, "address show dev their-tunnel", l.VIP.V4.String()+"/32")
				shows(t, h, "link show dev their-tunnel", ",UP")
				sysctlIs(t, h, "ipv4/conf/their-tunnel/rp_filter", "2")
			}},
		{"the way back through the director", `
			[real_server.web]
			mode = "nat"
			director = "10.78.0.20"
			services = ["tcp/80"]`, "no interface has a network around the director 10.78.0.20", l.RealServers[1],
			func(_ *testing.T, h *lab.Host) { late(h, "late", "10.78.0.7/24", "10.78.0.20/24") },
			func(t *testing.T, h *lab.Host) {
				shows(t, h, "route show table all", "default via 10.78.0.20 dev late table rs-web")
				shows(t, h, "rule", "from 10.78.0.7 ipproto tcp sport 80 lookup rs-web")
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := c.host
			writeProfile(t, h, "lvs.toml", spell(l, c.profile))
			started(t, h)
			contains(t, expect(t, h, 2, "status").stdout, c.problem)
			c.arrive(t, h)
			c.arrived(t, h)
			inOrder(t, h)
			if st := daemonStatus(t, h); len(st.Daemon.Problems) > 0 || len(st.Daemon.Failures) > 0 {
				t.Errorf("the daemon still tells of %+v %+v", st.Daemon.Problems, st.Daemon.Failures)
			}
			expect(t, h, 0, "flush")
		})
	}
}

// TestStockNoNeighbourLearnsTheVIPByAnInterfaceThatArrives: those of a dr real
// server are silent from their first packet on, whenever they come.
func TestStockNoNeighbourLearnsTheVIPByAnInterfaceThatArrives(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	h, peer := l.RealServers[0], l.Client
	vip := l.VIP.V4.String()
	asks := func(link string, to string) bool {
		t.Helper()
		// The answer does not matter, only whether anybody said to have the address.
		shell(t, peer, "ip route replace "+to+" dev "+link+"; ping -c 1 -W 1 -I "+link+" "+to+" >/dev/null || true")
		return strings.Contains(ip(t, peer, "neigh", "show", "to", to, "dev", link), "lladdr")
	}
	arrive := func(link string, n int) {
		t.Helper()
		err := l.Lab.Link(lab.End{Host: peer, Link: link, Addresses: []string{fmt.Sprintf("10.79.%d.1/24", n)}},
			lab.End{Host: h, Link: link, Addresses: []string{fmt.Sprintf("10.79.%d.7/24", n)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	// So it is without sisod: whoever asks learns it.
	ip(t, h, "address", "add", vip+"/32", "dev", "lo")
	arrive("before", 1)
	if !asks("before", vip) {
		t.Fatal("the fault is not there: nobody said to have the VIP")
	}
	ip(t, h, "address", "del", vip+"/32", "dev", "lo")
	writeProfile(t, h, "lvs.toml", spell(l, "[real_server.web]\nmode = \"dr\"\nvip = \"VIP4\"\ninterface = \"vip0\"\n"))
	started(t, h)
	inOrder(t, h)
	contains(t, ip(t, h, "-d", "link", "show", "dev", "vip0"), "dummy", "UP")
	arrive("after", 2)
	if asks("after", vip) {
		t.Error("a neighbour at the new interface learned the VIP")
	}
	if !asks("after", "10.79.2.7") {
		t.Error("the new interface says nothing of its own address either")
	}
	// Nor does it ask on behalf of the VIP.
	witness := capturedARP(t, peer, "after")
	shell(t, h, "ip neigh flush dev after; ping -c 1 -W 1 -I "+vip+" 10.79.2.1 >/dev/null || true")
	patiently(t, func() error {
		if !strings.Contains(witness(), "who-has 10.79.2.1 tell 10.79.2.7") {
			return fmt.Errorf("no request of the real server's:\n%s", witness())
		}
		return nil
	})
	if strings.Contains(witness(), "tell "+vip) {
		t.Errorf("it asks in the name of the VIP:\n%s", witness())
	}
	// The dummy goes, and comes again.
	ip(t, h, "link", "del", "vip0")
	shows(t, h, "address", vip+"/32 scope global vip0")
	repaired(t, h, "add", "device", "vip0 type dummy")
	inOrder(t, h)
}
