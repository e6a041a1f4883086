package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// RuleAction is what a rule does with a packet that it matches
// (linux/fib_rules.h, FR_ACT_*).
type RuleAction uint8

// The actions that sisod writes.
const (
	Lookup          RuleAction = 1
	Goto            RuleAction = 2
	Nop             RuleAction = 3 // a place to go to
	RuleBlackhole   RuleAction = 6
	RuleUnreachable RuleAction = 7
	RuleProhibit    RuleAction = 8
)

var ruleActions = map[RuleAction]string{
	Lookup: "lookup", Goto: "goto", Nop: "nop", RuleBlackhole: "blackhole", RuleUnreachable: "unreachable", RuleProhibit: "prohibit",
}

// String is the action as ip rule spells it.
func (a RuleAction) String() string {
	if s, ok := ruleActions[a]; ok {
		return s
	}
	return "action " + strconv.Itoa(int(a))
}

// RuleActionNamed is the action that ip rule calls name.
func RuleActionNamed(name string) (RuleAction, bool) {
	for a, s := range ruleActions {
		if s == name {
			return a, true
		}
	}
	return 0, false
}

// Unset is the value of a rule's number that the rule does not have, where
// zero means something.
const Unset = -1

// PortRange is a range of ports, both ends included; {0, 0} matches any.
type PortRange struct{ First, Last uint16 }

func (p PortRange) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// UIDRange is a range of user ids, both ends included.
type UIDRange struct{ First, Last uint32 }

// AnyUID is the range of a rule that does not look at user ids.
var AnyUID = UIDRange{1, 0}

// Rule is one policy routing rule, see ip-rule(8). Every field counts for
// its identity, as in the kernel (net/core/fib_rules.c, rule_exists).
type Rule struct {
	Family   Family
	Priority uint32
	Not      bool
	From     netip.Prefix // zero Prefix: any
	To       netip.Prefix // zero Prefix: any
	TOS      uint8
	Mark     uint32
	Mask     uint32 // 0: the rule does not look at marks
	IIF      string
	OIF      string
	IPProto  uint8 // 0: any
	SPort    PortRange
	DPort    PortRange
	UIDs     UIDRange
	Action   RuleAction
	Table    uint32 // 0 unless Action is Lookup
	Target   uint32 // the priority that Goto goes on at, a greater one; else 0
	// SuppressPrefixLength drops a decision of the table whose prefix is no
	// longer than this; Unset keeps all.
	SuppressPrefixLength int
	// SuppressGroup drops a decision that leaves by a link of this group; Unset keeps all.
	SuppressGroup int
	Protocol      uint8
}

// NewRule returns a rule that matches every packet and looks up table.
func NewRule(f Family, priority, table uint32) Rule {
	return Rule{
		Family: f, Priority: priority, Action: Lookup, Table: table, UIDs: AnyUID,
		SuppressPrefixLength: Unset, SuppressGroup: Unset, Protocol: Protocol,
	}
}

// WithoutDefaults is the rule that drops its table's defaults (suppress_prefixlength 0).
func (r Rule) WithoutDefaults() Rule {
	r.SuppressPrefixLength = 0
	return r
}

// Kind is KindRule.
func (Rule) Kind() Kind { return KindRule }

// String is the rule with its table as a number.
func (r Rule) String() string { return r.Spell(nil) }

// Spell is the rule as ip rule prints it.
func (r Rule) Spell(n Names) string {
	return fmt.Sprintf("%d: %s", r.Priority, r.selector(n, "from all"))
}

// Commands is one ip rule.
func (r Rule) Commands(op Op, n Names) []string {
	verb := "add"
	if op.Removes() {
		verb = "del"
	}
	return []string{fmt.Sprintf("%s rule %s priority %d %s protocol %d",
		r.Family.command(), verb, r.Priority, r.selector(n, "from all"), r.Protocol)}
}

// selector is what the rule matches and does, in the order in which ip rule prints it.
func (r Rule) selector(n Names, all string) string {
	var b strings.Builder
	word := func(format string, args ...any) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, args...)
	}
	if r.Not {
		word("not")
	}
	if r.From.IsValid() {
		word("from %s", spellPrefix(r.From))
	} else {
		word("%s", all)
	}
	if r.To.IsValid() {
		word("to %s", spellPrefix(r.To))
	}
	if r.TOS != 0 {
		word("tos 0x%02x", r.TOS)
	}
	if r.Mask == 0xffffffff {
		word("fwmark %#x", r.Mark)
	} else if r.Mask != 0 {
		word("fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IIF != "" {
		word("iif %s", r.IIF)
	}
	if r.OIF != "" {
		word("oif %s", r.OIF)
	}
	if r.UIDs != AnyUID {
		word("uidrange %d-%d", r.UIDs.First, r.UIDs.Last)
	}
	if r.IPProto != 0 {
		word("ipproto %s", spellIPProto(r.IPProto))
	}
	if r.SPort != (PortRange{}) {
		word("sport %s", r.SPort)
	}
	if r.DPort != (PortRange{}) {
		word("dport %s", r.DPort)
	}
	if r.Action != Lookup {
		word("%s", r.Action)
		if r.Action == Goto {
			word("%d", r.Target)
		}
		return b.String()
	}
	word("lookup %s", n.Table(r.Table))
	if r.SuppressPrefixLength != Unset {
		word("suppress_prefixlength %d", r.SuppressPrefixLength)
	}
	if r.SuppressGroup != Unset {
		word("suppress_ifgroup %d", r.SuppressGroup)
	}
	return b.String()
}

// CompareRules orders by family, priority and spelling: the order in which
// the kernel meets them.
func CompareRules(a, b Rule) int {
	c := cmp.Or(
		cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Priority, b.Priority),
		a.From.Addr().Compare(b.From.Addr()),
		cmp.Compare(a.From.Bits(), b.From.Bits()),
	)
	if c != 0 || a == b {
		return c
	}
	return cmp.Compare(a.String(), b.String())
}

// rank orders the changes of rules: those that lead packets from somewhere to other
// rules are added after these, and deleted before.
func (r Rule) rank() int {
	if r.Action == Goto && r.From.IsValid() {
		return 1
	}
	return 0
}

func spellPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// spellIPProto names the protocols that ip rule names without /etc/protocols doubt.
func spellIPProto(p uint8) string {
	switch p {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "ipv6-icmp"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}
