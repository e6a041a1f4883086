package profiles

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/prefix"
)

// Bounds of the sizes in bytes. The kernel cuts larger ones silently
// (net/ipv4/metrics.c), and TCP does not go below its own smallest segment
// (include/net/tcp.h, TCP_MIN_MSS).
const (
	minMSS   = 88
	maxMSS   = 65495
	minMTU   = 68   // RFC 791
	minMTUv6 = 1280 // RFC 8200
	maxMTU   = 65520
)

// uplink judges one [uplink.NAME].
func (b *builder) uplink(raw rawUplink) Uplink {
	u := Uplink{Name: raw.at.name, Pos: raw.at.pos(), Guard: true}
	b.uplinkInterface(raw, &u)
	b.gateway(raw, &u)
	if raw.Table.ok {
		if bad := numberOfTable(raw.Table.v); bad != nil {
			raw.Table.at.bad(bad.text, cmp.Or(bad.hint, "leave the key out, and a free number is found and kept"))
		} else {
			u.Table = uint32(raw.Table.v)
			if o, ok := claim(b.tables, u.Table, owner{u.Name, raw.Table.at.pos()}); !ok {
				raw.Table.at.bad(fmt.Sprintf("table %d is the table of uplink %s already, at %s", u.Table, o.uplink, o.at),
					"every uplink has a table of its own; without this key a free number is found and kept")
			}
		}
	}
	b.uplinkAddresses(raw, &u)
	b.uplinkSources(raw, &u)
	b.uplinkTo(raw, &u)
	for _, r := range raw.Routes.items {
		if route, ok := b.uplinkRoute(r, u); ok {
			u.Routes = append(u.Routes, route)
		}
	}
	u.Forward, u.Masquerade = raw.Forward.v, raw.Masquerade.v
	if raw.Guard.ok {
		u.Guard = raw.Guard.v
	}
	u.RPFilter = rpFilter(raw.RPFilter)
	u.AdvMSS, _ = within(raw.AdvMSS, minMSS, maxMSS, "the largest TCP segment to ask of the other side, in bytes: the MTU less 40 (IPv4) or 60 (IPv6)")
	u.MTU, _ = within(raw.MTU, minMTU, maxMTU, "in bytes; below 1280 it is of use to IPv4 alone")
	if raw.Default.at != nil {
		u.Default = defaultRoute(raw.Default)
	}
	return u
}

// misspelt reports whether an unknown key, complained about already, is why
// the uplink has no interface.
func (r rawUplink) misspelt() bool {
	known := keysOf[rawUplink]()
	return slices.ContainsFunc(r.at.keys, func(name string) bool {
		return !slices.Contains(known, name) && (r.at.children[name].shape == table || near(name, known) == "interface")
	})
}

func (b *builder) uplinkInterface(raw rawUplink, u *Uplink) {
	if raw.Interface.at == nil && raw.misspelt() {
		return
	}
	if raw.Interface.at == nil {
		raw.at.badKey(fmt.Sprintf("uplink %s has no interface", u.Name), `add the line interface = "em1", with the name that "ip link" shows`)
		return
	}
	name, ok := link(raw.Interface)
	if !ok {
		return
	}
	u.Interface = name
	if name == "lo" {
		raw.Interface.at.bad("lo is no way out", "the interface that leads to the gateway, as `ip route get ADDRESS` shows it")
		return
	}
	if o, ok := claim(b.interfaces, name, owner{u.Name, raw.Interface.at.pos()}); !ok {
		raw.Interface.at.bad(fmt.Sprintf("%s is the interface of uplink %s already, at %s", name, o.uplink, o.at),
			"an interface has one uplink. A second gateway on it goes into `routes`, or into [[route]] and [[rule]]")
	}
}

// gateway judges the gateways: one word or address, or a list.
func (b *builder) gateway(raw rawUplink, u *Uplink) {
	f := raw.Gateway
	if f.at == nil {
		u.Gateway = Gateway{Pos: u.Pos, Auto: true}
		return
	}
	u.Gateway.Pos = f.at.valuePos()
	entries := []*node{f.at}
	if f.at.shape == array {
		entries = f.at.elements
		if len(entries) == 0 {
			f.at.bad("gateway is an empty list", `leave the key out to learn the gateway, or write "none" for a point-to-point interface`)
			return
		}
	}
	for _, e := range entries {
		text, isText := e.value.(string)
		switch {
		case !isText:
			u.Gateway.Auto = true
			e.mistyped(want{"an address, \"auto\", \"none\", or a list of these", ""})
		case text == "auto":
			u.Gateway.Auto = true
		case text == "none" && e.element:
			e.bad(`"none" stands in a list`, `"none" is for both families: gateway = "none"`)
		case text == "none":
			u.Gateway.None = true
		default:
			b.gatewayAddress(e, text, raw, u)
		}
	}
}

