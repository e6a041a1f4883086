//go:build stock

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// What the connections of a director stand on, its VIP and its sysctls, goes
// with the last of them, and not before.
func TestStockARemovedDirectorEndsWithItsConnections(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	nat := modes()[0]
	ours := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	found := snapshots(t, ours...)
	for i, h := range ours {
		writeProfile(t, h, "lvs.toml", spell(l, []string{nat.director, nat.real, nat.real}[i]))
		apply(t, h, 0)
	}
	open, err := lodge(t, l.Client, l.ClientAddress.V4, l.VIP.At(false, nat.port))
	if err != nil {
		t.Fatal(err)
	}
	writeProfile(t, l.Director, "lvs.toml", "[uplink.service]\ninterface = \"eth0\"\n")
	for _, code := range []int{0, 2} { // the second finds it draining, and says so
		if r := apply(t, l.Director, code); strings.Contains(r.stdout, "sysctl") {
			t.Errorf("values changed under a connection:\n%s", r.stdout)
		}
		if err := open.ask(t); err != nil {
			t.Fatalf("the connection was lost: %v\n%s", err, run(t, l.Director, "ipvsadm", "-Ln"))
		}
	}
	contains(t, sisod(t, l.Director, "status").stdout, "was removed and drains: it goes with its last connection")
	open.Close()
	wait(t, func() error {
		sisod(t, l.Director, "apply")
		if left := run(t, l.Director, "ipvsadm", "-Sn"); left != "" {
			return errors.New(left)
		}
		return nil
	})
	if addresses := run(t, l.Director, "ip", "address"); strings.Contains(addresses, l.VIP.V4.String()) {
		t.Error(addresses)
	}
	asFound(t, found, ours...)
}

// A real server goes on serving while directors come, go and change places in
// its list, and another role of the same director ends.
func TestStockListsOfDirectorsChange(t *testing.T) {
	t.Parallel()
	l := newLVS(t, true)
	found := snapshots(t, l.RealServers[:]...)
	writeProfile(t, l.Director, "lvs.toml", spell(l, tunOrDR("tun", "", true)))
	apply(t, l.Director, 0)
	const other = "[real_server.a]\nmode = \"tun\"\nvip = \"203.0.113.99\"\ndirector = \"DIR4\"\n"
	for _, step := range []struct{ before, list string }{
		{"", `"DIR4", "DIR6", "203.0.113.98"`}, {"", `"203.0.113.98", "DIR4", "DIR6"`}, {"", `"DIR6", "203.0.113.98", "DIR4"`},
		{"", `"DIR6", "DIR4"`}, {other, `"DIR4", "DIR6"`}, {"", `"DIR4", "DIR6"`},
	} {
		for _, h := range l.RealServers {
			writeProfile(t, h, "lvs.toml", spell(l, step.before+"[real_server.web]\nmode = \"tun\"\nvip = [\"VIP4\", \"VIP6\"]\ndirector = ["+step.list+"]\n"))
			apply(t, h, 0)
			if r := apply(t, h, 0); r.stdout != "nothing to do\n" {
				t.Errorf("%s: the second apply said %s%s", h.Name, r.stdout, r.stderr)
			}
		}
		for _, v6 := range []bool{false, true} {
			spread(t, l.Client, l.ClientAddress.At(v6, 0).Addr(), l.VIP.At(v6, lab.Port), 4)
		}
		if t.Failed() {
			explain(t, l)
			t.Fatalf("with director = [%s]", step.list)
		}
	}
	asFound(t, found, l.RealServers[:]...)
}

// A host that forwards takes no gateway from an advertisement, unless told,
// also where no profile calls its interface an uplink.
func TestStockForwardingKeepsAdvertisedGateways(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	d := l.Director
	if err := d.Sysctl("net/ipv6/conf/eth0/accept_ra=1"); err != nil {
		t.Fatal(err)
	}
	found := lvsSnapshot(t, d)
	ip(t, d, "-6", "route", "replace", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra")
	accepts := func(want string) {
		t.Helper()
		if got := strings.TrimSpace(shell(t, d, "cat /proc/sys/net/ipv6/conf/eth0/accept_ra")); got != want {
			t.Errorf("accept_ra is %s, want %s", got, want)
		}
	}
	accepts("1")
	writeProfile(t, d, "lvs.toml", spell(l, "[director.web]\nmode = \"nat\"\nvip = \"VIP6\"\ninterface = \"eth0\"\nservices = [\"tcp/80\"]\nreal_servers = [{ address = \"RS16\" }]\n"))
	apply(t, d, 0)
	accepts("2")
	// Given back while the gateway is away, it would stay away.
	ip(t, d, "-6", "route", "del", "default", "proto", "ra")
	apply(t, d, 0)
	accepts("2")
	ip(t, d, "-6", "route", "replace", "default", "via", l.RouterAddress.V6.String(), "dev", "eth0", "proto", "static")
	asFound(t, []string{found}, d)
	accepts("1")
}
