//go:build stock

package main

import (
	"fmt"
	"net/netip"
	"regexp"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// servicesAt is a director for each uplink's VIPs, with lines more.
func servicesAt(r lab.RealServers, more string) string {
	text := ""
	for i, vip := range r.VIPs {
		text += fmt.Sprintf(`[director.d%d]
%s
vip = ["%s", "%s"]
interface = "em%d"
services = ["tcp/80", "udp/80"]
scheduler = "rr"
real_servers = [{ address = "%s" }, { address = "%s" }, { address = "%s" }, { address = "%s" }]
`, i+1, more, vip.V4, vip.V6, i+1, r.Addresses[0].V4, r.Addresses[1].V4, r.Addresses[0].V6, r.Addresses[1].V6)
	}
	return text
}

// balancedWays has every client of two ask the VIPs of both uplinks; replies leave by
// these ways, and are let pass where that is the VIP's.
func balancedWays(two *lab.TwoUplinks, r lab.RealServers, ways [2]string) []conversation {
	var list []conversation
	for _, c := range two.Uplinks {
		for i, vip := range r.VIPs {
			for k, to := range vip.All() {
				for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
					list = append(list, conversation{client: c.Client, remote: c.Remote.All()[k], protocol: p, to: netip.AddrPortFrom(to, lab.Port),
						in: two.Uplinks[i].Link, out: ways[i], answered: ways[i] == two.Uplinks[i].Link})
				}
			}
		}
	}
	return list
}

func TestStockBalancedRepliesLeaveByTheUplinkOfTheirVIP(t *testing.T) {
	t.Parallel()
	loadLVS(t)
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	r, err := two.AddRealServers()
	if err != nil {
		t.Fatal(err)
	}
	const uplinks = `[uplink.isp1]
interface = "em1"
%[1]s
[uplink.isp2]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
%[1]s
`
	// What is published without the balancer, beside it.
	var published []conversation
	for i, u := range two.Uplinks {
		for k, a := range u.Address.All() {
			to := netip.AddrPortFrom(a, 8080)
			if err := two.Host.PortForward(t.Context(), to, netip.AddrPortFrom(r.Addresses[i].All()[k], lab.Port)); err != nil {
				t.Fatal(err)
			}
			for _, c := range two.Uplinks {
				published = append(published, conversation{client: c.Client, remote: c.Remote.All()[k], protocol: lab.TCP, to: to, in: u.Link, out: u.Link, answered: true})
			}
		}
	}
	found := stopped(lvsSnapshot(t, two.Host))
	fullnat := fmt.Sprintf("mode = \"fullnat\"\nsnat = [\"%s\", \"%s\"]", r.Own.V4, r.Own.V6)
	writeProfile(t, two.Host, "isp.toml", servicesAt(r, `mode = "nat"`))
	apply(t, two.Host, 0)
	converse(t, two.Host, "without uplinks", balancedWays(two, r, [2]string{"em1", "em1"}))
	for _, c := range []struct {
		name, mode string
		forward    bool
	}{{"nat", `mode = "nat"`, false}, {"nat, forward", `mode = "nat"`, true}, {"fullnat", fullnat, false}, {"fullnat, forward", fullnat, true}} {
		line := ""
		if c.forward {
			line = "forward = true"
		}
		writeProfile(t, two.Host, "isp.toml", fmt.Sprintf(uplinks, line)+servicesAt(r, c.mode))
		for filter := range 3 {
			values := []string{fmt.Sprintf("net/ipv4/conf/all/rp_filter=%d", filter)}
			for _, u := range two.Uplinks {
				values = append(values, fmt.Sprintf("net/ipv4/conf/%s/rp_filter=%d", u.Link, filter))
			}
			if err := two.Host.Sysctl(values...); err != nil {
				t.Fatal(err)
			}
			apply(t, two.Host, 0)
			if r := apply(t, two.Host, 0); r.stdout != "nothing to do\n" {
				t.Errorf("the second apply said %s%s", r.stdout, r.stderr)
			}
			list := balancedWays(two, r, [2]string{"em1", "em2"})
			if c.forward {
				list = append(list, published...)
			}
			converse(t, two.Host, fmt.Sprintf("%s, rp_filter %d", c.name, filter), list)
		}
	}
	values := []string{"net/ipv4/conf/all/rp_filter=0"}
	for _, u := range two.Uplinks {
		values = append(values, "net/ipv4/conf/"+u.Link+"/rp_filter=0")
	}
	if err := two.Host.Sysctl(values...); err != nil {
		t.Fatal(err)
	}
	expect(t, two.Host, 0, "flush")
	same(t, "host after flush", stopped(lvsSnapshot(t, two.Host)), found)
}

// stopped is a snapshot without the clocks of a bridge.
func stopped(snapshot string) string {
	return regexp.MustCompile(`timer +[0-9.]+`).ReplaceAllString(snapshot, "timer")
}
