package kernel

import (
	"net/netip"
	"testing"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// Beside a long list a sweep costs what the tables do that are on record, and finds what
// is in those that no profile names any more. Without a record it looks everywhere.
func TestASweepListsNoLongTableTwice(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	dir := t.TempDir()
	open := func() *Host {
		h, err := Open(Options{RunDir: dir, IPRoute2Dir: t.TempDir(), Root: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return h
	}
	const n = 8 * state.LongSet
	list := prefixes4(n)
	q := Query{Tables: []uint32{1001}, Sweep: true, Expected: []prefix.Set{list}}
	ip(t, "route add 10.9.0.0/16 via 192.0.2.1 table 1000 proto 115")
	desired := state.Desired{State: state.New()}
	desired.Routes.AddSet(wayBy(state.IPv4, 1001), list)
	desired.Routes.AddSet(wayBy(state.IPv4, 1002), prefix.Of(netip.MustParsePrefix("10.0.0.0/8")))
	record := func(h *Host, s state.State) {
		t.Helper()
		if err := h.RecordTables(s); err != nil {
			t.Fatal(err)
		}
	}
	first := open()
	observed := readHost(t, first, q, AllParts).Observed
	record(first, desired.State)
	applyAll(t, first, state.Diff(state.Observed{State: state.New()}, desired))
	if n := observed.Routes.Len(); n != 1 {
		t.Errorf("the first sweep found %d routes", n)
	}

	look := func(what string, sweep bool, routes int) (datagrams uint64) {
		t.Helper()
		h := open()
		q.Sweep = sweep
		if got := readHost(t, h, q, AllParts).Observed.Routes.Len(); got != routes {
			t.Errorf("%s: %d routes, want %d", what, got, routes)
		}
		record(h, desired.State)
		return uint64(h.conn.received)
	}
	without := look("no sweep", false, n)
	if with := look("a sweep by the record", true, n+2); with > without+8 {
		t.Errorf("%d datagrams were read, %d without a sweep", with, without)
	}
	// Of the tables of nobody's record, a sweep without one tells.
	ip(t, "route add 10.9.0.0/16 via 192.0.2.1 table 1003 proto 115")
	record(open(), state.New())
	look("the record has ended", true, n+3)
	look("all tables were on record again", true, n+3)
}
