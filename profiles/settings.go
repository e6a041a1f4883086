package profiles

import (
	"cmp"
	"fmt"
	"math/bits"
)

// Bounds of numbers that the kernel gives.
const (
	lastPriority = 32765      // main's rule is 32766 (net/ipv4/fib_rules.c)
	lastTable    = 4294967294 // 2^32-1 would be the kernel's "none"
	lastGroup    = 2147483647 // ip link refuses more
)

const fromThere = "tables without a number of their own get numbers from there"

// check judges the settings; a bad one keeps its default, so that the
// profiles can be judged as well.
func (r rawSettings) check() Settings {
	s := DefaultSettings
	if v, ok := within(r.Priority, 1, lastPriority-Window+1,
		fmt.Sprintf("sisod's rules take %d numbers from there, which must all stand before main's rule at 32766", Window)); ok {
		s.Priority = v
	}
	if r.Table.ok {
		if bad := numberOfTable(r.Table.v); bad != nil {
			r.Table.at.bad(bad.text, cmp.Or(bad.hint, fromThere))
		} else if v, ok := within(r.Table, 1, lastTable-Window, fromThere); ok {
			s.Table = v
		}
	}
	if v, ok := within(r.MarkMask, 1, 0xffffffff, "a mask of the packet mark's 32 bits, such as 0x3f000000"); ok {
		if run := v >> bits.TrailingZeros32(v); run&(run+1) != 0 {
			r.MarkMask.at.bad(fmt.Sprintf("mark_mask %#08x has a gap", v), "the bits of the mask must be neighbours, such as 0x3f000000")
		} else {
			s.MarkMask = v
		}
	}
	if v, ok := within(r.Group, 1, lastGroup, "every link is in group 0 until it is put into another"); ok {
		s.Group = v
	}
	if r.Watch.ok {
		s.Watch = r.Watch.v
	}
	return s
}
