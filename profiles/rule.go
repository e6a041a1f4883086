package profiles

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// rule judges one [[rule]]. It is false when the rule is of no use to go on with.
func (b *builder) rule(raw rawRule) (Rule, bool) {
	before := len(b.loader.errs)
	r := Rule{Pos: raw.at.pos(), Not: raw.Not.v, Families: Families{true, true}}
	b.rulePriority(raw, &r)
	b.ruleFamily(raw, &r)
	r.IIF, _ = link(raw.IIF)
	r.OIF, _ = link(raw.OIF)
	b.ruleMark(raw.FWMark, &r)
	b.rulePorts(raw, &r)
	if first, last, ok := span32(raw.UIDRange, 0, lastUID, `a user's number, or a range such as "1000-1999"`); ok {
		r.UIDs = &[2]uint32{first, last}
	}
	ruleTOS(raw.TOS, &r)
	b.ruleAction(raw, &r)
	if len(b.loader.errs) > before {
		return r, false
	}
	if r.Not && !r.selects() {
		raw.Not.at.badKey("not without a selector matches nothing", "add from, to, iif, oif, fwmark, ipproto, sport, dport, uidrange or tos")
		return r, false
	}
	return r, b.ruleOnce(raw, r)
}

// ruleOnce complains about a rule that stands twice in a family.
func (b *builder) ruleOnce(raw rawRule, r Rule) bool {
	for _, f := range []Families{{IPv4: true}, {IPv6: true}} {
		if f.IPv4 && !r.Families.IPv4 || f.IPv6 && !r.Families.IPv6 {
			continue
		}
		key := r
		key.Families = f
		key.Pos, key.UIDs, key.SuppressPrefixLength, key.SuppressIfgroup = Position{}, nil, nil, nil
		spelled := fmt.Sprintf("%+v", key) + deref(r.UIDs) + " " + deref(r.SuppressPrefixLength) + " " + deref(r.SuppressIfgroup)
		if earlier, twice := b.allRules[spelled]; twice {
			raw.at.badKey("the same rule stands twice, first at "+earlier.String(), "remove one of them, or give this one another priority")
			return false
		}
		b.allRules[spelled] = r.Pos
	}
	return true
}

// deref spells an optional value so that unset differs from zero.
func deref[T any](p *T) string {
	if p == nil {
		return "unset"
	}
	return fmt.Sprint(*p)
}

func (r Rule) selects() bool {
	return r.From.IsValid() || r.To.IsValid() || r.IIF != "" || r.OIF != "" || r.Mask != 0 || r.IPProto != 0 ||
		r.SPort != [2]uint16{} || r.DPort != [2]uint16{} || r.UIDs != nil || r.TOS != 0
}

func (b *builder) rulePriority(raw rawRule, r *Rule) {
	first, last := b.settings.Priority, b.settings.Priority+Window-1
	room := fmt.Sprintf("below %d, or %d to %d", first, last+1, lastPriority)
	switch {
	case first == 1:
		room = fmt.Sprintf("%d to %d", last+1, lastPriority)
	case last == lastPriority:
		room = fmt.Sprintf("below %d", first)
	}
	if raw.Priority.at == nil {
		raw.at.badKey("the rule has no priority", fmt.Sprintf("add the line priority = 11400; lower ones are asked first. Free are the numbers %s", room))
		return
	}
	v, ok := within(raw.Priority, 1, lastPriority, "0 is the rule for local addresses, and after main's rule at 32766 hardly a packet comes by")
	if ok && v >= first && v <= last {
		raw.Priority.at.bad(fmt.Sprintf("priority %d is inside sisod's own window, %d to %d", v, first, last),
			fmt.Sprintf("take a number %s (or move the window: priority in sisod.toml)", room))
		return
	}
	r.Priority = v
}

