package kernel

import (
	"encoding/binary"
	"math/bits"
)

// Attributes of nf_tables that golang.org/x/sys does not have, or has no use for
// (linux/netfilter/nf_tables.h).
const (
	nftaExprName, nftaExprData           = 1, 2
	nftaDataValue                        = 1
	nftaMetaDreg, nftaMetaKey            = 1, 2
	nftaMetaSreg                         = 3
	nftaCTDreg, nftaCTKey                = 1, 2
	nftaCTSreg                           = 4
	nftaBitwiseSreg, nftaBitwiseDreg     = 1, 2
	nftaBitwiseMask, nftaBitwiseXor      = 4, 5
	nftaBitwiseOp, nftaBitwiseData       = 6, 7
	nftaBitwiseSreg2                     = 8
	nftaImmediateDreg, nftaImmediateData = 1, 2
	nftaCmpSreg, nftaCmpOp, nftaCmpData  = 1, 2, 3
	nftaRangeSreg                        = 1
	nftaLookupSet, nftaLookupSreg        = 1, 2
	nftaLookupDreg                       = 3
	nftaPayloadDreg, nftaPayloadLen      = 1, 4
	nftaByteorderSreg, nftaByteorderDreg = 1, 2
	nftaXtName, nftaXtRev, nftaXtInfo    = 1, 2, 3
	nftMark                              = 3 // NFT_META_MARK and NFT_CT_MARK
	bitwiseShiftLeft, bitwiseShiftRight  = 1, 2
	bitwiseAnd, bitwiseOr, bitwiseXor    = 3, 4, 5
	compareEqual, compareNotEqual        = 0, 1
	nftRegisters, wordsInRegister        = 16, 4 // of four bytes
	firstWord                            = 8     // NFT_REG32_00
)

// use is what a rule does with bits of one kind of marks.
type use struct {
	kind   int
	writes bool
	bits   uint32
}

// lookup is a set that a rule looks for marks in.
type lookup struct {
	set string
	key [wordsInRegister]word
}

// markReader goes through the expressions of a rule as the kernel does, and
// gathers what they do with marks. What it does not know it takes for something
// that writes to registers and looks at no mark.
type markReader struct {
	words   [nftRegisters]word
	uses    []use
	lookups []lookup
}

// read goes through the list of a rule's expressions.
func (r *markReader) read(list []byte) error {
	*r = markReader{uses: r.uses[:0], lookups: r.lookups[:0]}
	elements := attributes{rest: list}
	for elements.next() {
		var name, data []byte
		e := attributes{rest: elements.value}
		for e.next() {
			switch e.kind {
			case nftaExprName:
				name = e.value
			case nftaExprData:
				data = e.value
			}
		}
		if e.err != nil {
			return e.err
		}
		if n := len(name); n > 0 && name[n-1] == 0 {
			name = name[:n-1]
		}
		if err := r.expression(name, attributes{rest: data}); err != nil {
			return err
		}
	}
	return elements.err
}

func (r *markReader) expression(name []byte, a attributes) error {
	switch string(name) {
	case "meta":
		return r.markOf(ofPacket, nftaMetaDreg, nftaMetaKey, nftaMetaSreg, a)
	case "ct":
		return r.markOf(ofConnection, nftaCTDreg, nftaCTKey, nftaCTSreg, a)
	case "bitwise":
		return r.bitwise(a)
	case "immediate":
		return r.immediate(a)
	case "cmp":
		return r.compare(a)
	case "range":
		return r.withinRange(a)
	case "lookup":
		return r.lookUp(a)
	case "byteorder":
		return r.byteorder(a)
	case "payload":
		return r.payload(a)
	case "match", "target":
		return r.extension(a)
	case "counter", "limit", "log", "notrack", "nat", "masq", "redir", "reject", "queue", "quota", "objref", "dup", "fwd", "last", "connlimit":
		return nil // writes to no register
	}
	r.clear(1, nftRegisters)
	return nil
}

// at is the place of a register, and false for one that there is not.
func at(register uint32) (int, bool) {
	if 1 <= register && register <= nftRegisters/wordsInRegister {
		return int(register-1) * wordsInRegister, true
	}
	i := int(register) - firstWord
	return i, 0 <= i && i < nftRegisters
}

func (r *markReader) get(register uint32) word {
	if i, ok := at(register); ok {
		return r.words[i]
	}
	return word{may: allBits}
}

func (r *markReader) set(register uint32, w word) {
	if i, ok := at(register); ok {
		r.words[i] = w
	}
}

func (r *markReader) looks(kind int, bits uint32) {
	if bits != 0 {
		r.uses = append(r.uses, use{kind, false, bits})
	}
}

func (r *markReader) writes(kind int, bits uint32) {
	if bits != 0 {
		r.uses = append(r.uses, use{kind, true, bits})
	}
}

// markOf reads or writes a mark, or loads something else.
func (r *markReader) markOf(kind int, dreg, key, sreg uint16, a attributes) error {
	var to, what, from uint32
	for a.next() {
		switch a.kind {
		case dreg:
			to = a.be32()
		case key:
			what = a.be32()
		case sreg:
			from = a.be32()
		}
	}
	switch {
	case to != 0 && what == nftMark:
		w := word{may: allBits}
		w.seen[kind], w.kept[kind] = allBits, allBits
		r.set(to, w)
	case to != 0:
		r.clear(to, nftRegisters)
	case from != 0 && what == nftMark:
		r.writes(kind, ^r.get(from).kept[kind])
	}
	return a.err
}

