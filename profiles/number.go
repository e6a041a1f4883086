package profiles

import (
	"fmt"
	"strconv"
	"strings"
)

// lastUID is the largest user id: 2^32-1 means "none" (linux/uidgid.h).
const lastUID = 4294967294

// parse32 reads a decimal or, behind 0x, hexadecimal number.
func parse32(s string) (uint32, bool) {
	base := 10
	if rest, hex := strings.CutPrefix(s, "0x"); hex {
		s, base = rest, 16
	}
	v, err := strconv.ParseUint(s, base, 32)
	return uint32(v), err == nil
}

// span32 reads a number, or a text "first-last", both ends included.
func span32(f field[any], low, high uint32, hint string) (first, last uint32, ok bool) {
	if f.at == nil {
		return 0, 0, false
	}
	name := f.at.name
	switch v := f.at.value.(type) {
	case int64:
		if v < int64(low) || v > int64(high) {
			f.at.bad(fmt.Sprintf("%s must be %d to %d, not %d", name, low, high, v), hint)
			return 0, 0, false
		}
		return uint32(v), uint32(v), true
	case string:
		left, right, found := strings.Cut(v, "-")
		if !found {
			right = left
		}
		first, firstOK := parse32(strings.TrimSpace(left))
		last, lastOK := parse32(strings.TrimSpace(right))
		switch {
		case !firstOK || !lastOK:
			f.at.bad(fmt.Sprintf("%s cannot be %q", name, v), hint)
		case first < low || last > high || first > high:
			f.at.bad(fmt.Sprintf("%s must be %d to %d, not %q", name, low, high, v), hint)
		case first > last:
			f.at.bad(fmt.Sprintf("%s %q ends before it begins", name, v), fmt.Sprintf("write \"%d-%d\"", last, first))
		default:
			return first, last, true
		}
		return 0, 0, false
	}
	f.at.mistyped(want{"a number or a range", "number"})
	return 0, 0, false
}
