package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Protocol is an IP protocol number, as in /etc/protocols.
type Protocol uint8

// The protocols that a lab speaks. ICMP stands for ICMPv6 too when asking; a
// Packet has the number that it carried.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
)

// String is the protocol's usual name.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("proto %d", uint8(p))
}

// Is reports whether p is q, or both are ICMP of either family.
func (p Protocol) Is(q Protocol) bool {
	return p == q || (p == ICMP || p == ICMPv6) && (q == ICMP || q == ICMPv6)
}

// Packet is what a Capture saw of one IPv4 or IPv6 packet.
type Packet struct {
	Time     time.Time
	Link     string
	Out      bool // it left by Link; otherwise it came in
	Protocol Protocol
	Src, Dst netip.AddrPort // port 0 when the protocol has none, and in later fragments
	Flags    TCPFlags
	Type     uint8  // of an ICMP message
	Length   int    // bytes, IP header included
	MSS      uint16 // that a SYN announces; 0: none
}

// TCPFlags are the flags of a TCP segment (RFC 9293, section 3.1).
type TCPFlags uint8

// The flags that tests ask for.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// String lists the flags as tcpdump does, "S." for SYN and ACK.
func (f TCPFlags) String() string {
	var b strings.Builder
	for i, letter := range "FSRP." {
		if f&(1<<i) != 0 {
			b.WriteRune(letter)
		}
	}
	return b.String()
}

// Types of ICMP and ICMPv6 messages (RFC 792, RFC 4443).
const (
	echoReply     = 0
	echoRequest   = 8
	echoRequestV6 = 128
	echoReplyV6   = 129
)

// Echo reports whether the packet is an ICMP echo request or reply, and not
// neighbour discovery or an error.
func (p Packet) Echo() bool {
	switch p.Protocol {
	case ICMP:
		return p.Type == echoRequest || p.Type == echoReply
	case ICMPv6:
		return p.Type == echoRequestV6 || p.Type == echoReplyV6
	}
	return false
}

// String is one line: interface, direction, protocol and addresses.
func (p Packet) String() string {
	direction := "in "
	if p.Out {
		direction = "out"
	}
	s := fmt.Sprintf("%s %s %s %s > %s", p.Link, direction, p.Protocol, spellPort(p.Src), spellPort(p.Dst))
	switch {
	case p.Protocol == TCP:
		s += " [" + p.Flags.String() + "]"
	case p.Protocol.Is(ICMP):
		s += fmt.Sprintf(" type %d", p.Type)
	}
	return s
}

func spellPort(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

const (
	headerV4 = 20
	headerV6 = 40
)

// IPv6 extension headers that stand before the payload (RFC 8200, section 4).
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	destination = 60
)

// decode reads the IP and transport headers of b. It returns false for what
// is not a whole IPv4 or IPv6 header; a payload that is cut short leaves ports
// and flags zero.
func decode(b []byte) (Packet, bool) {
	if len(b) == 0 {
		return Packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return decodeV4(b)
	case 6:
		return decodeV6(b)
	}
	return Packet{}, false
}

func decodeV4(b []byte) (Packet, bool) {
	length := int(b[0]&0x0f) * 4
	if length < headerV4 || len(b) < length {
		return Packet{}, false
	}
	p := Packet{Protocol: Protocol(b[9]), Length: int(binary.BigEndian.Uint16(b[2:]))}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	payload := b[length:]
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		payload = nil // a later fragment
	}
	p.transport(src, dst, payload)
	return p, true
}

func decodeV6(b []byte) (Packet, bool) {
	if len(b) < headerV6 {
		return Packet{}, false
	}
	p := Packet{Protocol: Protocol(b[6]), Length: headerV6 + int(binary.BigEndian.Uint16(b[4:]))}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	payload := b[headerV6:]
	for len(payload) >= 8 {
		length := 8
		switch p.Protocol {
		case hopByHop, routing, destination:
			length = 8 * (int(payload[1]) + 1)
		case fragment:
			if binary.BigEndian.Uint16(payload[2:])>>3 != 0 {
				p.Protocol = Protocol(payload[0])
				p.transport(src, dst, nil)
				return p, true
			}
		default:
			p.transport(src, dst, payload)
			return p, true
		}
		p.Protocol = Protocol(payload[0])
		payload = payload[min(length, len(payload)):]
	}
	p.transport(src, dst, payload)
	return p, true
}

func (p *Packet) transport(src, dst netip.Addr, payload []byte) {
	var sport, dport uint16
	switch {
	case p.Protocol == TCP && len(payload) >= 14:
		p.Flags = TCPFlags(payload[13])
		p.MSS = announced(payload)
		fallthrough
	case p.Protocol == UDP && len(payload) >= 4:
		sport, dport = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	case p.Protocol.Is(ICMP) && len(payload) >= 1:
		p.Type = payload[0]
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
}

// announced is the maximum segment size among the options of a TCP header.
func announced(header []byte) uint16 {
	const end, nop, mss = 0, 1, 2
	options := header[:min(int(header[12]>>4)*4, len(header))]
	options = options[min(20, len(options)):]
	for len(options) > 1 && options[0] != end {
		length := 1
		if options[0] != nop {
			length = max(int(options[1]), 2)
		}
		if options[0] == mss && len(options) >= 4 {
			return binary.BigEndian.Uint16(options[2:])
		}
		options = options[min(length, len(options)):]
	}
	return 0
}
