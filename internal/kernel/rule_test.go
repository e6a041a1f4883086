package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// spelledRules are rules with every selector, and how ip rule prints them.
func spelledRules(f state.Family) []struct {
	rule state.Rule
	text string
} {
	from, to, host := "10.1.0.0/16", "198.51.100.0/24", "192.0.2.1"
	if f == state.IPv6 {
		from, to, host = "2001:db8:a::/48", "2001:db8:b::/56", "2001:db8::1"
	}
	p := netip.MustParsePrefix
	var cases []struct {
		rule state.Rule
		text string
	}
	rule := func(text string, change func(*state.Rule)) {
		r := state.NewRule(f, uint32(11000+len(cases)), 101)
		change(&r)
		cases = append(cases, struct {
			rule state.Rule
			text string
		}{r, text})
	}
	rule("from all lookup 101 proto 115", func(*state.Rule) {})
	rule("from all lookup 11500 proto 115", func(r *state.Rule) { r.Table = 11500 })
	rule("from all lookup 4294967295 proto 115", func(r *state.Rule) { r.Table = 1<<32 - 1 })
	rule("from all lookup main suppress_prefixlength 0 suppress_ifgroup 115 proto 115", func(r *state.Rule) {
		r.Table, r.SuppressPrefixLength, r.SuppressGroup = 254, 0, 115
	})
	rule("from all lookup 11500 suppress_prefixlength 32 proto 115", func(r *state.Rule) {
		r.Table, r.SuppressPrefixLength = 11500, 32
	})
	rule("from all lookup 11500 suppress_ifgroup default proto 115", func(r *state.Rule) {
		r.Table, r.SuppressGroup = 11500, 0
	})
	rule("from "+from+" lookup 101 proto 115", func(r *state.Rule) { r.From = p(from) })
	rule("from "+host+" lookup 101 proto 115", func(r *state.Rule) {
		a := netip.MustParseAddr(host)
		r.From = netip.PrefixFrom(a, a.BitLen())
	})
	rule("from all to "+to+" lookup 101 proto 115", func(r *state.Rule) { r.To = p(to) })
	rule("from "+from+" to "+to+" lookup 101 proto 115", func(r *state.Rule) { r.From, r.To = p(from), p(to) })
	rule("not from "+from+" lookup 101 proto 115", func(r *state.Rule) { r.Not, r.From = true, p(from) })
	rule("from all tos 0x10 lookup 101 proto 115", func(r *state.Rule) { r.TOS = 0x10 })
	rule("from all fwmark 0x10000/0xff0000 lookup 101 proto 115", func(r *state.Rule) { r.Mark, r.Mask = 0x10000, 0xff0000 })
	rule("from all fwmark 0x64 lookup 101 proto 115", func(r *state.Rule) { r.Mark, r.Mask = 0x64, 1<<32-1 })
	rule("from all fwmark 0/0xff lookup 101 proto 115", func(r *state.Rule) { r.Mask = 0xff })
	rule("from all iif lo lookup 101 proto 115", func(r *state.Rule) { r.IIF = "lo" })
	rule("from all iif absent0 [detached] lookup 101 proto 115", func(r *state.Rule) { r.IIF = "absent0" })
	rule("from all oif fifteen-letters [detached] lookup 101 proto 115", func(r *state.Rule) { r.OIF = "fifteen-letters" })
	rule("from all uidrange 0-0 lookup 101 proto 115", func(r *state.Rule) { r.UIDs = state.UIDRange{} })
	rule("from all uidrange 1000-1999 lookup 101 proto 115", func(r *state.Rule) { r.UIDs = state.UIDRange{First: 1000, Last: 1999} })
	rule("from all ipproto tcp lookup 101 proto 115", func(r *state.Rule) { r.IPProto = 6 })
	rule("from all ipproto udp sport 53 lookup 101 proto 115", func(r *state.Rule) {
		r.IPProto, r.SPort = 17, state.PortRange{First: 53, Last: 53}
	})
	rule("from all ipproto tcp dport 8000-8099 lookup 101 proto 115", func(r *state.Rule) {
		r.IPProto, r.DPort = 6, state.PortRange{First: 8000, Last: 8099}
	})
	rule("from all unreachable proto 115", func(r *state.Rule) { r.Action, r.Table = state.RuleUnreachable, 0 })
	rule("from all blackhole proto 115", func(r *state.Rule) { r.Action, r.Table = state.RuleBlackhole, 0 })
	rule("from all prohibit proto 115", func(r *state.Rule) { r.Action, r.Table = state.RuleProhibit, 0 })
	target := uint32(11001 + len(cases))
	rule(fmt.Sprintf("from all fwmark 0x1/0xff iif lo goto %d proto 115", target), func(r *state.Rule) {
		r.Action, r.Table, r.Target, r.Mark, r.Mask, r.IIF = state.Goto, 0, target, 1, 0xff, "lo"
	})
	rule("from all nop proto 115", func(r *state.Rule) { r.Action, r.Table = state.Nop, 0 })
	rule("from all lookup 101 proto static", func(r *state.Rule) { r.Protocol = unix.RTPROT_STATIC })
	return cases
}