// ruleFamily reads the addresses, which tell the family, and the key family.
func (b *builder) ruleFamily(raw rawRule, r *Rule) {
	const all = "leave the key out to match every address; for one family alone, add family"
	from, fromOK := asPrefix(raw.From, all)
	to, toOK := asPrefix(raw.To, all)
	if fromOK && toOK && from.Addr().Is4() != to.Addr().Is4() {
		raw.To.at.bad(fmt.Sprintf("to is %s and from is %s", family(to.Addr()), family(from.Addr())), "a packet has addresses of one family: write two rules")
		return
	}
	told := netip.Addr{}
	if fromOK {
		told = from.Addr()
	} else if toOK {
		told = to.Addr()
	}
	if told.IsValid() {
		r.Families = Families{IPv4: told.Is4(), IPv6: told.Is6()}
	}
	// The kernel has no prefix of length 0 in a rule: it lists it as "all".
	if fromOK && from.Bits() > 0 {
		r.From = from
	}
	if toOK && to.Bits() > 0 {
		r.To = to
	}
	if !raw.Family.ok {
		return
	}
	wanted := strings.ToLower(raw.Family.v)
	switch {
	case wanted != "ipv4" && wanted != "ipv6":
		raw.Family.at.bad(fmt.Sprintf("family cannot be %q", raw.Family.v), `"ipv4" or "ipv6"; leave the key out for both`)
	case told.IsValid() && wanted != strings.ToLower(family(told)):
		raw.Family.at.bad(fmt.Sprintf("family is %q, and the addresses of this rule are %s", raw.Family.v, family(told)), "leave the key out: the addresses tell")
	default:
		r.Families = Families{IPv4: wanted == "ipv4", IPv6: wanted == "ipv6"}
	}
}

func (b *builder) ruleMark(f field[any], r *Rule) {
	const hint = `a number, or "MARK/MASK" such as "0x10/0xff"`
	if f.at == nil {
		return
	}
	var mark, mask uint32
	masked := false
	switch v := f.at.value.(type) {
	case int64:
		if v < 0 || v > 0xffffffff {
			f.at.bad(fmt.Sprintf("fwmark must be 0 to 0xffffffff, not %s", f.at.written()), hint)
			return
		}
		mark, mask = uint32(v), 0xffffffff
	case string:
		left, right, found := strings.Cut(v, "/")
		m, ok := parse32(left)
		mask, masked = 0xffffffff, found
		if ok && found {
			mask, ok = parse32(right)
		}
		if !ok {
			f.at.bad(fmt.Sprintf("%q is not a mark", v), hint)
			return
		}
		mark = m
	default:
		f.at.mistyped(want{`a number or "MARK/MASK"`, "number"})
		return
	}
	own := b.settings.MarkMask
	switch {
	case mask == 0:
		f.at.bad("a mask of 0 matches every packet", "leave fwmark out, or set bits in the mask")
	case mark&^mask != 0:
		f.at.bad(fmt.Sprintf("mark %#x has bits outside of its mask %#x, so no packet matches", mark, mask), fmt.Sprintf("a mask that covers it is %#x", mask|mark))
	case mark&own != 0 || masked && mask&own != 0 && mask != 0xffffffff:
		f.at.bad(fmt.Sprintf("fwmark looks at bits of mark_mask %#08x, which are sisod's", own),
			fmt.Sprintf("look at other bits, such as \"%#x/%#x\", or move mark_mask in sisod.toml", ^own&-^own, ^own))
	}
	r.Mark, r.Mask = mark, mask
}

// ipProtos are the protocols by the names of /etc/protocols (IANA).
var ipProtos = map[string]uint8{
	"icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51,
	"ipv6-icmp": 58, "icmpv6": 58, "ospf": 89, "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136,
}

// ported are the protocols whose ports the kernel finds (net/core/flow_dissector.c).
var ported = []uint8{6, 17, 33, 132}

func (b *builder) rulePorts(raw rawRule, r *Rule) {
	if f := raw.IPProto; f.at != nil {
		const hint = "a number from 1 to 255, or a name: tcp, udp, icmp, ipv6-icmp, sctp, dccp, gre, esp, ah …"
		switch v := f.at.value.(type) {
		case int64:
			if v < 1 || v > 255 {
				f.at.bad(fmt.Sprintf("ipproto must be 1 to 255, not %d", v), hint)
				return
			}
			r.IPProto = uint8(v)
		case string:
			number, known := ipProtos[strings.ToLower(v)]
			if n, isNumber := parse32(v); !known && isNumber && n >= 1 && n <= 255 {
				number, known = uint8(n), true
			}
			if !known {
				f.at.bad(fmt.Sprintf("ipproto %q is not known", v), hint)
				return
			}
			r.IPProto = number
		default:
			f.at.mistyped(want{"a protocol's name or number", "number"})
			return
		}
	}
	for _, p := range []struct {
		f    field[any]
		into *[2]uint16
	}{{raw.SPort, &r.SPort}, {raw.DPort, &r.DPort}} {
		first, last, ok := span32(p.f, 1, 65535, `a port, or a range such as "8000-8099"`)
		if !ok {
			continue
		}
		*p.into = [2]uint16{uint16(first), uint16(last)}
		if !slices.Contains(ported, r.IPProto) {
			p.f.at.badKey(fmt.Sprintf("%s needs a protocol with ports", p.f.at.name), `add ipproto = "tcp" (or "udp", "sctp", "dccp")`)
		}
	}
}

