package prefix

import (
	"net/netip"
	"slices"
)

// Within is the set of the prefixes that lie in p, p itself among them.
func (s Set) Within(p netip.Prefix) Set {
	if !p.IsValid() {
		return Set{}
	}
	if p.Addr().Is4() {
		return Set{v4: within(s.v4, pack4(p), compare4, narrow.around)}
	}
	return Set{v6: within(s.v6, pack6(p), compare6, wide.around)}
}

// within is a part of a: what lies in p stands together, behind p.
func within[E any](a []E, p E, compare func(E, E) int, around func(E, E) bool) []E {
	from, _ := slices.BinarySearchFunc(a, p, compare)
	a = a[from:]
	n, _ := slices.BinarySearchFunc(a, p, func(x, p E) int {
		if around(p, x) {
			return -1
		}
		return 1
	})
	return a[:n:n]
}

// around reports whether o lies in n, or is n. Both are masked.
func (n narrow) around(o narrow) bool {
	return n&0xff <= o&0xff && (n^o)>>8>>(32-n&0xff) == 0
}

func (w wide) around(o wide) bool {
	switch {
	case w.bits > o.bits:
		return false
	case w.bits > 64:
		return w.hi == o.hi && (w.lo^o.lo)>>(128-w.bits) == 0
	}
	return (w.hi^o.hi)>>(64-w.bits) == 0
}

func (n narrow) length() int { return int(n & 0xff) }
func (w wide) length() int   { return int(w.bits) }

// Thin leaves out of each set what is superfluous where the longest prefix wins
// and all prefixes of one set lead the same way: a prefix whose closest one
// around it, among those of all sets, is of its own set. That one is looked for
// no further than reach bits up, so that what one prefix makes superfluous is
// no more than 2^(reach+1)-2 others. No prefix may be in two of the sets.
func Thin(sets []Set, reach int) []Set {
	v4, v6 := make([][]narrow, len(sets)), make([][]wide, len(sets))
	for i, s := range sets {
		v4[i], v6[i] = s.v4, s.v6
	}
	v4 = thin(v4, reach, compare4, narrow.around, narrow.length)
	v6 = thin(v6, reach, compare6, wide.around, wide.length)
	out := make([]Set, len(sets))
	for i := range sets {
		out[i] = Set{v4[i], v6[i]}
	}
	return out
}

// cover is a prefix around those that come next, and the list that it is of.
type cover[E any] struct {
	prefix E
	list   int
}

func thin[E comparable](lists [][]E, reach int, compare func(E, E) int, around func(E, E) bool, length func(E) int) [][]E {
	out := slices.Clone(lists)
	next := make([]int, len(lists)) // of each list
	less := make([]bool, len(lists))
	var covers []cover[E] // the widest first
	for {
		list := -1
		for i, l := range lists {
			if next[i] < len(l) && (list < 0 || compare(l[next[i]], lists[list][next[list]]) < 0) {
				list = i
			}
		}
		if list < 0 {
			break
		}
		at := next[list]
		next[list]++
		p := lists[list][at]
		for len(covers) > 0 && !around(covers[len(covers)-1].prefix, p) {
			covers = covers[:len(covers)-1]
		}
		drop := false
		if n := len(covers); n > 0 {
			c := covers[n-1]
			drop = c.list == list && length(p)-length(c.prefix) <= reach
		}
		covers = append(covers, cover[E]{p, list})
		switch {
		case !drop && less[list]:
			out[list] = append(out[list], p)
		case drop && !less[list]:
			less[list] = true
			out[list] = append(make([]E, 0, len(out[list])-1), out[list][:at]...)
		}
	}
	for i, l := range out {
		if less[i] && cap(l)-len(l) > len(l)/8 {
			out[i] = append(make([]E, 0, len(l)), l...)
		}
	}
	return out
}
