package daemon

import (
	"testing"
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

// ring is a referee with what it needs: objects that are all in force.
type ring struct {
	t     *testing.T
	f     *fights
	want  state.State
	links []state.Link
	now   time.Time
	told  int // fights that reached their limit
}

func newRing(t *testing.T) *ring {
	r := &ring{t: t, f: newFights(), want: state.New(), now: noon, links: []state.Link{{Name: "em1", Index: 2}}}
	r.want.Rules[state.NewRule(state.IPv4, 11800, 100)] = true
	r.want.Rules[state.NewRule(state.IPv4, 11801, 100)] = true
	r.want.Routes.AddSet(routeTo(100).Way, routeTo(100, "0.0.0.0/0", "10.0.0.0/8").Dsts)
	r.want.Groups["em1"] = 115
	r.want.Sysctls["net/ipv4/conf/em1/rp_filter"] = "2"
	r.want.Names[state.TableName{Number: 100, Name: "isp1"}] = true
	r.want.NFTable = packetTable("em1")
	r.remember()
	return r
}

// packetTable is a table of nftables, worked out anew as each pass does.
func packetTable(link string) state.NFTable {
	return state.NewNFTable([]state.NFChain{{Name: "incoming", Type: "filter", Hook: "prerouting", Rules: []state.NFRule{{state.NFInterface{Name: link}, state.NFAccept{}}}}})
}

func (r *ring) remember(missing ...state.Step) {
	m := map[stepKey]bool{}
	for _, s := range missing {
		m[keyOf(s)] = true
	}
	r.f.remember(r.want, r.links, m)
}

// undone is a pass that finds something undone. It reports whether it is
// repaired, and whether that counts as a repair.
func (r *ring) undone(s state.Step, t trigger) (done, repair bool) {
	r.t.Helper()
	r.f.over(r.now)
	allowed, repairs, waiting, fought := r.f.referee([]state.Step{s}, t, r.links, r.now)
	if len(allowed)+len(waiting) != 1 {
		r.t.Fatalf("%d allowed and %d waiting of one step", len(allowed), len(waiting))
	}
	r.told += len(fought)
	r.remember()
	return len(allowed) == 1, repairs[keyOf(s)]
}

func TestRepairsAreCountedByWhoUndid(t *testing.T) {
	rule := add(state.NewRule(state.IPv4, 11800, 100))
	route := add(routeTo(100, "10.0.0.0/8"))
	group := state.Step{Op: state.Replace, Object: state.LinkGroup{Link: "em1", Group: 115}}
	sysctl := state.Step{Op: state.Replace, Object: state.Sysctl{Path: "net/ipv4/conf/em1/rp_filter", Value: "2"}}
	name := add(state.TableName{Number: 100, Name: "isp1"})
	byLink := trigger{links: true}
	another := func(r *ring) { r.links = []state.Link{{Name: "em1", Index: 9}} }
	for _, c := range []struct {
		name   string
		step   state.Step
		change func(*ring)
		cause  trigger
		repair bool
	}{
		{"rule deleted", rule, nil, trigger{}, true},
		{"rule deleted while a link flaps", rule, nil, byLink, true},
		{"new rule", add(state.NewRule(state.IPv4, 11999, 100)), nil, trigger{}, false},
		{"rule not wanted any more", remove(state.NewRule(state.IPv4, 11800, 100)), nil, trigger{}, false},
		{"rule that the kernel had refused", rule, func(r *ring) { r.remember(rule) }, trigger{}, false},
		{"rule that flush took away", rule, func(r *ring) { r.f.forget() }, trigger{}, false},
		{"route deleted", route, nil, trigger{}, true},
		{"route that went with its link", route, nil, byLink, false},
		{"new route", add(routeTo(100, "10.9.0.0/16")), nil, trigger{}, false},
		{"known route with another way", add(routeTo(101, "10.0.0.0/8")), nil, trigger{}, false},
		{"route not wanted any more", remove(routeTo(100, "10.0.0.0/8")), nil, trigger{}, false},
		{"group changed", group, nil, byLink, true},
		{"group of a new link", group, another, byLink, false},
		{"other group wanted", state.Step{Op: state.Replace, Object: state.LinkGroup{Link: "em1", Group: 116}}, nil, trigger{}, false},
		{"sysctl changed", sysctl, nil, trigger{}, true},
		{"sysctl of a new link", sysctl, another, byLink, false},
		{"other value wanted", state.Step{Op: state.Replace, Object: state.Sysctl{Path: "net/ipv4/conf/em1/rp_filter", Value: "1"}}, nil, trigger{}, false},
		{"value given back", state.Step{Op: state.Restore, Object: state.Sysctl{Path: "net/ipv4/conf/em1/rp_filter", Value: "2"}}, nil, trigger{}, false},
		{"name removed", name, nil, trigger{}, true},
		{"table of nftables deleted", add(packetTable("em1")), nil, trigger{}, true},
		{"table of nftables edited", state.Step{Op: state.Replace, Object: packetTable("em1")}, nil, trigger{}, true},
		{"other table of nftables wanted", state.Step{Op: state.Replace, Object: packetTable("em2")}, nil, trigger{}, false},
		{"table of nftables not wanted any more", remove(packetTable("em1")), nil, trigger{}, false},
		{"new name", add(state.TableName{Number: 101, Name: "isp2"}), nil, trigger{}, false},
	} {
		r := newRing(t)
		if c.change != nil {
			c.change(r)
		}
		done, repair := r.undone(c.step, c.cause)
		if !done || repair != c.repair {
			t.Errorf("%s: done %t, a repair %t, want %t", c.name, done, repair, c.repair)
		}
	}
}

func TestFightIsLimitedAndEnds(t *testing.T) {
	r := newRing(t)
	rule, other := add(state.NewRule(state.IPv4, 11800, 100)), add(state.NewRule(state.IPv4, 11801, 100))
	// Somebody is at it every second, for ten minutes.
	var done []time.Duration
	for second := range 600 {
		r.now = noon.Add(time.Duration(second) * time.Second)
		if ok, _ := r.undone(rule, trigger{}); ok {
			done = append(done, r.now.Sub(noon))
		}
		if second%20 == 19 {
			if ok, _ := r.undone(other, trigger{}); !ok {
				t.Fatalf("second %d: another object is held up", second)
			}
		}
	}
	if r.told != 1 {
		t.Errorf("the fight is told %d times, want once", r.told)
	}
	for i, at := range done {
		switch {
		case i < fightRepairs && at != time.Duration(i)*time.Second:
			t.Errorf("repair %d is at %v, want at once", i, at)
		case i >= fightRepairs && at-done[i-1] < fightPause:
			t.Errorf("repair %d comes %v after the one before", i, at-done[i-1])
		}
	}
	if n := len(done); n < 35 || n > 45 {
		t.Errorf("%d repairs in ten minutes, want 10 and one each %v", n, fightPause)
	}
	if list := r.f.slow(); len(list) != 1 || list[0].object() != "rule 11800: from all lookup 100" {
		t.Errorf("fights that are told: %v", list)
	}
	// Between repairs there is a time for the next one, and it is kept.
	_, _, waiting, _ := r.f.referee([]state.Step{rule}, trigger{}, r.links, r.now)
	next := r.f.next(waiting, r.now)
	if wait := next.Sub(r.now); wait <= 0 || wait > fightPause {
		t.Fatalf("the next repair is in %v", wait)
	}
	r.now = next
	if ok, _ := r.undone(rule, trigger{}); !ok {
		t.Fatal("the repair that was due is held up")
	}
	// Left alone, the fight is over after a window, for which a pass is due.
	if next := r.f.next(nil, r.now); next.Sub(r.now) != fightWindow {
		t.Errorf("the end of the fight is looked for in %v", next.Sub(r.now))
	}
	r.now = r.now.Add(fightWindow)
	if ended := r.f.over(r.now); len(ended) != 1 || len(r.f.slow()) != 0 {
		t.Errorf("%d fights have ended, %d go on", len(ended), len(r.f.slow()))
	}
	if next := r.f.next(nil, r.now); !next.IsZero() {
		t.Errorf("a pass is due at %v without a fight", next)
	}
	if ok, repair := r.undone(rule, trigger{}); !ok || !repair {
		t.Errorf("after the fight: done %t, a repair %t", ok, repair)
	}
}

func TestOneRouteInAFightHoldsUpNoOther(t *testing.T) {
	r := newRing(t)
	fought, other := add(routeTo(100, "0.0.0.0/0")), add(routeTo(100, "10.0.0.0/8"))
	for range fightRepairs {
		r.undone(fought, trigger{})
	}
	if ok, _ := r.undone(fought, trigger{}); ok {
		t.Error("there is no limit for a route")
	}
	if ok, _ := r.undone(other, trigger{}); !ok {
		t.Error("another route of the same way is held up")
	}
}

func TestATableWorkedOutAnewIsTheSameObjectOfAFight(t *testing.T) {
	r := newRing(t)
	for range fightRepairs {
		if ok, _ := r.undone(add(packetTable("em1")), trigger{}); !ok {
			t.Fatal("held up before the limit")
		}
	}
	if ok, _ := r.undone(add(packetTable("em1")), trigger{}); ok || r.told != 1 {
		t.Errorf("repaired without a limit; %d fights are told", r.told)
	}
}

func TestRareRepairsAreNoFight(t *testing.T) {
	r := newRing(t)
	rule := add(state.NewRule(state.IPv4, 11800, 100))
	for range 100 {
		r.now = r.now.Add(fightWindow / fightRepairs)
		if ok, _ := r.undone(rule, trigger{}); !ok {
			t.Fatalf("a repair each %v is held up", fightWindow/fightRepairs)
		}
	}
	if r.told != 0 {
		t.Error("a repair now and then is told as a fight")
	}
}

func TestUnknownPeerIsNobody(t *testing.T) {
	r := newRing(t)
	rule := add(state.NewRule(state.IPv4, 11800, 100))
	for range fightRepairs {
		_, repairs, _, _ := r.f.referee([]state.Step{rule}, trigger{}, r.links, r.now)
		r.f.identify(repairs, 0)
		r.f.identify(repairs, 4000000000)
	}
	one := r.f.objects[keyOf(rule)]
	if one.other != "" || kernel.ProcessOf(4000000000) != "" {
		t.Errorf("the other is %q", one.other)
	}
	if got := one.String(); got != "rule 11800: from all lookup 100 (undone again and again)" {
		t.Error(got)
	}
	one.other = "networkd"
	one.step = add(state.NewRule(state.IPv6, 11800, 100))
	if got := one.String(); got != "IPv6 rule 11800: from all lookup 100 (undone again and again, by networkd as it seems)" {
		t.Error(got)
	}
}
