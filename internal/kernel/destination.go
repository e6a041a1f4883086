package kernel

import (
	"fmt"

	"github.com/sisod/sisod/internal/state"
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
	destStats      uint16 = 10
	destFamily     uint16 = 11
	destStats64    uint16 = 12
	destTunnelType uint16 = 13
	destTunnelPort uint16 = 14
	destTunnelFlag uint16 = 15
)

// forwardMask is what of a destination's flags is its method
// (IP_VS_CONN_F_FWD_MASK).
const forwardMask = 0x7

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
