package state

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sisod/sisod/internal/prefix"
)

// RouteType is what a route does with a packet (linux/rtnetlink.h, RTN_*).
type RouteType uint8

// The types that sisod writes.
const (
	Unicast     RouteType = 1
	Local       RouteType = 2
	Blackhole   RouteType = 6
	Unreachable RouteType = 7
	Prohibit    RouteType = 8
	Throw       RouteType = 9
)

var routeTypes = map[RouteType]string{
	Unicast: "unicast", Local: "local", Blackhole: "blackhole", Unreachable: "unreachable", Prohibit: "prohibit", Throw: "throw",
}

// String is the type as ip route spells it.
func (t RouteType) String() string {
	if s, ok := routeTypes[t]; ok {
		return s
	}
	return "type " + strconv.Itoa(int(t))
}

// RouteTypeNamed is the type that ip route calls name.
func RouteTypeNamed(name string) (RouteType, bool) {
	for t, s := range routeTypes {
		if s == name {
			return t, true
		}
	}
	return 0, false
}

// Hop is one next hop. Weight counts from 1, as in ip route; the kernel's
// rtnh_hops is one less.
type Hop struct {
	Via    netip.Addr // zero Addr: on-link
	Dev    string
	OnLink bool // Via is taken to be on Dev whatever the routes say
	Weight int
}

func (h Hop) String() string {
	var w []string
	if h.Via.IsValid() {
		w = append(w, "via "+h.Via.String())
	}
	if h.Dev != "" {
		w = append(w, "dev "+h.Dev)
	}
	if h.OnLink {
		w = append(w, "onlink")
	}
	return strings.Join(w, " ")
}

// Hops is an immutable, comparable list of next hops.
type Hops struct {
	one Hop
	// more is the text of the hops after the first, "via/dev/onlink/weight" each
	// on its line: it makes a list of any length comparable. No name of a link
	// holds a slash or a space (net/core/dev.c, dev_valid_name).
	more string
}

// HopsOf makes a list. The order counts, as in the kernel; a weight of 0 is 1.
func HopsOf(hops ...Hop) Hops {
	if len(hops) == 0 {
		return Hops{}
	}
	h := Hops{one: hops[0]}
	h.one.Weight = max(1, h.one.Weight)
	for _, m := range hops[1:] {
		m.Weight = max(1, m.Weight)
		via := ""
		if m.Via.IsValid() {
			via = m.Via.String()
		}
		h.more += fmt.Sprintf("%s/%s/%t/%d\n", via, m.Dev, m.OnLink, m.Weight)
	}
	return h
}

// None reports whether there is no next hop, as in an unreachable route.
func (h Hops) None() bool { return h.one == Hop{} }

// Single returns the only next hop, and false when there are none or several.
func (h Hops) Single() (Hop, bool) { return h.one, !h.None() && h.more == "" }

// By reports whether a next hop is on the link.
func (h Hops) By(link string) bool {
	if h.one.Dev == link || h.more == "" {
		return h.one.Dev == link && !h.None()
	}
	for _, hop := range h.All() {
		if hop.Dev == link {
			return true
		}
	}
	return false
}

// All lists the hops.
func (h Hops) All() []Hop {
	if h.None() {
		return nil
	}
	hops := []Hop{h.one}
	for line := range strings.Lines(h.more) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "/")
		via, _ := netip.ParseAddr(f[0])
		weight, _ := strconv.Atoi(f[3])
		hops = append(hops, Hop{Via: via, Dev: f[1], OnLink: f[2] == "true", Weight: weight})
	}
	return hops
}

// Way is all that a route says except its destination. Routes that share a
// way differ by their prefix alone, and a list of any length is one way and a
// sorted list of prefixes.
type Way struct {
	Family   Family
	Table    uint32
	Metric   uint32 // fully spelled: IPv6 has no metric 0
	Type     RouteType
	Hops     Hops
	Nexthop  uint32     // the object that says them, in the place of Hops; 0: none
	Src      netip.Addr // zero Addr: the kernel chooses
	MTU      uint32     // bytes; 0: the link's
	AdvMSS   uint32     // bytes; 0: from the MTU
	InitCwnd uint32     // segments; 0: the kernel's
	QuickAck bool
	Protocol uint8
}

// DefaultMetric is the metric that stands for "none given": 0 in IPv4, and
// 1024 in IPv6 (IP6_RT_PRIO_USER), where the kernel would put it itself.
func DefaultMetric(f Family) uint32 {
	if f == IPv6 {
		return 1024
	}
	return 0
}

// Route is one route.
type Route struct {
	Dst netip.Prefix
	Way
}

