package state

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Forward is how packets reach a real server (linux/ip_vs.h, IP_VS_CONN_F_*).
type Forward uint8

// The methods that sisod writes.
const (
	Masquerade Forward = 0
	TunnelTo   Forward = 2
	DirectTo   Forward = 3
)

// TunnelType is the encapsulation of TunnelTo (IP_VS_CONN_F_TUNNEL_TYPE_*).
type TunnelType uint8

// The encapsulations.
const (
	TunnelIPIP TunnelType = 0
	TunnelGUE  TunnelType = 1
	TunnelGRE  TunnelType = 2
)

// Flags of a tunnel.
const (
	TunnelChecksum       = 0x1
	TunnelRemoteChecksum = 0x2 // GUE: remote checksum offload
)

// DestinationKey is the identity of a destination.
type DestinationKey struct {
	Service ServiceKey
	Addr    netip.Addr
	Port    uint16
}

// Destination is a real server of a service.
type Destination struct {
	DestinationKey
	Forward    Forward
	Weight     int // 0 takes no new connections
	Upper      uint32
	Lower      uint32
	TunnelType TunnelType
	TunnelPort uint16 // GUE: the UDP port
	// TunnelFlags are checksums in the header of GUE and GRE, 0: none
	// (IP_VS_TUNNEL_ENCAP_FLAG_*).
	TunnelFlags uint16
}

// rank orders the steps of destinations.
func (d Destination) rank() byte {
	if d.Weight == 0 {
		return 1
	}
	return 0
}

// Kind is KindDestination.
func (Destination) Kind() Kind { return KindDestination }

// String is the destination as ipvsadm -Sn prints it, without the leading -a;
// the thresholds, which ipvsadm reads there and never prints, are added.
func (d Destination) String() string {
	b := append(d.Service.appendOption(make([]byte, 0, spelling)), " -r "...)
	b = netip.AddrPortFrom(d.Addr, d.Port).AppendTo(b)
	switch d.Forward {
	case Masquerade:
		b = append(b, " -m"...)
	case TunnelTo:
		b = append(b, " -i"...)
	case DirectTo:
		b = append(b, " -g"...)
	default:
		b = append(b, ' ')
	}
	b = strconv.AppendInt(append(b, " -w "...), int64(d.Weight), 10)
	if d.Upper != 0 {
		b = fmt.Appendf(b, " -x %d", d.Upper)
	}
	if d.Lower != 0 {
		b = fmt.Appendf(b, " -y %d", d.Lower)
	}
	if d.Forward == TunnelTo {
		switch d.TunnelType {
		case TunnelIPIP:
			b = append(b, " --tun-type ipip"...)
		case TunnelGUE:
			b = fmt.Appendf(b, " --tun-type gue --tun-port %d%s", d.TunnelPort, tunnelFlags(d.TunnelFlags))
		case TunnelGRE:
			b = append(b, " --tun-type gre"+tunnelFlags(d.TunnelFlags)...)
		}
	}
	return string(b)
}

func tunnelFlags(flags uint16) string {
	switch {
	case flags&TunnelChecksum != 0:
		return " --tun-csum"
	case flags&TunnelRemoteChecksum != 0:
		return " --tun-remcsum"
	}
	return " --tun-nocsum"
}

// Spell is String.
func (d Destination) Spell(Names) string { return d.String() }

// Commands is one ipvsadm. A change is made in place: it keeps every connection.
func (d Destination) Commands(op Op, _ Names) []string {
	switch op {
	case Delete:
		return []string{fmt.Sprintf("ipvsadm -d %s -r %s", d.Service.Option(), netip.AddrPortFrom(d.Addr, d.Port))}
	case Replace:
		return []string{"ipvsadm -e " + d.String()}
	}
	return []string{"ipvsadm -a " + d.String()}
}
