package routing

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// freeRules adds the [[rule]] entries.
func (b *builder) freeRules() {
	for i := range b.config.Rules {
		p := &b.config.Rules[i]
		subject := "rule " + strconv.FormatUint(uint64(p.Priority), 10)
		table := p.Lookup.Number
		if p.Lookup.Name != "" {
			n, ok := b.tables.Number(p.Lookup.Name)
			if !ok {
				n, ok = b.facts.SystemTables[p.Lookup.Name]
			}
			if !ok {
				b.problem(subject, p.Pos, "no table is named %s: no uplink, no [[route]] and no line of rt_tables has that name", p.Lookup.Name)
				continue
			}
			table = n
		}
		for _, f := range state.Families {
			if f == state.IPv4 && !p.Families.IPv4 || f == state.IPv6 && !p.Families.IPv6 {
				continue
			}
			r := state.NewRule(f, p.Priority, table)
			if p.Action != "" {
				r.Action, _ = state.RuleActionNamed(p.Action)
			}
			r.Not, r.From, r.To, r.TOS = p.Not, p.From, p.To, p.TOS
			r.Mark, r.Mask, r.IIF, r.OIF, r.IPProto = p.Mark, p.Mask, p.IIF, p.OIF, p.IPProto
			r.SPort = state.PortRange{First: p.SPort[0], Last: p.SPort[1]}
			r.DPort = state.PortRange{First: p.DPort[0], Last: p.DPort[1]}
			if p.UIDs != nil {
				r.UIDs = state.UIDRange{First: p.UIDs[0], Last: p.UIDs[1]}
			}
			if p.SuppressPrefixLength != nil {
				r.SuppressPrefixLength = *p.SuppressPrefixLength
			}
			if p.SuppressIfgroup != nil {
				r.SuppressGroup = *p.SuppressIfgroup
			}
			b.rule(r, p.Pos.Short())
		}
	}
}

// freeRoutes adds the [[route]] entries.
func (b *builder) freeRoutes() {
	for i := range b.config.Routes {
		p := &b.config.Routes[i]
		table := p.Table.Number
		if p.Table.Name != "" {
			table, _ = b.tables.Number(p.Table.Name)
		}
		if r, ok := b.resolve(p, "route "+spellTo(p.To), table, "", family(p.To.Addr())); ok {
			b.route(r, p.Pos.Short())
		}
	}
}

func spellTo(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "default"
	}
	return p.String()
}

// resolve turns a profile's route into the kernel's, for one family. What
// cannot be now becomes a problem.
func (b *builder) resolve(p *profiles.Route, subject string, table uint32, dev string, f state.Family) (state.Route, bool) {
	if family(p.To.Addr()) != f {
		return state.Route{}, false
	}
	typ, _ := state.RouteTypeNamed(p.Type)
	r := state.Route{Dst: p.To, Way: state.Way{
		Family: f, Table: table, Metric: state.DefaultMetric(f), Type: typ, Src: p.Src,
		MTU: p.MTU, AdvMSS: p.AdvMSS, InitCwnd: p.InitCwnd, QuickAck: p.QuickAck, Protocol: state.Protocol,
	}}
	if p.Metric != nil {
		r.Metric = metricOf(f, *p.Metric)
	}
	if p.Src.IsValid() && !slices.ContainsFunc(b.facts.Addresses, func(a state.Address) bool { return a.Prefix.Addr() == p.Src }) {
		b.problem(subject, p.Pos, "source address %s of the route to %s is not on this host", p.Src, spellTo(p.To))
		return r, false
	}
	var hops []state.Hop
	for _, n := range p.Nexthops {
		hops = append(hops, state.Hop{Via: n.Via, Dev: n.Dev, OnLink: n.OnLink, Weight: n.Weight})
	}
	if len(hops) == 0 && (typ == state.Unicast || typ == state.Local) {
		hops = []state.Hop{{Via: p.Via, Dev: p.Dev, OnLink: p.OnLink}}
	}
	for i := range hops {
		h := &hops[i]
		if h.Dev == "" {
			h.Dev = dev
		}
		if h.Dev == "" {
			h.Dev = b.linkTowards(h.Via)
		}
		if h.Dev == "" {
			b.problem(subject, p.Pos, "no interface has a network around the next hop %s; name the interface with dev = \"…\" and, if the next hop is outside its networks, onlink = true", h.Via)
			return r, false
		}
		j := slices.IndexFunc(b.facts.Links, func(l state.Link) bool { return l.Name == h.Dev })
		switch {
		case j < 0:
			b.problem(subject, p.Pos, "interface %s of the route to %s is not there", h.Dev, spellTo(p.To))
			return r, false
		case !b.facts.Links[j].Up:
			b.problem(subject, p.Pos, "interface %s of the route to %s is down", h.Dev, spellTo(p.To))
			return r, false
		}
	}
	r.Hops = state.HopsOf(hops...)
	return r, true
}

