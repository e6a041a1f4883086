package prefix

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Each round lies evenly between what was listed before, and all prefixes come once.
func TestRoundsListEachPrefixOnceAndEvenly(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	for range 500 {
		s := Of(few(r, r.IntN(70))...)
		all := slices.Collect(s.Rounds())
		modelOf(all).check(t, "what the rounds list", s)
		if len(all) != s.Len() {
			t.Fatalf("%d prefixes are listed, the set has %d", len(all), s.Len())
		}
		for n := range all {
			modelOf(all[:n]).check(t, "the first of the rounds", s.FirstOfRounds(n))
		}
		for n := 2; n < len(all); n *= 2 {
			widest, before := 0, 0
			for p := range s.FirstOfRounds(n).All() {
				i, _ := s.Index(p)
				widest, before = max(widest, i-before), i
			}
			if most := 2 * len(all) / n; widest > most {
				t.Fatalf("after %d of %d, %d stand beside each other that have not come, want %d at most", n, len(all), widest, most)
			}
		}
	}
}
