package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestListsCannotBeMerged: a program that merges prefixes must have as many to
// write as one that does not.
func TestListsCannotBeMerged(t *testing.T) {
	for name, list := range map[string][]netip.Prefix{"IPv4": list4(million), "IPv6": list6(100_000)} {
		all := map[netip.Prefix]bool{}
		for i, p := range list {
			if p != p.Masked() || !p.Addr().IsGlobalUnicast() || p.Addr().IsPrivate() {
				t.Fatalf("%s: %s is no prefix of the Internet", name, p)
			}
			if i > 0 && (list[i-1].Overlaps(p) || !list[i-1].Addr().Less(p.Addr())) {
				t.Fatalf("%s: %s follows %s", name, p, list[i-1])
			}
			all[p] = true
		}
		for p := range all {
			parent, err := p.Addr().Prefix(p.Bits() - 1)
			if err != nil {
				t.Fatal(err)
			}
			if q := other(parent, p); all[q] {
				t.Fatalf("%s: %s and %s are one", name, p, q)
			}
		}
		if slices.ContainsFunc(list, spare.Overlaps) {
			t.Errorf("%s has the spare prefix", name)
		}
	}
}

// other is the half of parent that p is not.
func other(parent, p netip.Prefix) netip.Prefix {
	if p.Addr() != parent.Addr() {
		return netip.PrefixFrom(parent.Addr(), p.Bits())
	}
	a := parent.Addr().AsSlice()
	a[parent.Bits()/8] |= 0x80 >> (parent.Bits() % 8)
	q, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(q, p.Bits())
}

func TestBatchFileHasALineAPrefix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	if err := writeLines(path, list4(3), "route add %s dev em1"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "route add 16.0.0.0/24 dev em1\nroute add 16.0.8.0/24 dev em1\nroute add 16.0.16.0/23 dev em1\n"; string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestServicesAreAsManyInEverySpelling(t *testing.T) {
	for _, n := range serviceCounts {
		lines := string(ipvsadmLines(n))
		if got := strings.Count(lines, "\n"); got != n*(1+realServers) {
			t.Errorf("%d services: %d lines for ipvsadm", n, got)
		}
		seen := map[string]bool{}
		for line := range strings.Lines(lines) {
			if seen[line] {
				t.Fatalf("%d services: twice %s", n, line)
			}
			seen[line] = true
		}
		if got := strings.Count(keepalivedLines(n), "real_server "); got != n*realServers {
			t.Errorf("%d services: %d real servers for keepalived", n, got)
		}
		if got := strings.Count(directors(n, 1), "\"tcp/"); got != n {
			t.Errorf("%d services: %d in the profile", n, got)
		}
	}
}
