package profiles

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// routeKey is what two routes cannot share: the kernel keeps one of them.
type routeKey struct {
	table  Table
	to     netip.Prefix
	metric uint32
}

// routeTypes are the types of ip-route(8) that make sense in a table of ours.
var routeTypes = []string{"unicast", "local", "unreachable", "blackhole", "prohibit", "throw"}

// rejects reports whether routes of the type drop or pass on the packet
// without a next hop.
func rejects(routeType string) bool { return slices.Index(routeTypes, routeType) >= 2 }

// tableRoute judges one [[route]].
func (b *builder) tableRoute(raw rawRoute) (Route, bool) {
	t, ok := b.routeTable(raw)
	r, routeOK := b.route(raw.rawWay, t, "")
	return r, ok && routeOK && b.routeOnce(raw.rawWay, r)
}

// uplinkRoute judges one entry of an uplink's routes.
func (b *builder) uplinkRoute(raw rawWay, u Uplink) (Route, bool) {
	if raw.at.shape != table {
		return Route{}, false
	}
	r, ok := b.route(raw, Table{Name: u.Name}, u.Interface)
	if ok = ok && b.routeOnce(raw, r); ok && !u.serves(raw.To.at, r.To.Addr()) {
		return r, false
	}
	return r, ok
}

func (b *builder) routeTable(raw rawRoute) (Table, bool) {
	f := raw.Table
	if f.at == nil {
		raw.at.badKey("the route has no table", `add the line table = "china": the name of an uplink, or a name or number of your own`)
		return Table{}, false
	}
	const ours = "a [[route]] goes into a table of sisod's: an uplink's, or one of your own; main and the like belong to others"
	switch v := f.at.value.(type) {
	case int64:
		if bad := numberOfTable(v); bad != nil {
			f.at.bad(bad.text, ours)
			return Table{}, false
		}
		return Table{Number: uint32(v)}, true
	case string:
		if n, ok := parse32(v); ok {
			if bad := numberOfTable(int64(n)); bad != nil {
				f.at.bad(bad.text, ours)
				return Table{}, false
			}
			return Table{Number: n}, true
		}
		if why := reserved(v); why != "" {
			f.at.bad(fmt.Sprintf("table cannot be %q, which %s", v, why), ours)
			return Table{}, false
		}
		if bad := tableName(v); bad != nil {
			f.at.bad(fmt.Sprintf("%q is not the name of a table: %s", v, bad.text), bad.hint)
			return Table{}, false
		}
		return Table{Name: v}, true
	}
	f.at.mistyped(want{"a table's name or number", ""})
	return Table{}, false
}

// route judges a route in any table. dev is the interface of routes that name none.
func (b *builder) route(raw rawWay, t Table, dev string) (Route, bool) {
	before := len(b.loader.errs)
	r := Route{Pos: raw.at.pos(), Table: t, Type: "unicast", OnLink: raw.OnLink.v, QuickAck: raw.QuickAck.v}
	r.Via, _ = address(raw.Via)
	r.Src, _ = address(raw.Src)
	r.Dev, _ = link(raw.Dev)
	b.routeTo(raw, &r)
	if f := raw.Type; f.ok {
		r.Type = f.v
		if !slices.Contains(routeTypes, f.v) {
			f.at.bad(fmt.Sprintf("type cannot be %q", f.v), "known types: "+strings.Join(routeTypes, ", "))
		}
	}
	r.Nexthops = nexthops(raw, dev)
	if v, ok := within(raw.Metric, 0, GuardMetric-1, "lower wins"); ok {
		r.Metric = new(v)
	}
	mtu := int64(minMTU)
	if r.To.Addr().Is6() {
		mtu = minMTUv6
	}
	r.MTU, _ = within(raw.MTU, mtu, maxMTU, "in bytes")
	r.AdvMSS, _ = within(raw.AdvMSS, minMSS, maxMSS, "the largest TCP segment to ask of the other side, in bytes")
	r.InitCwnd, _ = within(raw.InitCwnd, 1, 65535, "in segments; the kernel's own is 10")
	if len(b.loader.errs) > before {
		return r, false
	}
	b.routeWay(raw, &r, dev)
	routeFamilies(raw, r)
	return r, len(b.loader.errs) == before
}

// routeTo reads the destination. "default" takes its family from the gateway.
func (b *builder) routeTo(raw rawWay, r *Route) {
	f := raw.To
	if f.at == nil {
		raw.at.badKey("the route has no destination", `add to = "192.0.2.0/24", or to = "default"`)
		return
	}
	if f.v != "default" {
		r.To, _ = asPrefix(f, `"0.0.0.0/0" or "::/0"`)
		return
	}
	for _, n := range raw.Nexthops.items {
		if a, err := netip.ParseAddr(n.Via.v); err == nil && !r.To.IsValid() {
			r.To = netip.PrefixFrom(zero(a), 0)
		}
	}
	for _, a := range []netip.Addr{r.Via, r.Src} {
		if a.IsValid() && !r.To.IsValid() {
			r.To = netip.PrefixFrom(zero(a), 0)
		}
	}
	if !r.To.IsValid() {
		f.at.bad(`the family of "default" cannot be told without a gateway`, `write "0.0.0.0/0" or "::/0"; for both, write two routes`)
	}
}

