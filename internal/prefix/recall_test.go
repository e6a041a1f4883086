package prefix

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestWhatIsExpectedIsRecalled(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 3000 {
		expected := Of(few(r, r.IntN(150))...)
		come := slices.Collect(expected.All())
		for range r.IntN(3) {
			if len(come) > 0 {
				come = slices.Delete(come, 0, r.IntN(len(come)))
			}
			come = append(come, few(r, r.IntN(4))...)
		}
		if r.IntN(2) == 0 {
			r.Shuffle(len(come), func(i, j int) { come[i], come[j] = come[j], come[i] })
		}
		recall := Expect(expected)
		for _, p := range append(come, come[:len(come)/3]...) {
			recall.Add(p)
		}
		modelOf(come).check(t, "what came", recall.Set())
	}
}

func TestWhatComesAsExpectedIsNotCopied(t *testing.T) {
	expected := Of(few(rand.New(rand.NewPCG(8, 8)), 200)...)
	recall := Expect(expected)
	for i := range expected.Len() {
		recall.Add(expected.At(expected.Len() - 1 - i))
	}
	if got := recall.Set(); !same(got.v4, expected.v4) || !same(got.v6, expected.v6) {
		t.Error("it is a copy")
	}
}
