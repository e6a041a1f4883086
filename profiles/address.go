package profiles

import (
	"fmt"
	"net/netip"
	"strings"
)

// family names the family of an address.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseAddr reads one address of a host.
func parseAddr(text string) (netip.Addr, *fault) {
	if before, _, found := strings.Cut(text, "/"); found {
		return netip.Addr{}, faultf(fmt.Sprintf("write the address without a prefix length: %q", before), "%q is a prefix, not an address", text)
	}
	if before, _, found := strings.Cut(text, "%"); found {
		return netip.Addr{}, faultf(fmt.Sprintf("the interface is known from its own key: write %q", before), "%q names an interface", text)
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return a, faultf(addressHint(text, err), "%q is not an address", text)
	case a.Is4In6():
		return a, faultf(fmt.Sprintf("write %q", a.Unmap()), "%q is an IPv4 address written as IPv6", text)
	case a.IsUnspecified():
		return a, faultf("the address of one host", "%q is no host's address", text)
	case a.IsMulticast():
		return a, faultf("the address of one host", "%q is a multicast address", text)
	case a == broadcast:
		return a, faultf("the address of one host", "%q is the broadcast address", text)
	case a.IsLoopback():
		return a, faultf("an address that other hosts can reach", "%q is a loopback address", text)
	}
	return a, nil
}

// addressHint says why a text is no address, or what it may be instead.
func addressHint(text string, err error) string {
	if text == "" {
		return `such as "192.0.2.1" or "2001:db8::1"`
	}
	if strings.Trim(text, "0123456789abcdefABCDEF.:") != "" {
		return "names are not looked up: write the address itself"
	}
	_, why, _ := strings.Cut(err.Error(), "): ")
	why, _, _ = strings.Cut(why, " (at ")
	switch why {
	case "IPv4 field has value >255":
		return "each of the four numbers is 0 to 255"
	case "IPv4 address too short", "IPv4 address too long":
		return "an IPv4 address has four numbers"
	case "IPv4 field has octet with leading zero":
		return "write the numbers without leading zeroes"
	}
	return why
}

// parsePrefix reads a prefix, or an address as the prefix of one host.
func parsePrefix(text string) (netip.Prefix, *fault) {
	if !strings.Contains(text, "/") {
		a, bad := parseAddr(text)
		if bad != nil && !a.IsValid() && (text == "default" || text == "all" || text == "any") {
			return netip.Prefix{}, faultf("", "%q is not a prefix", text)
		}
		if bad != nil && !a.IsValid() && near(text, []string{"default"}) != "" {
			bad.hint = `did you mean "default"?`
		}
		if bad != nil {
			bad.text = strings.Replace(bad.text, "is not an address", "is not a prefix or an address", 1)
			return netip.Prefix{}, bad
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if strings.Contains(text, "%") {
		return netip.Prefix{}, faultf("a prefix is the same on every interface: leave out the % and the name", "%q names an interface", text)
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, faultf(prefixHint(text), "%q is not a prefix", text)
	}
	if p.Addr().Is4In6() {
		return p, faultf("write the IPv4 prefix itself", "%q is an IPv4 prefix written as IPv6", text)
	}
	if p != p.Masked() {
		return p, faultf(fmt.Sprintf("the network is %q, and the one address %q", p.Masked(), p.Addr()),
			"%q has bits set behind its prefix length", text)
	}
	return p, nil
}

func prefixHint(text string) string {
	before, length, _ := strings.Cut(text, "/")
	if a, err := netip.ParseAddr(length); err == nil && a.Is4() {
		return "write the mask as a prefix length: 255.255.255.0 is /24"
	}
	a, err := netip.ParseAddr(before)
	if err != nil {
		return addressHint(before, err)
	}
	return fmt.Sprintf("the length is a number from 0 to %d", a.BitLen())
}

// address reads a field as an address, or complains.
func address(f field[string]) (netip.Addr, bool) {
	if !f.ok {
		return netip.Addr{}, false
	}
	a, bad := parseAddr(f.v)
	if bad != nil {
		f.at.bad(bad.text, bad.hint)
		return netip.Addr{}, false
	}
	return a, true
}

// asPrefix reads a field as a prefix, or complains. all is what to write for
// every address.
func asPrefix(f field[string], all string) (netip.Prefix, bool) {
	if !f.ok {
		return netip.Prefix{}, false
	}
	p, bad := parsePrefix(f.v)
	if bad != nil {
		if bad.hint == "" {
			bad.hint = all
		}
		f.at.bad(bad.text, bad.hint)
		return netip.Prefix{}, false
	}
	return p, true
}

// link reads a field as the name of an interface, or complains.
func link(f field[string]) (string, bool) {
	if !f.ok {
		return "", false
	}
	if bad := linkName(f.v); bad != nil {
		f.at.bad(bad.text, bad.hint)
		return "", false
	}
	return f.v, true
}
