package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Numbers of nexthops of table 1001.
const id4, id6 = 1150010014, 1150010016

// spelledNexthops are nexthop objects, and how ip nexthop prints them.
func spelledNexthops() []struct {
	nexthop state.Nexthop
	text    string
} {
	addr := netip.MustParseAddr
	n := func(id uint32, f state.Family, via string, dev string, onlink bool) state.Nexthop {
		n := state.Nexthop{ID: id, Family: f, Dev: dev, OnLink: onlink, Protocol: state.Protocol}
		if via != "" {
			n.Via = addr(via)
		}
		return n
	}
	return []struct {
		nexthop state.Nexthop
		text    string
	}{
		{n(id4, state.IPv4, "192.0.2.1", "em1", false), "id 1150010014 via 192.0.2.1 dev em1 scope link proto 115"},
		{n(id6, state.IPv6, "2001:db8:1::1", "em1", false), "id 1150010016 via 2001:db8:1::1 dev em1 scope link proto 115"},
		{n(1150010024, state.IPv4, "203.0.113.1", "em2", true), "id 1150010024 via 203.0.113.1 dev em2 scope link proto 115 onlink"},
		{n(1150010026, state.IPv6, "fe80::1", "em2", false), "id 1150010026 via fe80::1 dev em2 scope link proto 115"},
		{n(1150010034, state.IPv4, "", "em1", false), "id 1150010034 dev em1 scope host proto 115"},
		{n(1150010036, state.IPv6, "", "em1", false), "id 1150010036 dev em1 scope link proto 115"},
		{n(1150010044, state.IPv6, "fe80::1", "em2", false), "id 1150010044 via fe80::1 dev em2 scope link proto 115"},
	}
}

// ownNexthops are sisod's nexthops as a new Host reads them.
func ownNexthops(t *testing.T, h *Host) (map[uint32]state.Nexthop, state.NexthopFacts) {
	t.Helper()
	s := readHost(t, h, Query{}, PartNexthops)
	return s.Observed.Nexthops, s.Facts.Nexthops
}

