// Package prefix holds sets of prefixes, a million of them if need be: sorted,
// compact, and never changed, so that one copy serves whoever wants it.
//
// It knows netip alone. What a prefix is for is others' business.
package prefix

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
)

// Set is an immutable set of prefixes, IPv4 before IPv6, each by its address
// and then by its length. The zero value is the empty set. Sets share memory:
// what an operation leaves as it was is not copied.
type Set struct {
	v4 []narrow
	v6 []wide
}

// narrow is an IPv4 prefix, address<<8 | length: a quarter of a netip.Prefix,
// and in the order of the set.
type narrow uint64

// wide is an IPv6 prefix.
type wide struct {
	hi, lo uint64
	bits   uint8
}

func pack4(p netip.Prefix) narrow {
	a := p.Addr().As4()
	return narrow(binary.BigEndian.Uint32(a[:]))<<8 | narrow(p.Bits())
}

func (n narrow) prefix() netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(n>>8))
	return netip.PrefixFrom(netip.AddrFrom4(a), int(n&0xff))
}

func pack6(p netip.Prefix) wide {
	a := p.Addr().As16()
	return wide{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), uint8(p.Bits())}
}

func (w wide) prefix() netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], w.hi)
	binary.BigEndian.PutUint64(a[8:], w.lo)
	return netip.PrefixFrom(netip.AddrFrom16(a), int(w.bits))
}

func compare4(a, b narrow) int { return cmp.Compare(a, b) }

func compare6(a, b wide) int {
	if a.hi != b.hi {
		return cmp.Compare(a.hi, b.hi)
	}
	if a.lo != b.lo {
		return cmp.Compare(a.lo, b.lo)
	}
	return cmp.Compare(a.bits, b.bits)
}

// Of is the set of some prefixes, in any order. One that is not valid is in no set.
func Of(prefixes ...netip.Prefix) Set {
	var b Builder
	for _, p := range prefixes {
		b.Add(p)
	}
	return b.Set()
}

// Len is the number of prefixes.
func (s Set) Len() int { return len(s.v4) + len(s.v6) }

// IPv4 are the IPv4 prefixes of the set.
func (s Set) IPv4() Set { return Set{v4: s.v4} }

// IPv6 are the IPv6 prefixes of the set.
func (s Set) IPv6() Set { return Set{v6: s.v6} }

// At is the prefix at a place, counted from 0.
func (s Set) At(i int) netip.Prefix {
	if i < len(s.v4) {
		return s.v4[i].prefix()
	}
	return s.v6[i-len(s.v4)].prefix()
}

// First is the set of the first n prefixes.
func (s Set) First(n int) Set {
	n4 := min(n, len(s.v4))
	return Set{s.v4[:n4:n4], s.v6[: n-n4 : n-n4]}
}

// All lists the prefixes in their order.
func (s Set) All() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for i := range s.Len() {
			if !yield(s.At(i)) {
				return
			}
		}
	}
}

// Index is the place of a prefix, and whether it is in the set.
func (s Set) Index(p netip.Prefix) (int, bool) {
	switch {
	case !p.IsValid():
		return 0, false
	case p.Addr().Is4():
		return slices.BinarySearch(s.v4, pack4(p))
	}
	i, found := slices.BinarySearchFunc(s.v6, pack6(p), compare6)
	return len(s.v4) + i, found
}

// Has reports whether a prefix is in the set: itself, not one around it.
func (s Set) Has(p netip.Prefix) bool {
	_, found := s.Index(p)
	return found
}

// Equal reports whether two sets hold the same prefixes.
func (s Set) Equal(o Set) bool {
	return (same(s.v4, o.v4) || slices.Equal(s.v4, o.v4)) && (same(s.v6, o.v6) || slices.Equal(s.v6, o.v6))
}

// Union is the set of the prefixes of both.
func (s Set) Union(o Set) Set {
	return Set{union(s.v4, o.v4, compare4), union(s.v6, o.v6, compare6)}
}

// Without is the set without the prefixes of another one.
func (s Set) Without(o Set) Set {
	return Set{subtract(s.v4, o.v4, compare4), subtract(s.v6, o.v6, compare6)}
}

// Common is the set of the prefixes that are in both.
func (s Set) Common(o Set) Set {
	return Set{intersect(s.v4, o.v4, compare4), intersect(s.v6, o.v6, compare6)}
}

// String lists the prefixes as netip spells them.
func (s Set) String() string {
	b := []byte{'['}
	for p := range s.All() {
		if len(b) > 1 {
			b = append(b, ' ')
		}
		b = p.AppendTo(b)
	}
	return string(append(b, ']'))
}

// same reports whether two sorted lists are one and the same memory.
func same[E any](a, b []E) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func union[E comparable](a, b []E, compare func(E, E) int) []E {
	if len(a) < len(b) {
		a, b = b, a
	}
	missing := subtract(b, a, compare)
	if len(missing) == 0 {
		return a
	}
	out := make([]E, 0, len(a)+len(missing))
	for _, x := range missing {
		i := place(a, x, compare)
		out = append(out, a[:i]...)
		out = append(out, x)
		a = a[i:]
	}
	return append(out, a...)
}

// subtract returns the members of a that are not in b, or a itself when that is all.
func subtract[E comparable](a, b []E, compare func(E, E) int) []E {
	if len(a) == 0 || same(a, b) {
		return nil
	}
	n := 0
	each(a, b, compare, func(run []E) { n += len(run) }, nil)
	switch n {
	case 0:
		return nil
	case len(a):
		return a
	}
	out := make([]E, 0, n)
	each(a, b, compare, func(run []E) { out = append(out, run...) }, nil)
	return out
}

// intersect returns the members of a that are in b.
func intersect[E comparable](a, b []E, compare func(E, E) int) []E {
	if same(a, b) {
		return a
	}
	if len(a) > len(b) {
		a, b = b, a
	}
	var out []E
	each(a, b, compare, nil, func(x E) { out = append(out, x) })
	return out
}

// each walks sorted a beside sorted b and tells the runs of a that are not in
// b, and the members that are. Where they differ it leaps: a short list costs
// little beside a long one.
func each[E comparable](a, b []E, compare func(E, E) int, alone func(run []E), both func(E)) {
	for len(a) > 0 {
		if len(b) == 0 {
			if alone != nil {
				alone(a)
			}
			return
		}
		if a[0] == b[0] {
			if both != nil {
				both(a[0])
			}
			a, b = a[1:], b[1:]
			continue
		}
		if compare(a[0], b[0]) > 0 {
			b = b[place(b, a[0], compare):]
			continue
		}
		i := place(a, b[0], compare)
		if alone != nil {
			alone(a[:i])
		}
		a = a[i:]
	}
}

// place is where x belongs in sorted a, looked for from the beginning: its cost
// follows the distance.
func place[E any](a []E, x E, compare func(E, E) int) int {
	reach := 1
	for reach < len(a) && compare(a[reach], x) < 0 {
		reach *= 2
	}
	from := reach / 2
	i, _ := slices.BinarySearchFunc(a[from:min(reach+1, len(a))], x, compare)
	return from + i
}
