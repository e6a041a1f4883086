package prefix

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// longest is the index of the list whose prefix is the longest around p, and
// that prefix: what a routing table does, done the slow way. p itself counts
// only when it may.
func longest(lists []Set, p netip.Prefix, itself bool) (int, netip.Prefix) {
	list, best := -1, netip.Prefix{}
	for i, l := range lists {
		for q := range l.All() {
			if q.Overlaps(p) && q.Bits() <= p.Bits() && (itself || q != p) && (list < 0 || q.Bits() > best.Bits()) {
				list, best = i, q
			}
		}
	}
	return list, best
}

// apart takes from each set what is in one before it.
func apart(sets []Set) []Set {
	var all Set
	for i := range sets {
		sets[i] = sets[i].Without(all)
		all = all.Union(sets[i])
	}
	return sets
}

func TestThinnedListsLeadTheSameWay(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	left := 0
	for range 500 {
		lists := make([]Set, 1+r.IntN(3))
		for i := range lists {
			lists[i] = Of(few(r, r.IntN(40))...)
		}
		lists = apart(lists)
		reach := r.IntN(33)
		thinned := Thin(lists, reach)
		for i, l := range lists {
			if gone := thinned[i].Without(l); gone.Len() > 0 {
				t.Fatalf("%v has become %v", l, thinned[i])
			}
			for p := range l.All() {
				// A prefix leads where it led, whichever lists are there.
				for without := range lists {
					some, thin := append([]Set(nil), lists...), append([]Set(nil), thinned...)
					if without != i {
						some[without], thin[without] = Set{}, Set{}
					}
					was, _ := longest(some, p, true)
					if is, _ := longest(thin, p, true); is != was {
						t.Fatalf("%s of %v leads to %d, not %d: %v", p, lists, is, was, thinned)
					}
				}
				// What is superfluous within reach is left out, and nothing else.
				owner, around := longest(lists, p, false)
				superfluous := owner == i && p.Bits()-around.Bits() <= reach
				if thinned[i].Has(p) == superfluous {
					t.Fatalf("%s of %v, reach %d: %v", p, lists, reach, thinned)
				}
				if superfluous {
					left++
				}
			}
		}
	}
	if left == 0 {
		t.Error("nothing was ever left out: the test shows nothing")
	}
}

// One line of a list changes no more than it may.
func TestThinningHasABoundedEffect(t *testing.T) {
	var b Builder
	for i := range 1 << 16 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		b.Add(netip.PrefixFrom(a, 24))
		wider, _ := a.Prefix(16 + i%8)
		b.Add(wider)
	}
	s := b.Set()
	for bits := 8; bits < 24; bits++ {
		p, _ := netip.MustParseAddr("10.77.3.0").Prefix(bits)
		with, without := Thin([]Set{s.Union(Of(p))}, 8)[0], Thin([]Set{s.Without(Of(p))}, 8)[0]
		if n := with.Without(without).Len() + without.Without(with).Len(); n > 511 {
			t.Errorf("%s changes %d routes", p, n)
		}
	}
}

func TestNothingToThinIsNotCopied(t *testing.T) {
	s := Of(netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00::/8"))
	if got := Thin([]Set{s}, 8)[0]; !same(got.v4, s.v4) || !same(got.v6, s.v6) {
		t.Error("it is a copy")
	}
}

func TestWhatLiesWithinAPrefixStandsTogether(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 3000 {
		s, p := Of(few(r, 60)...), few(r, 1)[0]
		m := model{}
		for q := range s.All() {
			if q.Overlaps(p) && q.Bits() >= p.Bits() {
				m[q] = true
			}
		}
		m.check(t, "within "+p.String()+" of "+s.String(), s.Within(p))
	}
}
