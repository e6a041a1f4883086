package state

import (
	"fmt"
	"math/bits"
)

// Mark is a number in sisod's bits of marks, and whose it is: an uplink's, for
// the connections that came by it, or a capture's. A name keeps its number as
// long as it has one, because connections carry it. When it goes away, the
// kernel's record of the connections that carry it goes too, so that their
// clients connect anew at once.
//
// The bits of the mask below the highest hold the number. The highest tells
// connections that went out by an uplink from those that came in.
type Mark struct {
	Owner  string
	Number uint32 // from 1
	Mask   uint32 // of which the bits are neighbours
}

// MarkNumbers is the greatest number that a mask has room for.
func MarkNumbers(mask uint32) uint32 { return 1<<(bits.OnesCount32(mask)-1) - 1 }

// Value is the mark itself.
func (m Mark) Value() uint32 { return m.Number << bits.TrailingZeros32(m.Mask) }

// Outgoing is the mark of connections that went out.
func (m Mark) Outgoing() uint32 { return m.Value() | m.highest() }

// highest is the highest bit of the mask.
func (m Mark) highest() uint32 { return 1 << (31 - bits.LeadingZeros32(m.Mask)) }

// Carried is what both marks have in common, and the bits that tell.
func (m Mark) Carried() (value, mask uint32) { return m.Value(), m.Mask &^ m.highest() }

// Kind is KindMark.
func (Mark) Kind() Kind { return KindMark }

// String is the mark and its owner.
func (m Mark) String() string { return fmt.Sprintf("%#x/%#x of %s", m.Value(), m.Mask, m.Owner) }

// Spell is String.
func (m Mark) Spell(Names) string { return m.String() }

// Commands forget the connections of a mark that goes; one that comes needs none.
func (m Mark) Commands(op Op, _ Names) []string {
	if !op.Removes() {
		return nil
	}
	value, mask := m.Carried()
	return []string{fmt.Sprintf("conntrack -D -m %#x/%#x", value, mask)}
}
