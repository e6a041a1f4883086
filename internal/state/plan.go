package state

import (
	"maps"
	"net/netip"
	"time"
)

// Observed is what the kernel has now of what sisod owns.
type Observed struct {
	State
	// Before holds the values that sisod has changed, as they were found.
	Before Before
}

// Before is the part of an observed state that a ledger remembers: objects
// that carry no owner mark and are given back with the value they had.
type Before struct {
	Groups  map[string]uint32
	Sysctls map[string]string
	Up      map[string]bool
	// Timeouts are nil while sisod has not changed them.
	Timeouts *Timeouts
}

// Desired is what profiles and facts ask for.
type Desired struct {
	State
	// Origins tells the profile's place for an object: a Rule, a Route, a Way
	// (for all its routes), a TableName, a LinkGroup, a Sysctl, a Mark or an
	// NFRuleText. Of services and destinations there are thousands: they have maps
	// of their own.
	Origins        map[any]string
	ServiceOrigins map[ServiceKey]string
	// BackendOrigins tells it for a service's destinations, by address and port, 0
	// being the service's. Services of one director share theirs.
	BackendOrigins map[ServiceKey]map[netip.AddrPort]string

	Problems []Problem
	// Known are the gateways in use, for the Facts.Known of a later pass.
	Known map[GatewayKey]netip.Addr
	// Draining are the destinations that take no new connections any more, and
	// since when, for the IPVSFacts.Draining of a later pass.
	Draining map[DestinationKey]time.Time
	// Awaited are the links whose VIPs wait for NetworkManager, and since when, for the
	// Facts.Awaited of a later pass.
	Awaited map[string]time.Time
	// Deputies tell what keeps the scheduler of a service from choosing what is to get
	// nothing, where the profile's own would.
	Deputies map[ServiceKey]string
	// Limits are how long removed destinations of a service keep their connections,
	// where it is not as by default, for the IPVSFacts.Limits of a later pass: when
	// its director is gone no profile tells it any more.
	Limits map[ServiceKey]time.Duration
	// MarkedVIPs are for the same reason those of services by mark, and since when
	// they are asked for no more; zero: they are asked for.
	MarkedVIPs map[MarkedVIP]time.Time
	// Recheck is when another pass is due without any event, to look at IPVS and at what
	// waits; 0: never.
	Recheck time.Duration
	packets NFRules // of which NFTable is made
}

// Origin returns the profile's place for an object, or "".
func (d Desired) Origin(o Object) string {
	switch o := o.(type) {
	case RouteSet:
		if o.Dsts.Len() == 1 {
			if origin, ok := d.Origins[Route{o.Dsts.At(0), o.Way}]; ok {
				return origin
			}
		}
		return d.Origins[o.Way]
	case Service:
		return d.ServiceOrigins[o.ServiceKey]
	case Destination:
		backends := d.BackendOrigins[o.Service]
		origin, ok := backends[netip.AddrPortFrom(o.Addr, o.Port)]
		if !ok && o.Port == o.Service.Port {
			origin = backends[netip.AddrPortFrom(o.Addr, 0)]
		}
		return origin
	}
	return d.Origins[o]
}

// Step is one change of a plan.
type Step struct {
	Op     Op
	Object Object
	Origin string // the profile's place that asked for it, "" for removals
	// Lines tell what changes inside of the object, of one that is many things.
	Lines []Line
}

// Line is a part of an object that comes or goes with a step.
type Line struct {
	Op     Op
	Text   string
	Origin string // the profile's place that asked for it, or ""
}

// Plan is the ordered difference of two states.
type Plan struct {
	Steps []Step
	// Names spells the tables of both states.
	Names Names
}

// Empty reports whether nothing is to do.
func (p Plan) Empty() bool { return len(p.Steps) == 0 }

// Commands spells the whole plan as a shell would run it.
func (p Plan) Commands() []string {
	var c []string
	withdrawn := map[uint32]bool{}
	for _, s := range p.Steps {
		switch o := s.Object.(type) {
		case Nexthop:
			withdrawn[o.ID] = s.Op.Removes()
		case RouteSet:
			if s.Op.Removes() && withdrawn[o.Nexthop] {
				continue // they went with it
			}
		}
		c = append(c, s.Object.Commands(s.Op, p.Names)...)
	}
	return c
}

