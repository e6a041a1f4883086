// Package routing turns uplinks, rules and routes of the profiles, and the
// facts of a host, into the kernel objects that make a reply leave by the way
// its request came in.
//
// It is pure: it reads nothing and writes nothing, and it knows neither how
// facts are found nor how objects get into the kernel.
package routing

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Desired works out what profiles ask for on a host. The exits tell for each
// uplink and family where it stands.
func Desired(c *profiles.Config, t Tables, f state.Facts) (state.Desired, []*Exit) {
	b := builder{
		config: c, tables: t, facts: f,
		Desired: state.Desired{State: state.New(), Origins: map[any]string{}, Known: map[state.GatewayKey]netip.Addr{}},
	}
	b.Problems = append(b.Problems, t.Problems...)
	for _, n := range t.Owned {
		b.Names[n] = true
		b.Origins[n] = t.origins[n.Name]
	}
	b.exits = exits(c, t, f)
	for _, e := range b.exits {
		b.uplinkTable(e)
	}
	b.neighbours()
	for _, e := range b.exits {
		b.sockets(e)
	}
	b.addressRules()
	b.sources()
	for i := range c.Uplinks {
		b.interfaceOf(&c.Uplinks[i])
	}
	b.forward()
	b.captures()
	b.marked()
	b.AddPackets(b.packets)
	b.troubles()
	b.destinations()
	b.defaults()
	b.freeRules()
	b.freeRoutes()
	b.conflicts()
	return b.Desired, b.exits
}

type builder struct {
	state.Desired
	config  *profiles.Config
	tables  Tables
	facts   state.Facts
	exits   []*Exit
	packets state.NFRules
}

func (b *builder) problem(subject string, pos profiles.Position, format string, args ...any) {
	b.Problems = append(b.Problems, state.Problem{Subject: subject, Text: fmt.Sprintf(format, args...), Origin: pos.Short()})
}

// rule adds a rule with the priority of a row.
func (b *builder) rule(r state.Rule, origin string) {
	b.Rules[r] = true
	if b.Origins[r] == "" {
		b.Origins[r] = origin
	}
}

// row starts a rule at a row of the window.
func (b *builder) row(f state.Family, row int, table uint32) state.Rule {
	return state.NewRule(f, b.config.Settings.Priority+uint32(row), table)
}

// route adds a route.
func (b *builder) route(r state.Route, origin string) {
	b.Routes.Add(r.Way, r.Dst)
	if b.Origins[r.Way] == "" {
		b.Origins[r.Way] = origin
	}
	b.Origins[r] = origin
}

// uplinkTable fills an uplink's table: its networks, its further routes, its
// default, and the guard.
func (b *builder) uplinkTable(e *Exit) {
	key := e.key()
	if via, known := b.facts.Known[key]; known {
		b.Known[key] = via
	}
	if !e.Active {
		return
	}
	origin := e.profile.Pos.Short()
	if e.profile.Guard {
		b.route(state.Route{Dst: state.AnyDestination(e.Family), Way: state.Way{
			Family: e.Family, Table: e.Table, Metric: profiles.GuardMetric, Type: state.Unreachable, Protocol: state.Protocol,
		}}, origin)
	}
	if e.Out {
		b.Known[key] = e.Gateway.Via
	} else if !e.link.Up {
		return
	}
	own := map[netip.Prefix]bool{}
	for i := range e.profile.Routes {
		r, ok := b.resolve(&e.profile.Routes[i], "uplink "+e.Uplink, e.Table, e.Interface, e.Family)
		if !ok {
			continue
		}
		if r.Type == state.Unicast && !r.Src.IsValid() {
			if hop, single := r.Hops.Single(); single && hop.Dev == e.Interface {
				r.Src = e.source(hop.Via)
			}
		}
		own[r.Dst] = own[r.Dst] || r.Metric == state.DefaultMetric(e.Family)
		b.route(r, e.profile.Routes[i].Pos.Short())
	}
	for _, n := range e.networks {
		if !own[n.Dst] {
			b.route(n, origin)
		}
	}
	if any := state.AnyDestination(e.Family); e.Out && !own[any] {
		b.route(state.Route{Dst: any, Way: e.way(e.Table, state.DefaultMetric(e.Family))}, origin)
	}
}

// neighbours lets main decide what it sends by interfaces that are no uplink:
// docker bridges, VPNs, LANs. One rule, whatever comes and goes.
func (b *builder) neighbours() {
	for _, f := range state.Families {
		i := slices.IndexFunc(b.exits, func(e *Exit) bool { return e.Family == f && e.Active })
		if i < 0 {
			continue
		}
		r := b.row(f, state.RowNeighbours, state.TableMain)
		r.SuppressPrefixLength, r.SuppressGroup = 0, int(b.config.Settings.Group)
		b.rule(r, b.exits[i].profile.Pos.Short())
	}
}

// sockets leads sockets that are bound to the interface into its table. Main's
// default would be taken as on-link there, and ARP would ask for the Internet.
func (b *builder) sockets(e *Exit) {
	if e.Active {
		r := b.row(e.Family, state.RowDevices, e.Table)
		r.OIF = e.Interface
		b.rule(r, e.profile.Pos.Short())
	}
}

