package kernel

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

// What an event does not concern is not read: each is followed by as many lists as
// there are parts of the kernel that it may have changed.
func TestNothingThatAnEventDoesNotConcernIsRead(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	q := Query{Interfaces: []string{"em1", "em2"}, Tables: []uint32{1001, 1002}, Named: []LinkFamily{
		{"em1", state.IPv4}, {"em1", state.IPv6}, {"em2", state.IPv4}, {"em2", state.IPv6},
	}}
	for _, family := range []string{"", "-6 "} {
		for table, link := range map[int]string{1001: "em1", 1002: "em2"} {
			ip(t, fmt.Sprintf("%sroute add default dev %s table %d proto 115", family, link, table))
			ip(t, fmt.Sprintf("%sroute add unreachable default metric 4278198272 table %d proto 115", family, table))
		}
	}
	e := listen(t, h)
	e.SetInterest(q.Interfaces, q.Tables)
	readHost(t, h, q, AllParts)
	for i, c := range []struct {
		command string
		lists   uint32 // of rules, routes, and the nexthops that routes name
	}{
		{"addr add 192.0.2.9/24 dev em1", 0},
		{"addr del 192.0.2.9/24 dev em1", 3}, // main and table 1001, by em1
		{"addr add 203.0.113.9/24 dev em1", 2},
		{"-6 addr add 2001:db8:1::9/64 dev em1 nodad", 0},
		{"-6 addr del 2001:db8:1::9/64 dev em1", 3},
		{"addr change 192.0.2.2/24 dev em1 valid_lft 5000 preferred_lft 4000", 0},
		{"neigh add 192.0.2.200 lladdr 02:00:00:00:00:01 dev em1", 0},
		{"link set em1 alias noise", 0},
		{"link set em1 group 7", 3}, // main, both families: it took no route along
		{"rule add pref 77 lookup main", 2},
		{"route add 10.0.0.0/8 via 192.0.2.1", 2},
		{"route add 10.1.0.0/16 via 192.0.2.1 table 1001 proto static", 2},
		{"route add unreachable 10.2.0.0/16 table 1002 proto 115", 2},
		{"route add 10.3.0.0/16 via 198.51.100.1 table 9999", 0},
		{"route add default via 192.0.2.1 table 9999 proto bird", 0},
		{"route add 10.4.0.0/16 via 192.0.2.1 proto bird", 0},
		{"-6 route add 2001:db8:7::/48 via 2001:db8:1::1", 2},
		{"-6 route add 2001:db8:8::/48 via 2001:db8:1::1 table 1001", 2},
		{"route add default via 192.0.2.1", 2},
		{"link set em1 down", 3}, // main: nothing is left by it in table 1001
		{"link set em1 up", 3},
	} {
		ip(t, c.command)
		var events []Event
		if strings.HasPrefix(c.command, "-6 addr add") {
			// The kernel tells of it after it has looked for duplicates, from a thread.
			events = eventsUntil(t, e, "address 2001:db8:1::9/64 added on em1")
		}
		events = append(events, eventsNow(t, e, 5000+i)...)
		var parts Parts
		var reasons []string
		for _, event := range events {
			parts |= h.Expires(event)
			reasons = append(reasons, event.Reason)
		}
		before := h.conn.seq
		s, err := h.Read(context.Background(), q, parts)
		if err != nil {
			t.Fatal(err)
		}
		if lists := h.conn.seq - before; lists != c.lists {
			t.Errorf("%s: %d lists, want %d, after %q", c.command, lists, c.lists, reasons)
		}
		// It was enough: a look at everything sees the same.
		fresh := *h
		fresh.stale = AllParts
		all := readHost(t, &fresh, q, AllParts)
		if got, want := seen(s), seen(all); got != want {
			t.Errorf("%s: seen\n%s\nbut there is\n%s", c.command, got, want)
		}
	}
}

// seen spells what a snapshot holds of routes, links and addresses.
func seen(s Snapshot) string {
	var lines []string
	for way, dsts := range s.Observed.Routes {
		lines = append(lines, fmt.Sprint("own ", dsts, way))
	}
	for _, r := range slices.Concat(s.Facts.Main, s.Facts.ForeignRoutes) {
		lines = append(lines, r.String())
	}
	for _, g := range s.Facts.Gateways {
		lines = append(lines, fmt.Sprint(g))
	}
	for _, l := range s.Facts.Links {
		lines = append(lines, fmt.Sprint(l))
	}
	for _, a := range s.Facts.Addresses {
		lines = append(lines, fmt.Sprint(a))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A link that goes down takes IPv4 routes along without a word, and an address that
// goes those of main that start from it, on other links too.
func TestWhatGoesWithoutAWordIsSeenToBeGone(t *testing.T) {
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	q := Query{Interfaces: []string{"em1", "em2"}, Tables: []uint32{1001, 1002}}
	e := listen(t, h)
	e.SetInterest(q.Interfaces, q.Tables)
	ipInput(t, "-batch -", `
addr add 192.0.2.9/24 dev em1
route add default dev em1 table 1001 proto 115
route add default dev em2 table 1002 proto 115
route add 10.0.0.0/8 dev em2 src 192.0.2.9
`)
	eventsNow(t, e, 4000)
	readHost(t, h, q, AllParts)
	step := func(mark int, command string) string {
		ip(t, command)
		var parts Parts
		for _, event := range eventsNow(t, e, mark) {
			parts |= h.Expires(event)
		}
		return seen(readHost(t, h, q, parts))
	}
	if got := step(4001, "addr del 192.0.2.9/24 dev em1"); strings.Contains(got, "10.0.0.0/8") {
		t.Errorf("the route from an address that has gone is still seen:\n%s", got)
	}
	got := step(4002, "link set em1 down")
	if strings.Contains(got, "own [0.0.0.0/0] table 1001") || strings.Count(got, "own [0.0.0.0/0]") != 1 {
		t.Errorf("of the defaults by em1 and em2, em1 being down:\n%s", got)
	}
}

// TestOuterMembers: what only one of two lists has.
func TestOuterMembers(t *testing.T) {
	for _, c := range []struct{ before, after, gone, come []int }{
		{nil, nil, nil, nil},
		{[]int{1, 2, 3}, []int{1, 2, 3}, nil, nil},
		{[]int{1, 2, 3}, []int{1, 3}, []int{2}, nil},
		{[]int{1, 3}, []int{1, 2, 3, 4}, nil, []int{2, 4}},
		{[]int{1, 2, 3, 4}, []int{1, 3, 2, 4}, nil, nil},
		{[]int{1, 1}, []int{1}, []int{1}, nil},
		{[]int{5, 1, 2}, []int{2, 1, 6}, []int{5}, []int{6}},
		{nil, []int{1, 2}, nil, []int{1, 2}},
	} {
		if gone, come := outer(c.before, c.after); !slices.Equal(gone, c.gone) || !slices.Equal(come, c.come) {
			t.Errorf("of %v and %v: gone %v, come %v; want %v and %v", c.before, c.after, gone, come, c.gone, c.come)
		}
	}
}