// clear forgets what registers hold from one on.
func (r *markReader) clear(register uint32, words int) {
	if i, ok := at(register); ok {
		for ; i < nftRegisters && words > 0; i, words = i+1, words-1 {
			r.words[i] = word{may: allBits}
		}
	}
}

func (r *markReader) bitwise(a attributes) error {
	var from, to, second, operation uint32
	mask, xor, data := allBits, uint32(0), uint32(0)
	for a.next() {
		switch a.kind {
		case nftaBitwiseSreg:
			from = a.be32()
		case nftaBitwiseDreg:
			to = a.be32()
		case nftaBitwiseSreg2:
			second = a.be32()
		case nftaBitwiseOp:
			operation = a.be32()
		case nftaBitwiseMask:
			mask = a.data()
		case nftaBitwiseXor:
			xor = a.data()
		case nftaBitwiseData:
			data = a.data()
		}
	}
	w := r.get(from)
	switch operation {
	case 0:
		w = w.masked(mask, xor)
	case bitwiseShiftLeft:
		w = w.shift(-int(min(data, 32)))
	case bitwiseShiftRight:
		w = w.shift(int(min(data, 32)))
	case bitwiseAnd, bitwiseOr, bitwiseXor:
		o := word{may: data}
		if second != 0 {
			o = r.get(second)
		}
		w = w.with(o, operation)
	default:
		w = word{may: allBits}
	}
	r.set(to, w)
	return a.err
}

func (r *markReader) immediate(a attributes) error {
	var to uint32
	var value []byte
	for a.next() {
		switch a.kind {
		case nftaImmediateDreg:
			to = a.be32()
		case nftaImmediateData:
			value = a.bytes()
		}
	}
	r.clear(to, (len(value)+wordsInRegister-1)/wordsInRegister)
	if len(value) == 4 {
		r.set(to, word{may: binary.NativeEndian.Uint32(value)})
	}
	return a.err
}

func (r *markReader) compare(a attributes) error {
	var from, operation uint32
	var value []byte
	for a.next() {
		switch a.kind {
		case nftaCmpSreg:
			from = a.be32()
		case nftaCmpOp:
			operation = a.be32()
		case nftaCmpData:
			value = a.bytes()
		}
	}
	if w := r.get(from); w.marked() && len(value) == 4 {
		equality := operation == compareEqual || operation == compareNotEqual
		r.compared(w, equality && !w.swapped, binary.NativeEndian.Uint32(value))
	}
	return a.err
}

// compared notes that a word is compared with a value. Who looks at all bits looks
// for a number of its own, mostly, or for there being any.
func (r *markReader) compared(w word, equality bool, value uint32) {
	for kind := range w.seen {
		looked := w.origin(kind)
		if looked == allBits && equality && value != 0 {
			looked = value
		}
		r.looks(kind, looked)
	}
}

func (r *markReader) withinRange(a attributes) error {
	for a.next() {
		if a.kind == nftaRangeSreg {
			r.compared(r.get(a.be32()), false, 0)
		}
	}
	return a.err
}

func (r *markReader) lookUp(a attributes) error {
	var from, to uint32
	set := ""
	for a.next() {
		switch a.kind {
		case nftaLookupSet:
			set = a.text()
		case nftaLookupSreg:
			from = a.be32()
		case nftaLookupDreg:
			to = a.be32()
		}
	}
	one, some := lookup{set: set}, false
	if i, ok := at(from); ok {
		for n := range one.key {
			if i+n < nftRegisters {
				one.key[n] = r.words[i+n]
				some = some || one.key[n].marked()
			}
		}
	}
	if some {
		r.lookups = append(r.lookups, one)
	}
	if to != 0 {
		r.clear(to, nftRegisters)
	}
	return a.err
}

func (r *markReader) byteorder(a attributes) error {
	var from, to uint32
	for a.next() {
		switch a.kind {
		case nftaByteorderSreg:
			from = a.be32()
		case nftaByteorderDreg:
			to = a.be32()
		}
	}
	w := r.get(from)
	w.swapped = !w.swapped
	w.kept = [kindsOfMarks]uint32{}
	w.may = bits.ReverseBytes32(w.may)
	r.set(to, w)
	return a.err
}

func (r *markReader) payload(a attributes) error {
	var to, length uint32
	for a.next() {
		switch a.kind {
		case nftaPayloadDreg:
			to = a.be32()
		case nftaPayloadLen:
			length = a.be32()
		}
	}
	if to != 0 {
		r.clear(to, int(length+wordsInRegister-1)/wordsInRegister)
	}
	return a.err
}

// be32 is a number as nf_tables writes numbers.
func (a *attributes) be32() uint32 {
	if len(a.value) != 4 {
		a.err = errMalformed
		return 0
	}
	return binary.BigEndian.Uint32(a.value)
}

// bytes is what is in an attribute of data, nil for a verdict.
func (a *attributes) bytes() []byte {
	d := attributes{rest: a.value}
	for d.next() {
		if d.kind == nftaDataValue {
			return d.value
		}
	}
	if d.err != nil {
		a.err = d.err
	}
	return nil
}

// data is one word of data. Of longer ones, which are no marks, it is the first.
func (a *attributes) data() uint32 {
	b := a.bytes()
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
