package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// reversePathFirewalls are reverse-path filters of firewalls, which know marks.
var reversePathFirewalls = []struct {
	name, rules string
	v4          bool // IPv4, too
	oif         bool // asks for the interface, which leads to its uplink's table
}{
	{"firewalld", `table inet firewalld {
		counter refused { }
		chain filter_PREROUTING {
			type filter hook prerouting priority filter + 10; policy accept;
			icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
			meta nfproto ipv6 fib saddr . mark . iif oif missing counter name refused drop
		}
	}`, false, false},
	{"firewalld, strict-forward", `table inet firewalld {
		counter refused { }
		chain filter_FORWARD {
			type filter hook forward priority filter + 10; policy accept;
			meta nfproto ipv6 fib saddr . mark . iif oif missing counter name refused drop
		}
	}`, false, false},
	{"firewalld before 1.0", `table inet firewalld {
		counter refused { }
		chain raw_PREROUTING {
			type filter hook prerouting priority raw + 10; policy accept;
			icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
			meta nfproto ipv6 fib saddr . mark . iif oif missing counter name refused drop
		}
	}`, false, false},
	{"NixOS", `table inet nixos-fw {
		counter refused { }
		chain rpfilter {
			type filter hook prerouting priority mangle + 10; policy drop;
			meta nfproto ipv4 udp sport . udp dport { 67 . 68, 68 . 67 } accept
			fib saddr . mark . iif oif exists accept
			counter name refused
		}
	}`, true, false},
	{"ip6tables in raw", "ip6tables raw", false, true},
	{"ip6tables in mangle", "ip6tables mangle", false, true},
}

// guardBy sets up a firewall; refused is how many packets it has dropped.
func guardBy(t *testing.T, h *lab.Host, rules string) (refused func() int) {
	t.Helper()
	if table, yes := strings.CutPrefix(rules, "ip6tables "); yes {
		list := func(args ...string) string {
			return run(t, h, "ip6tables-nft", append([]string{"-t", table}, args...)...)
		}
		list("-A", "PREROUTING", "-m", "rpfilter", "--validmark", "--invert", "-j", "DROP")
		return func() int {
			packets := 0
			for line := range strings.Lines(list("-nvxL", "PREROUTING")) {
				if strings.Contains(line, "rpfilter") {
					if _, err := fmt.Sscan(line, &packets); err != nil {
						t.Fatal(err)
					}
				}
			}
			return packets
		}
	}
	runInput(t, h, rules, "nft", "-f", "-")
	name := strings.Fields(rules)[2]
	return func() int { return counters(t, h, name)["refused"] }
}

// A firewall that asks for the way back to the sender sees the way by the uplink,
// and what has a false sender is refused as before.
func TestReversePathFiltersOfFirewallsLetPassWhatIsFollowed(t *testing.T) {
	t.Parallel()
	for i, w := range reversePathFirewalls {
		for filter := range 3 {
			if !w.v4 && filter != i%3 {
				continue // the kernel's own filter knows no IPv6
			}
			t.Run(fmt.Sprintf("%s, rp_filter %d", w.name, filter), func(t *testing.T) {
				t.Parallel()
				f := newForwarder(t, filter, 0)
				refused := guardBy(t, f.Host, w.rules)
				two := f.Uplinks[1]
				refuses := func(what string, sure bool, r func(v6 int) lab.Request) {
					t.Helper()
					for v6 := range 2 {
						before := refused()
						_, err := two.Client.Ask(t.Context(), r(v6))
						if want := sure && (v6 == 1 || w.v4); err == nil || want != (refused() > before) {
							t.Errorf("%s: %v, and %d packets are refused", what, err, refused()-before)
						}
					}
				}
				toLAN := func(v6 int) lab.Request {
					return lab.Request{Protocol: lab.UDP, To: f.lan.Address.At(v6 == 1, lab.Port)}
				}
				refuses("without sisod", true, toLAN)
				writeProfile(t, f.Host, "isp.toml", twoProfile)
				apply(t, f.Host, 0)
				refuses("addresses followed", !w.oif, toLAN)
				writeProfile(t, f.Host, "isp.toml", followProfile)
				apply(t, f.Host, 0)
				before := refused()
				converse(t, f.Host, "forward", f.asked(filter == 1, func(by int) int { return by }), everyWay(f.TwoUplinks, true, false))
				f.tooBig(t, "forward", filter == 1, 1, true)
				if n := refused() - before; n != 0 {
					t.Errorf("the firewall has refused %d packets\n%s", n, run(t, f.Host, "nft", "list", "ruleset"))
				}
				// The private LAN's own addresses do not come by an uplink.
				private := f.private.Address.All()
				for _, own := range private {
					run(t, two.Client, "ip", "address", "add", fmt.Sprintf("%s/%d", own, own.BitLen()), "dev", "lo")
				}
				refuses("a false sender", true, func(v6 int) lab.Request {
					r := toLAN(v6)
					r.From = private[v6]
					return r
				})
			})
		}
	}
}
