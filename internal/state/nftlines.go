package state

import (
	"cmp"
	"strings"
)

// NFRuleText is a rule's spelling, by which Desired.Origins knows it.
type NFRuleText string

// Ask notes who asked for a rule, and gives the rule back.
func (d *Desired) Ask(origin string, r NFRule) NFRule {
	key := NFRuleText(r.String())
	d.Origins[key] = cmp.Or(d.Origins[key], origin)
	return r
}

// nfLines are the rules that differ, each behind its chain. Whatever moved goes
// and comes.
func nfLines(observed NFTable, desired Desired) []Line {
	old, fresh := nfRules(observed.Text), nfRules(desired.NFTable.Text)
	// common[i][j] is the length of the longest common sequence of old[i:] and fresh[j:].
	common := make([][]int, len(old)+1)
	common[len(old)] = make([]int, len(fresh)+1)
	for i := len(old) - 1; i >= 0; i-- {
		common[i] = make([]int, len(fresh)+1)
		for j := len(fresh) - 1; j >= 0; j-- {
			if old[i] == fresh[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var lines []Line
	for i, j := 0, 0; i < len(old) || j < len(fresh); {
		switch {
		case i < len(old) && j < len(fresh) && old[i] == fresh[j]:
			i, j = i+1, j+1
		case i < len(old) && (j == len(fresh) || common[i+1][j] >= common[i][j+1]):
			lines = append(lines, Line{Op: Delete, Text: old[i].String()})
			i++
		default:
			lines = append(lines, Line{Op: Add, Text: fresh[j].String(), Origin: desired.Origins[NFRuleText(fresh[j].text)]})
			j++
		}
	}
	return lines
}

// nfRuleIn is a spelled rule in its chain.
type nfRuleIn struct{ chain, text string }

// String is "incoming: RULE".
func (r nfRuleIn) String() string { return r.chain + ": " + r.text }

// nfRules are the rules of a spelled table.
func nfRules(table string) []nfRuleIn {
	var list []nfRuleIn
	chain := ""
	for line := range strings.Lines(table) {
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(text, "chain "):
			chain = strings.TrimSuffix(strings.TrimPrefix(text, "chain "), " {")
		case strings.HasPrefix(line, "\t") && text != "}":
			list = append(list, nfRuleIn{chain, text})
		}
	}
	return list
}
