package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about what rules cost each packet.
const (
	lookups          = "one lookup from an address of the uplinks'"
	applyAddresses   = "first apply of addresses"
	rulesOfAddresses = "rules of IPv4 for addresses, the kernel's three included"
)

// Ways to the same decision, beside sisod's.
const (
	noRules  = "no rules"
	eachRule = "a rule an address"
)

var addressCounts = []int{10, 100, 1_000, 10_000}

// perLookup is how many lookups a time is of.
const perLookup = 100_000

// lookup gives the uplinks addresses, half of them each, and lets the kernel look
// for the way of a datagram from the last one: on a host as it is, on one with a
// rule an address as one writes them by hand, and on one with sisod's.
func (b *bench) lookup() error {
	for _, n := range addressCounts {
		b.log.Printf("lookups with %d addresses", n)
		err := b.onSite(func(bare *site) error {
			return b.onSite(func(byHand *site) error {
				return b.onSite(func(own *site) error { return b.lookupWith(n, bare, byHand, own) })
			})
		})
		if err != nil {
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

func (b *bench) lookupWith(n int, bare, byHand, own *site) error {
	both := uplinkAddresses(n)
	for _, s := range []*site{bare, byHand, own} {
		if err := s.batches(both, "address add %%s dev em%[1]d"); err != nil {
			return err
		}
	}
	for i := 1; i <= 2; i++ {
		if _, err := b.must(byHand.host, "ip", "route", "add", "default", "via", fmt.Sprintf("10.%d.0.1", i), "table", fmt.Sprint(200+i)); err != nil {
			return err
		}
	}
	if err := byHand.batches(both, "rule add from %%s lookup 20%[1]d priority 100%[1]d"); err != nil {
		return err
	}
	if err := configure(own.host, two("")); err != nil {
		return err
	}
	took, err := b.must(own.host, b.sisod, "apply")
	if err != nil {
		return err
	}
	b.took(key{applyAddresses, n, b.where, ours}, took)
	rules, err := b.lines(own.host, "-4", "rule")
	if err != nil {
		return err
	}
	b.report.add(key{rulesOfAddresses, n, b.where, ours}, count, float64(rules))
	last := both[(n-1)%2]
	for range b.runs {
		for program, s := range map[string]*site{noRules: bare, eachRule: byHand, ours: own} {
			took, err := timeLookups(s.host, last[len(last)-1].Addr())
			if err != nil {
				return err
			}
			b.took(key{lookups, n, b.where, program}, took)
		}
	}
	return nil
}

// batches lets ip read a line for each address; format has the uplink's number.
func (s *site) batches(both [2][]netip.Prefix, format string) error {
	for i, list := range both {
		file := filepath.Join(s.dir, "batch")
		if err := writeLines(file, list, fmt.Sprintf(format, i+1)); err != nil {
			return err
		}
		if _, err := s.must(s.host, "ip", "-batch", file); err != nil {
			return err
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
