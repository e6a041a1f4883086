package kernel

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

func TestATableThatDoesNotExistIsEmpty(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	for _, f := range state.Families {
		if got := observedRoutes(t, c, routeFilter{family: f, table: 4711}); len(got) != 0 {
			t.Errorf("%s: %v", f, got)
		}
		if got := observedRoutes(t, c, routeFilter{family: f, oif: 4711}); len(got) != 0 {
			t.Errorf("%s: %v", f, got)
		}
	}
}

func TestALinkThatHasGoneHasNoRoutes(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	gone := l.index("em1")
	ip(t, "link del em1")
	for _, f := range state.Families {
		if got := observedRoutes(t, c, routeFilter{family: f, oif: gone}); len(got) != 0 {
			t.Errorf("%s: %v", f, got)
		}
	}
}

func TestFiltersHoldWithoutTheKernelsHelp(t *testing.T) {
	enterNamespace(t)
	twoUplinks(t)
	c, l := openTestConn(t)
	ip(t, "route add 10.1.0.0/16 via 192.0.2.1 table 1001 proto static")
	ip(t, "route add 10.2.0.0/16 via 198.51.100.1 table 1001 proto 115")
	ip(t, "route add 10.3.0.0/16 via 198.51.100.1 table 1002 proto 115")
	filters := []routeFilter{
		{family: state.IPv4, table: 1001},
		{family: state.IPv4, protocol: 115},
		{family: state.IPv4, oif: l.index("em2")},
		{family: state.IPv4, table: 1001, protocol: 115, oif: l.index("em2")},
		{family: state.IPv4, table: 4711},
		{family: state.IPv6, oif: l.index("em1")},
	}
	var strict [][]observedRoute
	for _, f := range filters {
		strict = append(strict, observedRoutes(t, c, f))
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 0); err != nil {
		t.Fatal(err)
	}
	c.strict = false
	for i, f := range filters {
		if got := observedRoutes(t, c, f); !slices.Equal(got, strict[i]) {
			t.Errorf("filter %+v: got\n%v\nwith the kernel's help\n%v", f, got, strict[i])
		}
	}
	for i, want := range []int{2, 2, 5, 1, 0} {
		if len(strict[i]) != want {
			t.Errorf("filter %+v: %d routes, want %d: %v", filters[i], len(strict[i]), want, strict[i])
		}
	}
}

func TestWhatTheKernelLearnedFromPacketsIsLeftOut(t *testing.T) {
	r := observedRoute{Route: state.Route{Way: state.Way{Family: state.IPv6}}}
	filter := routeFilter{family: state.IPv6}
	if !filter.passes(r, "") {
		t.Error("a route does not pass")
	}
	r.Flags = unix.RTM_F_CLONED
	if filter.passes(r, "") {
		t.Error("a cached route passes")
	}
}
