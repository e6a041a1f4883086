package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Device is a virtual link that sisod makes. The fallback devices of the
// tunnel modules (tunl0, gre0, ip6tnl0, sit0) come with their module when the
// first device of the type is asked for, and never go.
type Device struct {
	Name   string
	Type   string     // "ipip", "gre", "ip6tnl", "sit", "dummy": ip-link(8)
	Remote netip.Addr // zero Addr: any
	// EncapPort, when not 0, is the UDP port of a GUE receiver that hands its
	// inner packets to the host (fou): a port, not a link, for packets that come
	// in EncapFamily.
	EncapPort   uint16
	EncapFamily Family
}

// Kind is KindDevice.
func (Device) Kind() Kind { return KindDevice }

// String is what follows "ip link add", or "ip fou add".
func (d Device) String() string {
	if d.EncapPort != 0 {
		return fmt.Sprintf("port %d gue%s", d.EncapPort, map[Family]string{IPv6: " -6"}[d.EncapFamily])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s type %s", d.Name, d.Type)
	if d.Remote.IsValid() {
		fmt.Fprintf(&b, " remote %s", d.Remote)
	}
	return b.String()
}

// Spell is String.
func (d Device) Spell(Names) string { return d.String() }

// Commands is one ip link, or one ip fou.
func (d Device) Commands(op Op, _ Names) []string {
	verb, what := "add", "ip link "
	if op.Removes() {
		verb = "del"
	}
	if d.EncapPort != 0 {
		return []string{fmt.Sprintf("ip fou %s %s", verb, d)}
	}
	switch {
	case d.Fallback() && op.Removes():
		return nil // it stays with its module
	case d.Fallback():
		return []string{"modprobe " + fallbackModules[d.Name]}
	case op.Removes():
		return []string{what + "del " + d.Name}
	}
	return []string{what + "add " + d.String()}
}

// fallbackModules are the devices that come with a module, and the module.
var fallbackModules = map[string]string{
	"tunl0": "ipip", "gre0": "ip_gre", "ip6tnl0": "ip6_tunnel", "sit0": "sit", "ip6gre0": "ip6_gre",
}

// Fallback reports whether the device comes with its module and cannot be deleted.
func (d Device) Fallback() bool { return fallbackModules[d.Name] != "" }

// LinkUp brings a link up (IFF_UP). It is given back as found.
type LinkUp struct {
	Link string
	Up   bool
}

// Kind is KindLinkUp.
func (LinkUp) Kind() Kind { return KindLinkUp }

// String is what follows "ip link set".
func (u LinkUp) String() string {
	return fmt.Sprintf("dev %s %s", u.Link, cmp.Or(map[bool]string{true: "up"}[u.Up], "down"))
}

// Spell is String.
func (u LinkUp) Spell(Names) string { return u.String() }

// Commands is one ip link set.
func (u LinkUp) Commands(Op, Names) []string { return []string{"ip link set " + u.String()} }