func (b *builder) gatewayAddress(e *node, text string, raw rawUplink, u *Uplink) {
	a, bad := parseAddr(text)
	if bad != nil {
		if near := near(text, []string{"auto", "none"}); near != "" && !a.IsValid() {
			bad.hint = fmt.Sprintf("did you mean %q?", near)
		} else if text == "" || text == "dhcp" {
			bad.hint = `an address, "auto" (learned from DHCP, RA or a route) or "none" (point-to-point)`
		}
		e.bad(strings.Replace(bad.text, "is not an address", "is not a gateway", 1), bad.hint)
		// What the bad one was meant to be is not known: no complaint about its family.
		u.Gateway.Auto = true
		return
	}
	for _, own := range raw.Addresses.items {
		if mine, err := netip.ParseAddr(own.v); err == nil && mine == a {
			e.bad(fmt.Sprintf("gateway %s is one of this uplink's own `addresses`", a), "the gateway is the next router's address")
			return
		}
	}
	slot := &u.Gateway.IPv4
	if a.Is6() {
		slot = &u.Gateway.IPv6
	}
	if slot.IsValid() {
		e.bad(fmt.Sprintf("a second %s gateway, after %s", family(a), *slot),
			"one gateway a family; to spread or fail over, make a second uplink, or a route with nexthops")
		return
	}
	*slot = a
}

// serves complains about an address of a family that the uplink has no way
// out for, and will not learn one.
func (u *Uplink) serves(e *node, a netip.Addr) bool {
	g := u.Gateway
	given := g.IPv4.IsValid() || g.IPv6.IsValid()
	if g.Auto || g.None || !given || a.Is4() && g.IPv4.IsValid() || a.Is6() && g.IPv6.IsValid() {
		return true
	}
	other := g.IPv4
	if !other.IsValid() {
		other = g.IPv6
	}
	e.bad(fmt.Sprintf("%s is %s, and uplink %s has an %s gateway alone", e.value, family(a), u.Name, family(other)),
		fmt.Sprintf("add the %s gateway, or \"auto\" to learn it: gateway = [%q, \"auto\"]", family(a), other))
	return false
}

func (b *builder) uplinkAddresses(raw rawUplink, u *Uplink) {
	if raw.Addresses.at != nil && raw.Addresses.at.shape == array && len(raw.Addresses.at.elements) == 0 {
		raw.Addresses.at.bad("addresses is an empty list", "leave the key out to follow every global address of the interface")
	}
	for _, f := range raw.Addresses.items {
		a, ok := address(f)
		if !ok {
			continue
		}
		if a.Is6() && a.IsLinkLocalUnicast() {
			f.at.bad(fmt.Sprintf("%s is a link-local address, which no router passes on", a), "addresses are those that are reached from elsewhere")
			continue
		}
		if o, ok := claim(b.addresses, a, owner{u.Name, f.at.pos()}); !ok {
			f.at.bad(fmt.Sprintf("address %s is named for uplink %s already, at %s", a, o.uplink, o.at), twice(o, u, "replies from an address leave by one uplink"))
			continue
		}
		if u.serves(f.at, a) {
			u.Addresses = append(u.Addresses, a)
		}
	}
}

func (b *builder) uplinkSources(raw rawUplink, u *Uplink) {
	const all = "a source of everything would take the host's own traffic too: for that, add [uplink.NAME.default]"
	for _, f := range raw.Sources.items {
		p, ok := asPrefix(f, strings.Replace(all, "NAME", u.Name, 1))
		if !ok {
			continue
		}
		if bad := unicast(p); bad != nil {
			f.at.bad(bad.text, cmp.Or(bad.hint, strings.Replace(all, "NAME", u.Name, 1)))
			continue
		}
		if o, ok := claim(b.sources, p, owner{u.Name, f.at.pos()}); !ok {
			f.at.bad(fmt.Sprintf("source %s is named for uplink %s already, at %s", p, o.uplink, o.at),
				twice(o, u, "a source leaves by one uplink; a longer prefix in another uplink is an exception to it"))
			continue
		}
		if u.serves(f.at, p.Addr()) {
			u.Sources = append(u.Sources, At[netip.Prefix]{p, f.at.pos()})
		}
	}
}

