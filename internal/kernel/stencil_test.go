package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// bodies are messages about the spelled routes.
func bodies(f *testing.F) (list [][]byte) {
	f.Helper()
	for _, family := range state.Families {
		for _, s := range spelledRoutes(family) {
			body, err := appendRoute(nil, s.route.Dst, s.route.Way, func(dev string) int { return int(dev[len(dev)-1]) })
			if err != nil {
				f.Fatal(err)
			}
			list = append(list, body)
		}
	}
	return list
}

func spelledLink(index int) string { return fmt.Sprintf("link%d", index) }

// What the stencil reads is what decoding the message would have said.
func FuzzStencil(f *testing.F) {
	list := bodies(f)
	for i, body := range list {
		f.Add(body, list[(i+1)%len(list)])
		other := slices.Clone(body)
		other[1], other[moldAddress] = 9, other[moldAddress]^1
		f.Add(body, other)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		want, err := decodeRoute(first, spelledLink)
		if err != nil {
			return
		}
		var s stencil
		s.cut(first)
		dst, fits := s.read(second)
		if !fits {
			return
		}
		want.Dst = dst
		if got, err := decodeRoute(second, spelledLink); err != nil || got != want {
			t.Errorf("read as %+v, is %+v, %v", want, got, err)
		}
	})
}

// What is cast is what encoding the route would have given.
func FuzzMold(f *testing.F) {
	for i := range bodies(f) {
		f.Add(i, []byte{10, 1, 2, 0}, 24)
		f.Add(i, []byte{0x20, 1, 0xd, 0xb8, 15: 0}, 32)
		f.Add(i, []byte{0, 0, 0, 0}, 0)
	}
	f.Fuzz(func(t *testing.T, i int, address []byte, bits int) {
		cases := slices.Concat(spelledRoutes(state.IPv4), spelledRoutes(state.IPv6))
		r := cases[uint(i)%uint(len(cases))].route
		a, _ := netip.AddrFromSlice(address)
		dst := netip.PrefixFrom(a, bits)
		for _, encode := range []func([]byte, netip.Prefix, state.Way, func(string) int) ([]byte, error){appendRoute, appendRouteRemoval} {
			index := func(dev string) int { return int(dev[len(dev)-1]) }
			first, err := encode(nil, r.Dst, r.Way, index)
			if err != nil {
				t.Fatal(err)
			}
			var m mold
			m.take(3, r.Dst, first)
			if _, fits := m.cast(nil, 4, dst, r.Family); fits {
				t.Error("it fits another step")
			}
			got, fits := m.cast([]byte("before"), 3, dst, r.Family)
			if !fits {
				continue
			}
			want, err := encode([]byte("before"), dst, r.Way, index)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s of %s is cast as %x, encoded as %x, %v", dst, r, got, want, err)
			}
		}
	})
}

// Long runs of one way, with what is somebody else's in between.
func TestALongTableIsReadAsItIs(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	// One batch a protocol: ip takes the second one's name for the first's.
	batch := map[string]*strings.Builder{"115": {}, "static": {}}
	var own [2]prefix.Builder
	foreign := 0
	for i := range 3000 {
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24-i%2)
		v6 := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), 48-i%2)
		for f, p := range []netip.Prefix{v4.Masked(), v6.Masked()} {
			metric, protocol := f*1024, "115"
			if i%2 == 1 {
				metric++
			}
			if i%7 == 0 {
				protocol = "static"
				foreign++
			} else {
				own[f].Add(p)
			}
			via := []string{"192.0.2.1", "2001:db8:1::1"}[f]
			fmt.Fprintf(batch[protocol], "route add %s via %s table 1001 proto %s metric %d\n", p, via, protocol, metric)
		}
	}
	for _, b := range batch {
		ipInput(t, "-batch -", b.String())
	}
	wanted := [2]prefix.Set{own[0].Set(), own[1].Set()}
	// Whether it is expected, or something else is, changes nothing.
	for _, expected := range [][]prefix.Set{nil, wanted[:], {prefixes4(9000), prefixes4(10)}} {
		s := readHost(t, h, Query{Tables: []uint32{1001}, Sweep: len(expected) == 2, Expected: expected}, AllParts)
		for f, b := range state.Families {
			got := prefix.Set{}
			for w, dsts := range s.Observed.Routes {
				if w.Family == b {
					got = got.Union(dsts)
				}
			}
			if want := wanted[f]; !got.Equal(want) {
				t.Errorf("%s: %d routes are read, want %d", b, got.Len(), want.Len())
			}
		}
		if n := len(s.Facts.ForeignRoutes); n != foreign {
			t.Errorf("%d foreign routes, want %d", n, foreign)
		}
	}
}