func TestNexthopsReadBackAsTheyWereWritten(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	var plan state.Plan
	var want []string
	for _, s := range spelledNexthops() {
		plan.Steps = append(plan.Steps, state.Step{Op: state.Add, Object: s.nexthop})
		want = append(want, s.text)
	}
	applyAll(t, h, plan)
	slices.Sort(want)
	if got := slices.Sorted(slices.Values(ip(t, "nexthop"))); !slices.Equal(got, want) {
		t.Errorf("ip shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	own, facts := ownNexthops(t, h)
	for _, s := range spelledNexthops() {
		if own[s.nexthop.ID] != s.nexthop {
			t.Errorf("%s reads back as %s", s.nexthop, own[s.nexthop.ID])
		}
	}
	if facts.Missing != "" || len(facts.Foreign) > 0 {
		t.Errorf("the facts say %+v", facts)
	}
	// The commands of the plan say the same to ip.
	for i := range plan.Steps {
		plan.Steps[i].Op = state.Delete
	}
	applyAll(t, h, plan)
	if left := ip(t, "nexthop"); len(left) > 0 {
		t.Fatalf("left are %q", left)
	}
	for _, s := range spelledNexthops() {
		for _, c := range s.nexthop.Commands(state.Add, nil) {
			ip(t, strings.TrimPrefix(c, "ip "))
		}
	}
	if got := slices.Sorted(slices.Values(ip(t, "nexthop"))); !slices.Equal(got, want) {
		t.Errorf("the commands made\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Somebody else's object, whatever its kind, keeps its number and what it is.
func TestForeignNexthopsAreLeftAlone(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	ipInput(t, "-batch -", fmt.Sprintf(`
nexthop add id %d via 192.0.2.9 dev em1
nexthop add id %d blackhole proto 115
nexthop add id 5 via 192.0.2.1 dev em1 proto 115
nexthop add id 6 group 5 proto 115
`, id4, id6))
	before := ip(t, "nexthop")
	h := openTestHost(t)
	own, facts := ownNexthops(t, h)
	if len(own) > 0 {
		t.Errorf("%v count as sisod's", own)
	}
	for _, id := range []uint32{id4, id6, 5, 6} {
		if !facts.Foreign[id] {
			t.Errorf("%d is not known as somebody else's: %v", id, facts.Foreign)
		}
	}
	// One that came after the look.
	n := spelledNexthops()[0].nexthop
	for _, o := range h.Apply(context.Background(), state.Plan{Steps: []state.Step{{Op: state.Add, Object: n}}}, nil) {
		if !errors.Is(o.Err, unix.EEXIST) {
			t.Errorf("add in its place: %v", o.Err)
		}
	}
	if after := ip(t, "nexthop"); !slices.Equal(after, before) {
		t.Errorf("ip shows\n%s\nwas\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// A kernel answers requests that it does not know as one without nexthop objects
// answers the request for them.
func TestAKernelWithoutNexthopsHasNone(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	const unknown = 0x3ffe // far beyond RTM_MAX, and of the kind of a request for a list
	if _, err := c.nexthopsBy(unknown); !errors.Is(err, errNoNexthops) {
		t.Errorf("an unknown request: %v, want %v", err, errNoNexthops)
	}
	if _, err := c.listNexthops(); err != nil {
		t.Errorf("list nexthops: %v", err)
	}
}

// Routes by a nexthop object are told with their gateway or without it: both read
// back as the route that was written, also after the nexthop has another one.
func TestRoutesByANexthopReadBackWhateverItSays(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	nexthops := spelledNexthops()
	var plan state.Plan
	want := state.Routes{}
	for i, f := range state.Families {
		n := nexthops[i].nexthop
		plan.Steps = append(plan.Steps, state.Step{Op: state.Add, Object: n})
		way := state.Way{Family: f, Table: 1001, Metric: state.DefaultMetric(f), Type: state.Unicast, Nexthop: n.ID, Protocol: state.Protocol}
		src := [...]string{"192.0.2.2", "2001:db8:1::2"}[i]
		for k, change := range []func(*state.Way){
			func(*state.Way) {},
			func(w *state.Way) { w.Src = netip.MustParseAddr(src) },
			func(w *state.Way) { w.MTU, w.AdvMSS, w.Metric = 1400, 1300, 7 },
		} {
			w := way
			change(&w)
			dst := [...][2]string{{"10.0.0.0/16", "2001:db8:a0::/48"}, {"10.1.0.0/16", "2001:db8:a1::/48"}, {"10.2.0.0/16", "2001:db8:a2::/48"}}[k][i]
			want.Add(w, netip.MustParsePrefix(dst))
		}
	}
	for _, s := range want.Sets() {
		plan.Steps = append(plan.Steps, state.Step{Op: state.Add, Object: s})
	}
	applyAll(t, h, plan)
	check := func(when string) {
		t.Helper()
		for _, mode := range []string{"0", "1"} {
			setSysctl(t, "net/ipv4/nexthop_compat_mode", mode)
			got := readHost(t, h, Query{Tables: []uint32{1001}}, PartRoutes)
			if plan := state.Diff(state.Observed{State: state.State{Routes: got.Observed.Routes}}, state.Desired{State: state.State{Routes: want}}); !plan.Empty() || len(got.Facts.ForeignRoutes) > 0 {
				t.Errorf("%s, compat mode %s: to do are %q, foreign %v", when, mode, plan.Commands(), got.Facts.ForeignRoutes)
			}
		}
	}
	check("written")
	before := ip(t, "route get 10.1.0.1 oif em1")
	moved := nexthops[0].nexthop
	moved.Via = netip.MustParseAddr("192.0.2.9")
	moved6 := nexthops[1].nexthop
	moved6.Via = netip.MustParseAddr("2001:db8:1::9")
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Replace, Object: moved}, {Op: state.Replace, Object: moved6}}})
	check("moved")
	ip(t, "rule add lookup 1001 priority 5")
	ip(t, "-6 rule add lookup 1001 priority 5")
	for _, ask := range [][2]string{{"route get 10.1.0.1", "via 192.0.2.9 dev em1 table 1001 src 192.0.2.2"}, {"route get 10.0.0.1", "via 192.0.2.9 dev em1"},
		{"route get 2001:db8:a1::1", "via 2001:db8:1::9 dev em1"}} {
		if got := strings.Join(ip(t, ask[0]), " "); !strings.Contains(got, ask[1]) {
			t.Errorf("ip %s: %s, want %s (was %s)", ask[0], got, ask[1], before)
		}
	}
	// The routes go with their nexthop, and deleting them then is no error.
	for i := range plan.Steps {
		plan.Steps[i].Op = state.Delete
	}
	applyAll(t, h, plan)
	if left := append(ip(t, "route show table 1001"), ip(t, "-6 route show table 1001")...); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}

// A routing daemon may give main a default by a nexthop object: with
// nexthop_compat_mode 0 the route does not say where it leads.
func TestGatewaysBehindForeignNexthopsAreLearned(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	setSysctl(t, "net/ipv4/nexthop_compat_mode", "0")
	ipInput(t, "-batch -", `
nexthop add id 7 via 192.0.2.7 dev em1
nexthop add id 8 via 198.51.100.8 dev em2
nexthop add id 9 group 7/8
nexthop add id 10 via 2001:db8:1::7 dev em1
route add default nhid 9 proto bgp
`)
	ip(t, "-6 route add default nhid 10 proto bgp")
	h := openTestHost(t)
	readHost(t, h, Query{}, AllParts)
	wantLearned(t, h, []string{"em1", "em2"},
		"em1 IPv4 192.0.2.7: main (bgp)", "em1 IPv6 2001:db8:1::7: main (bgp)", "em2 IPv4 198.51.100.8: main (bgp)")
}

func TestChangesOfNexthopsAreEvents(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	e := listen(t, h)
	ip(t, fmt.Sprintf("nexthop add id %d via 192.0.2.1 dev em1 proto 115", id4))
	eventsUntil(t, e, fmt.Sprintf("nexthop %d added", id4))
	ip(t, "nexthop add id 5 via 192.0.2.1 dev em1")
	ip(t, "nexthop replace id 5 via 192.0.2.9 dev em1")
	got := eventsUntil(t, e, "nexthop 5 replaced")
	if len(got) != 1 || got[0].Parts != PartMain {
		t.Errorf("another one's, added and replaced: %+v", got)
	}
	ip(t, fmt.Sprintf("nexthop del id %d", id4))
	got = eventsUntil(t, e, fmt.Sprintf("nexthop %d deleted", id4))
	if last := got[len(got)-1]; last.Parts&PartRoutes == 0 {
		t.Errorf("deleted: %+v", last)
	}
}

func FuzzDecodeNexthop(f *testing.F) {
	for _, s := range spelledNexthops() {
		body, err := appendNexthop(nil, s.nexthop, func(dev string) int { return int(dev[len(dev)-1]) })
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(appendAttribute(slices.Clone(body), unix.NHA_GROUP, 5, 0, 0, 0, 2, 0, 0, 0))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := decodeNexthop(body, numberedLink)
		if err != nil || !n.written() {
			return
		}
		again, err := appendNexthop(nil, n.Nexthop, indexOfNumbered)
		if err != nil {
			t.Fatalf("%s is understood and cannot be written: %v", n, err)
		}
		back, err := decodeNexthop(again, numberedLink)
		if err != nil || back.Nexthop != n.Nexthop {
			t.Fatalf("%+v reads back as %+v, %v", n, back, err)
		}
	})
}
