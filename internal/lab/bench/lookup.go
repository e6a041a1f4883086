package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// lookups is the work of the rows about what rules cost each packet.
const lookups = "one lookup from an address of the uplinks'"

// Ways to the same decision, beside sisod's.
const (
	noRules  = "no rules"
	eachRule = "a rule an address"
)

var addressCounts = []int{10, 100, 1_000, 10_000}

// perLookup is how many lookups a time is of.
const perLookup = 100_000

// lookup gives the uplinks addresses, half of them each, and lets the kernel look
// for the way of a datagram from the last one: as the host is, with a rule an
// address as one writes them by hand, and with sisod's.
func (b *bench) lookup() error {
	for _, n := range addressCounts {
		b.log.Printf("lookups with %d addresses", n)
		if err := b.onSite(func(s *site) error { return s.lookupWith(n) }); err != nil {
			return err
		}
	}
	return nil
}

// uplinkAddresses are n addresses, in turn of em1 and of em2, with gaps as hosts
// have them. They leave those of the site alone.
func uplinkAddresses(n int) (list [2][]netip.Prefix) {
	for i := range n {
		k := (i/2)*3 + 256
		a := netip.AddrFrom4([4]byte{10, byte(1 + i%2), byte(k >> 8), byte(k)})
		list[i%2] = append(list[i%2], netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

func (s *site) lookupWith(n int) error {
	both := uplinkAddresses(n)
	for i, list := range both {
		file := filepath.Join(s.dir, "addresses")
		if err := writeLines(file, list, fmt.Sprintf("address add %%s dev em%d", i+1)); err != nil {
			return err
		}
		if _, err := s.must(s.host, "ip", "-batch", file); err != nil {
			return err
		}
	}
	last := both[(n-1)%2][len(both[(n-1)%2])-1].Addr()
	measure := func(program string) error {
		k := key{lookups, n, s.where, program}
		for range s.runs {
			took, err := timeLookups(s.host, last)
			if err != nil {
				return err
			}
			s.took(k, took)
		}
		return nil
	}
	// Not in turns: that would be adding and removing the rules each time.
	if err := measure(noRules); err != nil {
		return err
	}
	if err := s.eachRule(both, "add"); err != nil {
		return err
	}
	if err := measure(eachRule); err != nil {
		return err
	}
	if err := s.eachRule(both, "del"); err != nil {
		return err
	}
	if err := configure(s.host, two("")); err != nil {
		return err
	}
	took, err := s.must(s.host, s.sisod, "apply")
	if err != nil {
		return err
	}
	s.took(key{"first apply of addresses", n, s.where, ours}, took)
	rules, err := s.lines(s.host, "-4", "rule")
	if err != nil {
		return err
	}
	s.report.add(key{"rules of IPv4 for the addresses, the kernel's three included", n, s.where, ours}, count, float64(rules))
	return measure(ours)
}

// eachRule adds or deletes a rule for every address, with tables as they would be.
func (s *site) eachRule(both [2][]netip.Prefix, do string) error {
	for i, list := range both {
		file := filepath.Join(s.dir, "rules")
		if err := writeLines(file, list, fmt.Sprintf("rule %s from %%s lookup %d priority %d", do, 201+i, 1001+i)); err != nil {
			return err
		}
		if _, err := s.must(s.host, "ip", "-batch", file); err != nil {
			return err
		}
		if do == "add" {
			if _, err := s.must(s.host, "ip", "route", "replace", "default", "via", fmt.Sprintf("10.%d.0.1", i+1), "table", fmt.Sprint(201+i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// timeLookups is the time of one lookup: connecting a datagram socket that has
// its own address is little else.
func timeLookups(h *lab.Host, from netip.Addr) (took time.Duration, err error) {
	err = h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
			return fmt.Errorf("bind to %s: %w", from, err)
		}
		to := &unix.SockaddrInet4{Port: 9, Addr: netip.MustParseAddr("198.51.100.7").As4()}
		n := 0
		start := time.Now()
		// Ten thousand rules make a lookup a hundred times longer.
		for ; n < perLookup && time.Since(start) < time.Second; n++ {
			if err := unix.Connect(fd, to); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
		}
		took = time.Since(start) / time.Duration(n)
		return nil
	})
	return took, err
}
