//go:build stock

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// TestStockVIPWaitsForNetworkManager: whoever applies, and whatever NetworkManager
// does with the interface in the end.
func TestStockVIPWaitsForNetworkManager(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	h := l.Director
	if err := l.Lab.Link(lab.End{Host: l.Router, Link: "far"}, lab.End{Host: h, Link: "late"}); err != nil {
		t.Fatal(err)
	}
	writes := func(lines string) {
		t.Helper()
		shell(t, h, "mkdir -p /run/NetworkManager/devices; printf '[device]\nmanaged="+lines+"\n' >/run/NetworkManager/devices/$(cat /sys/class/net/late/ifindex)")
	}
	const idle = "true"
	writes(idle)
	writeProfile(t, h, "lvs.toml", spell(l, `
		[director.web]
		mode = "nat"
		vip = "VIP4"
		interface = "late"
		services = ["tcp/8000"]
		real_servers = [ { address = "10.77.0.7", port = 80 } ]`))
	vip := l.VIP.V4.String()
	contains(t, apply(t, h, 2).stderr, "VIP "+vip+" waits for NetworkManager to configure late, until ")
	since := func() string {
		return shell(t, h, `tr -d ' \n' </run/sisod/ledger.json | grep -o '"awaited":\[[^]]*\]'`)
	}
	first := since()
	apply(t, h, 2)
	if again := since(); again != first {
		t.Errorf("another process waits anew: %s, was %s", again, first)
	}

	_, log := started(t, h)
	contains(t, expect(t, h, 2, "status").stdout, "waits for NetworkManager to configure late")
	if got := ip(t, h, "address", "show", "dev", "late"); strings.Contains(got, vip) {
		t.Errorf("the VIP did not wait:\n%s", got)
	}
	for _, end := range []struct{ lines, address, reason string }{
		{"true\nconnection-uuid=959d976a-8f62-37aa-b28a-7974198154fe", "", "DHCP lease changed"},
		{"false", "", "DHCP lease changed"},
		{idle, "10.77.0.1/24", "address 10.77.0.1/24 added on late"},
	} {
		if end.lines == idle {
			ip(t, h, "address", "add", end.address, "dev", "late")
		} else {
			writes(end.lines)
		}
		shows(t, h, "address show dev late", vip+"/32")
		says(t, log, "add address", vip, end.reason)
		inOrder(t, h)
		// A connection that ends takes all addresses along.
		writes(idle)
		ip(t, h, "address", "flush", "dev", "late")
		patiently(t, func() error {
			if got := sisod(t, h, "status").stdout; !strings.Contains(got, "waits for NetworkManager to configure late") {
				return errors.New(got)
			}
			return nil
		})
		if got := ip(t, h, "address", "show", "dev", "late"); strings.Contains(got, vip) {
			t.Errorf("after %q the VIP did not wait:\n%s", end.lines, got)
		}
	}
	expect(t, h, 0, "flush")
}
