package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sisod/sisod/internal/lab"
)

// listLength is how many prefixes of each family the long list has.
const listLength = 1500

// The nexthop objects of isp1, whose table is 101.
const nexthop4, nexthop6 = "1150001014", "1150001016"

// longProfile has a long list on isp1, whose gateways are learned from main, and a
// short one on isp2.
const longProfile = `[uplink.isp1]
interface = "em1"
table     = 101
to        = ["@cn.zone"]

[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
to        = ["203.0.113.0/24"]
[uplink.isp2.default]
metric = 100
`

// longHost is a smallHost with the long profile, whose em1 leads to two routers,
// each with one address of every network of the list.
func longHost(t *testing.T) (host *lab.Host, routers [2]*lab.Host) {
	t.Helper()
	l := lab.New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("host", "switch", "router1", "router2", "router3")
	if err != nil {
		t.Fatal(err)
	}
	host, routers = hosts[0], [2]*lab.Host{hosts[2], hosts[3]}
	for _, ends := range [][2]lab.End{
		{{Host: host, Link: "em1", Addresses: []string{"192.0.2.2/24", "2001:db8:1::2/64"}}, {Host: hosts[1], Link: "host"}},
		{{Host: hosts[2], Link: "lan", Addresses: []string{"192.0.2.1/24", "2001:db8:1::1/64", "11.0.5.1/32", "2400:5::1/128"}}, {Host: hosts[1], Link: "router1"}},
		{{Host: hosts[3], Link: "lan", Addresses: []string{"192.0.2.9/24", "2001:db8:1::9/64", "11.0.5.1/32", "2400:5::1/128"}}, {Host: hosts[1], Link: "router2"}},
		{{Host: host, Link: "em2", Addresses: []string{"198.51.100.2/24", "2001:db8:2::2/64"}},
			{Host: hosts[4], Link: "host", Addresses: []string{"198.51.100.1/24", "2001:db8:2::1/64"}}},
	} {
		if err := l.Link(ends[0], ends[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := hosts[1].Bridge("lan", []string{"host", "router1", "router2"}); err != nil {
		t.Fatal(err)
	}
	if err := host.Sysctl("net/ipv6/conf/em1/keep_addr_on_down=1"); err != nil {
		t.Fatal(err)
	}
	for _, r := range routers {
		if _, err := r.Serve(lab.Port); err != nil {
			t.Fatal(err)
		}
	}
	var list strings.Builder
	for i := range listLength {
		fmt.Fprintf(&list, "11.%d.%d.0/24\n2400:%x::/32\n", i>>8, i&255, i)
	}
	writeProfile(t, host, "cn.zone", list.String())
	writeProfile(t, host, "isp.toml", longProfile)
	ways(t, host, "1")
	return host, routers
}

// ways gives main its defaults, by one of the two routers.
func ways(t *testing.T, h *lab.Host, router string) {
	t.Helper()
	batch(t, h, "route replace default via 192.0.2."+router+" dev em1 proto dhcp\nroute replace default via 2001:db8:1::"+router+" dev em1 proto static\n")
}

// destinations is the table of the lists, in both families, as ip prints it.
func destinations(t *testing.T, h *lab.Host) string {
	t.Helper()
	return ip(t, h, "route", "show", "table", "destinations") + ip(t, h, "-6", "route", "show", "table", "destinations")
}

// byNexthop waits until the nexthops lead to a router and all of the list is there.
func byNexthop(t *testing.T, h *lab.Host, router string) {
	t.Helper()
	shows(t, h, "nexthop", "id "+nexthop4+" via 192.0.2."+router+" dev em1 scope link proto 115")
	shows(t, h, "nexthop", "id "+nexthop6+" via 2001:db8:1::"+router+" dev em1 scope link proto 115")
	patiently(t, func() error {
		routes := destinations(t, h)
		if n4, n6 := strings.Count(routes, "nhid "+nexthop4+" "), strings.Count(routes, "nhid "+nexthop6+" "); n4 != listLength || n6 != listLength {
			return fmt.Errorf("%d and %d routes go by the nexthops, want %d each", n4, n6, listLength)
		}
		return nil
	})
}

// A gateway that changes below a long list is one message: no route is touched, and
// no packet of a flow is lost.
func TestGatewayOfALongListChangesWithoutLoss(t *testing.T) {
	t.Parallel()
	h, routers := longHost(t)
	_, log := started(t, h)
	byNexthop(t, h, "1")
	contains(t, destinations(t, h), "203.0.113.0/24 via 198.51.100.1 dev em2")
	before := destinations(t, h)
	var flows []*lab.PingPong
	for _, to := range []string{"11.0.5.1", "2400:5::1"} {
		p, err := h.PingPong(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(to), lab.Port), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, p)
	}
	onward := func() {
		t.Helper()
		for _, p := range flows {
			from := p.Count()
			wait(t, func() error {
				if p.Count() < from+100 {
					return errors.New("the flow stands still")
				}
				return nil
			})
		}
	}
	onward()
	for _, step := range []struct {
		number string
		router *lab.Host
	}{{"9", routers[1]}, {"1", routers[0]}, {"9", routers[1]}} {
		written := strings.Count(log.String(), "route=")
		ways(t, h, step.number)
		byNexthop(t, h, step.number)
		witness, err := step.router.Capture("lan")
		if err != nil {
			t.Fatal(err)
		}
		witness.Sample = true
		for _, to := range []string{"11.0.5.1", "2400:5::1"} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := witness.Wait(ctx, func(p lab.Packet) bool { return !p.Out && p.Dst.Addr() == netip.MustParseAddr(to) })
			cancel()
			if err != nil {
				t.Errorf("nothing for %s comes to the router %s: %v", to, step.number, err)
			}
		}
		if err := witness.Close(); err != nil {
			t.Fatal(err)
		}
		onward()
		settled(t, h)
		if n := strings.Count(log.String(), "route=") - written; n != 2 {
			t.Errorf("%d route steps, want one default of isp1 in each family", n)
		}
	}
	for _, p := range flows {
		if err := p.Stop(); err != nil {
			t.Errorf("after %d answers: %v", p.Count(), err)
		}
	}
	same(t, "the table of the lists", destinations(t, h), before)
}

// While a long list is written everything else stands already, also after the
// link was away: the kernel's own messages say in which order things came.
func TestLongListsKeepNothingWaiting(t *testing.T) {
	t.Parallel()
	h, _ := longHost(t)
	expect(t, h, 0, "apply")
	expect(t, h, 0, "flush")
	order := func(what string, change func(), want ...string) {
		t.Helper()
		monitor := &lab.Lines{}
		cmd := exec.Command("ip", "-N", "-o", "monitor", "route", "rule", "nexthop", "address")
		cmd.Stdout, cmd.Stderr = monitor, monitor
		p, err := h.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		seen := func(mark string) {
			t.Helper()
			wait(t, func() error {
				ip(t, h, "address", "replace", mark+"/32", "dev", "lo")
				return errWant(mark, monitor.String())
			})
		}
		seen("10.99.0.1")
		change()
		byNexthop(t, h, "1")
		shows(t, h, "rule", "lookup destinations proto 115")
		shows(t, h, "-6 rule", "lookup destinations proto 115")
		seen("10.99.0.2")
		first, last, rule := map[bool]int{}, -1, -1 // first by whether it is IPv6
		at := map[string]int{}
		n := 0
		for l := range strings.Lines(monitor.String()) {
			n++
			switch {
			case strings.HasPrefix(l, "Deleted"):
				continue
			case strings.Contains(l, "nhid 11500010"):
				v6 := strings.Contains(l, "nhid "+nexthop6)
				first[v6], last = cmp.Or(first[v6], n), n
			case strings.HasPrefix(l, "12300:"):
				rule = n
			}
			for _, w := range want {
				// Once an address of IPv6 is no longer tentative, its routes come again.
				if strings.Contains(l, w) {
					at[w] = cmp.Or(at[w], n)
				}
			}
		}
		for _, w := range want {
			// A gateway of IPv6 may be learned when the list of IPv4 is being written.
			if before := first[strings.Contains(w, "2001:db8:")]; at[w] == 0 || at[w] > before {
				t.Errorf("%s: %q comes as message %d, the first prefix as %d", what, w, at[w], before)
			}
		}
		if rule >= 0 && rule < last {
			t.Errorf("%s: the rule to the list comes as message %d, the last prefix as %d", what, rule, last)
		}
	}
	defaults := []string{"default via 192.0.2.1 dev em1 table 101", "default via 2001:db8:1::1 dev em1 table 101"}
	order("first", func() { started(t, h) }, append(defaults, "from 192.0.2.2 lookup 101", "from 2001:db8:1::2 lookup 101", "12400:")...)
	settled(t, h)
	order("link down and up", func() {
		ip(t, h, "link", "set", "em1", "down")
		lacks(t, h, "nexthop", nexthop4)
		lacks(t, h, "route show table destinations", "nhid")
		ip(t, h, "link", "set", "em1", "up")
		ways(t, h, "1")
	}, defaults...)
	settled(t, h)
}

// What somebody does to nexthop objects of sisod's is undone, those of others stay,
// and flush gives everything back.
func TestNexthopsAreRepairedAndGivenBack(t *testing.T) {
	t.Parallel()
	h, _ := longHost(t)
	mode := func() string { return strings.TrimSpace(run(t, h, "cat", "/proc/sys/net/ipv4/nexthop_compat_mode")) }
	ip(t, h, "nexthop", "add", "id", "5", "via", "192.0.2.9", "dev", "em1")
	found := mode()
	before := wholeSnapshot(t, h)
	foreign := ip(t, h, "nexthop")
	_, log := started(t, h)
	byNexthop(t, h, "1")
	if now := mode(); now != "0" {
		t.Errorf("nexthop_compat_mode is %s", now)
	}
	ip(t, h, "nexthop", "del", "id", nexthop4)
	says(t, log, "add nexthop", nexthop4, "drift=true")
	byNexthop(t, h, "1")
	ip(t, h, "nexthop", "replace", "id", nexthop6, "via", "2001:db8:1::9", "dev", "em1", "proto", "115")
	byNexthop(t, h, "1")
	settled(t, h)
	// In sisod's place, and without its mark.
	ip(t, h, "nexthop", "replace", "id", nexthop4, "via", "192.0.2.9", "dev", "em1")
	shows(t, h, "route show table destinations", "11.0.5.0/24 via 192.0.2.1 dev em1")
	patiently(t, func() error {
		return errWant("ip nexthop del id "+nexthop4, sisod(t, h, "status").stdout)
	})
	ip(t, h, "nexthop", "del", "id", nexthop4)
	byNexthop(t, h, "1")
	settled(t, h)
	r := expect(t, h, 0, "flush")
	contains(t, r.stdout, "- nexthop", "< sysctl     net/ipv4/nexthop_compat_mode="+found)
	same(t, "after flush", wholeSnapshot(t, h), before)
	if left := ip(t, h, "nexthop"); left != foreign {
		t.Errorf("nexthops after flush:\n%swere\n%s", left, foreign)
	}
	if now := mode(); now != found {
		t.Errorf("nexthop_compat_mode is %s, was %s", now, found)
	}
}

// Something more urgent is done while a very long list is being written.
func TestALongListGivesWay(t *testing.T) {
	t.Parallel()
	h, _ := longHost(t)
	const n = 250_000
	var list strings.Builder
	for i := range n {
		fmt.Fprintf(&list, "%d.%d.%d.0/24\n", 11+i>>16, i>>8&255, i&255)
	}
	writeProfile(t, h, "cn.zone", list.String())
	count := func() int {
		return strings.Count(ip(t, h, "route", "show", "table", "destinations"), "nhid "+nexthop4)
	}
	_, log := startDaemon(t, h)
	// rules are the priorities of the IPv4 rules that are there, and which of them is the
	// source rule of isp2. No process is started for it: the list is written in a second.
	rules := func() (priorities map[int]bool, source *netlink.Rule) {
		t.Helper()
		priorities = map[int]bool{}
		err := h.Do(func() error {
			list, err := netlink.RuleList(netlink.FAMILY_V4)
			for i := range list {
				priorities[list[i].Priority] = true
				if list[i].Src != nil && list[i].Src.IP.String() == "198.51.100.2" {
					source = &list[i]
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return priorities, source
	}
	const destinationsRule, lastRule = 12300, 12400
	var source *netlink.Rule
	wait(t, func() error {
		var there map[int]bool
		if there, source = rules(); !there[lastRule] || source == nil {
			return errors.New("the rules are not there yet")
		}
		return nil
	})
	if err := h.Do(func() error { return netlink.RuleDel(source) }); err != nil {
		t.Fatal(err)
	}
	wait(t, func() error {
		there, back := rules()
		if back == nil {
			return errors.New("the rule is not back")
		}
		if there[destinationsRule] {
			t.Error("the rule came back when all prefixes were written")
		}
		return nil
	})
	var there int
	patiently(t, func() error {
		if there = count(); there != n {
			return fmt.Errorf("%d of %d prefixes are written", there, n)
		}
		return nil
	})
	settled(t, h)
	shows(t, h, "rule", "lookup destinations proto 115")
	// It gave way once, and to that.
	says(t, log, "add route", "nhid "+nexthop4, `reason="rule 11800 deleted"`)
}
