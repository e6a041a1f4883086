package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// routeTo is a route by em1 in a table.
func routeTo(table uint32, dsts ...string) state.RouteSet {
	set := state.RouteSet{Way: state.Way{
		Family: state.IPv4, Table: table, Type: state.Unicast, Protocol: state.Protocol,
		Hops: state.HopsOf(state.Hop{Via: netip.MustParseAddr("192.0.2.1"), Dev: "em1"}),
	}}
	var list []netip.Prefix
	for _, d := range dsts {
		list = append(list, netip.MustParsePrefix(d))
	}
	set.Dsts = prefix.Of(list...)
	return set
}

func add(o state.Object) state.Step    { return state.Step{Op: state.Add, Object: o} }
func remove(o state.Object) state.Step { return state.Step{Op: state.Delete, Object: o} }

// spell lists steps, one a line.
func spell(steps []state.Step) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.Op.Sign() + " " + strings.ReplaceAll(s.Object.Spell(nil), "\n", " and ") + "\n")
	}
	return b.String()
}

func TestShortSetsComeApartAndLongOnesStay(t *testing.T) {
	var many []string
	for i := range apartMost + 1 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24).String())
	}
	got := apart([]state.Step{
		{Op: state.Add, Object: routeTo(100, "10.0.0.0/8", "192.168.0.0/16"), Origin: "isp.toml:3"},
		add(routeTo(101, many...)),
		add(state.NewRule(state.IPv4, 11800, 100)),
	})
	want := `+ 10.0.0.0/8 via 192.0.2.1 dev em1 table 100
+ 192.168.0.0/16 via 192.0.2.1 dev em1 table 100
+ 33 prefixes (10.0.0.0/24 … 10.0.32.0/24) via 192.0.2.1 dev em1 table 101
+ 11800: from all lookup 100
`
	if spell(got) != want {
		t.Errorf("got\n%swant\n%s", spell(got), want)
	}
	if got[0].Origin != "isp.toml:3" || got[1].Origin != "isp.toml:3" {
		t.Errorf("origins %q and %q", got[0].Origin, got[1].Origin)
	}
	if keyOf(got[0]) == keyOf(got[1]) {
		t.Error("two routes of one way have one key")
	}
}

func TestNothingRunsAheadOfAPostponedStep(t *testing.T) {
	into, from := state.NewRule(state.IPv4, 11800, 100), state.NewRule(state.IPv4, 11801, 200)
	six := state.NewRule(state.IPv6, 11800, 100)
	steps := []state.Step{
		add(routeTo(300, "10.0.0.0/8")), add(into), add(six), remove(routeTo(200, "10.0.0.0/8")), remove(routeTo(100, "10.1.0.0/16")),
	}
	allowed, more := behind(steps, []postponed{{add(routeTo(100, "0.0.0.0/0")), "refused"}, {remove(from), "refused"}}, state.Names{100: "isp1", 200: "isp2"})
	want := spell([]state.Step{steps[0], steps[2], steps[4]})
	if spell(allowed) != want {
		t.Errorf("allowed\n%swant\n%s", spell(allowed), want)
	}
	if len(more) != 2 || more[0].because != "waits for the routes of table isp1" || more[1].because != "waits for the rules to table isp2 to go" {
		t.Errorf("postponed %v", more)
	}
	if all, none := behind(steps, nil, nil); len(all) != len(steps) || none != nil {
		t.Errorf("without a postponed step %d of %d are allowed", len(all), len(steps))
	}
}

func refused(s state.Step, why string) kernel.Outcome {
	return kernel.Outcome{Step: s, Err: errors.New(why)}
}