// sources leads networks behind the host, the longest prefix first.
func (b *builder) sources() {
	for _, f := range state.Families {
		lengths := map[int]bool{}
		for _, u := range b.config.Uplinks {
			for _, s := range u.Sources {
				if family(s.Value.Addr()) == f {
					lengths[s.Value.Bits()] = true
				}
			}
		}
		rank := map[int]int{}
		for bits := f.Bits(); bits >= 0; bits-- {
			if lengths[bits] {
				rank[bits] = min(state.RowSources+len(rank), state.RowSourcesEnd)
			}
		}
		for _, e := range b.exits {
			if e.Family != f || !e.Active {
				continue
			}
			for _, s := range e.profile.Sources {
				if family(s.Value.Addr()) != f {
					continue
				}
				r := b.row(f, rank[s.Value.Bits()], e.Table)
				r.From = s.Value
				b.rule(r, s.Pos.Short())
			}
		}
	}
}

// interfaceOf sets what an uplink wants of its interface: the link group that
// the neighbours' rule looks at, and the reverse-path filter.
func (b *builder) interfaceOf(u *profiles.Uplink) {
	subject := "uplink " + u.Name
	i := slices.IndexFunc(b.facts.Links, func(l state.Link) bool { return l.Name == u.Interface })
	if i < 0 {
		return
	}
	link := b.facts.Links[i]
	if slices.ContainsFunc(b.exits, func(e *Exit) bool { return e.Uplink == u.Name && e.Active }) {
		group, moved := b.facts.FoundGroups[link.Name]
		if !moved {
			group = link.Group
		}
		// A group of sisod's own choice does not stand in the way of another one.
		if group == 0 || group == b.config.Settings.Group {
			b.Groups[link.Name] = b.config.Settings.Group
			b.Origins[state.LinkGroup{Link: link.Name, Group: b.config.Settings.Group}] = u.Pos.Short()
		} else {
			b.problem(subject, u.Pos, "interface %s is in link group %d already and stays there, so what main knows exactly by %s still decides replies of other uplinks; set group = %d in sisod.toml if that group holds the uplinks and nothing else",
				link.Name, link.Group, link.Name, link.Group)
		}
	}
	if u.RPFilter == "" {
		return
	}
	value := rpFilters[u.RPFilter]
	b.sysctl(state.Sysctl{Path: RPFilterPath(link.Name), Value: value}, u.Pos)
	if all := b.facts.Sysctls[RPFilterPath("all")]; all > value {
		b.problem(subject, u.Pos, "rp_filter = %q has no effect: net.ipv4.conf.all.rp_filter is %s, and the kernel uses the greater of the two; lower all, or leave the key out", u.RPFilter, all)
	}
}

// rpFilters are the values of rp_filter by their names in a profile.
var rpFilters = map[string]string{"off": "0", "strict": "1", "loose": "2"}

// RPFilterPath is the sysctl of an interface's reverse-path filter, or that of
// all (Documentation/networking/ip-sysctl.rst: the greater of the two counts).
func RPFilterPath(link string) string { return "net/ipv4/conf/" + link + "/rp_filter" }

// Sysctls are the paths whose values Desired wants to see among the facts.
func Sysctls(c *profiles.Config) []string {
	paths := []string{RPFilterPath("all")}
	for _, u := range c.Uplinks {
		if u.RPFilter != "" || u.Forward || u.Masquerade {
			paths = append(paths, RPFilterPath(u.Interface))
		}
		if u.Masquerade && !slices.Contains(paths, ipForward) {
			paths = append(paths, ipForward)
		}
	}
	if len(c.Captures) > 0 {
		paths = append(paths, portRange)
	}
	if slices.ContainsFunc(c.Uplinks, func(u profiles.Uplink) bool { return isLong(&u, state.IPv4) || isLong(&u, state.IPv6) }) {
		paths = append(paths, compatMode)
	}
	return paths
}

// troubles reports what keeps uplinks from being whole.
func (b *builder) troubles() {
	for i := range b.config.Uplinks {
		u := &b.config.Uplinks[i]
		subject := "uplink " + u.Name
		said := map[string]bool{}
		used := false
		for _, e := range b.exits {
			if e.Uplink == u.Name {
				used = used || e.Trouble != unused
			}
		}
		for _, e := range b.exits {
			text := e.Trouble
			if e.Uplink != u.Name || text == "" || said[text] || text == unused && used {
				continue
			}
			said[text] = true
			switch {
			case text == unused:
				said[text] = true
				text = fmt.Sprintf("interface %s has no address and no gateway is learned there yet; replies go as main decides", u.Interface)
			case e.Out:
			case e.Active && u.Guard:
				text += "; its replies are answered unreachable until it is back"
			case e.Active:
				text += "; its replies go as main decides (guard = false)"
			default:
				text += "; as long as that is so, replies go as main decides"
			}
			b.problem(subject, u.Pos, "%s", text)
		}
		followed := map[netip.Addr]bool{}
		for _, e := range b.exits {
			if e.Uplink == u.Name && u.Addresses != nil {
				for _, a := range e.Addresses {
					followed[a] = true
				}
			}
		}
		for _, a := range u.Addresses {
			if !followed[a] &&
				slices.ContainsFunc(b.facts.Links, func(l state.Link) bool { return l.Name == u.Interface }) {
				b.problem(subject, u.Pos, "address %s is not on interface %s", a, u.Interface)
			}
		}
		if n := b.facts.MainSkipped[u.Interface]; n > 0 {
			b.problem(subject, u.Pos, "main has too many routes by %s: %d of them are not taken over into table %s and replies to them go by its default; if they belong to a routing daemon give them its protocol number", u.Interface, n, u.Name)
		}
	}
}
