package kernel

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

func readHost(t testing.TB, h *Host, q Query, parts Parts) Snapshot {
	t.Helper()
	s, err := h.Read(t.Context(), q, parts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// applyAll applies a plan and fails the test for every step that is not done.
func applyAll(t testing.TB, h *Host, p state.Plan) {
	t.Helper()
	for _, o := range h.Apply(t.Context(), p, nil) {
		if !o.Done() {
			t.Errorf("%s %s: %v %s", o.Step.Op, o.Step.Object.Spell(p.Names), o.Err, o.Held)
		}
	}
}

func wayBy(f state.Family, table uint32) state.Way {
	via := "192.0.2.1"
	if f == state.IPv6 {
		via = "2001:db8:1::1"
	}
	return state.Way{Family: f, Table: table, Metric: state.DefaultMetric(f), Type: state.Unicast, Protocol: state.Protocol,
		Hops: state.HopsOf(state.Hop{Via: netip.MustParseAddr(via), Dev: "em1", Weight: 1})}
}

// prefixes4 are n different /24 networks.
func prefixes4(n int) prefix.Set {
	var b prefix.Builder
	for i := range n {
		b.Add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(i>>16), byte(i >> 8), byte(i), 0}), 24))
	}
	return b.Set()
}

// everything is a desired state of every rule and route of the spelled ones.
func everything() state.Desired {
	d := state.Desired{State: state.New()}
	for _, f := range state.Families {
		for _, s := range spelledRules(f) {
			if s.rule.Protocol == state.Protocol {
				d.Rules[s.rule] = true
			}
		}
		for _, s := range spelledRoutes(f) {
			d.Routes.Add(s.route.Way, s.route.Dst)
		}
	}
	return d
}

