package state

import (
	"fmt"
	"net/netip"
)

// VIP is an address that sisod puts on a link: a host address, never used as
// a source by the kernel's own choice, and silent: without duplicate address
// detection, which would take it away again when the director answers. On a
// link with neighbours its appearance is announced (gratuitous ARP, RFC 5227;
// unsolicited neighbour advertisement, RFC 4861), unless ARP is silenced there.
type VIP struct {
	Link string
	Addr netip.Addr
}

// Kind is KindVIP.
func (VIP) Kind() Kind { return KindVIP }

// String is what follows "ip address".
func (v VIP) String() string {
	return fmt.Sprintf("%s dev %s", netip.PrefixFrom(v.Addr, v.Addr.BitLen()), v.Link)
}

// Spell is String.
func (v VIP) Spell(Names) string { return v.String() }

// Commands is one ip address.
func (v VIP) Commands(op Op, _ Names) []string {
	if op.Removes() {
		return []string{"ip address del " + v.String()}
	}
	s := "ip address add " + v.String()
	if v.Addr.Is6() {
		// A deprecated address answers and is never chosen as a source.
		s += " nodad preferred_lft 0"
	}
	return []string{s}
}
