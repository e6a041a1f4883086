package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// errMalformed is an attribute list or a message whose lengths contradict
// each other.
var errMalformed = errors.New("malformed message")

// alignAttribute rounds a length up to the four bytes that netlink aligns to.
func alignAttribute(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

// appendAttribute appends one attribute with its padding.
func appendAttribute(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return pad(b, len(value))
}

// pad appends what n bytes lack to the alignment.
func pad(b []byte, n int) []byte {
	for range alignAttribute(n) - n {
		b = append(b, 0)
	}
	return b
}

func appendUint32(b []byte, kind uint16, v uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+4)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, v)
}

// appendString appends a string with the zero byte that ends it.
func appendString(b []byte, kind uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(append(b, s...), 0)
	return pad(b, len(s)+1)
}

// appendAddr appends an address as its 4 or 16 bytes.
func appendAddr(b []byte, kind uint16, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return appendAttribute(b, kind, v[:]...)
	}
	v := a.As16()
	return appendAttribute(b, kind, v[:]...)
}

// openNest begins an attribute that holds others; closeNest ends it.
func openNest(b []byte, kind uint16) ([]byte, int) {
	return appendAttribute(b, kind), len(b)
}

func closeNest(b []byte, start int) {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
}

// attributes walks an attribute list.
type attributes struct {
	rest  []byte
	kind  uint16
	value []byte
	err   error
}

// next moves to the next attribute and reports whether there is one.
func (a *attributes) next() bool {
	if len(a.rest) < unix.SizeofNlAttr {
		// What is left, if anything, is the padding of the last one.
		return false
	}
	length := int(binary.NativeEndian.Uint16(a.rest))
	if length < unix.SizeofNlAttr || length > len(a.rest) {
		a.err = errMalformed
		return false
	}
	a.kind = binary.NativeEndian.Uint16(a.rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	a.value = a.rest[unix.SizeofNlAttr:length]
	a.rest = a.rest[min(alignAttribute(length), len(a.rest)):]
	return true
}

// The readers below note a value of a wrong length in err, and return zero for it.

func (a *attributes) uint8() uint8 {
	if len(a.value) != 1 {
		a.err = errMalformed
		return 0
	}
	return a.value[0]
}

func (a *attributes) uint16() uint16 {
	if len(a.value) != 2 {
		a.err = errMalformed
		return 0
	}
	return binary.NativeEndian.Uint16(a.value)
}

func (a *attributes) uint32() uint32 {
	if len(a.value) != 4 {
		a.err = errMalformed
		return 0
	}
	return binary.NativeEndian.Uint32(a.value)
}

func (a *attributes) text() string {
	for i, c := range a.value {
		if c == 0 {
			return string(a.value[:i])
		}
	}
	return string(a.value)
}

func (a *attributes) addr() netip.Addr {
	addr, ok := netip.AddrFromSlice(a.value)
	if !ok {
		a.err = errMalformed
	}
	return addr
}

// appendNative32 appends a field of a header.
func appendNative32(b []byte, v uint32) []byte { return binary.NativeEndian.AppendUint32(b, v) }
