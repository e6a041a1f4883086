//go:build stock

package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// wayOut is one of two of a real server's.
type wayOut struct {
	name, link string
	gateways   [2]lab.Addresses // of each real server
}

// twoWaysOut gives the real servers a second way to the clients, eth1.
func twoWaysOut(t *testing.T, l *lab.LVS, routed bool) [2]wayOut {
	t.Helper()
	ways := [2]wayOut{{name: "china", link: "eth0"}, {name: "abroad", link: "eth1"}}
	for i, h := range l.RealServers {
		pair := func(v4, v6 string) lab.Addresses {
			return lab.Addresses{V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}
		}
		ways[0].gateways[i] = l.RouterAddress
		if routed {
			ways[0].gateways[i] = pair(fmt.Sprintf("10.0.%d.1", i+1), fmt.Sprintf("2001:db8:a%d::1", i+1))
		}
		ways[1].gateways[i] = pair(fmt.Sprintf("192.0.2.%d", 8*i+1), fmt.Sprintf("2001:db8:b%d::1", i+1))
		with := func(a lab.Addresses) []string { return []string{a.V4.String() + "/29", a.V6.String() + "/64"} }
		own := lab.Addresses{V4: ways[1].gateways[i].V4.Next(), V6: ways[1].gateways[i].V6.Next()}
		if err := l.Lab.Link(lab.End{Host: l.Router, Link: h.Name + "b", Addresses: with(ways[1].gateways[i])}, lab.End{Host: h, Link: "eth1", Addresses: with(own)}); err != nil {
			t.Fatal(err)
		}
	}
	return ways
}

// mainBy leads the real servers' own defaults by a way.
func mainBy(t *testing.T, l *lab.LVS, w wayOut) {
	t.Helper()
	for i, h := range l.RealServers {
		shell(t, h, fmt.Sprintf("ip route del default; ip -6 route del default; ip route add default via %s dev %s; ip -6 route add default via %s dev %s",
			w.gateways[i].V4, w.link, w.gateways[i].V6, w.link))
	}
}

// TestStockRepliesOfAVIPLeaveByTheNamedUplink: real servers have two ways out,
// and the default of main is the other one. Filters are strict wherever that
// goes with the way that requests come in by.
func TestStockRepliesOfAVIPLeaveByTheNamedUplink(t *testing.T) {
	t.Parallel()
	for _, m := range []struct {
		mode   string
		routed bool
		// filter is that of eth0 when replies leave by eth1: requests in mode dr
		// come in unchanged, so that a strict one would want them by eth1 too.
		filter string
	}{{"dr", false, "loose"}, {"tun", true, "strict"}} {
		t.Run(m.mode, func(t *testing.T) {
			l := newLVS(t, m.routed)
			ways := twoWaysOut(t, l, m.routed)
			writeProfile(t, l.Director, "lvs.toml", spell(l, tunOrDR(m.mode, "", true)))
			apply(t, l.Director, 0)
			var witnesses []*lab.Capture
			for _, h := range l.RealServers {
				if err := h.Sysctl("net/ipv4/conf/all/rp_filter=1", "net/ipv4/conf/eth0/rp_filter=1", "net/ipv4/conf/eth1/rp_filter=1"); err != nil {
					t.Fatal(err)
				}
				w, err := h.Capture()
				if err != nil {
					t.Fatal(err)
				}
				witnesses = append(witnesses, w)
			}
			// replies left by a link since the last reset, each real server's.
			replies := func(v6 bool, link string) [2]int {
				var n [2]int
				for i, w := range witnesses {
					n[i] = w.Count(func(p lab.Packet) bool {
						return p.Out && p.Link == link && p.Src == l.VIP.At(v6, lab.Port) && p.Dst.Addr() == l.ClientAddress.At(v6, 0).Addr()
					})
				}
				return n
			}
			leave := func(v6 bool, link string) {
				t.Helper()
				wait(t, func() error {
					if n := replies(v6, link); n[0] == 0 || n[1] == 0 {
						return fmt.Errorf("%v replies of %s left by %s", n, l.VIP.At(v6, lab.Port), link)
					}
					return nil
				})
			}
			for i, named := range ways {
				other := ways[1-i]
				mainBy(t, l, other)
				found := snapshots(t, l.RealServers[:]...)
				for k, h := range l.RealServers {
					writeProfile(t, h, "lvs.toml", spell(l, fmt.Sprintf("[real_server.web]\nmode = %q\nvip = [\"VIP4\", \"VIP6\"]\n", m.mode)))
					apply(t, h, 0)
					witnesses[k].Reset()
				}
				spread(t, l.Client, l.ClientAddress.V6, l.VIP.At(true, lab.Port), 2)
				leave(true, other.link)
				if named.link == "eth0" {
					unanswered(t, l.Client, l.VIP.At(false, lab.Port))
				}

				filter := "strict"
				if named.link == "eth1" {
					filter = m.filter
				}
				for k, h := range l.RealServers {
					text := fmt.Sprintf("[real_server.web]\nmode = %q\nvip = [\"VIP4\", \"VIP6\"]\nuplink = %q\n", m.mode, named.name)
					for _, w := range ways {
						text += fmt.Sprintf("[uplink.%s]\ninterface = %q\ngateway = [\"%s\", \"%s\"]\nrp_filter = %q\n",
							w.name, w.link, w.gateways[k].V4, w.gateways[k].V6, map[string]string{"eth0": filter, "eth1": "strict"}[w.link])
					}
					writeProfile(t, h, "lvs.toml", spell(l, text))
					apply(t, h, 0)
					witnesses[k].Reset()
				}
				for _, v6 := range []bool{false, true} {
					spread(t, l.Client, l.ClientAddress.At(v6, 0).Addr(), l.VIP.At(v6, lab.Port), 4)
					leave(v6, named.link)
					if wrong := replies(v6, other.link); wrong != [2]int{} {
						t.Errorf("%s by uplink %s: %v replies left by %s", l.VIP.At(v6, lab.Port), named.name, wrong, other.link)
					}
				}
				if t.Failed() {
					explain(t, l)
					t.FailNow()
				}
				asFound(t, found, l.RealServers[:]...)
			}
		})
	}
}