func TestAppliedTwiceNothingIsLeftToDo(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	want := everything()
	q := Query{Tables: []uint32{1001}, Window: [2]uint32{11000, 11999}}
	before := slices.Concat(ip(t, "-4 rule"), ip(t, "-6 rule"))
	plan := state.Diff(readHost(t, h, q, AllParts).Observed, want)
	applyAll(t, h, plan)
	// The same plan again finds everything there, and says so.
	applyAll(t, h, plan)
	if again := state.Diff(readHost(t, h, q, 0).Observed, want); !again.Empty() {
		t.Errorf("after apply there is still to do:\n%s", strings.Join(again.Commands(), "\n"))
	}
	removal := state.Diff(readHost(t, h, Query{Sweep: true}, 0).Observed, state.Desired{State: state.New()})
	applyAll(t, h, removal)
	// Deleting what is gone is done, too.
	applyAll(t, h, removal)
	if after := slices.Concat(ip(t, "-4 rule"), ip(t, "-6 rule")); !slices.Equal(after, before) {
		t.Errorf("rules are\n%s\nwere\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	for _, f := range state.Families {
		if left := showRoutes(t, f, "all"); slices.ContainsFunc(left, func(l string) bool { return strings.Contains(l, "proto 115") }) {
			t.Errorf("routes are left:\n%s", strings.Join(left, "\n"))
		}
	}
}

func TestAnEmptyPlanSendsNothing(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	seq := h.conn.seq
	if got := h.Apply(t.Context(), state.Plan{}, nil); len(got) != 0 || h.conn.seq != seq || h.stale != 0 {
		t.Errorf("outcomes %v, %d messages, stale %b", got, h.conn.seq-seq, h.stale)
	}
}

func TestOneBadRouteOfManyIsOneError(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	dsts := prefixes4(10000)
	bad := dsts.At(5000)
	dsts = dsts.Without(prefix.Of(bad)).Union(prefix.Of(netip.PrefixFrom(bad.Addr().Next(), 24)))
	plan := state.Plan{Steps: []state.Step{
		{Op: state.Add, Object: state.RouteSet{Way: wayBy(state.IPv4, 1001), Dsts: dsts}},
		{Op: state.Add, Object: state.RouteSet{Way: wayBy(state.IPv4, 1002), Dsts: prefixes4(10)}},
	}, Names: state.Names{1001: "china"}}
	var reported []Outcome
	outcomes := h.Apply(t.Context(), plan, func(o Outcome) { reported = append(reported, o) })
	if len(reported) != 2 || len(outcomes) != 2 || !outcomes[1].Done() {
		t.Fatalf("outcomes %+v, reported %d", outcomes, len(reported))
	}
	const want = "add route 10.19.136.1/24 via 192.0.2.1 dev em1 table china: Invalid prefix for given prefix length (invalid argument)"
	if err := outcomes[0].Err; err == nil || err.Error() != want || !errors.Is(err, unix.EINVAL) {
		t.Errorf("error is\n%v\nwant\n%s", err, want)
	}
	if n := len(ip(t, "route show table 1001")); n != 9999 {
		t.Errorf("ip shows %d routes, want 9999", n)
	}
}

func TestManyBadRoutesAreNamedInPart(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	w := wayBy(state.IPv4, 1001)
	w.Hops = state.HopsOf(state.Hop{Via: netip.MustParseAddr("203.0.113.1"), Dev: "em1", Weight: 1})
	set := state.RouteSet{Way: w, Dsts: prefixes4(2000)}
	o := h.Apply(t.Context(), state.Plan{Steps: []state.Step{{Op: state.Add, Object: set}}}, nil)[0]
	lines := strings.Split(o.Err.Error(), "\n")
	if len(lines) != 4 || lines[3] != "add route: 1997 more of 2000 failed" {
		t.Errorf("error is\n%v", o.Err)
	}
}

func TestRulesWaitForTheRoutesOfTheirTable(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	bad := wayBy(state.IPv4, 1001)
	bad.Hops = state.HopsOf(state.Hop{Via: netip.MustParseAddr("192.0.2.1"), Dev: "absent0", Weight: 1})
	any4 := prefix.Of(state.AnyDestination(state.IPv4))
	any6 := prefix.Of(state.AnyDestination(state.IPv6))
	unreachable := state.NewRule(state.IPv4, 11503, 0)
	unreachable.Action = state.RuleUnreachable
	plan := state.Plan{Steps: []state.Step{
		{Op: state.Add, Object: state.RouteSet{Way: bad, Dsts: any4}},
		{Op: state.Add, Object: state.RouteSet{Way: wayBy(state.IPv4, 1002), Dsts: any4}},
		{Op: state.Add, Object: state.RouteSet{Way: wayBy(state.IPv6, 1001), Dsts: any6}},
		{Op: state.Add, Object: state.NewRule(state.IPv4, 11500, 1001)},
		{Op: state.Add, Object: state.NewRule(state.IPv4, 11501, 1002)},
		{Op: state.Add, Object: state.NewRule(state.IPv6, 11502, 1001)},
		{Op: state.Add, Object: unreachable},
	}, Names: state.Names{1001: "china"}}
	outcomes := h.Apply(t.Context(), plan, nil)
	if !errors.Is(outcomes[0].Err, unix.ENODEV) {
		t.Errorf("error is %v", outcomes[0].Err)
	}
	if o := outcomes[3]; o.Held != "waits for the routes of table china" || o.Err != nil {
		t.Errorf("rule to the unfinished table: %q %v", o.Held, o.Err)
	}
	for _, i := range []int{1, 2, 4, 5, 6} {
		if !outcomes[i].Done() {
			t.Errorf("step %d is held up too: %+v", i, outcomes[i])
		}
	}
	if rules := strings.Join(ip(t, "rule"), "\n"); strings.Contains(rules, "11500:") || !strings.Contains(rules, "11501:") {
		t.Errorf("rules are\n%s", rules)
	}
}

// A table that a rule still leads to would leak into main if it were emptied.
func TestRoutesStayWhileARuleLeadsToThem(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	set := state.RouteSet{Way: wayBy(state.IPv4, 1001), Dsts: prefix.Of(state.AnyDestination(state.IPv4))}
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Add, Object: set}}})
	bad := state.NewRule(state.IPv4, 11500, 1001)
	bad.SPort = state.PortRange{Last: 9}
	outcomes := h.Apply(t.Context(), state.Plan{Steps: []state.Step{
		{Op: state.Delete, Object: bad},
		{Op: state.Delete, Object: set},
	}}, nil)
	if !errors.Is(outcomes[0].Err, unix.EINVAL) || outcomes[1].Held != "waits for the rules to table 1001 to go" {
		t.Errorf("outcomes are %+v", outcomes)
	}
	if n := len(ip(t, "route show table 1001")); n != 1 {
		t.Errorf("%d routes are left, want 1", n)
	}
}

func TestAnEndedContextHoldsTheRest(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	ctx, cancel := context.WithCancel(t.Context())
	small := state.RouteSet{Way: wayBy(state.IPv4, 1001), Dsts: prefixes4(10)}
	large := state.RouteSet{Way: wayBy(state.IPv4, 1002), Dsts: prefixes4(2000)}
	plan := state.Plan{Steps: []state.Step{
		{Op: state.Add, Object: small},
		{Op: state.Add, Object: large},
		{Op: state.Add, Object: state.RouteSet{Way: wayBy(state.IPv4, 1003), Dsts: prefixes4(10)}},
		{Op: state.Add, Object: state.NewRule(state.IPv4, 11500, 1001)},
	}}
	// The first batch holds the first step and the beginning of the second.
	outcomes := h.Apply(ctx, plan, func(Outcome) { cancel() })
	if !outcomes[0].Done() {
		t.Errorf("the step that was sent: %+v", outcomes[0])
	}
	if o := outcomes[1]; !errors.Is(o.Err, context.Canceled) || !strings.Contains(o.Err.Error(), "stopped after 502 of 2000") {
		t.Errorf("the step under way: %+v", o)
	}
	for _, o := range outcomes[2:] {
		if o.Held != stopped || o.Err != nil {
			t.Errorf("a step that was not begun: %+v", o)
		}
	}
	if n := len(ip(t, "route show table 1002")); n != 502 {
		t.Errorf("%d routes are written, want 502", n)
	}
	if n := len(ip(t, "rule")); n != 3 {
		t.Errorf("%d rules, want 3", n)
	}
}