func ruleProgram(f state.Family) string {
	if f == state.IPv6 {
		return "-6 rule"
	}
	return "-4 rule"
}

func TestEveryRuleSelectorReadsBackAsWritten(t *testing.T) {
	enterNamespace(t)
	c, _ := openTestConn(t)
	for _, f := range state.Families {
		before := ip(t, ruleProgram(f))
		want := slices.Clone(before[1:])
		var rules []state.Rule
		var lines []string
		for _, s := range spelledRules(f) {
			rules = append(rules, s.rule)
			lines = append(lines, ruleLine(s.rule, s.text))
		}
		addRules(t, c, rules...)
		got := ip(t, ruleProgram(f))
		want = append(append([]string{before[0]}, lines...), want...)
		if !slices.Equal(got, want) {
			t.Errorf("ip %s prints\n%s\nwant\n%s", ruleProgram(f), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		var read []state.Rule
		for _, r := range observedRules(t, c, f) {
			if r.Partial {
				t.Errorf("%s counts as not fully understood", r)
			}
			if r.Priority >= 11000 && r.Priority < 12000 {
				read = append(read, r.Rule)
			}
		}
		if !slices.Equal(read, rules) {
			t.Errorf("read\n%v\nwant\n%v", read, rules)
		}
		for _, r := range rules {
			body, err := appendRule(nil, r)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.do([]message{{unix.RTM_DELRULE, 0, body}})[0]; err != nil {
				t.Errorf("delete %s: %v", r, err)
			}
		}
		if got := ip(t, ruleProgram(f)); !slices.Equal(got, before) {
			t.Errorf("after deletion of all there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
		}
	}
}

func ruleLine(r state.Rule, text string) string {
	return strings.TrimSpace(strings.Split(r.String(), ":")[0] + ": " + text)
}

func TestForeignTwinOfARuleSurvivesItsDeletion(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	for _, f := range state.Families {
		var foreign, own []state.Rule
		for _, s := range spelledRules(f) {
			if s.rule.Protocol != state.Protocol {
				continue
			}
			twin := s.rule
			twin.Protocol = unix.RTPROT_STATIC
			foreign, own = append(foreign, twin), append(own, s.rule)
		}
		// Once with the twin first in the kernel's list, once with ours.
		for _, first := range [][]state.Rule{foreign, own} {
			second := own
			if &first[0] == &own[0] {
				second = foreign
			}
			addRules(t, h.conn, first...)
			addRules(t, h.conn, second...)
			snapshot := readHost(t, h, Query{Window: [2]uint32{11000, 11999}}, AllParts)
			if len(snapshot.Observed.Rules) != len(own) || len(snapshot.Facts.ForeignRules) != len(foreign) {
				t.Fatalf("%s: %d own and %d foreign rules are seen, want %d of each", f,
					len(snapshot.Observed.Rules), len(snapshot.Facts.ForeignRules), len(own))
			}
			applyAll(t, h, state.Diff(snapshot.Observed, state.Desired{State: state.New()}))
			snapshot = readHost(t, h, Query{Window: [2]uint32{11000, 11999}}, 0)
			if n := len(snapshot.Observed.Rules); n != 0 {
				t.Errorf("%s: %d own rules are left", f, n)
			}
			if !slices.Equal(snapshot.Facts.ForeignRules, foreign) {
				t.Errorf("%s: foreign rules are\n%v\nwant\n%v", f, snapshot.Facts.ForeignRules, foreign)
			}
			for _, r := range foreign {
				ip(t, ruleProgram(f)+" del priority "+strings.Split(r.String(), ":")[0])
			}
		}
	}
}

func TestForeignRuleFieldsAreMarked(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	for i, line := range []string{
		"l3mdev", "fwmark 0x1/0 lookup 101", "realms 3/4 lookup 101", "tun_id 7 lookup 101",
	} {
		ip(t, "rule add "+line+" priority "+string(rune('1'+i))+" protocol 115")
	}
	snapshot := readHost(t, h, Query{Window: [2]uint32{1, 9}}, AllParts)
	if len(snapshot.Observed.Rules) != 0 {
		t.Errorf("taken for own: %v", snapshot.Observed.Rules)
	}
	if len(snapshot.Facts.ForeignRules) != 4 {
		t.Errorf("foreign rules are %v, want 4", snapshot.Facts.ForeignRules)
	}
}

func TestFlagsThatAreNotKnownAreMarked(t *testing.T) {
	body, err := appendRule(nil, state.NewRule(state.IPv4, 11500, 101))
	if err != nil {
		t.Fatal(err)
	}
	for flag, partial := range map[uint32]bool{0x01: false, 0x08: false, 0x10: false, 0x20: true} {
		binary.NativeEndian.PutUint32(body[8:], flag) // fib_rule_hdr.flags
		if r, err := decodeRule(body); err != nil || r.Partial != partial {
			t.Errorf("flag %#x: partial %t, %v", flag, r.Partial, err)
		}
	}
}

func TestTheTableOfARejectingRuleMeansNothing(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	ip(t, "rule add from 10.0.0.1 table 7 unreachable priority 11500 protocol 115")
	want := state.NewRule(state.IPv4, 11500, 0)
	want.Action, want.From = state.RuleUnreachable, netip.MustParsePrefix("10.0.0.1/32")
	s := readHost(t, h, Query{}, AllParts)
	if !s.Observed.Rules[want] {
		t.Errorf("rules are %v", s.Observed.Rules)
	}
	applyAll(t, h, state.Diff(s.Observed, state.Desired{State: state.New()}))
	if n := len(ip(t, "rule")); n != 3 {
		t.Errorf("%d rules are left, want 3", n)
	}
}

func TestForeignRulesThatConcernNobodyAreLeftOut(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	ip(t, "rule add from 10.0.0.1 lookup 7 priority 100")
	ip(t, "rule add from 10.0.0.2 lookup 101 priority 101")
	ip(t, "rule add from 10.0.0.3 lookup 7 priority 11500")
	ip(t, "rule add fwmark 0xc00/0xf00 lookup 7 priority 102")
	ip(t, "rule add fwmark 0x1/0xf lookup 7 priority 103")
	snapshot := readHost(t, h, Query{Window: [2]uint32{11500, 12499}, Tables: []uint32{101}, MarkMask: 0x3fff00}, AllParts)
	var got []string
	for _, r := range snapshot.Facts.ForeignRules {
		got = append(got, r.String())
	}
	want := []string{"101: from 10.0.0.2 lookup 101", "102: from all fwmark 0xc00/0xf00 lookup 7", "11500: from 10.0.0.3 lookup 7"}
	if !slices.Equal(got, want) {
		t.Errorf("foreign rules are %q, want %q", got, want)
	}
}

func TestRulesThatWouldReadBackDifferentlyAreRefused(t *testing.T) {
	good := state.NewRule(state.IPv4, 11500, 101)
	for name, change := range map[string]func(*state.Rule){
		"prefix of length zero":  func(r *state.Rule) { r.From = netip.MustParsePrefix("0.0.0.0/0") },
		"other family":           func(r *state.Rule) { r.To = netip.MustParsePrefix("2001:db8::/32") },
		"lookup without table":   func(r *state.Rule) { r.Table = 0 },
		"rejection with a table": func(r *state.Rule) { r.Action = state.RuleProhibit },
		"mark without mask":      func(r *state.Rule) { r.Mark = 1 },
	} {
		r := good
		change(&r)
		if _, err := appendRule(nil, r); err == nil {
			t.Errorf("%s is encoded", name)
		}
	}
	if _, err := appendRule(nil, good); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeRule(f *testing.F) {
	for _, family := range state.Families {
		for _, s := range spelledRules(family) {
			body, err := appendRule(nil, s.rule)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(body)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRule(body)
		if err != nil || r.Partial {
			return
		}
		again, err := appendRule(nil, r.Rule)
		if err != nil {
			t.Fatalf("%s is understood and cannot be written: %v", r, err)
		}
		back, err := decodeRule(again)
		if err != nil || back != r {
			t.Fatalf("%+v reads back as %+v, %v", r, back, err)
		}
	})
}
