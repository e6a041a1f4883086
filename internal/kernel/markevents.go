package kernel

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// tableName is a table of nf_tables.
type tableName struct {
	family byte
	name   string
}

// markWatch is what tells whether a change of others' rules is about sisod's bits
// of marks. Most are not, and on some hosts they never end.
type markWatch struct {
	mask   uint32 // 0: nobody asks
	reader markReader
	used   map[tableName]bool // tables whose rules use them
	sets   map[tableName]bool // tables with sets that marks are looked for in
	// unsure: the rules are being read, so that whatever goes may be in what is read.
	unsure bool
}

// concerned reports whether a message of nf_tables is about marks of sisod's.
func (w *markWatch) concerned(kind uint16, body []byte) bool {
	if w.mask == 0 || kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < nfgenmsg {
		return false
	}
	switch kind & 0xff {
	case unix.NFT_MSG_NEWRULE:
		m, err := parseRule(body)
		if err != nil || m.own() {
			return err != nil
		}
		if w.reader.read(m.list) != nil || len(w.reader.lookups) > 0 {
			return true
		}
		for _, u := range w.reader.uses {
			if u.bits&w.mask != 0 {
				return true
			}
		}
		return false
	case unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELTABLE:
		return w.in(w.used, body)
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		return w.in(w.sets, body)
	}
	return false
}

// in reports whether a message is about one of these tables, whose name is the
// first attribute of all kinds of objects.
func (w *markWatch) in(tables map[tableName]bool, body []byte) bool {
	a := attributes{rest: body[nfgenmsg:]}
	for a.next() {
		if a.kind == unix.NFTA_TABLE_NAME {
			name := string(bytes.TrimRight(a.value, "\x00"))
			return tables[tableName{body[0], name}] || w.unsure && name != state.NFTableName && name != probeTable
		}
	}
	return false
}

// followMarks says which bits of marks are sisod's before the rules are read. A
// nil e does nothing.
func (e *Events) followMarks(mask uint32) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.marks.mask, e.marks.unsure = mask, mask != 0
}

// knowMarks says what was read. A nil e does nothing.
func (e *Events) knowMarks(uses []state.MarkUse, sets []tableName) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.marks.unsure = false
	e.marks.used, e.marks.sets = map[tableName]bool{}, map[tableName]bool{}
	for family, name := range nftFamilies {
		for _, u := range uses {
			if u.Family == name {
				e.marks.used[tableName{family, u.Table}] = true
			}
		}
	}
	for _, t := range sets {
		e.marks.sets[t] = true
	}
}
