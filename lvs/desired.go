// Package lvs turns the LVS roles of the profiles, and the facts of a host,
// into kernel objects: addresses, sysctls and return paths of real servers,
// services and destinations of directors.
//
// It is pure: it reads nothing and writes nothing. What an uplink is and what
// its table holds is the business of routing; lvs leads the VIPs there.
package lvs

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Add puts what the roles ask for into a desired state that routing has made.
// tables maps the names of tables to their numbers.
func Add(d *state.Desired, c *profiles.Config, tables map[string]uint32, f state.Facts, observed state.Observed) {
	if d.Draining == nil {
		d.Draining = map[state.DestinationKey]time.Time{}
	}
	d.Deputies = map[state.ServiceKey]string{}
	d.Limits, d.MarkedVIPs = map[state.ServiceKey]time.Duration{}, map[state.MarkedVIP]time.Time{}
	b := builder{Desired: d, config: c, tables: tables, facts: f, observed: observed}
	b.room()
	for i := range c.RealServers {
		b.realServer(&c.RealServers[i])
	}
	b.roomyReturns()
	for i := range c.Directors {
		b.director(&c.Directors[i])
	}
	b.fullNATs()
	b.reserve()
	b.drain()
	b.keepMarked()
	b.rememberLimits()
	b.host()
}

// room makes the maps of what there may be thousands of, in their final size.
func (b *builder) room() {
	services, destinations := 0, 0
	for i := range b.config.Directors {
		d := &b.config.Directors[i]
		n := len(d.VIPs) * len(d.Services)
		services, destinations = services+n, destinations+n*len(d.RealServers)
	}
	b.Services, b.ServiceOrigins = make(map[state.ServiceKey]state.Service, services), make(map[state.ServiceKey]string, services)
	b.Destinations = make(map[state.DestinationKey]state.Destination, destinations)
	b.BackendOrigins = make(map[state.ServiceKey]map[netip.AddrPort]string, services)
	b.limits = make(map[state.ServiceKey]time.Duration, services)
}

type builder struct {
	*state.Desired
	config   *profiles.Config
	tables   map[string]uint32
	facts    state.Facts
	observed state.Observed
	// limits are how long removed real servers of a service keep their connections.
	limits map[state.ServiceKey]time.Duration
	// returns are worked out when all roles have said which links they bring up.
	returns []returnPath
}

// Paths of sysctls that are not an interface's.
const (
	ipForward    = "net/ipv4/ip_forward"
	ip6Forward   = "net/ipv6/conf/all/forwarding"
	arpIgnore    = "net/ipv4/conf/all/arp_ignore"
	arpAnnounce  = "net/ipv4/conf/all/arp_announce"
	vsParameters = "net/ipv4/vs/"
	vsConntrack  = vsParameters + "conntrack"
	vsReroute    = vsParameters + "snat_reroute"
	vsQuiescent  = vsParameters + "expire_quiescent_template"
)

// Sysctls are the paths whose values Add wants to see among the facts.
func Sysctls(c *profiles.Config, f state.Facts) []string {
	var paths []string
	if slices.ContainsFunc(c.RealServers, func(r profiles.RealServer) bool { return r.Mode != profiles.NAT }) {
		paths = append(paths, arpIgnore)
	}
	if slices.ContainsFunc(c.Directors, func(d profiles.Director) bool { return d.Mode == profiles.FullNAT }) {
		paths = append(paths, timeWait)
	}
	if c.ForwardsIPv6() {
		paths = append(paths, ip6Forward)
		for _, l := range f.Links {
			if !l.Loopback {
				paths = append(paths, acceptRA(l.Name))
			}
		}
	}
	return paths
}

func (b *builder) problem(subject string, pos profiles.Position, format string, args ...any) {
	b.Problems = append(b.Problems, state.Problem{Subject: subject, Text: fmt.Sprintf(format, args...), Origin: pos.Short()})
}

// sysctl asks for a value. The first role that asks is its origin; roles never
// ask for different values of one path, but for the greater one where the
// kernel takes the greater (arp_announce 2 over 1).
func (b *builder) sysctl(path, value, origin string) {
	if have, ok := b.Sysctls[path]; ok && have >= value {
		return
	}
	b.Sysctls[path] = value
	b.Origins[state.Sysctl{Path: path, Value: value}] = origin
}