// zero is the unspecified address of a's family.
func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func nexthops(raw rawWay, dev string) []Nexthop {
	var hops []Nexthop
	if at := raw.Nexthops.at; at != nil && at.shape == array && len(at.elements) == 0 {
		at.bad("nexthops is an empty list", `nexthops = [{ via = "192.0.2.1" }, { via = "192.0.2.2", weight = 2 }]`)
	}
	for _, n := range raw.Nexthops.items {
		h := Nexthop{OnLink: n.OnLink.v, Weight: 1}
		h.Via, _ = address(n.Via)
		h.Dev, _ = link(n.Dev)
		if n.Dev.at == nil {
			h.Dev = dev
		}
		if v, ok := within(n.Weight, 1, 256, "the share of this next hop"); ok {
			h.Weight = int(v)
		}
		switch {
		case n.at.shape != table:
		case n.Via.at == nil && n.Dev.at == nil:
			n.at.bad("the next hop has neither via nor dev", `{ via = "192.0.2.1" }, or { dev = "em1" }`)
		case h.OnLink && (n.Via.at == nil || h.Dev == ""):
			n.OnLink.at.badKey("onlink needs via and dev", "it says that the gateway is reached on that interface, whatever its addresses say")
		}
		twin := func(o Nexthop) bool { return o.Via == h.Via && o.Dev == h.Dev }
		if (h.Via.IsValid() || n.Dev.ok) && slices.ContainsFunc(hops, twin) {
			n.at.bad("the same next hop stands twice", "to give it a larger share, use weight")
		}
		hops = append(hops, h)
	}
	return hops
}

// routeWay judges which of via, dev and nexthops the type asks for.
func (b *builder) routeWay(raw rawWay, r *Route, dev string) {
	if rejects(r.Type) {
		for _, at := range []*node{raw.Via.at, raw.Dev.at, raw.Nexthops.at, raw.OnLink.at} {
			if at != nil {
				at.badKey(fmt.Sprintf("a route of type %s leads nowhere and has no %s", r.Type, at.name), fmt.Sprintf("remove %s, or the type", at.name))
			}
		}
		return
	}
	if raw.Nexthops.at != nil {
		for _, at := range []*node{raw.Via.at, raw.Dev.at, raw.OnLink.at} {
			if at != nil {
				at.badKey(fmt.Sprintf("%s and nexthops exclude each other", at.name), fmt.Sprintf("write %s into each element of nexthops", at.name))
			}
		}
		if r.Type != "unicast" {
			raw.Type.at.bad(fmt.Sprintf("a route of type %s has no nexthops", r.Type), "remove one of the two")
		}
		return
	}
	if raw.Dev.at == nil {
		r.Dev = dev
	}
	switch {
	case r.Type == "local" && raw.Via.at != nil:
		raw.Via.at.badKey("a route of type local has no via", "what is local needs no gateway")
	case r.Type == "local" && r.Dev == "":
		raw.at.badKey("a route of type local needs dev", `add dev = "lo"`)
	case !r.Via.IsValid() && raw.Dev.at == nil && dev == "":
		raw.at.badKey("the route does not say where to", "add via (a gateway), dev (an interface), nexthops, or a type such as unreachable")
	case r.OnLink && (!r.Via.IsValid() || r.Dev == ""):
		raw.OnLink.at.badKey("onlink needs via and dev", "it says that the gateway is reached on that interface, whatever its addresses say")
	}
}

// routeFamilies complains about addresses of another family than the destination's.
func routeFamilies(raw rawWay, r Route) {
	check := func(at *node, a netip.Addr) {
		if a.IsValid() && a.Is4() != r.To.Addr().Is4() {
			at.bad(fmt.Sprintf("%s is %s, and the destination %s is %s", at.name, family(a), r.To, family(r.To.Addr())), "all addresses of a route are of one family")
		}
	}
	check(raw.Via.at, r.Via)
	check(raw.Src.at, r.Src)
	for i, h := range r.Nexthops {
		check(raw.Nexthops.items[i].Via.at, h.Via)
	}
	if raw.Metric.ok && raw.Metric.v == 0 && r.To.Addr().Is6() {
		raw.Metric.at.bad("an IPv6 route has no metric 0", "the kernel makes it 1024: leave the key out for that, or take a number from 1 up")
	}
}

// routeOnce complains about a second route in the same place.
func (b *builder) routeOnce(raw rawWay, r Route) bool {
	key := routeKey{table: r.Table, to: r.To}
	uplink := false
	for _, u := range b.uplinks {
		name, number := u.at.name, u.Table
		if r.Table.Name == name || r.Table.Number != 0 && number.ok && int64(r.Table.Number) == number.v {
			key.table, uplink = Table{Name: name}, true
		}
	}
	if r.Metric != nil {
		key.metric = *r.Metric
	} else if r.To.Addr().Is6() {
		key.metric = 1024
	}
	if uplink && r.To.Bits() == 0 && r.Metric == nil {
		raw.To.at.bad(fmt.Sprintf("the default route of uplink %s comes from its gateway", key.table.Name),
			"set `gateway` there; or, for a second choice, give this route a metric")
		return false
	}
	if earlier, twice := b.allRoutes[key]; twice {
		raw.at.badKey(fmt.Sprintf("a route to %s with this metric is in this table already, at %s", r.To, earlier),
			"give this one another metric, or join the two with nexthops")
		return false
	}
	b.allRoutes[key] = r.Pos
	return true
}
