package prefix

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"unsafe"
)

// few makes prefixes of a small world, so that sets have much in common.
func few(r *rand.Rand, n int) []netip.Prefix {
	list := make([]netip.Prefix, n)
	for i := range list {
		a, bits := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)) << 6, 0}), 8+r.IntN(25)
		if r.IntN(3) == 0 {
			a, bits = netip.AddrFrom16([16]byte{0x20, 1, byte(r.IntN(2)), 7: byte(r.IntN(2)), 8: byte(r.IntN(2)), 15: byte(r.IntN(2))}), 1+r.IntN(128)
		}
		list[i], _ = a.Prefix(bits)
	}
	return list
}

// model is a set as the map that anyone would take.
type model map[netip.Prefix]bool

func modelOf(list []netip.Prefix) model {
	m := model{}
	for _, p := range list {
		m[p] = true
	}
	return m
}

func (m model) minus(o model, in bool) model {
	out := maps.Clone(m)
	maps.DeleteFunc(out, func(p netip.Prefix, _ bool) bool { return o[p] != in })
	return out
}

func (m model) check(t *testing.T, what string, s Set) {
	t.Helper()
	want := slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
	if got := slices.Collect(s.All()); !slices.Equal(got, want) {
		t.Fatalf("%s is %v, want %v", what, got, want)
	}
}

func TestSetsAreWhatTheModelSays(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 3000 {
		x, y := few(r, r.IntN(60)), few(r, r.IntN(60))
		a, b := Of(x...), Of(y...)
		m, n := modelOf(x), modelOf(y)
		m.check(t, "a", a)
		m.minus(n, false).check(t, "a without b", a.Without(b))
		m.minus(n, true).check(t, "what a and b have in common", a.Common(b))
		both := maps.Clone(m)
		maps.Copy(both, n)
		both.check(t, "the union", a.Union(b))
		// What others hold has not changed below them.
		m.check(t, "a afterwards", a)
		n.check(t, "b afterwards", b)
		if a.Equal(b) != maps.Equal(m, n) || !a.Equal(Of(slices.Concat(x, x)...)) {
			t.Fatalf("%v and %v compare wrongly", a, b)
		}
		for i, p := range slices.Collect(a.All()) {
			if at, found := a.Index(p); !found || at != i || a.At(i) != p {
				t.Fatalf("%s of %v is found at %d", p, a, at)
			}
		}
		for _, p := range y {
			if a.Has(p) != m[p] {
				t.Fatalf("%v has %s: %t", a, p, a.Has(p))
			}
		}
	}
}

func TestListsThatAreSortedAlmostAreSorted(t *testing.T) {
	var b Builder
	b.Grow(9)
	m := model{}
	// As the kernel lists them: by address, the longest first.
	for i := range 300 {
		for bits := 32; bits >= 24; bits-- {
			p, _ := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).Prefix(bits)
			m[p] = true
			b.Add(p)
			b.Add(p)
		}
		if i == 10 {
			b.Grow(2.5)
			b.Grow(0.5)
		}
	}
	m.check(t, "the set", b.Set())
	if s := b.Set(); s.Len() != 0 {
		t.Errorf("the builder still holds %v", s)
	}
}

func TestAnInvalidPrefixIsInNoSet(t *testing.T) {
	bad := netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), 33)
	if s := Of(bad, netip.Prefix{}); s.Len() != 0 || s.Has(bad) {
		t.Errorf("the set is %v", s)
	}
}

func TestWhatStaysAsItWasIsNotCopied(t *testing.T) {
	a, other := Of(few(rand.New(rand.NewPCG(2, 2)), 50)...), Of(netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fd00::/8"))
	for what, s := range map[string]Set{
		"union with nothing": a.Union(Set{}), "union with a part": a.Union(a.IPv4()), "without nothing": a.Without(Set{}),
		"without others": a.Without(other), "common with itself": a.Common(a),
	} {
		if unsafe.SliceData(s.v4) != unsafe.SliceData(a.v4) || unsafe.SliceData(s.v6) != unsafe.SliceData(a.v6) {
			t.Errorf("%s copies", what)
		}
	}
}

func FuzzPrefixesComeBack(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0}, 8)
	f.Add([]byte{0x20, 1, 0xd, 0xb8, 15: 1}, 128)
	f.Fuzz(func(t *testing.T, address []byte, bits int) {
		a, _ := netip.AddrFromSlice(address)
		p := netip.PrefixFrom(a, bits)
		s := Of(p)
		if p.IsValid() != (s.Len() == 1) || p.IsValid() && (s.At(0) != p || !s.Has(p)) {
			t.Errorf("%s came back as %v", p, s)
		}
	})
}