func TestRoutesOfAnAbsentLinkAreGoneAlready(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	set := state.RouteSet{Way: wayBy(state.IPv4, 1001), Dsts: prefixes4(3)}
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Delete, Object: set}}})
}

// The kernel deletes the first rule that agrees with what is said, and a plain
// rule agrees with every narrower one.
func TestDeletingAPlainRuleLeavesTheNarrowerOnes(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	q := Query{Window: [2]uint32{11000, 11999}}
	plain := state.NewRule(state.IPv4, 11500, 101)
	plain.From = netip.MustParsePrefix("10.0.0.0/8")
	narrow, inverse := plain, plain
	narrow.IIF = "lo"
	inverse.Not, inverse.OIF = true, "lo"
	for name, removed := range map[string][]state.Rule{
		"plain": {plain}, "plain and narrow": {plain, narrow}, "narrow": {narrow}, "all": {plain, narrow, inverse},
	} {
		addRules(t, h.conn, narrow, inverse, plain)
		want := state.Desired{State: state.New()}
		for _, r := range []state.Rule{plain, narrow, inverse} {
			if !slices.Contains(removed, r) {
				want.Rules[r] = true
			}
		}
		applyAll(t, h, state.Diff(readHost(t, h, q, AllParts).Observed, want))
		if again := state.Diff(readHost(t, h, q, AllParts).Observed, want); !again.Empty() {
			t.Errorf("removing %s leaves to do:\n%s", name, strings.Join(again.Commands(), "\n"))
		}
		if n := len(ip(t, "rule")); n != 3+3-len(removed) {
			t.Errorf("removing %s leaves\n%s", name, strings.Join(ip(t, "rule"), "\n"))
		}
		applyAll(t, h, state.Diff(readHost(t, h, q, AllParts).Observed, state.Desired{State: state.New()}))
	}
}

// To the kernel "from A" and "not from A" are the same rule.
func TestARuleTakesThePlaceOfItsOpposite(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	q := Query{Window: [2]uint32{11000, 11999}}
	plain := state.NewRule(state.IPv4, 11500, 101)
	plain.From = netip.MustParsePrefix("10.0.0.0/8")
	opposite := plain
	opposite.Not = true
	for _, r := range []state.Rule{plain, opposite, plain} {
		want := state.Desired{State: state.New()}
		want.Rules[r] = true
		applyAll(t, h, state.Diff(readHost(t, h, q, AllParts).Observed, want))
		if again := state.Diff(readHost(t, h, q, AllParts).Observed, want); !again.Empty() {
			t.Errorf("%s leaves to do:\n%s", r, strings.Join(again.Commands(), "\n"))
		}
	}
}

// Of one cause there is one error.
func TestWhatStandsOnADeviceWaitsForIt(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	want := wantVIPs(vip("rs0", "203.0.113.1"), vip("lo", "203.0.113.2"))
	want.Devices[state.Device{Name: "rs0", Type: "nosuchtype"}] = true
	want.Up["rs0"] = true
	want.Sysctls["net/ipv4/conf/rs0/rp_filter"] = "2"
	wantOutcomes(t, h.Apply(t.Context(), plan(t, h, Query{}, want), nil), map[string]string{
		"rs0 type nosuchtype":           "no links of type nosuchtype in this kernel",
		"net/ipv4/conf/rs0/rp_filter=2": "waits for the device rs0",
		"dev rs0 up":                    "waits for the device rs0",
		"203.0.113.1/32 dev rs0":        "waits for the device rs0",
		"203.0.113.2/32 dev lo":         "",
	})
}

// A VIP that neighbours find on a real server takes its clients from the director.
func TestNoVIPIsAddedBeforeARPIsSilenced(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	want := wantVIPs(vip("lo", "203.0.113.1"), vip("lo", "2001:db8::1"))
	want.Sysctls["net/ipv4/conf/all/arp_ignore"] = "refused"
	wantOutcomes(t, h.Apply(t.Context(), plan(t, h, Query{}, want), nil), map[string]string{
		"net/ipv4/conf/all/arp_ignore=refused": "invalid argument",
		"203.0.113.1/32 dev lo":                "waits for the sysctl net/ipv4/conf/all/arp_ignore",
		"2001:db8::1/128 dev lo":               "",
	})
	if lines := strings.Join(ip(t, "-4 addr show dev lo"), "\n"); strings.Contains(lines, "203.0.113.1") {
		t.Error(lines)
	}
}

// wantOutcomes wants, by the spelling of an object, a part of what its step
// failed with or waits for; "" is a step that is done.
func wantOutcomes(t *testing.T, got []Outcome, want map[string]string) {
	t.Helper()
	for _, o := range got {
		text := o.Held
		if o.Err != nil {
			text = o.Err.Error()
		}
		object := o.Step.Object.Spell(nil)
		part, known := want[object]
		if !known || part == "" && text != "" || !strings.Contains(text, part) {
			t.Errorf("%s: %q, want %q", object, text, part)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d steps, want %d", len(got), len(want))
	}
}
