package prefix

import (
	"iter"
	"math/bits"
	"net/netip"
)

// Rounds lists the prefixes of the set in rounds: the first one, and then in each
// round one between every two that have been listed.
func (s Set) Rounds() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if s.Len() == 0 || !yield(s.At(0)) {
			return
		}
		for step := 1 << bits.Len(uint(s.Len()-1)); step > 1; step /= 2 {
			for i := step / 2; i < s.Len(); i += step {
				if !yield(s.At(i)) {
					return
				}
			}
		}
	}
}

// FirstOfRounds is the set of the n prefixes that Rounds lists first.
func (s Set) FirstOfRounds(n int) Set {
	if n >= s.Len() {
		return s
	}
	var b Builder
	for p := range s.Rounds() {
		if n--; n < 0 {
			break
		}
		b.Add(p)
	}
	return b.Set()
}
