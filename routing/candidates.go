package routing

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// destinations gathers every `to` prefix in one table, so that the longest
// prefix wins whoever's it is, with the uplinks' own networks among them.
func (b *builder) destinations() {
	table, asked := b.tables.Number(DestinationsTable)
	if !asked {
		return
	}
	for _, f := range state.Families {
		networks := map[netip.Prefix]bool{}
		active := false
		for _, e := range b.exits {
			if e.Family != f {
				continue
			}
			active = active || e.Active && members(e.profile.Listed, f).Len() > 0
		}
		if !active {
			continue
		}
		for _, e := range b.exits {
			if e.Family != f || !e.Active {
				continue
			}
			for _, n := range e.networks {
				hop, _ := n.Hops.Single()
				if !hop.Via.IsValid() && !n.Dst.Addr().IsLinkLocalUnicast() && !networks[n.Dst] {
					networks[n.Dst] = true
					n.Table = table
					b.route(n, e.profile.Pos.Short())
				}
			}
		}
		origin := ""
		for _, e := range b.exits {
			if e.Family != f || !e.Active {
				continue
			}
			i := slices.IndexFunc(e.profile.To, func(l profiles.PrefixList) bool { return members(l.Prefixes, f).Len() > 0 })
			if i < 0 {
				continue
			}
			pos := e.profile.To[i].Pos.Short()
			if origin == "" {
				origin = pos
			}
			b.quiet(e)
			if !e.Out || !e.Carrier {
				continue // it falls back to what comes after
			}
			w := b.wayTo(e, table)
			b.Routes.AddSet(w, b.listed(e, table, networks))
			if b.Origins[w] == "" {
				b.Origins[w] = pos
			}
		}
		b.rule(b.row(f, state.RowDestinations, table), origin)
	}
}

// listed are the prefixes that an uplink's lists put into the table. What a
// wider prefix of the same lists makes superfluous is left out, but not within
// what somebody else has in the table: there it is an exception to that.
func (b *builder) listed(e *Exit, table uint32, networks map[netip.Prefix]bool) prefix.Set {
	all, dsts := members(e.profile.Listed, e.Family), members(e.profile.Thinned, e.Family)
	for n := range networks {
		dsts = dsts.Union(all.Within(n))
	}
	for _, r := range b.facts.ForeignRoutes {
		if r.Table == table && r.Family == e.Family {
			dsts = dsts.Union(all.Within(r.Dst))
		}
	}
	for _, r := range b.config.Routes {
		if r.Table.Number == table {
			dsts = dsts.Union(all.Within(r.To))
		}
	}
	// Neighbours on an uplink's network are reached on the link.
	return dsts.Without(prefix.Of(slices.Collect(maps.Keys(networks))...))
}

// members are the prefixes of one family.
func members(s prefix.Set, f state.Family) prefix.Set {
	if f == state.IPv6 {
		return s.IPv6()
	}
	return s.IPv4()
}

// defaults offers the candidates for the host's own default route. What main
// knows more exactly than a default comes before them; main itself is never
// written.
func (b *builder) defaults() {
	table, asked := b.tables.Number(DefaultsTable)
	if !asked {
		return
	}
	for _, f := range state.Families {
		origin := ""
		byMetric := map[uint32][]*Exit{}
		for _, e := range b.exits {
			d := e.profile.Default
			if e.Family != f || d == nil || !e.Active {
				continue
			}
			if origin == "" {
				origin = d.Pos.Short()
			}
			if e.Out && e.Carrier {
				byMetric[metricOf(f, d.Metric)] = append(byMetric[metricOf(f, d.Metric)], e)
			}
		}
		if origin == "" {
			continue
		}
		for _, metric := range slices.Sorted(maps.Keys(byMetric)) {
			exits := byMetric[metric]
			w := exits[0].way(table, metric)
			if len(exits) > 1 {
				w = shared(exits, w)
			}
			b.route(state.Route{Dst: state.AnyDestination(f), Way: w}, exits[0].profile.Default.Pos.Short())
		}
		b.rule(b.row(f, state.RowMain, state.TableMain).WithoutDefaults(), origin)
		b.rule(b.row(f, state.RowDefaults, table), origin)
	}
}

// shared is one multipath way over several exits. It carries no source: half
// of the packets would start from the other uplink's address.
func shared(exits []*Exit, w state.Way) state.Way {
	var hops []state.Hop
	for _, e := range exits {
		h := e.hop()
		h.Weight = e.profile.Default.Weight
		hops = append(hops, h)
		if e.profile.MTU != w.MTU {
			w.MTU = 0
		}
		if e.profile.AdvMSS != w.AdvMSS {
			w.AdvMSS = 0
		}
	}
	w.Hops, w.Src = state.HopsOf(hops...), netip.Addr{}
	return w
}

// metricOf spells a metric as the kernel keeps it: IPv6 turns 0 into its default.
func metricOf(f state.Family, metric uint32) uint32 {
	if metric == 0 {
		return state.DefaultMetric(f)
	}
	return metric
}
