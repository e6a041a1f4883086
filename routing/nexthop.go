package routing

import (
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// compatMode is whether the kernel spells out every route, to listeners too, when
// the nexthop that they share is replaced. There is one since Linux 5.8.
const compatMode = "net/ipv4/nexthop_compat_mode"

// isLong reports whether an uplink has so many prefixes of a family that they go
// by a nexthop object. Lists count by their length alone: ten prefixes in a file
// are written faster than told apart.
func isLong(u *profiles.Uplink, f state.Family) bool {
	n := 0
	for _, l := range u.To {
		n += members(l.Prefixes, f).Len()
	}
	return n >= state.LongSet
}

// wayTo is how the `to` prefixes of an exit leave: by its gateway or, when they are
// many, by a nexthop object, so that another gateway is one message.
func (b *builder) wayTo(e *Exit, table uint32) state.Way {
	w := e.way(table, state.DefaultMetric(e.Family))
	if b.facts.Nexthops.Missing != "" || !isLong(e.profile, e.Family) {
		return w
	}
	id, ok := state.NexthopID(e.Table, e.Family)
	if !ok {
		return w
	}
	if b.facts.Nexthops.Foreign[id] {
		b.problem("uplink "+e.Uplink, e.profile.Pos,
			"the number of its nexthop object is somebody else's: with another %s gateway all prefixes are written anew; delete what is there with ip nexthop del id %d, or give the uplink another table", e.Family, id)
		return w
	}
	hop := e.hop()
	n := state.Nexthop{ID: id, Family: e.Family, Via: hop.Via, Dev: hop.Dev, OnLink: hop.OnLink, Protocol: state.Protocol}
	if n.Via.IsValid() {
		n.Family = family(n.Via)
	}
	w.Hops, w.Nexthop = state.Hops{}, id
	b.Nexthops[id] = n
	b.Origins[n] = e.profile.To[0].Pos.Short()
	return w
}

// quiet keeps the kernel from spelling out the routes by nexthop objects, also while
// the link of one is away: there is no time for it when that is back.
func (b *builder) quiet(e *Exit) {
	_, numbered := state.NexthopID(e.Table, e.Family)
	_, there := b.facts.Sysctls[compatMode]
	if !there || !numbered || b.facts.Nexthops.Missing != "" || !isLong(e.profile, e.Family) {
		return
	}
	s := state.Sysctl{Path: compatMode, Value: "0"}
	b.Sysctls[s.Path] = s.Value
	if b.Origins[s] == "" {
		b.Origins[s] = e.profile.To[0].Pos.Short()
	}
}
