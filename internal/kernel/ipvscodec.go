package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// ipvsFamily is the name of IPVS in generic netlink.
const ipvsFamily = "IPVS"

// Commands of the family (linux/ip_vs.h, IPVS_CMD_*).
const (
	ipvsNewService uint8 = iota + 1
	ipvsSetService
	ipvsDelService
	ipvsGetService
	ipvsNewDest
	ipvsSetDest
	ipvsDelDest
	ipvsGetDest
	ipvsNewDaemon
	ipvsDelDaemon
	ipvsGetDaemon
	ipvsSetConfig
	ipvsGetConfig
)

// Attributes of a command (IPVS_CMD_ATTR_*).
const (
	ipvsService uint16 = iota + 1
	ipvsDest
	ipvsDaemon
	ipvsTimeoutTCP
	ipvsTimeoutTCPFin
	ipvsTimeoutUDP
)

// kinds are those of the attributes that a message had. What the kernel always
// says and a message does not was cut off, and is not zero.
type kinds uint64

func (k *kinds) add(kind uint16) { *k |= 1 << kind }

func (k kinds) have(all ...uint16) bool {
	for _, kind := range all {
		if k&(1<<kind) == 0 {
			return false
		}
	}
	return true
}

// ipvsFamilyOf is the family of an address family's number.
func ipvsFamilyOf(number uint16) (state.Family, error) {
	if f, ok := familyOf(byte(number)); ok && number <= 0xff {
		return f, nil
	}
	return 0, fmt.Errorf("address family %d: %w", number, errMalformed)
}

// ipvsAddr takes an address out of the union nf_inet_addr.
func ipvsAddr(f state.Family, value []byte) (netip.Addr, error) {
	n := f.Bits() / 8
	if len(value) < n {
		return netip.Addr{}, errMalformed
	}
	a, _ := netip.AddrFromSlice(value[:n])
	return a, nil
}

func appendUint16(b []byte, kind uint16, v uint16) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+2)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, v)
	return append(b, 0, 0)
}

func appendPort(b []byte, kind uint16, port uint16) []byte {
	return appendAttribute(b, kind, byte(port>>8), byte(port))
}

// bigUint16 reads a value in network order.
func (a *attributes) bigUint16() uint16 {
	if len(a.value) != 2 {
		a.err = errMalformed
		return 0
	}
	return binary.BigEndian.Uint16(a.value)
}

// appendTimeouts appends the timeouts to set; the kernel leaves those alone
// that are 0.
func appendTimeouts(b []byte, t state.Timeouts) []byte {
	b = appendUint32(b, ipvsTimeoutTCP, uint32(t.TCP/time.Second))
	b = appendUint32(b, ipvsTimeoutTCPFin, uint32(t.TCPFin/time.Second))
	return appendUint32(b, ipvsTimeoutUDP, uint32(t.UDP/time.Second))
}

func decodeTimeouts(body []byte) (state.Timeouts, error) {
	rest, err := genericBody(body)
	var t state.Timeouts
	a := attributes{rest: rest, err: err}
	for a.next() {
		switch a.kind {
		case ipvsTimeoutTCP:
			t.TCP = time.Duration(a.uint32()) * time.Second
		case ipvsTimeoutTCPFin:
			t.TCPFin = time.Duration(a.uint32()) * time.Second
		case ipvsTimeoutUDP:
			t.UDP = time.Duration(a.uint32()) * time.Second
		}
	}
	if a.err != nil {
		return state.Timeouts{}, fmt.Errorf("decode ipvs timeouts: %w", a.err)
	}
	return t, nil
}

// ipvsNest is the content of a command's attribute.
func ipvsNest(body []byte, kind uint16) ([]byte, error) {
	rest, err := genericBody(body)
	if err != nil {
		return nil, err
	}
	a := attributes{rest: rest}
	for a.next() {
		if a.kind == kind {
			return a.value, nil
		}
	}
	return nil, errMalformed
}