// ruleTOS judges the type of service as the kernel does: without the two ECN
// bits, and for IPv4 without the three bits of precedence
// (net/ipv4/fib_rules.c, fib4_rule_configure).
func ruleTOS(f field[any], r *Rule) {
	if f.at == nil {
		return
	}
	var v uint32
	switch value := f.at.value.(type) {
	case int64:
		v = uint32(min(max(value, 0), 0x100))
		if value < 0 {
			v = 0x100
		}
	case string:
		n, ok := parse32(value)
		if !ok {
			n = 0x100
		}
		v = n
	default:
		f.at.mistyped(want{"a number", "number"})
		return
	}
	switch {
	case v == 0 || v > 0xff:
		f.at.bad(fmt.Sprintf("tos cannot be %s", f.at.written()), "0x04 to 0xfc; leave the key out to match every value")
	case v&3 != 0:
		f.at.bad(fmt.Sprintf("tos %#02x has one of its two last bits set, which are for ECN", v), fmt.Sprintf("the value without them is %#02x", v&^3))
	case r.Families.IPv4 && v > 0x1c:
		f.at.bad(fmt.Sprintf("tos %#02x is not possible for IPv4", v), `the kernel knows 0x04 to 0x1c in IPv4 rules; for IPv6 alone, add family = "ipv6"`)
	}
	r.TOS = uint8(v)
}

var ruleActions = []string{"unreachable", "blackhole", "prohibit"}

func (b *builder) ruleAction(raw rawRule, r *Rule) {
	switch {
	case raw.Lookup.at == nil && raw.Action.at == nil:
		raw.at.badKey("the rule does not say what to do", `add lookup = "china" (a table), or action = "unreachable", "blackhole" or "prohibit"`)
	case raw.Lookup.at != nil && raw.Action.at != nil:
		raw.Action.at.badKey("a rule has lookup or action, not both", "remove one of the two")
		return
	}
	if f := raw.Action; f.ok {
		r.Action = f.v
		if !slices.Contains(ruleActions, f.v) {
			hint := `"unreachable" (ICMP says so), "blackhole" (silence) or "prohibit" (ICMP says forbidden)`
			if best := near(f.v, ruleActions); best != "" {
				hint = fmt.Sprintf("did you mean %q? %s", best, hint)
			} else if f.v == "lookup" || f.v == "table" {
				hint = `to ask a table, write lookup = "NAME" alone`
			}
			f.at.bad(fmt.Sprintf("action cannot be %q", f.v), hint)
		}
	}
	if t, ok := lookupTable(raw.Lookup); ok {
		r.Lookup = t
	}
	longest, why := int64(128), "an IPv6 prefix has at most 128 bits"
	if r.Families.IPv4 {
		longest, why = 32, `an IPv4 prefix has at most 32 bits; for IPv6 alone, add family = "ipv6"`
	}
	if v, ok := within(raw.SuppressPrefixLength, 0, longest, why); ok {
		r.SuppressPrefixLength = new(int(v))
	}
	if v, ok := within(raw.SuppressIfgroup, 0, lastGroup, "the number of a link group"); ok {
		r.SuppressIfgroup = new(int(v))
	}
	for _, f := range []field[int64]{raw.SuppressPrefixLength, raw.SuppressIfgroup} {
		if f.at != nil && raw.Lookup.at == nil {
			f.at.badKey(fmt.Sprintf("%s needs lookup", f.at.name), "it drops a decision of the table that was looked up")
		}
	}
}

// lookupTable reads a table to ask: any name, for the host may know it.
func lookupTable(f field[any]) (Table, bool) {
	if f.at == nil {
		return Table{}, false
	}
	switch v := f.at.value.(type) {
	case int64:
		if v < 1 || v > lastTable {
			f.at.bad(fmt.Sprintf("a table's number is 1 to %d, not %d", lastTable, v), "")
			return Table{}, false
		}
		return Table{Number: uint32(v)}, true
	case string:
		if n, ok := parse32(v); ok && n > 0 && n <= lastTable {
			return Table{Number: n}, true
		}
		if v == "unspec" || v == "0" {
			f.at.bad(fmt.Sprintf("lookup cannot be %q", v), "the name or the number of a table")
			return Table{}, false
		}
		if bad := tableName(v); bad != nil {
			f.at.bad(fmt.Sprintf("%q is not the name of a table: %s", v, bad.text), bad.hint)
			return Table{}, false
		}
		return Table{Name: v}, true
	}
	f.at.mistyped(want{"a table's name or number", ""})
	return Table{}, false
}
