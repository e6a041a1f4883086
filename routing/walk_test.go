package routing_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/golden"
	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// cases are those of both rooms that make the desired state.
func cases(t *testing.T) []string {
	return append(golden.Cases(t, "testdata"), golden.Cases(t, "../lvs/testdata")...)
}

func TestDesiredAndPlansAreAsWritten(t *testing.T) { golden.Written(t, "testdata") }

// model is a kernel in memory: routes by the slot that NLM_F_REPLACE
// overwrites, rules by identity. It checks the promises of the order.
type model struct {
	t      *testing.T
	names  map[state.TableName]bool
	groups map[string]uint32
	sysctl map[string]string
	routes map[routeSlot]state.Route
	rules  map[state.Rule]bool
	roles  state.State // devices, VIPs, services, destinations, up, marks, nexthops, the table of nftables
	before state.Before
	wanted state.Routes // of the plan under way
}

type routeSlot struct {
	family state.Family
	table  uint32
	metric uint32
	dst    netip.Prefix
}

func newModel(t *testing.T) *model {
	return &model{
		t: t, names: map[state.TableName]bool{}, groups: map[string]uint32{}, sysctl: map[string]string{},
		routes: map[routeSlot]state.Route{}, rules: map[state.Rule]bool{}, roles: state.New(),
		before: state.Before{Groups: map[string]uint32{}, Sysctls: map[string]string{}, Up: map[string]bool{}},
	}
}

func (m *model) observe() state.Observed {
	o := state.Observed{State: state.New(), Before: state.Before{Groups: maps.Clone(m.before.Groups), Sysctls: maps.Clone(m.before.Sysctls), Up: maps.Clone(m.before.Up)}}
	o.Devices, o.VIPs, o.Up = maps.Clone(m.roles.Devices), maps.Clone(m.roles.VIPs), maps.Clone(m.roles.Up)
	o.Timeouts, o.Before.Timeouts = m.roles.Timeouts, m.before.Timeouts
	o.Services, o.Destinations, o.Syncs = maps.Clone(m.roles.Services), maps.Clone(m.roles.Destinations), maps.Clone(m.roles.Syncs)
	o.Nexthops = maps.Clone(m.roles.Nexthops)
	o.Marks, o.NFTable = maps.Clone(m.roles.Marks), m.roles.NFTable
	o.Names, o.Groups, o.Sysctls, o.Rules = maps.Clone(m.names), maps.Clone(m.groups), maps.Clone(m.sysctl), maps.Clone(m.rules)
	gathered := map[state.Way]*prefix.Builder{}
	for _, r := range m.routes {
		if gathered[r.Way] == nil {
			gathered[r.Way] = &prefix.Builder{}
		}
		gathered[r.Way].Add(r.Dst)
	}
	for w, dsts := range gathered {
		o.Routes[w] = dsts.Set()
	}
	return o
}

