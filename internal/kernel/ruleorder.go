package kernel

import (
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// ruleOrder is a family's rules of sisod's in the order in which the kernel
// goes through them. It exists because the kernel deletes the first rule that
// agrees with what a request *says*: a selector that the request lacks agrees
// with any value, and "not" is never looked at (net/core/fib_rules.c,
// rule_find). A plain rule's deletion may so take a narrower one of the same
// priority. Rules of another priority are never meant, so that each priority has a list
// of its own.
type ruleOrder map[uint32][]state.Rule

// orderOf makes an order of rules as the kernel lists them.
func orderOf(rules []state.Rule) ruleOrder {
	o := ruleOrder{}
	for _, r := range rules {
		o.insert(r)
	}
	return o
}

// ruleChange is one message about a rule.
type ruleChange struct {
	op   state.Op // Add or Delete
	rule state.Rule
}

// add returns the changes that add a rule.
func (o ruleOrder) add(r state.Rule) []ruleChange {
	present := o[r.Priority]
	if slices.Contains(present, r) {
		return []ruleChange{{state.Add, r}}
	}
	var changes []ruleChange
	twin := slices.IndexFunc(present, func(x state.Rule) bool {
		x.Not, x.Target = r.Not, r.Target
		return x == r
	})
	if twin >= 0 {
		// To the kernel they are one rule: it would answer that the new one is there.
		changes = o.remove(present[twin], nil)
	}
	return append(changes, o.insert(r))
}

// remove returns the changes that delete a rule. Rules that a deletion takes
// in its place are added again, those in leaving excepted.
func (o ruleOrder) remove(r state.Rule, leaving map[state.Rule]bool) []ruleChange {
	meant := func(present state.Rule) bool { return takes(r, present) }
	if !slices.Contains(o[r.Priority], r) {
		if slices.ContainsFunc(o[r.Priority], meant) {
			// The rule is not there, and asking for its deletion would take another.
			return nil
		}
		return []ruleChange{{state.Delete, r}}
	}
	var changes []ruleChange
	var taken []state.Rule
	for {
		i := slices.IndexFunc(o[r.Priority], meant)
		victim := o[r.Priority][i]
		o[r.Priority] = slices.Delete(o[r.Priority], i, i+1)
		changes = append(changes, ruleChange{state.Delete, r})
		if victim == r {
			break
		}
		if !leaving[victim] {
			taken = append(taken, victim)
		}
	}
	for _, t := range taken {
		changes = append(changes, o.insert(t))
	}
	return changes
}

// insert puts a rule behind those of its priority, as the kernel does.
func (o ruleOrder) insert(r state.Rule) ruleChange {
	o[r.Priority] = append(o[r.Priority], r)
	return ruleChange{state.Add, r}
}

// takes reports whether the kernel, asked to delete r, agrees that present is
// what was meant.
func takes(r, present state.Rule) bool {
	return r.Family == present.Family &&
		r.Priority == present.Priority &&
		r.Protocol == present.Protocol &&
		r.Action == present.Action &&
		agrees(r.Table, present.Table, 0) &&
		agrees(r.From, present.From, state.Rule{}.From) &&
		agrees(r.To, present.To, state.Rule{}.To) &&
		agrees(r.TOS, present.TOS, 0) &&
		agrees(r.Mark, present.Mark, 0) &&
		agrees(r.Mask, present.Mask, 0) &&
		agrees(r.IIF, present.IIF, "") &&
		agrees(r.OIF, present.OIF, "") &&
		agrees(r.IPProto, present.IPProto, 0) &&
		agrees(r.SPort, present.SPort, state.PortRange{}) &&
		agrees(r.DPort, present.DPort, state.PortRange{}) &&
		agrees(r.UIDs, present.UIDs, state.AnyUID) &&
		agrees(r.SuppressPrefixLength, present.SuppressPrefixLength, state.Unset) &&
		agrees(r.SuppressGroup, present.SuppressGroup, state.Unset)
}

func agrees[T comparable](said, present, unsaid T) bool { return said == unsaid || said == present }
