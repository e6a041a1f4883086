package kernel

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"github.com/sisod/sisod/internal/state"
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
	serviceStats
	serviceEngine
	serviceStats64
)

// hashedService is the flag that the kernel itself sets on every service
// (IP_VS_SVC_F_HASHED).
const hashedService = 0x2

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
	if s.Engine != "" {
		b = appendString(b, serviceEngine, s.Engine)
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
		case serviceEngine:
			s.Engine = a.text()
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
