package kernel

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

func TestOnlyTheNamedPartsAreReadAgain(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	q := Query{Tables: []uint32{1001}, Window: [2]uint32{11000, 11999}}
	readHost(t, h, q, AllParts)
	addRules(t, h.conn, state.NewRule(state.IPv4, 11500, 1001))
	ip(t, "route add default via 192.0.2.1 table 1001 proto 115")
	ip(t, "route add default via 192.0.2.1 table 1001 proto static metric 5")
	s := readHost(t, h, q, PartLinks)
	if len(s.Observed.Rules) != 0 || s.Observed.Routes.Len() != 0 {
		t.Errorf("rules and routes were read unasked: %v", s.Observed)
	}
	old := s
	s = readHost(t, h, q, PartRules)
	if len(s.Observed.Rules) != 1 || s.Observed.Routes.Len() != 0 {
		t.Errorf("after a read of rules: %v", s.Observed)
	}
	s = readHost(t, h, q, PartRoutes)
	if s.Observed.Routes.Len() != 1 || len(s.Facts.ForeignRoutes) != 1 {
		t.Errorf("after a read of routes: %v, foreign %v", s.Observed, s.Facts.ForeignRoutes)
	}
	if len(old.Observed.Rules) != 0 || old.Observed.Routes.Len() != 0 {
		t.Error("a later read changed an earlier snapshot")
	}
}

// What sisod cannot have written is not compared with what it wants.
func TestARouteThatSaysMoreIsForeign(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	ip(t, "route add default via 192.0.2.1 hoplimit 5 table 1001 proto 115")
	s := readHost(t, h, Query{Tables: []uint32{1001}}, AllParts)
	if s.Observed.Routes.Len() != 0 || len(s.Facts.ForeignRoutes) != 1 {
		t.Errorf("own %v, foreign %v", s.Observed.Routes, s.Facts.ForeignRoutes)
	}
}

func TestAnotherQuestionIsAnsweredAnew(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	ip(t, "route add default via 192.0.2.1 table 1001 proto 115")
	ip(t, "route add default via 192.0.2.1 table 1002 proto 115")
	ip(t, "-6 route add default via 2001:db8:1::1 table 1003 proto 115")
	ip(t, "rule add from 10.0.0.1 lookup 7 priority 11500")
	ip(t, "link set em2 group 115")
	readHost(t, h, Query{}, AllParts)
	q := Query{Tables: []uint32{1001}}
	if s := readHost(t, h, q, 0); s.Observed.Routes.Len() != 1 {
		t.Errorf("routes of table 1001: %v", s.Observed.Routes)
	}
	q.Sweep = true
	if s := readHost(t, h, q, 0); s.Observed.Routes.Len() != 3 {
		t.Errorf("routes of all tables: %v", s.Observed.Routes)
	}
	q.Sweep, q.Tables = false, []uint32{1002, 1001, 1002}
	if s := readHost(t, h, q, 0); s.Observed.Routes.Len() != 2 {
		t.Errorf("routes of two tables: %v", s.Observed.Routes)
	}
	q.Window = [2]uint32{11500, 12499}
	if s := readHost(t, h, q, 0); len(s.Facts.ForeignRules) != 1 {
		t.Errorf("foreign rules: %v", s.Facts.ForeignRules)
	}
	q.Interfaces = []string{"em2", "absent0"}
	if s := readHost(t, h, q, 0); !maps.Equal(s.Observed.Groups, map[string]uint32{"em2": 115}) {
		t.Errorf("groups: %v", s.Observed.Groups)
	}
	q.Sysctls = []string{"net/ipv4/conf/em1/rp_filter"}
	if s := readHost(t, h, q, 0); len(s.Observed.Sysctls) != 1 || len(s.Facts.Sysctls) != 1 {
		t.Errorf("sysctls: %v", s.Observed.Sysctls)
	}
}