func TestRefusedStepsBackOffEachByItself(t *testing.T) {
	r := retries{}
	bad, good := add(routeTo(100, "10.0.0.0/8")), add(state.NewRule(state.IPv4, 11800, 100))
	steps := []state.Step{bad, good}
	now := noon
	// It is tried whenever the timer says so, and nothing else keeps it back.
	var waits []time.Duration
	for range 9 {
		allowed, waiting := r.hold(steps, false, now)
		if len(allowed) != 2 || len(waiting) != 0 {
			t.Fatalf("%v: %d steps are allowed when they are due", now.Sub(noon), len(allowed))
		}
		r.note(refused(bad, "no"), now)
		r.note(kernel.Outcome{Step: good}, now)
		waits = append(waits, r.next().Sub(now))
		// Events meanwhile: the other step goes on.
		early := r.next().Add(-time.Millisecond)
		if allowed, waiting = r.hold(steps, false, early); len(allowed) != 1 || keyOf(allowed[0]) != keyOf(good) || waiting[0].because != "no" {
			t.Fatalf("%v: before it is due %v are allowed", early.Sub(noon), spell(allowed))
		}
		// Or one that may have cured it: it is tried, and waits no longer for it.
		if allowed, _ = r.hold(steps, true, early); len(allowed) != 2 {
			t.Fatal("a step is held although its reason may be gone")
		}
		r.note(refused(bad, "still no"), early)
		now = r.next()
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}
	for i, w := range waits {
		if w != want[i]*time.Second {
			t.Errorf("wait %d is %v, want %v", i, w, want[i]*time.Second)
		}
	}
	r.note(kernel.Outcome{Step: bad}, now)
	if len(r) != 0 || !r.next().IsZero() {
		t.Errorf("a step that is done is still due at %v", r.next())
	}
	// One that is not wanted any more is forgotten, and begins anew.
	r.note(refused(bad, "no"), now)
	r.hold([]state.Step{good}, false, now)
	if len(r) != 0 {
		t.Error("a step that nobody wants is still waited for")
	}
}

func TestHeldStepsHaveNoBackOffOfTheirOwn(t *testing.T) {
	r := retries{}
	s := add(state.NewRule(state.IPv4, 11800, 100))
	r.note(kernel.Outcome{Step: s, Held: "waits for the routes of table 100"}, noon)
	if allowed, _ := r.hold([]state.Step{s}, false, noon); len(allowed) != 1 {
		t.Error("a rule waits although its table may be complete by now")
	}
}

func TestEarliest(t *testing.T) {
	later := noon.Add(time.Second)
	for _, c := range [][3]time.Time{
		{{}, {}, {}}, {noon, {}, noon}, {{}, noon, noon}, {noon, later, noon}, {later, noon, noon},
	} {
		if got := earliest(c[0], c[1]); got != c[2] {
			t.Errorf("earliest of %v and %v is %v", c[0], c[1], got)
		}
	}
}

func TestTriggerKeepsWhatAFailedPassOwes(t *testing.T) {
	var now trigger
	now.pull(kernel.PartRules, "rule 1 deleted")
	now.sweep = true
	now.event(kernel.Event{Parts: kernel.PartLinks, Reason: "link em1 down", Peer: 7}, kernel.PartLinks)
	failed := now.take()
	if now.pulled() || now.parts != 0 {
		t.Errorf("a trigger that was taken still is %+v", now)
	}
	now.owe(failed)
	if now.pulled() {
		t.Error("what is owed asks for a pass by itself")
	}
	now.pull(kernel.PartMain, "retry")
	next := now.take()
	if next.parts != kernel.PartRules|kernel.PartLinks|kernel.PartMain || !next.sweep || !next.facts || !next.links {
		t.Errorf("the next pass has forgotten some of the one that failed: %+v", next)
	}
	if !slices.Equal(next.reasons, []string{"retry"}) {
		t.Errorf("reasons %q", next.reasons)
	}
	for i := range 20 {
		now.pull(kernel.PartRules, strings.Repeat("x", i+1))
	}
	if len(now.reasons) != shownReasons {
		t.Errorf("%d reasons are kept", len(now.reasons))
	}
	now.event(kernel.Event{Parts: kernel.AllParts, Reason: "lost events"}, kernel.AllParts)
	if !slices.Equal(now.reasons, []string{"lost events"}) {
		t.Errorf("reasons %q", now.reasons)
	}
}
