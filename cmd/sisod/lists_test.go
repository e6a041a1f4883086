package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// lineOf is a line of a list, and the gateway that it leads to.
type lineOf struct {
	prefix netip.Prefix
	via    string
}

// overlapping makes lists of two uplinks in which many prefixes lie in others of
// the same uplink, of the other one, and around and in em2's own network.
func overlapping() (lines []lineOf, lists [2]string) {
	r := rand.New(rand.NewPCG(6, 6))
	seen := map[netip.Prefix]bool{}
	// The wider one says what the other does, but for em2's network between them.
	for _, p := range []string{"198.51.96.0/19", "198.51.100.192/26"} {
		lines = append(lines, lineOf{netip.MustParsePrefix(p), "198.51.100.1"})
		lists[1] += p + "\n"
	}
	for range 400 {
		a := netip.AddrFrom4([4]byte{203, 0, byte(r.IntN(2)) + 112, byte(r.IntN(4)) << 6})
		gateways := [2]string{"192.0.2.1", "198.51.100.1"}
		lowest := 8
		switch r.IntN(3) {
		case 0:
			a, gateways, lowest = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(r.IntN(2)), byte(r.IntN(2)), 6: byte(r.IntN(4)) << 6}), [2]string{"2001:db8:1::1", "2001:db8:2::1"}, 20
		case 1:
			a, lowest = netip.AddrFrom4([4]byte{198, 51, 100, byte(r.IntN(2)) << 6}), 25
		}
		p, _ := a.Prefix(lowest + r.IntN(32-lowest))
		if seen[p] {
			continue
		}
		seen[p] = true
		i := r.IntN(2)
		lines = append(lines, lineOf{p, gateways[i]})
		lists[i] += p.String() + "\n"
	}
	return lines, lists
}

// leads checks with ip route get that every line leads where it would if it were
// a route.
func leads(t *testing.T, h *lab.Host, lines []lineOf) {
	t.Helper()
	var asked []netip.Addr
	var batch strings.Builder
	for _, l := range lines {
		for _, a := range []netip.Addr{l.prefix.Addr().Next(), lastOf(l.prefix).Prev()} {
			asked = append(asked, a)
			fmt.Fprintln(&batch, "route get", a)
		}
	}
	writeFile(t, h, "asked", batch.String())
	answers := strings.Split(strings.TrimSpace(run(t, h, "ip", "-o", "-batch", "/etc/sisod/asked")), "\n")
	if len(answers) != len(asked) {
		t.Fatalf("%d answers to %d questions", len(answers), len(asked))
	}
	via := regexp.MustCompile(` via (\S+)`)
	for i, a := range asked {
		if strings.HasPrefix(answers[i], "local ") || strings.HasPrefix(answers[i], "broadcast ") {
			continue // the host itself
		}
		// Without any line, main decides; em2's own networks are reached on the link.
		want, bits := "192.0.2.1", -1
		if a.Is6() {
			want = "2001:db8:1::1"
		}
		for _, n := range []string{"192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/64", "2001:db8:2::/64"} {
			if p := netip.MustParsePrefix(n); p.Contains(a) {
				want, bits = "", p.Bits()
			}
		}
		for _, l := range lines {
			if !l.prefix.Contains(a) || l.prefix.Bits() <= bits {
				continue
			}
			want, bits = l.via, l.prefix.Bits()
		}
		got := ""
		if m := via.FindStringSubmatch(answers[i]); m != nil {
			got = m[1]
		}
		if got != want {
			t.Fatalf("%s: %q, want via %q", a, answers[i], want)
		}
	}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func TestOverlappingListsLeadAsTheyWouldUnmerged(t *testing.T) {
	t.Parallel()
	h, router := smallHost(t)
	lines, lists := overlapping()
	writeFile(t, h, "profiles/one.zone", lists[0])
	writeFile(t, h, "profiles/two.zone", lists[1])
	writeProfile(t, h, "isp.toml", strings.Replace(smallProfile, "\n\n", "\nto = [\"@one.zone\"]\n\n", 1)+"to = [\"@two.zone\"]\n")
	apply(t, h, 0)
	written := strings.Count(ip(t, h, "-4", "route", "show", "table", "destinations")+ip(t, h, "-6", "route", "show", "table", "destinations"), " via ")
	if written >= len(lines) {
		t.Errorf("%d routes of %d lines: nothing was merged", written, len(lines))
	}
	leads(t, h, lines)
	// An uplink that is out takes its lines along, and uncovers the other's.
	run(t, router, "ip", "link", "set", "host2", "down")
	wait(t, func() error { return errWant("NO-CARRIER", ip(t, h, "link", "show", "dev", "em2")) })
	apply(t, h, 2)
	var rest []lineOf
	for _, l := range lines {
		if !strings.HasPrefix(l.via, "198.51.100.") && !strings.HasPrefix(l.via, "2001:db8:2:") {
			rest = append(rest, l)
		}
	}
	leads(t, h, rest)
	run(t, router, "ip", "link", "set", "host2", "up")
	wait(t, func() error { return errWant("LOWER_UP", ip(t, h, "link", "show", "dev", "em2")) })
	apply(t, h, 0)
	leads(t, h, lines)
}

func TestAChangedLineIsOneRoute(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	var list strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&list, "10.%d.%d.0/24\n", i/256, i%256)
	}
	writeFile(t, h, "profiles/cn.zone", list.String())
	writeProfile(t, h, "isp.toml", smallProfile+"to = [\"@cn.zone\"]\n")
	apply(t, h, 0)
	for _, c := range []struct{ what, text, want string }{
		{"another line", list.String() + "203.0.113.0/24\n", "+ route      203.0.113.0/24"},
		{"a line less", strings.Replace(list.String(), "10.3.7.0/24\n", "", 1) + "203.0.113.0/24\n", "- route      10.3.7.0/24"},
		{"a line that another one says", list.String() + "203.0.113.0/24\n203.0.113.64/26\n", "+ route      10.3.7.0/24"},
		{"a line twice", list.String() + "203.0.113.0/24\n203.0.113.0/24\n10.0.0.0/24\n", "nothing to do"},
	} {
		writeFile(t, h, "profiles/cn.zone", c.text)
		if out := strings.TrimSpace(apply(t, h, 0).stdout); !strings.HasPrefix(out, c.want) || strings.Contains(out, "\n") {
			t.Errorf("%s: sisod apply says\n%s\nwant %s", c.what, out, c.want)
		}
	}
}