func (m *model) apply(s state.Step) {
	switch o := s.Object.(type) {
	case state.TableName:
		if s.Op.Removes() {
			delete(m.names, o)
		} else {
			m.names[o] = true
		}
	case state.Mark:
		set(m.roles.Marks, o, s.Op)
	case state.NFTable:
		if s.Op.Removes() != (m.roles.NFTable.Text == o.Text) {
			m.t.Errorf("%s of a table of nftables: there is\n%s", s.Op, m.roles.NFTable.Text)
		}
		m.roles.NFTable = o
		if s.Op.Removes() {
			m.roles.NFTable = state.NFTable{}
		}
	case state.Device:
		set(m.roles.Devices, o, s.Op)
	case state.VIP:
		set(m.roles.VIPs, o, s.Op)
	case state.Timeouts:
		if s.Op == state.Restore {
			m.before.Timeouts = nil
		} else if m.before.Timeouts == nil {
			before := m.roles.Timeouts
			m.before.Timeouts = &before
		}
		m.roles.Timeouts = o
	case state.SyncDaemon:
		if s.Op.Removes() {
			delete(m.roles.Syncs, o.Master)
		} else {
			m.roles.Syncs[o.Master] = o
		}
	case state.LinkUp:
		value(s.Op, m.roles.Up, m.before.Up, o.Link, o.Up)
	case state.Service:
		if s.Op.Removes() {
			delete(m.roles.Services, o.ServiceKey)
		} else {
			m.roles.Services[o.ServiceKey] = o
		}
	case state.Destination:
		if _, there := m.roles.Services[o.Service]; !there {
			m.t.Errorf("a destination without its service: %s %s", s.Op, o)
		}
		if s.Op.Removes() {
			delete(m.roles.Destinations, o.DestinationKey)
		} else {
			m.roles.Destinations[o.DestinationKey] = o
		}
	case state.LinkGroup:
		value(s.Op, m.groups, m.before.Groups, o.Link, o.Group)
	case state.Sysctl:
		value(s.Op, m.sysctl, m.before.Sysctls, o.Path, o.Value)
	case state.Nexthop:
		m.nexthop(s.Op, o)
	case state.RouteSet:
		if _, there := m.roles.Nexthops[o.Nexthop]; o.Nexthop != 0 && !there {
			if !s.Op.Removes() {
				m.t.Fatalf("a route without its nexthop: %s", o.Spell(nil))
			}
			return // they went with it
		}
		for r := range o.All() {
			at := routeSlot{r.Family, r.Table, r.Metric, r.Dst}
			if s.Op.Removes() {
				if m.routes[at] != r {
					m.t.Fatalf("delete of a route that is not there: %s", r)
				}
				delete(m.routes, at)
				m.tableNotEmptiedUnderRules(r)
			} else {
				m.routes[at] = r
			}
		}
	case state.Rule:
		switch {
		case s.Op.Removes() && !m.rules[o]:
			m.t.Fatalf("delete of a rule that is not there: %s", o)
		case s.Op.Removes():
			delete(m.rules, o)
		case m.rules[o]:
			m.t.Fatalf("a rule added twice: %s", o)
		default:
			m.rules[o] = true
			m.ruleLeadsToWholeTable(o)
		}
	}
}

// nexthop is a step about a nexthop object, with which the routes by it go.
func (m *model) nexthop(op state.Op, n state.Nexthop) {
	if have, there := m.roles.Nexthops[n.ID]; there == (op == state.Add) {
		m.t.Fatalf("%s of the nexthop %s: there is %s", op, n, have)
	}
	if !op.Removes() {
		m.roles.Nexthops[n.ID] = n
		return
	}
	delete(m.roles.Nexthops, n.ID)
	for at, r := range m.routes {
		if r.Nexthop != n.ID {
			continue
		}
		for w, wanted := range m.wanted {
			if w.Family == r.Family && w.Table == r.Table && w.Metric == r.Metric && wanted.Has(r.Dst) {
				m.t.Fatalf("a route goes with its nexthop before another takes its place: %s", r)
			}
		}
		delete(m.routes, at)
		m.tableNotEmptiedUnderRules(r)
	}
}

func set[O comparable](all map[O]bool, o O, op state.Op) {
	if op.Removes() {
		delete(all, o)
	} else {
		all[o] = true
	}
}

func value[V comparable](op state.Op, now, before map[string]V, key string, v V) {
	if op == state.Restore {
		now[key] = v
		delete(before, key)
		return
	}
	if _, ok := before[key]; !ok {
		before[key] = now[key]
	}
	now[key] = v
}

// ruleLeadsToWholeTable: a table is complete before any rule leads to it.
func (m *model) ruleLeadsToWholeTable(r state.Rule) {
	for w, dsts := range m.wanted {
		if w.Table != r.Table || w.Family != r.Family {
			continue
		}
		for want := range (state.RouteSet{Way: w, Dsts: dsts}).All() {
			if at := (routeSlot{want.Family, want.Table, want.Metric, want.Dst}); m.routes[at] != want {
				m.t.Errorf("rule leads to an unfinished table: %s, before %s", r, want)
			}
		}
	}
}

