package kernel

import (
	"bytes"
	"net/netip"

	"golang.org/x/sys/unix"
)

// stencil is a message about a route, but for the destination. Neighbours in a
// dump mostly differ in that alone, and comparing bytes costs a tenth of reading
// them.
type stencil struct {
	body []byte
	// The destination's address is body[from:to]; to is 0 while nothing fits.
	from, to int
}

// cut makes the stencil of a message that decodeRoute has read.
func (s *stencil) cut(body []byte) {
	s.body, s.to = append(s.body[:0], body...), 0
	for a := (attributes{rest: s.body[unix.SizeofRtMsg:]}); a.next(); {
		if a.kind == unix.RTA_DST {
			s.to = len(s.body) - len(a.rest)
			s.from = s.to - len(a.value)
		}
	}
}

// read returns the destination of a message that says all else as the one of the
// stencil does. It is false for one that has to be decoded.
func (s *stencil) read(body []byte) (netip.Prefix, bool) {
	if s.to == 0 || len(body) != len(s.body) || body[0] != s.body[0] ||
		!bytes.Equal(body[2:s.from], s.body[2:s.from]) || !bytes.Equal(body[s.to:], s.body[s.to:]) {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(body[s.from:s.to])
	dst := netip.PrefixFrom(a, int(body[1]))
	if !ok || dst.Bits() <= 0 || dst != dst.Masked() {
		return netip.Prefix{}, false
	}
	return dst, true
}
