package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Attributes of rules and of sets' elements (linux/netfilter/nf_tables.h).
const (
	nftaRuleTable, nftaRuleChain        = 1, 2
	nftaRuleHandle, nftaRuleExpressions = 3, 4
	nftaElementsTable, nftaElementsSet  = 1, 2
	nftaElementsElements                = 3
	nftaElementKey                      = 1
)

// Bounds of one look at the rules of others. What is beyond them is not known,
// and said to be so.
const (
	markRules    = 500_000 // read
	markUses     = 1000    // told
	markElements = 10_000  // of a set
	markAttempts = 3       // while the rules change
)

// markRest is how many times as long as a look took the next one is put off, so
// that looks take a hundredth of the time at most.
const markRest = 100

// nfgenmsg is the size of struct nfgenmsg, which begins every message.
const nfgenmsg = 4

// ruleMessage is what of a rule's message counts.
type ruleMessage struct {
	family             byte
	table, chain, list []byte
	handle             uint64
}

func parseRule(body []byte) (ruleMessage, error) {
	if len(body) < nfgenmsg {
		return ruleMessage{}, errMalformed
	}
	m := ruleMessage{family: body[0]}
	a := attributes{rest: body[nfgenmsg:]}
	for a.next() {
		switch a.kind {
		case nftaRuleTable:
			m.table = bytes.TrimRight(a.value, "\x00")
		case nftaRuleChain:
			m.chain = bytes.TrimRight(a.value, "\x00")
		case nftaRuleHandle:
			if len(a.value) == 8 {
				m.handle = binary.BigEndian.Uint64(a.value)
			}
		case nftaRuleExpressions:
			m.list = a.value
		}
	}
	return m, a.err
}

// own reports whether the rule is in a table of sisod's.
func (m ruleMessage) own() bool {
	return m.family == unix.NFPROTO_INET && (string(m.table) == state.NFTableName || string(m.table) == probeTable)
}

// place is the rule as a use of marks has it.
func (m ruleMessage) place() state.MarkUse {
	return state.MarkUse{Family: nftFamilies[m.family], Table: string(m.table), Chain: string(m.chain), Handle: m.handle}
}

// nftFamilies are the families of tables as nft spells them.
var nftFamilies = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// pendingLookup is a lookup of marks in a set that has to be read.
type pendingLookup struct {
	lookup
	family byte
	rule   state.MarkUse
}

// readMarkUses looks for rules of others that use sisod's bits of marks. There may
// be very many rules, so that it is done when a change says so, and not with every
// look at everything.
func (h *Host) readMarkUses() error {
	facts := &h.cached.Facts.NFT
	facts.MarkUses, facts.MarksUnknown = nil, ""
	if !h.query.Marks || facts.Missing != "" {
		h.links.listener.followMarks(0)
		return nil
	}
	h.links.listener.followMarks(h.query.MarkMask)
	start := time.Now()
	uses, sets, err := listMarkUses(h.query.MarkMask)
	h.markRest = markRest * time.Since(start)
	if err != nil {
		facts.MarksUnknown = err.Error()
	} else {
		facts.MarkUses = uses
	}
	h.links.listener.knowMarks(uses, sets)
	return nil
}

// MarkRest is how long the last look at the rules of others is to be the last one.
func (h *Host) MarkRest() time.Duration { return h.markRest }

// listMarkUses reads all rules, and the sets that some of them look for marks in:
// sets are the tables of these.
func listMarkUses(mask uint32) (uses []state.MarkUse, sets []tableName, err error) {
	c, err := openConn(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	for range markAttempts {
		found := markFinder{mask: mask}
		request := message{kind: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, flags: unix.NLM_F_DUMP, body: make([]byte, nfgenmsg)}
		consistent, err := c.list(request, func(_ uint16, body []byte) error { return found.rule(body) })
		if err != nil {
			return nil, nil, fmt.Errorf("list rules: %w", err)
		}
		if !consistent {
			continue
		}
		for _, l := range found.lookups {
			if err := found.elements(c, l); err != nil {
				return nil, nil, err
			}
			sets = append(sets, tableName{l.family, l.rule.Table})
		}
		return found.uses, sets, nil
	}
	return nil, nil, fmt.Errorf("list rules: %w", errInterrupted)
}

// markFinder gathers uses of bits of marks.
type markFinder struct {
	mask    uint32
	reader  markReader
	rules   int
	uses    []state.MarkUse
	lookups []pendingLookup
}

// rule looks at one rule.
func (f *markFinder) rule(body []byte) error {
	m, err := parseRule(body)
	if err != nil {
		return err
	}
	if m.own() {
		return nil
	}
	if f.rules++; f.rules > markRules {
		return fmt.Errorf("there are more than %d", markRules)
	}
	if err := f.reader.read(m.list); err != nil {
		return err
	}
	for _, l := range f.reader.lookups {
		f.lookups = append(f.lookups, pendingLookup{l, m.family, m.place()})
	}
	f.note(m.place, f.reader.uses)
	return nil
}

// note gathers what a rule does, each kind once.
func (f *markFinder) note(place func() state.MarkUse, uses []use) {
	start := len(f.uses)
	for _, u := range uses {
		if u.bits&f.mask == 0 || len(f.uses) >= markUses {
			continue
		}
		one := place()
		one.Connection, one.Writes = u.kind == ofConnection, u.writes
		i := slices.IndexFunc(f.uses[start:], func(o state.MarkUse) bool { return o.Connection == one.Connection && o.Writes == one.Writes })
		if i < 0 {
			i = len(f.uses) - start
			f.uses = append(f.uses, one)
		}
		f.uses[start+i].Bits |= u.bits & f.mask
	}
}

// elements looks at the set that a rule looks for marks in.
func (f *markFinder) elements(c *conn, l pendingLookup) error {
	body := []byte{l.family, 0, 0, 0}
	body = appendString(body, nftaElementsTable, l.rule.Table)
	body = appendString(body, nftaElementsSet, l.set)
	var r markReader
	n := 0
	each := func(_ uint16, body []byte) error {
		if len(body) < nfgenmsg {
			return errMalformed
		}
		return eachKey(body[nfgenmsg:], func(key []byte) error {
			if n++; n > markElements {
				return fmt.Errorf("there are more than %d", markElements)
			}
			for i, w := range l.key {
				if w.marked() && len(key) >= 4*(i+1) {
					r.compared(w, !w.swapped, binary.NativeEndian.Uint32(key[4*i:]))
				}
			}
			return nil
		})
	}
	err := c.dump(message{kind: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, body: body}, func() { n, r.uses = 0, nil }, each)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone with its rule
	}
	if err != nil {
		return fmt.Errorf("list set %s of table %s %s: %w", l.set, l.rule.Family, l.rule.Table, err)
	}
	f.note(func() state.MarkUse { return l.rule }, r.uses)
	return nil
}

// eachKey walks the keys in a message about elements of a set.
func eachKey(body []byte, each func(key []byte) error) error {
	a := attributes{rest: body}
	for a.next() {
		if a.kind != nftaElementsElements {
			continue
		}
		list := attributes{rest: a.value}
		for list.next() {
			e := attributes{rest: list.value}
			for e.next() {
				if e.kind != nftaElementKey {
					continue
				}
				if err := each(e.bytes()); err != nil {
					return err
				}
			}
			if e.err != nil {
				return e.err
			}
		}
		if list.err != nil {
			return list.err
		}
	}
	return a.err
}