// AnyDestination is 0.0.0.0/0 or ::/0.
func AnyDestination(f Family) netip.Prefix {
	if f == IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// String is the route as ip route spells it, its table as a number.
func (r Route) String() string { return r.Spell(nil) }

// Spell is the route as one would type it after "ip route replace".
func (r Route) Spell(n Names) string {
	dst := "default"
	if r.Dst.Bits() != 0 {
		dst = spellPrefix(r.Dst)
	}
	if r.Type != Unicast {
		dst = r.Type.String() + " " + dst
	}
	return dst + r.spell(n)
}

func (w Way) spell(n Names) string {
	var b strings.Builder
	hop, single := w.Hops.Single()
	switch {
	case w.Nexthop != 0:
		fmt.Fprintf(&b, " nhid %d", w.Nexthop)
	case single:
		b.WriteString(" " + hop.String())
	}
	fmt.Fprintf(&b, " table %s", n.Table(w.Table))
	if w.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", w.Src)
	}
	if w.Metric != DefaultMetric(w.Family) {
		fmt.Fprintf(&b, " metric %d", w.Metric)
	}
	if w.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", w.MTU)
	}
	if w.AdvMSS != 0 {
		fmt.Fprintf(&b, " advmss %d", w.AdvMSS)
	}
	if w.InitCwnd != 0 {
		fmt.Fprintf(&b, " initcwnd %d", w.InitCwnd)
	}
	if w.QuickAck {
		b.WriteString(" quickack 1")
	}
	if !single {
		for _, h := range w.Hops.All() {
			fmt.Fprintf(&b, " nexthop %s weight %d", h, h.Weight)
		}
	}
	return b.String()
}

// RouteSet is routes that share a way: what one step adds or deletes.
type RouteSet struct {
	Way
	Dsts prefix.Set
}

// One is the set of a single route.
func One(r Route) RouteSet { return RouteSet{r.Way, prefix.Of(r.Dst)} }

// Kind is KindRoute.
func (RouteSet) Kind() Kind { return KindRoute }

// All lists the routes of the set.
func (s RouteSet) All() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for d := range s.Dsts.All() {
			if !yield(Route{Dst: d, Way: s.Way}) {
				return
			}
		}
	}
}

// spelledRoutes is how many routes of a set are written out in a plan.
const spelledRoutes = 8

// Spell lists a short set route by route, and counts a long one.
func (s RouteSet) Spell(names Names) string {
	n := s.Dsts.Len()
	if n <= spelledRoutes {
		var lines []string
		for r := range s.All() {
			lines = append(lines, r.Spell(names))
		}
		return strings.Join(lines, "\n")
	}
	return fmt.Sprintf("%d prefixes (%s … %s)%s", n, s.Dsts.At(0), s.Dsts.At(n-1), s.spell(names))
}

// Commands is one ip route for each prefix.
func (s RouteSet) Commands(op Op, n Names) []string {
	verb := "replace"
	if op.Removes() {
		verb = "del"
	}
	c := make([]string, 0, s.Dsts.Len())
	for r := range s.All() {
		c = append(c, fmt.Sprintf("%s route %s %s protocol %d", r.Family.command(), verb, r.Spell(n), r.Protocol))
	}
	return c
}

// Routes is a set of routes, gathered by way.
type Routes map[Way]prefix.Set

// Add puts routes into the set.
func (r Routes) Add(w Way, dsts ...netip.Prefix) { r.AddSet(w, prefix.Of(dsts...)) }

// AddSet puts the routes to a set of prefixes into the set.
func (r Routes) AddSet(w Way, dsts prefix.Set) { r[w] = r[w].Union(dsts) }

// Len is the number of routes.
func (r Routes) Len() int {
	n := 0
	for _, dsts := range r {
		n += dsts.Len()
	}
	return n
}

// Sets lists the ways in a stable order: family, table, on-link before by
// gateway (the kernel looks a gateway up among the routes that are there),
// metric, spelling.
func (r Routes) Sets() []RouteSet {
	sets := make([]RouteSet, 0, len(r))
	for w, dsts := range r {
		if dsts.Len() > 0 {
			sets = append(sets, RouteSet{w, dsts})
		}
	}
	slices.SortFunc(sets, compareSets)
	return sets
}

// All lists every route in the order of Sets.
func (r Routes) All() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, s := range r.Sets() {
			for route := range s.All() {
				if !yield(route) {
					return
				}
			}
		}
	}
}

func compareSets(a, b RouteSet) int {
	return cmp.Or(
		cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Table, b.Table),
		cmp.Compare(a.gateways(), b.gateways()),
		cmp.Compare(a.Metric, b.Metric),
		cmp.Compare(a.Type, b.Type),
		cmp.Compare(a.spell(nil), b.spell(nil)),
	)
}

// gateways is 1 when a next hop of the way is a gateway, or may be, else 0.
func (w Way) gateways() int {
	if w.Nexthop != 0 {
		return 1
	}
	for _, h := range w.Hops.All() {
		if h.Via.IsValid() {
			return 1
		}
	}
	return 0
}

// slot is what makes two routes to one destination rivals: NLM_F_REPLACE
// overwrites within it (net/ipv4/fib_trie.c, fib_table_insert).
type slot struct {
	family Family
	table  uint32
	metric uint32
}

func (w Way) slot() slot { return slot{w.Family, w.Table, w.Metric} }

// diffRoutes returns what must be written to get from observed to desired,
// and what must be deleted; a route that is overwritten is not deleted.
func diffRoutes(observed, desired Routes) (write, remove Routes) {
	write, remove = Routes{}, Routes{}
	// Not one set a slot: to make one of a million and a few copies a million.
	written := map[slot][]prefix.Set{}
	for w, want := range desired {
		if missing := want.Without(observed[w]); missing.Len() > 0 {
			write[w] = missing
			written[w.slot()] = append(written[w.slot()], missing)
		}
	}
	for w, have := range observed {
		gone := have.Without(desired[w])
		for _, dsts := range written[w.slot()] {
			gone = gone.Without(dsts)
		}
		if gone.Len() > 0 {
			remove[w] = gone
		}
	}
	return write, remove
}
