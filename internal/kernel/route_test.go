package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// spelledRoutes are routes with every attribute, and how ip -details route
// prints them; each has a destination of its own.
func spelledRoutes(f state.Family) []struct {
	route state.Route
	text  string
} {
	var cases []struct {
		route state.Route
		text  string
	}
	gateway1, gateway2, far, src := "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.0.2.2"
	prefix := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i)) }
	scope := func(s string) string { return "scope " + s }
	if f == state.IPv6 {
		gateway1, gateway2, far, src = "2001:db8:1::1", "2001:db8:2::1", "2001:db8:3::1", "2001:db8:1::2"
		prefix = func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("2001:db8:a%02d::/48", i)) }
		scope = func(string) string { return "scope global" }
	}
	addr := netip.MustParseAddr
	metric := func(n uint32) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf(" metric %d", n)
	}
	route := func(text string, change func(*state.Route)) {
		r := state.Route{Dst: prefix(len(cases) + 1), Way: state.Way{
			Family: f, Table: 1001, Metric: state.DefaultMetric(f), Type: state.Unicast, Protocol: state.Protocol,
			Hops: state.HopsOf(state.Hop{Via: addr(gateway1), Dev: "em1", Weight: 1}),
		}}
		change(&r)
		text = strings.ReplaceAll(text, "DST", r.Dst.String())
		text = strings.ReplaceAll(text, " METRIC", metric(r.Metric))
		if f == state.IPv6 {
			at, rest, several := strings.Cut(text, " nexthop")
			text = at + " pref medium"
			if several {
				text += " nexthop" + rest
			}
		}
		cases = append(cases, struct {
			route state.Route
			text  string
		}{r, text})
	}
	by := " via " + gateway1 + " dev em1 proto 115 scope global"
	lo := ""
	if f == state.IPv6 {
		lo = " dev lo"
	}
	route("unicast DST"+by+" METRIC", func(*state.Route) {})
	route("unicast default"+by+" METRIC", func(r *state.Route) { r.Dst = state.AnyDestination(f) })
	route("unicast DST"+by+" metric 100", func(r *state.Route) { r.Metric = 100 })
	route("unicast DST dev em1 proto 115 "+scope("link")+" METRIC", func(r *state.Route) {
		r.Hops = state.HopsOf(state.Hop{Dev: "em1", Weight: 1})
	})
	route("unicast DST dev em1 proto 115 "+scope("link")+" src "+src+" METRIC", func(r *state.Route) {
		r.Hops, r.Src = state.HopsOf(state.Hop{Dev: "em1", Weight: 1}), addr(src)
	})
	route("unicast DST via "+far+" dev em2 proto 115 scope global METRIC onlink", func(r *state.Route) {
		r.Hops = state.HopsOf(state.Hop{Via: addr(far), Dev: "em2", OnLink: true, Weight: 1})
	})
	route("unicast DST"+by+" METRIC mtu 1300", func(r *state.Route) { r.MTU = 1300 })
	route("unicast DST"+by+" METRIC advmss 1200", func(r *state.Route) { r.AdvMSS = 1200 })
	route("unicast DST"+by+" METRIC initcwnd 30", func(r *state.Route) { r.InitCwnd = 30 })
	route("unicast DST"+by+" METRIC quickack 1", func(r *state.Route) { r.QuickAck = true })
	route("unicast DST"+by+" src "+src+" METRIC mtu 1400 advmss 1360 initcwnd 10 quickack 1", func(r *state.Route) {
		r.Src, r.MTU, r.AdvMSS, r.InitCwnd, r.QuickAck = addr(src), 1400, 1360, 10, true
	})
	route("unicast DST proto 115 scope global METRIC nexthop via "+gateway1+" dev em1 weight 3 nexthop via "+gateway2+" dev em2 weight 256",
		func(r *state.Route) {
			r.Hops = state.HopsOf(state.Hop{Via: addr(gateway1), Dev: "em1", Weight: 3}, state.Hop{Via: addr(gateway2), Dev: "em2", Weight: 256})
		})
	route("unicast DST proto 115 scope global METRIC nexthop via "+far+" dev em2 weight 1 onlink nexthop via "+gateway1+" dev em1 weight 1",
		func(r *state.Route) {
			r.Hops = state.HopsOf(state.Hop{Via: addr(far), Dev: "em2", OnLink: true, Weight: 1}, state.Hop{Via: addr(gateway1), Dev: "em1", Weight: 1})
		})
	route("local DST dev lo proto 115 "+scope("host")+" METRIC", func(r *state.Route) {
		r.Type, r.Hops = state.Local, state.HopsOf(state.Hop{Dev: "lo", Weight: 1})
	})
	for _, reject := range []state.RouteType{state.Blackhole, state.Unreachable, state.Prohibit, state.Throw} {
		route(reject.String()+" DST"+lo+" proto 115 scope global METRIC", func(r *state.Route) { r.Type, r.Hops = reject, state.Hops{} })
	}
	route("unreachable default"+lo+" proto 115 scope global metric 4278198272", func(r *state.Route) {
		r.Dst, r.Type, r.Hops, r.Metric = state.AnyDestination(f), state.Unreachable, state.Hops{}, 4278198272
	})
	if f == state.IPv4 {
		route("unicast DST via inet6 fe80::1 dev em1 proto 115 scope global", func(r *state.Route) {
			r.Hops = state.HopsOf(state.Hop{Via: addr("fe80::1"), Dev: "em1", Weight: 1})
		})
		route("unicast DST proto 115 scope global nexthop via inet6 fe80::1 dev em1 weight 1 nexthop via "+gateway2+" dev em2 weight 2",
			func(r *state.Route) {
				r.Hops = state.HopsOf(state.Hop{Via: addr("fe80::1"), Dev: "em1", Weight: 1}, state.Hop{Via: addr(gateway2), Dev: "em2", Weight: 2})
			})
	}
	return cases
}