// Diff returns the plan that turns observed into desired.
func Diff(observed Observed, desired Desired) Plan {
	p := Plan{Names: observed.TableNames()}
	maps.Copy(p.Names, desired.TableNames())
	step := func(op Op, o Object) {
		s := Step{Op: op, Object: o}
		if !op.takesBack() {
			s.Origin = desired.Origin(o)
		}
		p.Steps = append(p.Steps, s)
	}
	observed = observed.withoutRemade(desired.State)
	diffSets(observed.Names, desired.Names, step)
	diffSets(observed.Marks, desired.Marks, step)
	switch {
	case observed.NFTable.Text == desired.NFTable.Text:
	case desired.NFTable.Text == "":
		step(Delete, observed.NFTable)
	case observed.NFTable.Text == "":
		step(Add, desired.NFTable)
	default:
		step(Replace, desired.NFTable)
	}
	for i := range p.Steps {
		if p.Steps[i].Object.Kind() == KindNFTable {
			p.Steps[i].Lines = nfLines(observed.NFTable, desired)
		}
	}
	diffSets(observed.Devices, desired.Devices, step)
	diffSets(observed.VIPs, desired.VIPs, step)
	diffSets(observed.Rules, desired.Rules, step)
	diffKeyed(observed.Nexthops, desired.Nexthops, step)
	diffKeyed(observed.Services, desired.Services, step)
	diffKeyed(observed.Syncs, desired.Syncs, step)
	diffKeyed(observed.Destinations, desired.Destinations, step)
	diffValues(observed.Up, desired.Up, observed.Before.Up, func(op Op, link string, up bool) {
		step(op, LinkUp{link, up})
	})
	timeouts := desired.Timeouts
	if found := observed.Before.Timeouts; found != nil && timeouts != (Timeouts{}) {
		timeouts = timeouts.over(*found) // one that is asked for no more is given back
	}
	switch {
	case timeouts != (Timeouts{}) && observed.Timeouts != timeouts.over(observed.Timeouts):
		step(Replace, timeouts)
		p.Steps[len(p.Steps)-1].Origin = desired.Origin(desired.Timeouts)
	case desired.Timeouts == (Timeouts{}) && observed.Before.Timeouts != nil:
		step(Restore, *observed.Before.Timeouts)
	}
	diffValues(observed.Groups, desired.Groups, observed.Before.Groups, func(op Op, link string, group uint32) {
		step(op, LinkGroup{link, group})
	})
	diffValues(observed.Sysctls, desired.Sysctls, observed.Before.Sysctls, func(op Op, path, value string) {
		step(op, Sysctl{path, value})
	})
	write, remove := diffRoutes(observed.Routes, desired.Routes)
	for _, s := range write.Sets() {
		step(Add, s)
	}
	for _, s := range remove.Sets() {
		step(Delete, s)
	}
	sortSteps(p.Steps)
	return p
}

// withoutRemade is what is left of an observed state when devices are made anew
// under their names: what was on them goes with them.
func (o Observed) withoutRemade(desired State) Observed {
	remade, names := map[string]bool{}, map[string]bool{}
	for d := range o.Devices {
		names[d.Name] = d.EncapPort == 0
	}
	for d := range desired.Devices {
		if !o.Devices[d] && names[d.Name] {
			remade[d.Name] = true
		}
	}
	if len(remade) == 0 {
		return o
	}
	o.Up, o.VIPs, o.Sysctls = maps.Clone(o.Up), maps.Clone(o.VIPs), maps.Clone(o.Sysctls)
	maps.DeleteFunc(o.Up, func(link string, _ bool) bool { return remade[link] })
	maps.DeleteFunc(o.VIPs, func(v VIP, _ bool) bool { return remade[v.Link] })
	maps.DeleteFunc(o.Sysctls, func(path, _ string) bool { return remade[Sysctl{Path: path}.link()] })
	return o
}

// diffSets compares objects that are there or not.
func diffSets[O interface {
	comparable
	Object
}](observed, desired map[O]bool, step func(Op, Object)) {
	for o := range desired {
		if !observed[o] {
			step(Add, o)
		}
	}
	for o := range observed {
		if !desired[o] {
			step(Delete, o)
		}
	}
}

// diffKeyed compares objects that are changed in place.
func diffKeyed[K comparable, O interface {
	comparable
	Object
}](observed, desired map[K]O, step func(Op, Object)) {
	known := 0
	for key, want := range desired {
		have, there := observed[key]
		if !there {
			step(Add, want)
			continue
		}
		known++
		if have != want {
			step(Replace, want)
		}
	}
	if known == len(observed) {
		return
	}
	for key, have := range observed {
		if _, wanted := desired[key]; !wanted {
			step(Delete, have)
		}
	}
}

// diffValues compares objects that are one value each, and gives back what is
// not wanted any more.
func diffValues[V comparable](observed, desired, before map[string]V, step func(Op, string, V)) {
	for key, want := range desired {
		if have, ok := observed[key]; !ok || have != want {
			step(Replace, key, want)
		}
	}
	for key, found := range before {
		if _, wanted := desired[key]; !wanted {
			step(Restore, key, found)
		}
	}
}