func (b *builder) rule(r state.Rule, origin string) {
	b.Rules[r] = true
	b.Origins[r] = origin
}

func (b *builder) row(f state.Family, row int, table uint32) state.Rule {
	return state.NewRule(f, b.config.Settings.Priority+uint32(row), table)
}

func (b *builder) route(r state.Route, origin string) {
	b.Routes.Add(r.Way, r.Dst)
	b.Origins[r.Way], b.Origins[r] = origin, origin
}

func (b *builder) link(name string) (state.Link, bool) {
	i := slices.IndexFunc(b.facts.Links, func(l state.Link) bool { return l.Name == name })
	if i < 0 {
		return state.Link{}, false
	}
	return b.facts.Links[i], true
}

func (b *builder) isThere(link string) bool {
	_, ok := b.link(link)
	return ok
}

// vip puts a VIP on a link and leads what starts from it.
func (b *builder) vip(link string, a netip.Addr, origin string) {
	v := state.VIP{Link: link, Addr: a}
	if slices.ContainsFunc(b.facts.Addresses, func(have state.Address) bool { return have.Link == link && have.Prefix.Addr() == a }) && !b.observed.VIPs[v] {
		return // it is there already, and somebody else's
	}
	b.VIPs[v] = true
	b.Origins[v] = origin
}

// up brings a link up.
func (b *builder) up(link, origin string) {
	b.Up[link] = true
	b.Origins[state.LinkUp{Link: link, Up: true}] = origin
}

func (b *builder) device(d state.Device, origin string) {
	b.Devices[d] = true
	if b.Origins[d] == "" {
		b.Origins[d] = origin
	}
}

// fromVIP leads replies of a VIP by a table. A VIP that stands on an uplink's
// interface is no address of that uplink's when its role says where replies go:
// of two rules the kernel would take the one that came first.
func (b *builder) fromVIP(a netip.Addr, table uint32, origin string) {
	r := b.row(family(a), state.RowAddresses, table)
	r.From = netip.PrefixFrom(a, a.BitLen())
	maps.DeleteFunc(b.Rules, func(other state.Rule, _ bool) bool {
		other.Table = table
		return other == r
	})
	b.rule(r, origin)
}

// active reports whether an uplink's table may be led to in a family: routing
// has made a rule to it.
func (b *builder) active(table uint32, f state.Family) bool {
	for r := range b.Rules {
		if r.Family == f && r.Table == table && r.OIF != "" {
			return true
		}
	}
	return false
}

func family(a netip.Addr) state.Family {
	if a.Is4() {
		return state.IPv4
	}
	return state.IPv6
}

// conf is a sysctl of an interface.
func conf(f state.Family, link, name string) string {
	if f == state.IPv6 {
		return "net/ipv6/conf/" + link + "/" + name
	}
	return "net/ipv4/conf/" + link + "/" + name
}

// silence keeps the host from telling neighbours that a VIP is here. It counts
// on `all` or on the receiving interface, never on lo; `all` also covers
// interfaces that come later (Documentation/networking/ip-sysctl.rst).
func (b *builder) silence(a netip.Addr, origin string) {
	if a.Is4() {
		ignore := "1"
		if b.quiet() {
			ignore = b.facts.Sysctls[arpIgnore]
		}
		b.sysctl(arpIgnore, ignore, origin)
		b.sysctl(arpAnnounce, "2", origin)
	}
}

// quiet reports whether the host is found to answer for even less than what is
// asked of it: of host addresses for none (Documentation/networking/ip-sysctl.rst).
func (b *builder) quiet() bool {
	ignore := b.facts.Sysctls[arpIgnore]
	return ignore == "2" || ignore == "8"
}

// sinceOrNow is when a wait began that earlier passes noted: now, if none did, or
// if the clock was set back since.
func (b *builder) sinceOrNow(noted time.Time) time.Time {
	if noted.IsZero() || noted.After(b.facts.Now) {
		return b.facts.Now
	}
	return noted
}

// later asks for another pass.
func (b *builder) later(d time.Duration) {
	if b.Recheck == 0 || d < b.Recheck {
		b.Recheck = max(d, time.Second)
	}
}
