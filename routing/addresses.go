package routing

import (
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// aggregateFrom is how many addresses of one network are worth one rule
// instead of their own: each rule costs every packet that passes it about 13 ns.
const aggregateFrom = 8

// addressRules leads what starts from an uplink's address into its table.
func (b *builder) addressRules() {
	owner := map[netip.Addr]*Exit{}
	for _, e := range b.exits {
		if !e.Active {
			continue
		}
		aggregates := b.aggregates(e)
		for _, p := range aggregates {
			r := b.row(e.Family, state.RowAddresses, e.Table)
			// iif lo is "sent by this host": a prefix must not catch forwarded traffic.
			r.From, r.IIF = p, "lo"
			b.rule(r, e.profile.Pos.Short())
		}
		for _, a := range e.Addresses {
			if first := owner[a]; first != nil {
				b.problem("uplink "+e.Uplink, e.profile.Pos, "address %s is also on interface %s of uplink %s, which gets its replies; give each interface an address of its own, or share them out with addresses = [ … ]",
					a, first.Interface, first.Uplink)
				continue
			}
			owner[a] = e
			if slices.ContainsFunc(aggregates, func(p netip.Prefix) bool { return p.Contains(a) }) {
				continue
			}
			r := b.row(e.Family, state.RowAddresses, e.Table)
			r.From = host(a)
			b.rule(r, e.profile.Pos.Short())
		}
	}
}

// aggregates lists the networks of the exit that stand for many of its
// addresses and for no address of anybody else.
func (b *builder) aggregates(e *Exit) []netip.Prefix {
	count := map[netip.Prefix]int{}
	for _, a := range e.addresses {
		if !a.Prefix.IsSingleIP() {
			count[a.Prefix.Masked()]++
		}
	}
	var out []netip.Prefix
	for p, n := range count {
		if n >= aggregateFrom && !b.coversOthers(p, e) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	// A network inside another one needs no rule of its own.
	return slices.DeleteFunc(out, func(p netip.Prefix) bool {
		return slices.ContainsFunc(out, func(q netip.Prefix) bool { return q.Bits() < p.Bits() && q.Contains(p.Addr()) })
	})
}

// coversOthers reports whether a network holds an address that the exit does not follow.
func (b *builder) coversOthers(p netip.Prefix, e *Exit) bool {
	return slices.ContainsFunc(b.facts.Addresses, func(a state.Address) bool {
		return p.Contains(a.Prefix.Addr()) && (a.Link != e.Interface || e.profile.Addresses != nil && !slices.Contains(e.Addresses, a.Prefix.Addr()))
	})
}
