package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about what rules cost each packet.
const (
	lookups          = "one lookup from an address of the uplinks'"
	applyAddresses   = "first apply of addresses"
	rulesOfAddresses = "rules of IPv4 for addresses, the kernel's three included"
	// mixed is behind them when both uplinks' addresses lie in one network.
	mixed = ", both uplinks' mixed at random"
)

// Ways to the same decision, beside sisod's.
const (
	noRules  = "no rules"
	eachRule = "a rule an address"
)

var addressCounts = []int{10, 100, 1_000, 10_000}

const (
	// perLookup is how many lookups a time is of, from as many addresses.
	perLookup        = 100_000
	sampledAddresses = 50
)

// lookup gives the uplinks addresses, half of them each, and lets the kernel look
// for the ways of datagrams from some of them: on a host as it is, on one with a
// rule an address as one writes them by hand, and on one with sisod's.
func (b *bench) lookup() error {
	for _, l := range []struct {
		suffix    string
		addresses func(n int) [2][]netip.Prefix
	}{{"", uplinkAddresses}, {mixed, mixedAddresses}} {
		for _, n := range addressCounts {
			b.log.Printf("lookups with %d addresses%s", n, l.suffix)
			err := b.onSite(func(bare *site) error {
				return b.onSite(func(byHand *site) error {
					return b.onSite(func(own *site) error { return b.lookupWith(n, l.suffix, l.addresses(n), bare, byHand, own) })
				})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// uplinkAddresses are n addresses, in turn of em1 and of em2, with gaps as hosts
// have them, each uplink's in a range of its own. They leave those of the site alone.
func uplinkAddresses(n int) (list [2][]netip.Prefix) {
	for i := range n {
		k := (i/2)*3 + 256
		a := netip.AddrFrom4([4]byte{10, byte(1 + i%2), byte(k >> 8), byte(k)})
		list[i%2] = append(list[i%2], netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

// mixedAddresses are those of a host where no rule can stand for many: at random one
// uplink's or the other's, in one range.
func mixedAddresses(n int) (list [2][]netip.Prefix) {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range n {
		k := i*3 + 256
		a := netip.AddrFrom4([4]byte{10, 3, byte(k >> 8), byte(k)})
		one := r.IntN(2)
		list[one] = append(list[one], netip.PrefixFrom(a, a.BitLen()))
	}
	return list
}

func (b *bench) lookupWith(n int, suffix string, both [2][]netip.Prefix, bare, byHand, own *site) error {
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
	b.took(key{applyAddresses + suffix, n, b.where, ours}, took)
	rules, err := b.lines(own.host, "-4", "rule")
	if err != nil {
		return err
	}
	b.report.add(key{rulesOfAddresses + suffix, n, b.where, ours}, count, float64(rules))
	some := evenly(slices.Concat(both[0], both[1]), sampledAddresses)
	for range b.runs {
		for program, s := range map[string]*site{noRules: bare, eachRule: byHand, ours: own} {
			took, err := timeLookups(s.host, some)
			if err != nil {
				return err
			}
			b.took(key{lookups + suffix, n, b.where, program}, took)
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

// evenly are n of a list, or all if there are no more, that lie evenly in it.
func evenly(list []netip.Prefix, n int) []netip.Prefix {
	if len(list) <= n {
		return list
	}
	some := make([]netip.Prefix, n)
	for i := range some {
		some[i] = list[i*(len(list)-1)/(n-1)]
	}
	return some
}

// timeLookups is the mean time of a lookup from the addresses: connecting a datagram
// socket that has its own address is little else.
func timeLookups(h *lab.Host, from []netip.Prefix) (took time.Duration, err error) {
	for _, p := range from {
		one, err := timeLookup(h, p.Addr(), perLookup/len(from), time.Second/time.Duration(len(from)))
		if err != nil {
			return 0, err
		}
		took += one / time.Duration(len(from))
	}
	return took, nil
}

// timeLookup is the time of one of n lookups, or of as many as the limit lets be.
func timeLookup(h *lab.Host, from netip.Addr, most int, limit time.Duration) (took time.Duration, err error) {
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
		for ; n < most && (n == 0 || time.Since(start) < limit); n++ {
			if err := unix.Connect(fd, to); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
		}
		took = time.Since(start) / time.Duration(n)
		return nil
	})
	return took, err
}
