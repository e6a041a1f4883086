package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

func TestTwoInterfacesInOneSubnetAnswerByThemselves(t *testing.T) {
	t.Parallel()
	s, err := lab.NewSharedSubnet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, s.Lab)
	remote := []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:c1::10")}
	ways := func(second string) []conversation {
		var list []conversation
		for i, out := range []string{"em1", second} {
			for f, to := range s.Address[i].All() {
				list = append(list, conversations(s.Client, remote[f], to, s.Links[i], out, true)...)
			}
		}
		return list
	}
	// neighbours is the router itself, which is on the same network.
	var neighbours []conversation
	for i, link := range s.Links {
		for f, to := range s.Address[i].All() {
			neighbours = append(neighbours, conversations(s.Router, s.Gateway.All()[f], to, link, link, true)...)
		}
	}
	converse(t, s.Host, "before", ways("em1"))
	writeProfile(t, s.Host, "shared.toml", `[uplink.one]
interface = "em1"
[uplink.two]
interface = "em2"
gateway = ["192.0.2.1", "2001:db8:1::1"]
`)
	apply(t, s.Host, 0)
	converse(t, s.Host, "after", ways("em2"), neighbours)
}

func TestInterfaceInAnotherLinkGroupStaysThere(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	first, second := two.Uplinks[0], two.Uplinks[1]
	ip(t, two.Host, "link", "set", "em2", "group", "7")
	// Main sends somebody by the second uplink, who asks the first one's address.
	for i, a := range first.Remote.All() {
		ip(t, two.Host, "route", "add", a.String(), "via", second.Gateway.All()[i].String())
	}
	before := snapshot(t, two.Host)
	caught := func() []conversation {
		return slices.DeleteFunc(everyWay(two, true, false), func(c conversation) bool {
			return c.client == first.Client && c.in == first.Link
		})
	}
	group := func(link, want string) {
		t.Helper()
		if err := errWant(" group "+want+" ", ip(t, two.Host, "link", "show", "dev", link)); err != nil {
			t.Error(err)
		}
	}
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	r := apply(t, two.Host, 2)
	if err := errWant("uplink isp2: interface em2 is in link group 7 already and stays there", r.stderr); err != nil {
		t.Error(err)
	}
	group("em1", "115")
	group("em2", "7")
	// What main knows exactly by em2 is still main's decision; all else is right.
	converse(t, two.Host, "em2 left in its group", caught())

	writeFile(t, two.Host, "sisod.toml", "group = 7\n")
	apply(t, two.Host, 0)
	group("em1", "7")
	group("em2", "7")
	converse(t, two.Host, "group = 7", everyWay(two, true, false))

	flush(t, two.Host)
	if after := snapshot(t, two.Host); after != before {
		t.Errorf("after flush:\n%s\nbefore apply:\n%s", after, before)
	}
}

func TestManyAddressesOfOneNetworkShareARule(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: 1})
	second := two.Uplinks[1]
	var more []netip.Addr
	for i := range 12 {
		for f, a := range second.Address.All() {
			for range 10 + i {
				a = a.Next()
			}
			more = append(more, a)
			ip(t, two.Host, "address", "add", netip.PrefixFrom(a, []int{24, 64}[f]).String(), "dev", second.Link, "nodad")
		}
	}
	ways := func(out string, answered bool) (list []conversation) {
		for i, a := range more {
			list = append(list, conversations(second.Client, second.Remote.All()[i%2], a, second.Link, out, answered)...)
		}
		return list
	}
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	apply(t, two.Host, 0)
	for _, list := range [][]string{{"rule"}, {"-6", "rule"}} {
		rules := ip(t, two.Host, list...)
		if n := strings.Count(rules, "lookup isp2"); n != 2 {
			t.Errorf("%d rules lead to isp2, want one for its network and one for its interface:\n%s", n, rules)
		}
		if err := errWant("iif lo lookup isp2", rules); err != nil {
			t.Error(err)
		}
	}
	converse(t, two.Host, "many addresses, strict", ways(second.Link, true))
	// An address of the network on another interface is in no rule of the others'.
	stranger := more[len(more)-2].Next()
	ip(t, two.Host, "address", "add", stranger.String()+"/32", "dev", "lo")
	apply(t, two.Host, 0)
	remote := second.Remote.V4.String()
	if out := ip(t, two.Host, "route", "get", remote, "from", stranger.String()); !strings.Contains(out, "dev em1") {
		t.Errorf("a rule covers an address of another interface: %s\n%s", out, ip(t, two.Host, "rule"))
	}
	for i := 0; i < len(more); i += 2 {
		if out := ip(t, two.Host, "route", "get", remote, "from", more[i].String()); !strings.Contains(out, "dev em2") {
			t.Errorf("no rule covers %s: %s\n%s", more[i], out, ip(t, two.Host, "rule"))
		}
	}
	converse(t, two.Host, "many addresses around another's", ways(second.Link, true))
}
