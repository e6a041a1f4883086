package kernel

import (
	"encoding/binary"
	"fmt"
	"math/bits"
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

// Attributes of a service (IPVS_SVC_ATTR_*).
const (
	serviceFamily uint16 = iota + 1
	serviceProtocol
	serviceAddr
	servicePort
	serviceMark
	serviceScheduler
	serviceFlags
	serviceTimeout
	serviceNetmask
)

// Attributes of a destination (IPVS_DEST_ATTR_*).
const (
	destAddr       uint16 = 1
	destPort       uint16 = 2
	destForward    uint16 = 3
	destWeight     uint16 = 4
	destUpper      uint16 = 5
	destLower      uint16 = 6
	destActive     uint16 = 7
	destInactive   uint16 = 8
	destPersistent uint16 = 9
	destFamily     uint16 = 11
	destTunnelType uint16 = 13
	destTunnelPort uint16 = 14
	destTunnelFlag uint16 = 15
)

// Attributes of a synchronisation daemon (IPVS_DAEMON_ATTR_*).
const (
	daemonState uint16 = iota + 1
	daemonLink
	daemonID
)

// Values of daemonState (IP_VS_STATE_*).
const (
	daemonMaster uint32 = 1
	daemonBackup uint32 = 2
)

// hashedService is the flag that the kernel itself sets on every service
// (IP_VS_SVC_F_HASHED).
const hashedService = 0x2

// forwardMask is what of a destination's flags is its method
// (IP_VS_CONN_F_FWD_MASK).
const forwardMask = 0x7

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

// appendServiceKey appends what identifies a service.
func appendServiceKey(b []byte, k state.ServiceKey) []byte {
	b = appendUint16(b, serviceFamily, uint16(addressFamily(k.Family)))
	if k.Mark != 0 {
		return appendUint32(b, serviceMark, k.Mark)
	}
	b = appendUint16(b, serviceProtocol, uint16(k.Protocol))
	b = appendAddr(b, serviceAddr, k.Addr)
	return appendPort(b, servicePort, k.Port)
}

// appendServiceName appends the service that a command is about.
func appendServiceName(b []byte, k state.ServiceKey) []byte {
	b, nest := openNest(b, ipvsService)
	b = appendServiceKey(b, k)
	closeNest(b, nest)
	return b
}

// appendService appends a service with everything that it has.
func appendService(b []byte, s state.Service) []byte {
	b, nest := openNest(b, ipvsService)
	b = appendServiceKey(b, s.ServiceKey)
	b = appendString(b, serviceScheduler, s.Scheduler)
	// Flags, and which of them to set: the kernel keeps the one that is its own.
	var flags [8]byte
	binary.NativeEndian.PutUint32(flags[:], s.Flags&^hashedService)
	binary.NativeEndian.PutUint32(flags[4:], ^uint32(hashedService))
	b = appendAttribute(b, serviceFlags, flags[:]...)
	b = appendUint32(b, serviceTimeout, uint32(s.Timeout/time.Second))
	if s.Family == state.IPv6 {
		b = appendUint32(b, serviceNetmask, uint32(s.Netmask))
	} else {
		mask := ^uint32(0) << max(0, 32-s.Netmask)
		b = appendAttribute(b, serviceNetmask, binary.BigEndian.AppendUint32(nil, mask)...)
	}
	closeNest(b, nest)
	return b
}

// decodeService reads a message about a service.
func decodeService(body []byte) (state.Service, error) {
	nest, err := ipvsNest(body, ipvsService)
	if err != nil {
		return state.Service{}, fmt.Errorf("decode ipvs service: %w", err)
	}
	var (
		s                state.Service
		family, protocol uint16
		addr, netmask    []byte
		seen             kinds
		a                = attributes{rest: nest}
	)
	for a.next() {
		seen.add(a.kind)
		switch a.kind {
		case serviceFamily:
			family = a.uint16()
		case serviceProtocol:
			protocol = a.uint16()
		case serviceAddr:
			addr = a.value
		case servicePort:
			s.Port = a.bigUint16()
		case serviceMark:
			s.Mark = a.uint32()
		case serviceScheduler:
			s.Scheduler = a.text()
		case serviceFlags:
			if len(a.value) != 8 {
				a.err = errMalformed
				continue
			}
			s.Flags = binary.NativeEndian.Uint32(a.value) &^ hashedService
		case serviceTimeout:
			s.Timeout = time.Duration(a.uint32()) * time.Second
		case serviceNetmask:
			netmask = a.value
		}
	}
	err = a.err
	whole := seen.have(serviceFamily, serviceScheduler, serviceFlags, serviceTimeout, serviceNetmask) &&
		(s.Mark != 0 || seen.have(serviceProtocol, serviceAddr, servicePort))
	if err == nil && (!whole || len(netmask) != 4 || protocol > 0xff) {
		err = errMalformed
	}
	if err == nil {
		s.Family, err = ipvsFamilyOf(family)
	}
	if err == nil && s.Mark == 0 {
		s.Protocol = state.Transport(protocol)
		s.Addr, err = ipvsAddr(s.Family, addr)
	}
	if err != nil {
		return state.Service{}, fmt.Errorf("decode ipvs service: %w", err)
	}
	if s.Mark != 0 {
		s.Port = 0
	}
	if s.Family == state.IPv6 {
		s.Netmask = int(binary.NativeEndian.Uint32(netmask))
	} else {
		s.Netmask = maskBits(binary.BigEndian.Uint32(netmask))
	}
	return s, nil
}

// maskBits is the length of a netmask, -1 for one with holes, which is nobody's
// wish.
func maskBits(mask uint32) int {
	n := bits.LeadingZeros32(^mask)
	if mask != ^uint32(0)<<(32-n) {
		return -1
	}
	return n
}

// appendDestinationName appends the destination that a command is about, and
// its service.
func appendDestinationName(b []byte, k state.DestinationKey) []byte {
	b = appendServiceName(b, k.Service)
	b, nest := openNest(b, ipvsDest)
	b = appendDestinationKey(b, k)
	closeNest(b, nest)
	return b
}

func appendDestinationKey(b []byte, k state.DestinationKey) []byte {
	f := state.IPv4
	if k.Addr.Is6() {
		f = state.IPv6
	}
	b = appendUint16(b, destFamily, uint16(addressFamily(f)))
	b = appendAddr(b, destAddr, k.Addr)
	return appendPort(b, destPort, k.Port)
}

// appendDestination appends a destination with everything that it has, and the
// name of its service.
func appendDestination(b []byte, d state.Destination) []byte {
	b = appendServiceName(b, d.Service)
	b, nest := openNest(b, ipvsDest)
	b = appendDestinationKey(b, d.DestinationKey)
	b = appendUint32(b, destForward, uint32(d.Forward))
	b = appendUint32(b, destWeight, uint32(d.Weight))
	b = appendUint32(b, destUpper, d.Upper)
	b = appendUint32(b, destLower, d.Lower)
	b = appendAttribute(b, destTunnelType, byte(d.TunnelType))
	b = appendPort(b, destTunnelPort, d.TunnelPort)
	b = appendUint16(b, destTunnelFlag, d.TunnelFlags)
	closeNest(b, nest)
	return b
}

// decodeDestination reads a message about a destination of a service. What the
// kernel keeps of a tunnel and does not use is left out.
func decodeDestination(service state.ServiceKey, body []byte) (state.Destination, state.Connections, error) {
	d := state.Destination{DestinationKey: state.DestinationKey{Service: service}}
	var c state.Connections
	nest, err := ipvsNest(body, ipvsDest)
	if err != nil {
		return state.Destination{}, c, fmt.Errorf("decode ipvs destination: %w", err)
	}
	var addr []byte
	// Kernels before 3.18 know no family of a destination: it is the service's.
	family := uint16(addressFamily(service.Family))
	var seen kinds
	a := attributes{rest: nest}
	for a.next() {
		seen.add(a.kind)
		switch a.kind {
		case destFamily:
			family = a.uint16()
		case destAddr:
			addr = a.value
		case destPort:
			d.Port = a.bigUint16()
		case destForward:
			d.Forward = state.Forward(a.uint32() & forwardMask)
		case destWeight:
			d.Weight = int(a.uint32())
		case destUpper:
			d.Upper = a.uint32()
		case destLower:
			d.Lower = a.uint32()
		case destActive:
			c.Active = a.uint32()
		case destInactive:
			c.Inactive = a.uint32()
		case destPersistent:
			c.Persistent = a.uint32()
		case destTunnelType:
			d.TunnelType = state.TunnelType(a.uint8())
		case destTunnelPort:
			d.TunnelPort = a.bigUint16()
		case destTunnelFlag:
			d.TunnelFlags = a.uint16()
		}
	}
	if err = a.err; err == nil && !seen.have(destAddr, destPort, destForward, destWeight) {
		err = errMalformed
	}
	var f state.Family
	if err == nil {
		f, err = ipvsFamilyOf(family)
	}
	if err == nil {
		d.Addr, err = ipvsAddr(f, addr)
	}
	if err != nil {
		return state.Destination{}, state.Connections{}, fmt.Errorf("decode ipvs destination: %w", err)
	}
	if d.Forward != state.TunnelTo {
		d.TunnelType = state.TunnelIPIP
	}
	if d.TunnelType != state.TunnelGUE {
		d.TunnelPort = 0
	}
	if d.TunnelType == state.TunnelIPIP {
		d.TunnelFlags = 0
	}
	return d, c, nil
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

// appendSyncDaemon appends a synchronisation daemon.
func appendSyncDaemon(b []byte, d state.SyncDaemon) []byte {
	role := daemonBackup
	if d.Master {
		role = daemonMaster
	}
	b, nest := openNest(b, ipvsDaemon)
	b = appendUint32(b, daemonState, role)
	b = appendString(b, daemonLink, d.Link)
	b = appendUint32(b, daemonID, uint32(d.ID))
	closeNest(b, nest)
	return b
}

func decodeSyncDaemon(body []byte) (state.SyncDaemon, error) {
	nest, err := ipvsNest(body, ipvsDaemon)
	if err != nil {
		return state.SyncDaemon{}, fmt.Errorf("decode ipvs sync daemon: %w", err)
	}
	var d state.SyncDaemon
	var role uint32
	a := attributes{rest: nest}
	for a.next() {
		switch a.kind {
		case daemonState:
			role = a.uint32()
		case daemonLink:
			d.Link = a.text()
		case daemonID:
			d.ID = int(a.uint32())
		}
	}
	if a.err == nil && (role != daemonMaster && role != daemonBackup || d.Link == "") {
		a.err = errMalformed
	}
	if a.err != nil {
		return state.SyncDaemon{}, fmt.Errorf("decode ipvs sync daemon: %w", a.err)
	}
	d.Master = role == daemonMaster
	return d, nil
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