func TestAChangeOfLinksReadsTheirRoutesAgain(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	q := Query{Tables: []uint32{1001}}
	ip(t, "route add default via 192.0.2.1 table 1001 proto 115")
	hop := func(s Snapshot) string {
		var dev string
		for w := range s.Observed.Routes {
			h, _ := w.Hops.Single()
			dev += h.Dev
		}
		return dev
	}
	if got := hop(readHost(t, h, q, AllParts)); got != "em1" {
		t.Errorf("the route leaves by %q", got)
	}
	// Older kernels rename no link that is up.
	rename := func(from, to string) {
		ip(t, "link set "+from+" down")
		ip(t, "link set "+from+" name "+to)
		ip(t, "link set "+to+" up")
		ip(t, "route add default via 192.0.2.1 table 1001 proto 115")
	}
	rename("em1", "renamed0")
	if got := hop(readHost(t, h, q, PartLinks)); got != "renamed0" {
		t.Errorf("after the rename the route leaves by %q", got)
	}
	rename("renamed0", "em1")
	// A read of routes alone meets a link that it does not know.
	ip(t, "link add em3 type veth peer name peer3")
	ip(t, "link set em3 up")
	ip(t, "route replace default dev em3 table 1001 proto 115")
	s := readHost(t, h, q, PartRoutes)
	if got := hop(s); got != "em3" {
		t.Errorf("the route leaves by %q, want the new link", got)
	}
	if !slices.ContainsFunc(s.Facts.Links, func(l state.Link) bool { return l.Name == "em3" }) {
		t.Errorf("the new link is in no fact: %v", s.Facts.Links)
	}
	ip(t, "link set em3 down")
	if got := hop(readHost(t, h, q, PartLinks)); got != "" {
		t.Errorf("the route of a link that is down is still seen: by %q", got)
	}
}

// An error is unknown, never empty, and is remembered until a read succeeds.
func TestAFailedReadIsAnErrorAndIsRepeated(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	q := Query{Window: [2]uint32{11000, 11999}}
	readHost(t, h, q, AllParts)
	addRules(t, h.conn, state.NewRule(state.IPv4, 11500, 1001))
	good := h.conn.fd
	closed, err := unix.Dup(good)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(closed)
	h.conn.fd = closed
	_, err = h.Read(t.Context(), q, PartRules)
	h.conn.fd = good
	if !errors.Is(err, unix.EBADF) {
		t.Fatalf("error is %v", err)
	}
	if s := readHost(t, h, q, 0); len(s.Observed.Rules) != 1 {
		t.Errorf("the next read did not repeat it: %v", s.Observed.Rules)
	}
}

func TestAnEndedContextEndsARead(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Read(ctx, Query{}, AllParts); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := h.Read(t.Context(), Query{}, 0); err != nil {
		t.Error(err)
	}
}

func TestAppliedPartsAreReadWhateverIsAsked(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	q := Query{Tables: []uint32{1001}, Window: [2]uint32{11000, 11999}}
	want := state.Desired{State: state.New()}
	want.Rules[state.NewRule(state.IPv4, 11500, 1001)] = true
	want.Routes.Add(wayBy(state.IPv4, 1001), netip.MustParsePrefix("0.0.0.0/0"))
	applyAll(t, h, state.Diff(readHost(t, h, q, AllParts).Observed, want))
	if again := state.Diff(readHost(t, h, q, 0).Observed, want); !again.Empty() {
		t.Errorf("still to do: %v", again.Steps)
	}
}

func TestASysctlIsReadOnceARead(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	const path, owned = "net/ipv4/conf/em1/send_redirects", "net/ipv4/conf/em1/accept_redirects"
	readHost(t, h, Query{}, AllParts)
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Replace, Object: state.Sysctl{Path: owned, Value: "0"}}}})
	before := readHost(t, h, Query{}, 0)
	first := h.ReadAlso([]string{path, "net/ipv4/conf/absent0/rp_filter"})
	if first.Observed.Sysctls[path] != "1" || first.Facts.Sysctls[path] != "1" {
		t.Errorf("read %v", first.Facts.Sysctls)
	}
	// What can be given back is among the values, whoever asks.
	if first.Observed.Before.Sysctls[owned] != "1" || first.Observed.Sysctls[owned] != "0" {
		t.Errorf("before %v, now %v", first.Observed.Before.Sysctls, first.Observed.Sysctls)
	}
	setSysctl(t, path, "0")
	readHost(t, h, Query{}, PartRules)
	if s := h.ReadAlso([]string{path}); s.Observed.Sysctls[path] != "1" {
		t.Error("a value was read again, unasked")
	}
	readHost(t, h, Query{}, PartValues)
	if s := h.ReadAlso([]string{path}); s.Observed.Sysctls[path] != "0" {
		t.Error("a value was not read again")
	}
	if _, there := before.Observed.Sysctls[path]; there || first.Observed.Sysctls[path] != "1" {
		t.Error("a later read changed an earlier snapshot")
	}
}
