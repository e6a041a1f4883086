// Package daemon joins the rooms: it loads profiles, reads the kernel, works
// out the difference and applies it, once or for as long as the host runs.
//
// It knows when to do a pass and what to tell the operator; what is wanted is
// the business of routing, and how it gets into the kernel that of kernel.
package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

// Pass is one look at the host: what is wanted, what is there, and the plan
// between the two.
type Pass struct {
	Facts    state.Facts
	Observed state.Observed
	Desired  state.Desired
	Exits    []*routing.Exit
	Plan     state.Plan
	Tables   []uint32 // those of sisod's
}

// Look reads the named parts of the kernel and plans. With sweep it finds
// sisod's routes in any table, also in those that no record names any more.
// attend, which may be nil, is told what is about to be read.
func Look(ctx context.Context, h *kernel.Host, c *profiles.Config, parts kernel.Parts, sweep bool, attend func(interfaces []string, tables []uint32)) (Pass, error) {
	// The names tell which tables to read.
	facts, err := h.TableNames(parts&kernel.PartNames != 0)
	if err != nil {
		return Pass{}, err
	}
	tables := routing.Assign(c, facts)
	numbers := tables.Numbers(c)
	for _, number := range facts.OwnTables {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	q := kernel.Query{
		Interfaces: c.Interfaces(),
		Placing:    c.Placing(),
		Tables:     slices.Compact(numbers),
		Sysctls:    routing.Sysctls(c),
		Window:     [2]uint32{c.Settings.Priority, c.Settings.Priority + profiles.Window - 1},
		Named:      named(c),
		Everywhere: c.ForwardsIPv6(),
		Sweep:      sweep,
		IPVS:       c.Balances(),
		NFT:        c.Follows(),
		MarkMask:   c.Settings.MarkMask,
		Marks:      c.Marks(),
		Proxy:      len(c.Captures) > 0,
		Listening:  routing.Listening(c),
		Asking:     routing.Asking(c),
		Expected:   expected(c),
	}
	if attend != nil {
		attend(q.Interfaces, q.Tables)
	}
	snapshot, err := h.Read(ctx, q, parts&^kernel.PartNames)
	if err != nil {
		return Pass{}, err
	}
	snapshot = h.ReadAlso(lvs.Sysctls(c, snapshot.Facts))
	p := Pass{Facts: snapshot.Facts, Observed: snapshot.Observed, Tables: q.Tables}
	p.Desired, p.Exits = routing.Desired(c, tables, p.Facts)
	lvs.Add(&p.Desired, c, tables.ByName(), p.Facts, p.Observed)
	// Which sysctls a role needs depends on the links that are there.
	p.Observed = h.ReadAlso(slices.Collect(maps.Keys(p.Desired.Sysctls))).Observed
	if why := p.Facts.NFT.Unread; why != "" && p.Desired.NFTable.Text != "" {
		// Unknown is not empty.
		p.Observed.NFTable = p.Desired.NFTable
		p.Desired.Problems = append(p.Desired.Problems, state.Problem{
			Subject: "nft table", Text: "whether sisod's table of nftables is as it should be is not known: " + why + "; run this as root, e.g. with sudo"})
	}
	p.Plan = state.Diff(p.Observed, p.Desired)
	for number, name := range tables.Names() {
		p.Plan.Names[number] = name
	}
	return p, nil
}

// expected are the lists of all uplinks.
func expected(c *profiles.Config) []prefix.Set {
	var list []prefix.Set
	for _, u := range c.Uplinks {
		for _, s := range []prefix.Set{u.Thinned.IPv4(), u.Thinned.IPv6()} {
			if s.Len() >= state.LongSet {
				list = append(list, s)
			}
		}
	}
	return list
}

// named are the families of interfaces that need no gateway to be learned.
func named(c *profiles.Config) []kernel.LinkFamily {
	var list []kernel.LinkFamily
	for _, u := range c.Uplinks {
		for _, f := range state.Families {
			given := u.Gateway.IPv4
			if f == state.IPv6 {
				given = u.Gateway.IPv6
			}
			if given.IsValid() || !u.Gateway.Auto {
				list = append(list, kernel.LinkFamily{Link: u.Interface, Family: f})
			}
		}
	}
	return list
}

// Apply remembers the gateways in use, what drains, what is to when its director goes and what is
// waited for, and applies the plan of a pass. report is told what became of each step.
func (p Pass) Apply(ctx context.Context, h *kernel.Host, report func(kernel.Outcome)) ([]kernel.Outcome, error) {
	return p.applyUntil(ctx, h, report, nil)
}

// applyUntil is Apply, which leaves the rest when pressing says, in the middle of a long
// set of routes, that something more urgent has come up.
func (p Pass) applyUntil(ctx context.Context, h *kernel.Host, report func(kernel.Outcome), pressing func() bool) ([]kernel.Outcome, error) {
	if !maps.Equal(p.Desired.Known, p.Facts.Known) {
		if err := h.Remember(p.Desired.Known); err != nil {
			return nil, fmt.Errorf("record gateways: %w", err)
		}
	}
	if !maps.Equal(p.Desired.Draining, p.Facts.IPVS.Draining) {
		if err := h.RememberDrains(p.Desired.Draining); err != nil {
			return nil, fmt.Errorf("record draining real servers: %w", err)
		}
	}
	if err := h.RememberAwaited(p.Desired.Awaited); err != nil {
		return nil, fmt.Errorf("record what is waited for: %w", err)
	}
	if !maps.Equal(p.Desired.Limits, p.Facts.IPVS.Limits) || !maps.Equal(p.Desired.MarkedVIPs, p.Facts.IPVS.MarkedVIPs) {
		if err := h.RememberDirectors(p.Desired.Limits, p.Desired.MarkedVIPs); err != nil {
			return nil, fmt.Errorf("record directors: %w", err)
		}
	}
	if err := h.Prune(p.Desired.State); err != nil {
		return nil, err
	}
	if err := h.RecordTables(p.Desired.State); err != nil {
		return nil, fmt.Errorf("record tables: %w", err)
	}
	if p.Plan.Empty() {
		return nil, nil
	}
	return h.ApplyUntil(ctx, p.Plan, report, pressing), nil
}

// Flush plans to give the host back: nothing of sisod's, all values as found.
func Flush(ctx context.Context, h *kernel.Host) (Pass, error) {
	q := kernel.Query{Sweep: true}
	snapshot, err := h.Read(ctx, q, kernel.AllParts)
	if err != nil {
		return Pass{}, err
	}
	p := Pass{Facts: snapshot.Facts, Observed: snapshot.Observed}
	p.Desired.State = state.New()
	p.Plan = state.Diff(p.Observed, p.Desired)
	return p, nil
}