const oneUplink = "a destination can prefer one uplink"

// twice is the hint for what stands in another uplink already, or in the same.
func twice(earlier owner, u *Uplink, why string) string {
	if earlier.uplink == u.Name {
		return "remove one of the two"
	}
	return why
}

// unicast refuses prefixes that are everything, or no place to send to.
func unicast(p netip.Prefix) *fault {
	switch {
	case p.Bits() == 0:
		return faultf("", "%s is everything", p)
	case p.Addr().IsMulticast():
		return faultf("only networks of ordinary addresses stand here", "%s is multicast", p)
	case p.Addr().IsLoopback():
		return faultf("only networks outside of the host stand here", "%s is the host itself", p)
	}
	return nil
}

func (b *builder) uplinkTo(raw rawUplink, u *Uplink) {
	for _, f := range raw.To.items {
		list := PrefixList{Pos: f.at.pos()}
		if name, isFile := strings.CutPrefix(f.v, "@"); isFile {
			b.listFile(f.at, name, u, &list)
		} else if f.ok {
			b.inlineTo(f, u, &list)
		}
		u.To = append(u.To, list)
	}
}

func (b *builder) inlineTo(f field[string], u *Uplink, list *PrefixList) {
	hint := toHint(u.Name)
	if f.v != "default" && strings.Trim(f.v, "0123456789abcdefABCDEF.:/%") != "" {
		f.at.bad(fmt.Sprintf("%q is not a prefix or an address", f.v), fmt.Sprintf("a file of prefixes has an @ before its name: %q", "@"+f.v))
		return
	}
	p, ok := asPrefix(f, hint)
	if !ok {
		return
	}
	if bad := unicast(p); bad != nil {
		f.at.bad(bad.text, cmp.Or(bad.hint, hint))
		return
	}
	if o, ok := claim(b.inline, p, owner{u.Name, f.at.pos()}); !ok {
		f.at.bad(fmt.Sprintf("%s is in `to` of uplink %s already, at %s", p, o.uplink, o.at), twice(o, u, oneUplink))
		return
	}
	if !u.serves(f.at, p.Addr()) {
		return
	}
	list.Prefixes = prefix.Of(p)
}

func toHint(uplink string) string {
	return fmt.Sprintf("`to` names destinations that prefer this uplink; for all that nothing else decides, add [uplink.%s.default]", quoteName(uplink))
}

// quoteName spells a name as a header needs it.
func quoteName(name string) string { return dotted([]string{name}) }

var rpFilters = []string{"off", "strict", "loose"} // in the order of the sysctl's values

func rpFilter(f field[any]) string {
	if f.at == nil {
		return ""
	}
	const all = `"strict", "loose" or "off"; leave the key out to leave the interface as it is`
	text, isText := f.at.value.(string)
	if isText && slices.Contains(rpFilters, text) {
		return text
	}
	hint := all
	if n, isNumber := f.at.value.(int64); isNumber && n >= 0 && n < int64(len(rpFilters)) {
		hint = fmt.Sprintf("the sysctl's %d is written %q here", n, rpFilters[n])
	} else if text == "0" || text == "1" || text == "2" {
		hint = fmt.Sprintf("the sysctl's %s is written %q here", text, rpFilters[text[0]-'0'])
	} else if best := near(text, rpFilters); best != "" {
		hint = fmt.Sprintf("did you mean %q? %s", best, all)
	}
	f.at.bad(fmt.Sprintf("rp_filter cannot be %s", f.at.written()), hint)
	return ""
}

func defaultRoute(raw rawDefault) *Default {
	d := &Default{Pos: raw.at.pos(), Metric: DefaultMetric, Weight: 1}
	if v, ok := within(raw.Metric, 1, GuardMetric-1, "lower wins; uplinks of equal metric share by weight"); ok {
		d.Metric = v
	}
	if v, ok := within(raw.Weight, 1, 256, "the share of this uplink among those of the same metric"); ok {
		d.Weight = int(v)
	}
	return d
}
