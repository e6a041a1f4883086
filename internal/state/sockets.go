package state

import "net/netip"

// SocketFacts is what is to know of the sockets of transparent proxies.
type SocketFacts struct {
	// Unknown is why the kernel does not tell, "" when it does.
	Unknown string
	// Listening are the sockets that wait at the ports asked about.
	Listening []Listening
	// Asking counts the connections to the ports asked about whose own address is
	// not the host's, those that have ended and are kept for a while included.
	Asking map[Asking]int
}

// Listening is a socket that waits for connections or datagrams.
type Listening struct {
	Port
	Addr        netip.Addr // the unspecified address of either family: any
	Only6       bool       // an IPv6 socket that takes no IPv4
	Transparent bool
}

// Port is a port of a protocol, an IANA number.
type Port struct {
	Protocol uint8
	Number   uint16
}

// Asking is what connections share that differ by their own port alone.
type Asking struct {
	Client netip.Addr
	Server netip.AddrPort
}

// Serves reports whether the socket takes packets of a family.
func (l Listening) Serves(f Family) bool {
	return familyOf(l.Addr) == f || f == IPv4 && l.Addr == netip.IPv6Unspecified() && !l.Only6
}