// tableNotEmptiedUnderRules: source rules go before the last route of their table.
func (m *model) tableNotEmptiedUnderRules(gone state.Route) {
	for at := range m.routes {
		if at.table == gone.Table && at.family == gone.Family {
			return
		}
	}
	for r := range m.rules {
		if r.Table == gone.Table && r.Family == gone.Family && r.From.IsValid() {
			m.t.Errorf("table %d is emptied while a rule leads there: %s", gone.Table, r)
		}
	}
}

// TestRandomWalksConverge goes from any moment of any case to any other, with
// interruptions, and expects the kernel to be as desired after each whole plan.
func TestRandomWalksConverge(t *testing.T) {
	var all []golden.Moment
	for _, dir := range cases(t) {
		for _, m := range golden.Moments(t, dir) {
			m.Name = filepath.Base(dir) + "/" + m.Name
			all = append(all, m)
		}
	}
	all = append(all, golden.Moment{Name: "nothing", Desired: state.Desired{State: state.New()}})
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	kernel := newModel(t)
	for range 3000 {
		m := all[random.IntN(len(all))]
		kernel.wanted = m.Desired.Routes
		plan := state.Diff(kernel.observe(), m.Desired)
		if random.IntN(4) == 0 && len(plan.Steps) > 0 {
			plan.Steps = plan.Steps[:random.IntN(len(plan.Steps))] // killed in the middle
		}
		for _, s := range plan.Steps {
			kernel.apply(s)
		}
		plan = state.Diff(kernel.observe(), m.Desired)
		for _, s := range plan.Steps {
			kernel.apply(s)
		}
		if rest := state.Diff(kernel.observe(), m.Desired); !rest.Empty() {
			t.Fatalf("%s: still to do after a whole plan: %v", m.Name, rest.Steps)
		}
		if t.Failed() {
			t.Fatalf("on the way to %s: %s", m.Name, plan.Commands())
		}
	}
}

func TestNoMomentWantsTwoRoutesInOneSlot(t *testing.T) {
	for _, dir := range cases(t) {
		for _, m := range golden.Moments(t, dir) {
			seen := map[routeSlot]state.Route{}
			for r := range m.Desired.Routes.All() {
				at := routeSlot{r.Family, r.Table, r.Metric, r.Dst}
				if other, ok := seen[at]; ok {
					t.Errorf("%s/%s: %s and %s overwrite each other", dir, m.Name, other, r)
				}
				seen[at] = r
			}
		}
	}
}

func TestEveryObjectHasAnOrigin(t *testing.T) {
	for _, dir := range cases(t) {
		for _, m := range golden.Moments(t, dir) {
			goes := false
			for _, since := range m.Desired.MarkedVIPs {
				goes = goes || !since.IsZero()
			}
			if goes || len(m.Desired.Draining) > 0 {
				continue // what drains is in no profile any more
			}
			for _, s := range state.Diff(state.Observed{State: state.New()}, m.Desired).Steps {
				for _, l := range s.Lines {
					if l.Origin == "" && !strings.Contains(l.Text, ": type ") {
						t.Errorf("%s/%s: no profile line for %s", dir, m.Name, l.Text)
					}
				}
				if s.Origin == "" && s.Lines == nil {
					t.Errorf("%s/%s: no profile line for %s", dir, m.Name, s.Object.Spell(nil))
				}
			}
		}
	}
}

func TestDesiredIsTheSameInEveryRun(t *testing.T) {
	for _, dir := range cases(t) {
		for _, m := range golden.Moments(t, dir) {
			want := fmt.Sprint(state.Diff(state.Observed{State: state.New()}, m.Desired).Commands())
			for range 20 {
				again := golden.Moments(t, dir)
				i := slices.IndexFunc(again, func(o golden.Moment) bool { return o.Name == m.Name })
				if got := fmt.Sprint(state.Diff(state.Observed{State: state.New()}, again[i].Desired).Commands()); got != want {
					t.Fatalf("%s/%s: differs from run to run:\n%s\n%s", dir, m.Name, got, want)
				}
			}
		}
	}
}
