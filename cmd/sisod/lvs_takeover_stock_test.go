//go:build stock

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// TestStockConnectionsOutliveTheirDirector: a second director learns the
// connections of the first one, and when the VIP moves there, the neighbours
// are told and the connections go on.
func TestStockConnectionsOutliveTheirDirector(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	first, second := l.Director, l.Neighbour
	found := snapshots(t, first, second)
	both := func(h *lab.Host, role, interfaceKey string) {
		t.Helper()
		writeProfile(t, h, "lvs.toml", spell(l, fmt.Sprintf(`
			[ipvs]
			sync = { role = "%s", interface = "eth0", id = 7 }
			[director.web]
			mode = "dr"
			vip = ["VIP4", "VIP6"]
			%s
			services = ["tcp/80"]
			scheduler = "rr"
			real_servers = [ { address = "RS14" }, { address = "RS24" }, { address = "RS16" }, { address = "RS26" } ]`, role, interfaceKey)))
		apply(t, h, 0)
	}
	const here = `interface = "eth0"`
	both(first, "master", here)
	both(second, "backup", "")
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[1].real))
		apply(t, h, 0)
	}
	contains(t, run(t, first, "ipvsadm", "-L", "--daemon"), "master sync daemon (mcast=eth0, syncid=7,")
	contains(t, run(t, second, "ipvsadm", "-L", "--daemon"), "backup sync daemon (mcast=eth0, syncid=7,")

	var open []stay
	for _, v6 := range []bool{false, true, false, true} {
		v, err := lodge(t, l.Client, l.ClientAddress.At(v6, 0).Addr(), l.VIP.At(v6, lab.Port))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, v)
	}
	vips := []netip.Addr{l.VIP.V4, l.VIP.V6}
	for _, vip := range vips {
		if who := claimed(t, l, vip); who != hardwareAddress(t, first) {
			t.Fatalf("the router takes %s for %s before anything moved", who, vip)
		}
	}
	// The kernel tells of a connection after some packets, and gathers for seconds.
	patiently(t, func() error {
		known := run(t, second, "ipvsadm", "-Lnc")
		for _, v := range open {
			if from := v.Local.String(); !strings.Contains(known, from) {
				return fmt.Errorf("the second director does not know the connection from %s:\n%s", from, known)
			}
		}
		return nil
	})

	expect(t, first, 0, "flush")
	both(second, "backup", here)
	for _, vip := range vips {
		// Nothing goes to the VIP until then: the router has asked nobody.
		wait(t, func() error {
			if who := claimed(t, l, vip); who != hardwareAddress(t, second) {
				return fmt.Errorf("the router takes %s for %s, want the second director", who, vip)
			}
			return nil
		})
	}
	for i := range open {
		was := open[i].server
		if err := open[i].ask(t); err != nil || open[i].server != was {
			t.Errorf("connection %s to %s after the move: %s %v", open[i].Local, was, open[i].server, err)
		}
	}
	for _, v6 := range []bool{false, true} {
		spread(t, l.Client, l.ClientAddress.At(v6, 0).Addr(), l.VIP.At(v6, lab.Port), 4)
	}
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, first, second)
}