// linkTowards is the interface whose own networks hold a next hop, the longest first.
func (b *builder) linkTowards(via netip.Addr) string {
	name, bits := "", -1
	for _, a := range b.facts.Addresses {
		if p := a.Prefix.Masked(); p.Contains(via) && p.Bits() > bits {
			name, bits = a.Link, p.Bits()
		}
		if a.Peer.IsValid() && a.Peer.Contains(via) && a.Peer.Bits() > bits {
			name, bits = a.Link, a.Peer.Bits()
		}
	}
	return name
}

func plural(n int, noun string) string {
	if n == 1 {
		return "a " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// conflicts takes back what would overwrite somebody else's route, and
// reports what of others is in sisod's way.
func (b *builder) conflicts() {
	names := b.tables.Names()
	others := map[uint32][]state.Route{}
	for _, foreign := range b.facts.ForeignRoutes {
		rival := false
		for w, dsts := range b.Routes {
			if w.Family != foreign.Family || w.Table != foreign.Table || w.Metric != foreign.Metric {
				continue
			}
			if !dsts.Has(foreign.Dst) {
				continue
			}
			rival = true
			b.Routes[w] = dsts.Without(prefix.Of(foreign.Dst))
			b.Problems = append(b.Problems, state.Problem{
				Subject: "table " + names.Table(w.Table),
				Text: "a route of somebody else takes the place of sisod's: " + foreign.Spell(names) +
					"; delete it, or give the uplink another table",
				Origin: b.Origins[w],
			})
		}
		if !rival {
			others[foreign.Table] = append(others[foreign.Table], foreign)
		}
	}
	for _, u := range b.config.Uplinks {
		table, _ := b.tables.Number(u.Name)
		if list := others[table]; len(list) > 0 {
			b.problem("table "+u.Name, u.Pos, "holds %s of somebody else, which %s left alone and may send replies elsewhere: %s; delete what is not meant, or put it into the uplink's routes",
				plural(len(list), "route"), map[bool]string{true: "is", false: "are"}[len(list) == 1], list[0].Spell(names))
		}
	}
	for _, link := range slices.Sorted(maps.Keys(b.facts.Strays)) {
		if len(b.config.Uplinks) == 0 {
			break
		}
		s := b.facts.Strays[link]
		b.Problems = append(b.Problems, state.Problem{
			Subject: "table main",
			Text: fmt.Sprintf("sends %s by %s, which is no uplink (%s): replies of every uplink to there leave by it; make %s an uplink, or keep an uplink's replies to itself with [[rule]] from = ADDRESS, lookup = UPLINK and a priority below %d",
				plural(s.Count, "public network"), link, s.First.Spell(names), link, b.config.Settings.Priority),
		})
	}
	for _, r := range b.facts.Final {
		cure := "; let the program that made it use a table of its own (WireGuard: Table = off; OpenVPN: no redirect-gateway def1)"
		if r.Type != state.Unicast {
			cure = "; delete it: the guard of each uplink keeps its replies from leaving by another"
		}
		if len(b.config.Uplinks) > 0 {
			b.Problems = append(b.Problems, state.Problem{
				Subject: "table main",
				Text:    "has a route that decides replies too, before any uplink's table is asked: " + r.Spell(names) + cure,
			})
		}
	}
	b.sharedMarks()
	first := b.config.Settings.Priority
	for _, r := range b.facts.ForeignRules {
		b.sharedBits(r)
		if r.Priority < first || r.Priority >= first+profiles.Window {
			continue
		}
		b.Problems = append(b.Problems, state.Problem{
			Subject: "rule " + strconv.FormatUint(uint64(r.Priority), 10),
			Text: "somebody else's rule stands in sisod's window of priorities and is left alone: " + r.Spell(names) +
				"; move it, or move the window with priority in sisod.toml",
		})
	}
}
