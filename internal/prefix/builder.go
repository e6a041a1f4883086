package prefix

import (
	"net/netip"
	"slices"
)

// Builder gathers prefixes for a set, in any order and with repetitions. The
// zero value is ready for use.
type Builder struct {
	v4 gathered[narrow]
	v6 gathered[wide]
}

// gathered are prefixes of one family.
type gathered[E comparable] struct {
	list     []E
	unsorted bool
}

// near is how far back a prefix that comes too late is put into its place. The
// kernel lists IPv4 networks of one address by their length, the longest first.
const near = 32

func (g *gathered[E]) add(x E, compare func(E, E) int) {
	n := len(g.list)
	g.list = append(g.list, x)
	if g.unsorted || n == 0 {
		return
	}
	at := n
	for at > 0 && compare(g.list[at-1], x) >= 0 {
		if at--; n-at > near {
			g.unsorted = true
			return
		}
	}
	switch {
	case at == n:
	case g.list[at] == x:
		g.list = g.list[:n]
	default:
		copy(g.list[at+1:], g.list[at:n])
		g.list[at] = x
	}
}

func (g *gathered[E]) set(sort func([]E)) []E {
	list := g.list
	if g.unsorted {
		sort(list)
		list = slices.Compact(list)
	}
	*g = gathered[E]{}
	if cap(list)-len(list) > len(list)/8 {
		// A set may be kept for as long as the program runs.
		return append(make([]E, 0, len(list)), list...)
	}
	return slices.Clip(list)
}

// Add takes a prefix. One that is not valid is left out.
func (b *Builder) Add(p netip.Prefix) {
	switch {
	case !p.IsValid():
	case p.Addr().Is4():
		b.v4.add(pack4(p), compare4)
	default:
		b.v6.add(pack6(p), compare6)
	}
}

// AddIPv4 takes an IPv4 prefix by its address, in the order of the host, and its
// length.
func (b *Builder) AddIPv4(address uint32, bits uint8) {
	b.v4.add(narrow(address)<<8|narrow(bits), compare4)
}

// Grow makes room for a number of times as many prefixes as have been taken.
func (b *Builder) Grow(times float64) {
	b.v4.list = slices.Grow(b.v4.list, int(float64(len(b.v4.list))*max(0, times-1)))
	b.v6.list = slices.Grow(b.v6.list, int(float64(len(b.v6.list))*max(0, times-1)))
}

// Len is the number of prefixes that were taken, with what is double among them.
func (b *Builder) Len() int { return len(b.v4.list) + len(b.v6.list) }

// Set is the set of all that was added. The builder is empty again.
func (b *Builder) Set() Set {
	return Set{
		b.v4.set(func(l []narrow) { slices.Sort(l) }),
		b.v6.set(func(l []wide) { slices.SortFunc(l, compare6) }),
	}
}
