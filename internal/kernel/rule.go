package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Attributes of rules newer than the constants of x/sys (linux/fib_rules.h).
const (
	fraSPortMask = 28
	fraDPortMask = 29
)

// sizeofRuleHeader is the size of struct fib_rule_hdr.
const sizeofRuleHeader = 12

// ruleFlagsIgnored are flags that tell the condition of a rule and not what it
// says: permanent, unresolved, and an interface that is absent.
const ruleFlagsIgnored = 0x1 | 0x4 | 0x8 | 0x10

// observedRule is a rule as the kernel has it.
type observedRule struct {
	state.Rule
	// Partial: the rule says more than state.Rule can. It is none that sisod wrote.
	Partial bool
}

// appendRule appends the body of RTM_NEWRULE and RTM_DELRULE. It refuses what
// the kernel would take and give back as something else.
func appendRule(b []byte, r state.Rule) ([]byte, error) {
	if err := checkRule(r); err != nil {
		return b, err
	}
	b = append(b, addressFamily(r.Family), prefixBits(r.To), prefixBits(r.From), r.TOS, unix.RT_TABLE_UNSPEC, 0, 0, byte(r.Action))
	var flags uint32
	if r.Not {
		flags = unix.FIB_RULE_INVERT
	}
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = appendUint32(b, unix.FRA_PRIORITY, r.Priority)
	b = appendAttribute(b, unix.FRA_PROTOCOL, r.Protocol)
	if r.Table != 0 {
		b = appendUint32(b, unix.FRA_TABLE, r.Table)
	}
	if r.Target != 0 {
		b = appendUint32(b, unix.FRA_GOTO, r.Target)
	}
	if r.From.IsValid() {
		b = appendAddr(b, unix.FRA_SRC, r.From.Addr())
	}
	if r.To.IsValid() {
		b = appendAddr(b, unix.FRA_DST, r.To.Addr())
	}
	if r.IIF != "" {
		b = appendString(b, unix.FRA_IIFNAME, r.IIF)
	}
	if r.OIF != "" {
		b = appendString(b, unix.FRA_OIFNAME, r.OIF)
	}
	if r.Mask != 0 {
		b = appendUint32(b, unix.FRA_FWMARK, r.Mark)
		b = appendUint32(b, unix.FRA_FWMASK, r.Mask)
	}
	if r.IPProto != 0 {
		b = appendAttribute(b, unix.FRA_IP_PROTO, r.IPProto)
	}
	if r.SPort != (state.PortRange{}) {
		b = appendPorts(b, unix.FRA_SPORT_RANGE, r.SPort)
	}
	if r.DPort != (state.PortRange{}) {
		b = appendPorts(b, unix.FRA_DPORT_RANGE, r.DPort)
	}
	if r.UIDs != state.AnyUID {
		v := binary.NativeEndian.AppendUint32(nil, r.UIDs.First)
		b = appendAttribute(b, unix.FRA_UID_RANGE, binary.NativeEndian.AppendUint32(v, r.UIDs.Last)...)
	}
	if r.SuppressPrefixLength != state.Unset {
		b = appendUint32(b, unix.FRA_SUPPRESS_PREFIXLEN, uint32(r.SuppressPrefixLength))
	}
	if r.SuppressGroup != state.Unset {
		b = appendUint32(b, unix.FRA_SUPPRESS_IFGROUP, uint32(r.SuppressGroup))
	}
	return b, nil
}

func appendPorts(b []byte, kind uint16, p state.PortRange) []byte {
	v := binary.NativeEndian.AppendUint16(nil, p.First)
	return appendAttribute(b, kind, binary.NativeEndian.AppendUint16(v, p.Last)...)
}

// checkRule says why a rule would not read back as it was written.
func checkRule(r state.Rule) error {
	for _, p := range []netip.Prefix{r.From, r.To} {
		switch {
		case !p.IsValid():
		case p.Bits() == 0:
			return fmt.Errorf("the prefix %s matches every address, which a rule says by having none", p)
		case p.Addr().BitLen() != r.Family.Bits():
			return fmt.Errorf("the prefix %s is not %s", p, r.Family)
		}
	}
	switch {
	case r.Action == state.Lookup && r.Table == state.TableUnspec:
		return errors.New("a lookup needs a table")
	case r.Action != state.Lookup && r.Table != state.TableUnspec:
		return fmt.Errorf("%s has no table", r.Action)
	case r.Action == state.Goto && r.Target <= r.Priority:
		return fmt.Errorf("goto %d does not go on", r.Target)
	case r.Action != state.Goto && r.Target != 0:
		return fmt.Errorf("%s goes nowhere", r.Action)
	case r.Mark&^r.Mask != 0:
		return fmt.Errorf("the mark %#x has bits outside its mask %#x", r.Mark, r.Mask)
	}
	return nil
}

