package prefix

import (
	"math/bits"
	"net/netip"
)

// Recall gathers prefixes as a Builder does, where most are expected: those of a
// set that is there already. When all of them come and no others, that set is
// the result, and nothing was copied. The zero value expects none.
type Recall struct {
	expected Set
	seen     []uint64 // a bit for each of expected
	count    int
	next     int // the place of the one that comes next if they come in order
	rest     Builder
}

// Expect begins to gather what may be s.
func Expect(s Set) *Recall { return &Recall{expected: s, seen: make([]uint64, (s.Len()+63)/64)} }

// Add takes a prefix. One that is not valid is left out.
func (r *Recall) Add(p netip.Prefix) {
	i, found := r.next, r.next < r.expected.Len() && r.expected.At(r.next) == p
	if !found {
		i, found = r.expected.Index(p)
	}
	if !found {
		r.rest.Add(p)
		return
	}
	r.next = i + 1
	if mask := uint64(1) << (i % 64); r.seen[i/64]&mask == 0 {
		r.seen[i/64] |= mask
		r.count++
	}
}

// Set is the set of all that was added. Nothing may be added after it.
func (r *Recall) Set() Set {
	if r.count == r.expected.Len() {
		return r.expected.Union(r.rest.Set())
	}
	var some Set
	if n := r.countUpTo(len(r.expected.v4)); n > 0 {
		some.v4 = make([]narrow, 0, n)
	}
	if n := r.count - cap(some.v4); n > 0 {
		some.v6 = make([]wide, 0, n)
	}
	for w, word := range r.seen {
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			if i < len(r.expected.v4) {
				some.v4 = append(some.v4, r.expected.v4[i])
			} else {
				some.v6 = append(some.v6, r.expected.v6[i-len(r.expected.v4)])
			}
		}
	}
	return some.Union(r.rest.Set())
}

// countUpTo is how many of the first n of expected have come.
func (r *Recall) countUpTo(n int) int {
	count := 0
	for _, word := range r.seen[:n/64] {
		count += bits.OnesCount64(word)
	}
	if n%64 > 0 {
		count += bits.OnesCount64(r.seen[n/64] & (1<<(n%64) - 1))
	}
	return count
}
