package kernel

import (
	"net/netip"
	"slices"
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
		o := ruleOrder(slices.Clone(c.present))
		if got := o.remove(plain, c.leaving); !slices.Equal(got, c.want) || !slices.Equal(o, c.after) {
			t.Errorf("%s: changes %v, then %v; want %v, then %v", name, got, o, c.want, c.after)
		}
	}
}
