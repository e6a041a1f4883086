package kernel

import (
	"context"
	"net/netip"
	"testing"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// asRead fails the test unless what a host knows of a table is what another one reads.
func asRead(t *testing.T, h *Host, q Query, when string) state.Observed {
	t.Helper()
	received := h.conn.received
	known := readHost(t, h, q, 0)
	if n := h.conn.received - received; n > 10 {
		t.Errorf("%s: %d datagrams were read", when, n)
	}
	other := openTestHost(t)
	read := readHost(t, other, q, AllParts)
	for way, dsts := range read.Observed.Routes {
		if !known.Observed.Routes[way].Equal(dsts) {
			t.Errorf("%s: %d routes are known, %d are there: %s", when, known.Observed.Routes[way].Len(), dsts.Len(), way.Hops.All())
		}
	}
	if len(known.Observed.Routes) != len(read.Observed.Routes) || len(known.Facts.ForeignRoutes) != len(read.Facts.ForeignRoutes) {
		t.Errorf("%s: known are %d ways and %d foreign routes, there are %d and %d", when,
			len(known.Observed.Routes), len(known.Facts.ForeignRoutes), len(read.Observed.Routes), len(read.Facts.ForeignRoutes))
	}
	return known.Observed
}

// A long set is left in the middle when something presses; what was written of it is
// known without reading it, and the next plan is about the rest.
func TestALongSetGivesWay(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	ip(t, "route add 10.0.7.0/24 via 192.0.2.1 table 1001 proto static metric 9")
	h := openTestHost(t)
	q := Query{Tables: []uint32{1001}}
	readHost(t, h, q, AllParts)
	const n = 3 * slice
	desired := state.Desired{State: state.New()}
	way := wayBy(state.IPv4, 1001)
	desired.Routes.AddSet(way, prefixes4(n))
	rule := state.NewRule(state.IPv4, 11500, 1001)
	desired.Rules[rule] = true
	asked := 0
	press := func() bool { asked++; return asked == 2 }
	outcomes := h.ApplyUntil(context.Background(), state.Diff(state.Observed{State: state.New()}, desired), nil, press)
	for _, o := range outcomes {
		if o.Held != GaveWay || o.Err != nil {
			t.Errorf("%s %s: %q, %v", o.Step.Op, o.Step.Object.Spell(nil), o.Held, o.Err)
		}
	}
	there := len(ip(t, "route show table 1001 proto 115"))
	if asked != 2 || there < 2*slice || there >= n {
		t.Errorf("after %d questions %d routes are there", asked, there)
	}
	observed := asRead(t, h, q, "given way")
	// They lie all over the list: one end of it would cost the kernel twice the time.
	if last, _ := prefixes4(n).Index(observed.Routes[way].At(observed.Routes[way].Len() - 1)); last < n-4 {
		t.Errorf("none was written behind the %dth of %d", last, n)
	}
	plan := state.Diff(observed, desired)
	if set := plan.Steps[0].Object.(state.RouteSet); set.Dsts.Len() != n-there {
		t.Errorf("%d of %d are there, to do are %d", there, n, set.Dsts.Len())
	}
	applyAll(t, h, plan)
	observed = asRead(t, h, q, "gone on")
	if rest := state.Diff(observed, desired); !rest.Empty() {
		t.Errorf("to do are %q", rest.Commands()[:1])
	}
	// Some by another gateway, some gone, one of somebody else's.
	other := way
	other.Hops = state.HopsOf(state.Hop{Via: netip.MustParseAddr("192.0.2.9"), Dev: "em1", Weight: 1})
	moved := prefixes4(n).First(slice)
	desired.Routes[way] = desired.Routes[way].Without(prefixes4(n).First(2 * slice))
	desired.Routes[other] = moved
	applyAll(t, h, state.Diff(observed, desired))
	observed = asRead(t, h, q, "moved")
	delete(desired.Routes, other)
	desired.Routes[way] = desired.Routes[way].Without(prefix.Of(desired.Routes[way].At(0)))
	applyAll(t, h, state.Diff(observed, desired))
	asRead(t, h, q, "removed")
}

// Of a set of which one was refused, nobody says how much is there before it is read.
func TestALongSetThatFailedIsReadAgain(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	q := Query{Tables: []uint32{1001}}
	readHost(t, h, q, AllParts)
	other := wayBy(state.IPv4, 1001)
	other.Metric = 7
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Add, Object: state.RouteSet{Way: other, Dsts: prefixes4(state.LongSet)}}}})
	dsts := prefixes4(2 * state.LongSet)
	bad := dsts.At(700)
	dsts = dsts.Without(prefix.Of(bad)).Union(prefix.Of(netip.PrefixFrom(bad.Addr().Next(), 24)))
	set := state.RouteSet{Way: wayBy(state.IPv4, 1001), Dsts: dsts}
	for _, o := range h.Apply(context.Background(), state.Plan{Steps: []state.Step{{Op: state.Add, Object: set}}}, nil) {
		if o.Err == nil {
			t.Error("nothing was refused")
		}
	}
	if n := asRead(t, h, q, "refused").Routes.Len(); n != 3*state.LongSet-1 {
		t.Errorf("%d routes are known", n)
	}
}
