package kernel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

func TestADeletionSparesWhatItWouldTake(t *testing.T) {
	plain := state.NewRule(state.IPv4, 11500, 101)
	narrow := plain
	narrow.From = netip.MustParsePrefix("10.0.0.0/8")
	later := plain
	later.Priority = 11600
	other := narrow
	other.Table = 102
	for name, c := range map[string]struct {
		present []state.Rule
		leaving map[state.Rule]bool
		want    []ruleChange
		after   []state.Rule
	}{
		"alone":           {[]state.Rule{plain}, nil, []ruleChange{{state.Delete, plain}}, nil},
		"first":           {[]state.Rule{plain, narrow}, nil, []ruleChange{{state.Delete, plain}}, []state.Rule{narrow}},
		"other table":     {[]state.Rule{other, plain}, nil, []ruleChange{{state.Delete, plain}}, []state.Rule{other}},
		"behind narrower": {[]state.Rule{narrow, plain, later}, nil, []ruleChange{{state.Delete, plain}, {state.Delete, plain}, {state.Add, narrow}}, []state.Rule{narrow, later}},
		"both leave": {[]state.Rule{narrow, plain}, map[state.Rule]bool{narrow: true, plain: true},
			[]ruleChange{{state.Delete, plain}, {state.Delete, plain}}, nil},
		"absent, would take": {[]state.Rule{narrow}, nil, nil, []state.Rule{narrow}},
		"absent":             {[]state.Rule{later}, nil, []ruleChange{{state.Delete, plain}}, []state.Rule{later}},
	} {
		o := orderOf(c.present)
		if got := o.remove(plain, c.leaving); !slices.Equal(got, c.want) || !slices.Equal(o.list(), c.after) {
			t.Errorf("%s: changes %v, then %v; want %v, then %v", name, got, o.list(), c.want, c.after)
		}
	}
}

// list is the order in which the kernel goes through the rules.
func (o ruleOrder) list() []state.Rule {
	var list []state.Rule
	for _, priority := range slices.Sorted(maps.Keys(o)) {
		list = append(list, o[priority]...)
	}
	return list
}

// The kernel knows no two rules that differ in where they go on alone.
func TestAGotoTakesThePlaceOfOneThatLedElsewhere(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	lead := state.NewRule(state.IPv4, 11801, 0)
	lead.Action, lead.From, lead.Target = state.Goto, netip.MustParsePrefix("10.0.0.0/8"), 11810
	elsewhere := lead
	elsewhere.Target = 11820
	addRules(t, h.conn, lead)
	readHost(t, h, Query{}, AllParts)
	for _, o := range h.Apply(t.Context(), state.Plan{Steps: []state.Step{{Op: state.Add, Object: elsewhere}, {Op: state.Delete, Object: lead}}}, nil) {
		if !o.Done() {
			t.Errorf("%s: %v %s", o.Step.Object, o.Err, o.Held)
		}
	}
	if got := strings.Join(ip(t, "rule show pref 11801"), "\n"); !strings.HasPrefix(got, "11801: from 10.0.0.0/8 goto 11820") {
		t.Errorf("the rule is %q", got)
	}
}