// decodeRule reads the body of RTM_NEWRULE.
func decodeRule(b []byte) (observedRule, error) {
	if len(b) < sizeofRuleHeader {
		return observedRule{}, fmt.Errorf("read rule: %w", errMalformed)
	}
	family, ok := familyOf(b[0])
	if !ok {
		return observedRule{}, fmt.Errorf("read rule: family %d is neither IPv4 nor IPv6", b[0])
	}
	toBits, fromBits := b[1], b[2]
	flags := binary.NativeEndian.Uint32(b[8:])
	r := observedRule{Rule: state.Rule{
		Family: family, TOS: b[3], Table: uint32(b[4]), Action: state.RuleAction(b[7]), UIDs: state.AnyUID,
		Not: flags&unix.FIB_RULE_INVERT != 0, SuppressPrefixLength: state.Unset, SuppressGroup: state.Unset,
	}}
	r.Partial = flags&^(unix.FIB_RULE_INVERT|ruleFlagsIgnored) != 0
	var from, to netip.Addr
	a := attributes{rest: b[sizeofRuleHeader:]}
	for a.next() {
		switch a.kind {
		case unix.FRA_PRIORITY:
			r.Priority = a.uint32()
		case unix.FRA_PROTOCOL:
			r.Protocol = a.uint8()
		case unix.FRA_TABLE:
			r.Table = a.uint32()
		case unix.FRA_GOTO:
			r.Target = a.uint32()
		case unix.FRA_SRC:
			from = a.addr()
		case unix.FRA_DST:
			to = a.addr()
		case unix.FRA_IIFNAME:
			r.IIF = a.text()
		case unix.FRA_OIFNAME:
			r.OIF = a.text()
		case unix.FRA_FWMARK:
			r.Mark = a.uint32()
		case unix.FRA_FWMASK:
			r.Mask = a.uint32()
		case unix.FRA_IP_PROTO:
			r.IPProto = a.uint8()
		case unix.FRA_SPORT_RANGE:
			r.SPort = a.ports()
		case unix.FRA_DPORT_RANGE:
			r.DPort = a.ports()
		case unix.FRA_UID_RANGE:
			r.UIDs = a.uids()
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.SuppressPrefixLength = int(int32(a.uint32()))
		case unix.FRA_SUPPRESS_IFGROUP:
			r.SuppressGroup = int(int32(a.uint32()))
		case fraSPortMask, fraDPortMask:
			// The kernel's own way to spell a single port is the full mask.
			r.Partial = r.Partial || a.uint16() != 0xffff
		case unix.FRA_L3MDEV:
			r.Partial = r.Partial || a.uint8() != 0
		case unix.FRA_PAD:
		default:
			// tun_id, realms, dscp, flow label, and what is not invented yet.
			r.Partial = true
		}
	}
	if a.err != nil {
		return observedRule{}, fmt.Errorf("read rule: %w", a.err)
	}
	var err error
	if r.From, err = decodePrefix(from, fromBits, family); err != nil {
		return observedRule{}, fmt.Errorf("read rule: %w", err)
	}
	if r.To, err = decodePrefix(to, toBits, family); err != nil {
		return observedRule{}, fmt.Errorf("read rule: %w", err)
	}
	if r.Action != state.Lookup {
		// A rule that looks nothing up may carry a table all the same; it means nothing.
		r.Table = state.TableUnspec
	}
	r.Partial = r.Partial || checkRule(r.Rule) != nil
	return r, nil
}

func (a *attributes) ports() state.PortRange {
	if len(a.value) != 4 {
		a.err = errMalformed
		return state.PortRange{}
	}
	return state.PortRange{First: binary.NativeEndian.Uint16(a.value), Last: binary.NativeEndian.Uint16(a.value[2:])}
}

func (a *attributes) uids() state.UIDRange {
	if len(a.value) != 8 {
		a.err = errMalformed
		return state.UIDRange{}
	}
	return state.UIDRange{First: binary.NativeEndian.Uint32(a.value), Last: binary.NativeEndian.Uint32(a.value[4:])}
}

// listRules returns every rule of a family, in the order in which the kernel
// goes through them.
func (c *conn) listRules(f state.Family) ([]observedRule, error) {
	var before []observedRule
	for range dumpAttempts {
		rules, pieces, err := c.dumpRules(f)
		if err != nil {
			return nil, fmt.Errorf("list %s rules: %w", f, err)
		}
		// Between two pieces the kernel finds its place by counting, and does not
		// say when the rules changed meanwhile (net/core/fib_rules.c, dump_rules):
		// one may be missing. Two lists that agree are right.
		if pieces < 2 || before != nil && slices.Equal(rules, before) {
			return rules, nil
		}
		before = rules
	}
	return nil, fmt.Errorf("list %s rules: %w", f, errInterrupted)
}

// dumpRules is one list, and the number of datagrams that its rules came in.
func (c *conn) dumpRules(f state.Family) (rules []observedRule, pieces int, err error) {
	body := make([]byte, sizeofRuleHeader)
	body[0] = addressFamily(f)
	last := 0
	err = c.dump(message{kind: unix.RTM_GETRULE, body: body}, func() { rules, pieces = nil, 0 },
		func(kind uint16, body []byte) error {
			if kind != unix.RTM_NEWRULE {
				return nil
			}
			r, err := decodeRule(body)
			if err != nil {
				return err
			}
			if c.received != last {
				last = c.received
				pieces++
			}
			rules = append(rules, r)
			return nil
		})
	return rules, pieces, err
}

// addressFamily is AF_INET or AF_INET6.
func addressFamily(f state.Family) byte {
	if f == state.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func familyOf(af byte) (state.Family, bool) {
	switch af {
	case unix.AF_INET:
		return state.IPv4, true
	case unix.AF_INET6:
		return state.IPv6, true
	}
	return 0, false
}

func familyOfAddr(a netip.Addr) state.Family {
	if a.Is4() {
		return state.IPv4
	}
	return state.IPv6
}

// prefixBits is the length of a prefix, 0 for the zero Prefix.
func prefixBits(p netip.Prefix) byte {
	if !p.IsValid() {
		return 0
	}
	return byte(p.Bits())
}

// decodePrefix joins an address attribute and the length in the header. It returns
// the zero Prefix when there is neither.
func decodePrefix(a netip.Addr, bits byte, f state.Family) (netip.Prefix, error) {
	if !a.IsValid() {
		if bits != 0 {
			return netip.Prefix{}, errMalformed
		}
		return netip.Prefix{}, nil
	}
	p := netip.PrefixFrom(a, int(bits))
	if !p.IsValid() || a.BitLen() != f.Bits() {
		return netip.Prefix{}, errMalformed
	}
	return p, nil
}