// showRoutes is a table as ip -details route prints it, one route a line.
func showRoutes(t testing.TB, f state.Family, table string) []string {
	t.Helper()
	option := "-4"
	if f == state.IPv6 {
		option = "-6"
	}
	var lines []string
	for _, l := range ip(t, option+" -details route show table "+table) {
		l = strings.Join(strings.Fields(l), " ")
		if strings.HasPrefix(l, "nexthop") {
			lines[len(lines)-1] += " " + l
			continue
		}
		lines = append(lines, l)
	}
	return lines
}

// do sends one request and fails the test when the kernel refuses it.
func do(t testing.TB, c *conn, kind, flags uint16, body []byte) {
	t.Helper()
	if err := c.do([]message{{kind, flags, body}})[0]; err != nil {
		t.Errorf("request %d: %v", kind, err)
	}
}

func TestEveryRouteAttributeReadsBackAsWritten(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	for _, f := range state.Families {
		for _, table := range []uint32{101, 11500} {
			var want []string
			var routes []state.Route
			for _, s := range spelledRoutes(f) {
				s.route.Table = table
				body, err := appendRoute(nil, s.route.Dst, s.route.Way, l.index)
				if err != nil {
					t.Fatalf("%s: %v", s.route, err)
				}
				// Twice: the second replaces the first by itself.
				do(t, c, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
				do(t, c, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
				want = append(want, s.text)
				routes = append(routes, s.route)
			}
			got := showRoutes(t, f, fmt.Sprint(table))
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("ip prints\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, filter := range []routeFilter{{family: f, table: table}, {family: f, protocol: state.Protocol}} {
				var read []state.Route
				for _, r := range observedRoutes(t, c, filter) {
					if r.Partial {
						t.Errorf("%s counts as not fully understood", r)
					}
					read = append(read, r.Route)
				}
				sortRoutes(read)
				sortRoutes(routes)
				if !slices.Equal(read, routes) {
					t.Errorf("read\n%v\nwant\n%v", read, routes)
				}
			}
			for _, r := range routes {
				body, err := appendRouteRemoval(nil, r.Dst, r.Way, l.index)
				if err != nil {
					t.Fatal(err)
				}
				do(t, c, unix.RTM_DELROUTE, 0, body)
			}
			if left := observedRoutes(t, c, routeFilter{family: f, table: table}); len(left) != 0 {
				t.Errorf("after deletion of all there is %v", left)
			}
		}
	}
}

func sortRoutes(routes []state.Route) {
	slices.SortFunc(routes, func(a, b state.Route) int { return strings.Compare(a.String(), b.String()) })
}

// A plan never deletes what it overwrites, so every kind of route must be able
// to take the place of every other.
func TestARouteReplacesAnyOtherInItsPlace(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	for _, f := range state.Families {
		dst := spelledRoutes(f)[0].route.Dst
		for _, old := range spelledRoutes(f) {
			for _, next := range spelledRoutes(f) {
				for _, w := range []state.Way{old.route.Way, next.route.Way} {
					w.Metric = 100
					body, err := appendRoute(nil, dst, w, l.index)
					if err != nil {
						t.Fatal(err)
					}
					do(t, c, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
				}
				want := next.route
				want.Dst, want.Metric = dst, 100
				got := observedRoutes(t, c, routeFilter{family: f, table: 1001})
				if len(got) != 1 || got[0].Route != want {
					t.Errorf("after\n%s\nwas replaced by\n%s there is\n%v", old.route, next.route, got)
				}
				for _, r := range got {
					body, err := appendRouteRemoval(nil, r.Dst, r.Way, l.index)
					if err != nil {
						t.Fatal(err)
					}
					do(t, c, unix.RTM_DELROUTE, 0, body)
				}
			}
		}
	}
}

func TestForeignTwinOfARouteSurvivesItsDeletion(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	for _, f := range state.Families {
		for _, s := range spelledRoutes(f) {
			s.route.Protocol = unix.RTPROT_STATIC
			body, err := appendRoute(nil, s.route.Dst, s.route.Way, l.index)
			if err != nil {
				t.Fatal(err)
			}
			do(t, c, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
		}
		before := showRoutes(t, f, "1001")
		for _, s := range spelledRoutes(f) {
			body, err := appendRouteRemoval(nil, s.route.Dst, s.route.Way, l.index)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.do([]message{{unix.RTM_DELROUTE, 0, body}})[0]; !gone(err) {
				t.Errorf("delete %s: %v, want that it is gone", s.route, err)
			}
		}
		if after := showRoutes(t, f, "1001"); !slices.Equal(after, before) {
			t.Errorf("foreign routes are\n%s\nwere\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
}

func TestForeignRouteFieldsAreMarked(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, _ := openTestConn(t)
	ipInput(t, "-batch -", `
nexthop add id 5 via 192.0.2.1 dev em1
nexthop add id 6 blackhole
nexthop add id 7 via 198.51.100.1 dev em2
nexthop add id 8 group 5,3/7,2
route add 10.1.0.0/16 nhid 5 table 1001 proto 115
route add 10.2.0.0/16 nhid 6 table 1001 proto 115
route add 10.3.0.0/16 nhid 8 table 1001 proto 115
route add 10.4.0.0/16 via 192.0.2.1 realms 3/4 table 1001 proto 115
route add 10.5.0.0/16 via 192.0.2.1 hoplimit 5 table 1001 proto 115
route add 10.6.0.0/16 via 192.0.2.1 mtu lock 1300 table 1001 proto 115
route add 10.7.0.0/16 via 192.0.2.1 tos 0x10 table 1001 proto 115
route add 2001:db8:a::/48 from 2001:db8:b::/48 via 2001:db8:1::1 table 1001 proto 115
route add 2001:db8:c::/48 via 2001:db8:1::1 expires 300 table 1001 proto 115
`)
	n := 0
	for _, f := range state.Families {
		for _, r := range observedRoutes(t, c, routeFilter{family: f, table: 1001}) {
			n++
			if !r.Partial {
				t.Errorf("%s counts as fully understood", r)
			}
		}
	}
	if n != 9 {
		t.Errorf("%d routes are seen, want 9", n)
	}
}

func TestTheConditionOfALinkDoesNotChangeARoute(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	for _, f := range state.Families {
		var want []state.Route
		for _, s := range spelledRoutes(f) {
			body, err := appendRoute(nil, s.route.Dst, s.route.Way, l.index)
			if err != nil {
				t.Fatal(err)
			}
			do(t, c, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
			want = append(want, s.route)
		}
		ip(t, "link set peer1 down")
		var got []state.Route
		linkdown := false
		// The kernel may take a second to notice.
		for start := time.Now(); !linkdown && time.Since(start) < 10*time.Second; {
			got = nil
			for _, r := range observedRoutes(t, c, routeFilter{family: f, table: 1001}) {
				got = append(got, r.Route)
				linkdown = linkdown || r.Flags&unix.RTNH_F_LINKDOWN != 0
			}
		}
		sortRoutes(got)
		sortRoutes(want)
		if !slices.Equal(got, want) {
			t.Errorf("without carrier read\n%v\nwant\n%v", got, want)
		}
		if !linkdown {
			t.Errorf("%s: no route is flagged linkdown: the test shows nothing", f)
		}
		ip(t, "link set peer1 up")
	}
}

func TestARouteWrittenByHandInAnotherScopeIsDeleted(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	h := openTestHost(t)
	ip(t, "route add 10.1.0.0/16 dev em1 scope global table 1001 proto 115")
	plan := state.Diff(readHost(t, h, Query{Sweep: true}, AllParts).Observed, state.Desired{State: state.New()})
	applyAll(t, h, plan)
	if left := ip(t, "route show table 1001"); len(left) != 0 || plan.Empty() {
		t.Errorf("left are %v after %v", left, plan.Steps)
	}
}

func TestRoutesThatWouldReadBackDifferentlyAreRefused(t *testing.T) {
	index := func(string) int { return 1 }
	hop := state.Hop{Via: netip.MustParseAddr("2001:db8::1"), Dev: "em1", Weight: 1}
	good := state.Route{Dst: netip.MustParsePrefix("2001:db8:a::/48"), Way: state.Way{
		Family: state.IPv6, Table: 101, Metric: 1024, Type: state.Unicast, Protocol: 115, Hops: state.HopsOf(hop),
	}}
	for name, change := range map[string]func(*state.Route){
		"bits beyond the length": func(r *state.Route) { r.Dst = netip.MustParsePrefix("2001:db8::1/48") },
		"other family":           func(r *state.Route) { r.Dst = netip.MustParsePrefix("10.0.0.0/8") },
		"no table":               func(r *state.Route) { r.Table = 0 },
		"IPv6 metric 0":          func(r *state.Route) { r.Metric = 0 },
		"IPv4 source":            func(r *state.Route) { r.Src = netip.MustParseAddr("10.0.0.1") },
		"mtu":                    func(r *state.Route) { r.MTU = 65521 },
		"advmss":                 func(r *state.Route) { r.AdvMSS = 65496 },
		"unicast without hops":   func(r *state.Route) { r.Hops = state.Hops{} },
		"unreachable with hops":  func(r *state.Route) { r.Type = state.Unreachable },
		"IPv6 by IPv4": func(r *state.Route) {
			r.Hops = state.HopsOf(state.Hop{Via: netip.MustParseAddr("10.0.0.1"), Dev: "em1", Weight: 1})
		},
		"onlink without gateway":     func(r *state.Route) { r.Hops = state.HopsOf(state.Hop{Dev: "em1", OnLink: true, Weight: 1}) },
		"weight of an only next hop": func(r *state.Route) { h := hop; h.Weight = 2; r.Hops = state.HopsOf(h) },
		"weight 257":                 func(r *state.Route) { h := hop; h.Weight = 257; r.Hops = state.HopsOf(hop, h) },
	} {
		r := good
		change(&r)
		if _, err := appendRoute(nil, r.Dst, r.Way, index); err == nil {
			t.Errorf("%s is encoded", name)
		}
	}
	if _, err := appendRoute(nil, good.Dst, good.Way, index); err != nil {
		t.Error(err)
	}
}

// numberedLink names any link that a fuzzer may number.
func numberedLink(index int) string {
	if int32(index) <= 0 {
		return ""
	}
	return fmt.Sprintf("link%d", int32(index))
}

// indexOfNumbered is the number that numberedLink made a name of.
func indexOfNumbered(name string) int {
	var i int32
	_, _ = fmt.Sscanf(name, "link%d", &i)
	return int(i)
}

func FuzzDecodeRoute(f *testing.F) {
	for _, family := range state.Families {
		for _, s := range spelledRoutes(family) {
			body, err := appendRoute(nil, s.route.Dst, s.route.Way, func(dev string) int { return int(dev[len(dev)-1]) })
			if err != nil {
				f.Fatal(err)
			}
			f.Add(body)
			// An address that the length in the header makes meaningless.
			unbounded := slices.Clone(body)
			unbounded[1] = 0
			f.Add(unbounded)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRoute(body, numberedLink)
		if err != nil || r.Partial {
			return
		}
		again, err := appendRoute(nil, r.Dst, r.Way, indexOfNumbered)
		if err != nil {
			t.Fatalf("%s is understood and cannot be written: %v", r, err)
		}
		back, err := decodeRoute(again, numberedLink)
		if err != nil || back.Route != r.Route {
			t.Fatalf("%+v reads back as %+v, %v", r, back, err)
		}
	})
}
