package profiles

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// roles are what the profiles say about LVS, and what its roles share.
type roles struct {
	realServers []rawRealServer // first of their name, in the order of the files
	directors   []rawDirector
	ipvs        rawIPVS // the first; its node is nil when there is none
	names       map[string]Position

	vips      []placedVIP
	holders   map[netip.Addr][]placedVIP
	rips      []placedAddress
	dips      []placedAddress
	peers     []placedAddress // directors of fullnat real servers
	sources   []placedAddress // of fullnat directors
	services  map[serviceKey]holder
	ways      []wayBack
	devices   []device
	crossings []placedAddress // real servers that are not of their VIP's family
}

func newRoles() roles {
	return roles{names: map[string]Position{}, services: map[serviceKey]holder{}, holders: map[netip.Addr][]placedVIP{}}
}

// holder is the role that has something, and where it says so.
type holder struct {
	role string // as in "director web"
	at   Position
}

// placedAddress is an address, where it stands, and whose it is.
type placedAddress struct {
	addr netip.Addr
	at   *node
	role string
}

// placedVIP is a VIP with what a host can do once with an address.
type placedVIP struct {
	placedAddress
	director      bool
	iface, uplink string
}

// realServerTable begins the names of the routing tables of real servers.
const realServerTable = "rs-"

// addRoles takes the roles of one profile.
func (b *builder) addRoles(raw rawProfile) {
	for _, name := range raw.RealServer.names {
		if r := raw.RealServer.items[name]; b.named("real server", realServerTable, r.at) {
			b.roles.realServers = append(b.roles.realServers, r)
		}
	}
	for _, name := range raw.Director.names {
		if d := raw.Director.items[name]; b.named("director", realServerTable, d.at) {
			b.roles.directors = append(b.roles.directors, d)
		}
	}
	switch first := b.roles.ipvs.at; {
	case raw.IPVS.at == nil:
	case first != nil:
		raw.IPVS.at.badKey(fmt.Sprintf("[ipvs] stands already, at %s", first.pos()), "it is for the whole host: join the two")
	default:
		b.roles.ipvs = raw.IPVS
	}
}

// named judges the name of a role, which may become that of a table that begins
// with another word.
func (b *builder) named(kind, table string, at *node) bool {
	bad := tableName(at.name)
	if longest := maxTableName - len(table); bad == nil && len(at.name) > longest {
		bad = faultf("a name of letters, digits, _ and -", "the name of a role has at most %d bytes, this one has %d", longest, len(at.name))
	}
	if bad != nil {
		at.badKey(fmt.Sprintf("%s %q: %s", kind, at.name, bad.text), bad.hint)
		return false
	}
	role := kind + " " + at.name
	if earlier, twice := b.roles.names[role]; twice {
		at.badKey(fmt.Sprintf("%s is defined already, at %s", role, earlier),
			fmt.Sprintf("all keys of one %s stand in one file; give this one another name, or join the two", kind))
		return false
	}
	b.roles.names[role] = at.pos()
	return true
}

// finishRoles judges the roles, one by one and then beside each other.
func (b *builder) finishRoles(c *Config) {
	for _, raw := range b.roles.realServers {
		c.RealServers = append(c.RealServers, b.realServer(raw, c))
	}
	for _, raw := range b.roles.directors {
		c.Directors = append(c.Directors, b.director(raw, c))
	}
	if b.roles.ipvs.at != nil {
		c.IPVS = b.ipvs(b.roles.ipvs)
	}
	b.strangers(c)
	slices.SortStableFunc(c.RealServers, func(x, y RealServer) int { return strings.Compare(x.Name, y.Name) })
	slices.SortStableFunc(c.Directors, func(x, y Director) int { return strings.Compare(x.Name, y.Name) })
}

// forwardings are the modes by the words that operators know from elsewhere.
var forwardings = map[string]Forwarding{
	"nat": NAT, "masq": NAT, "masquerade": NAT, "masquerading": NAT, "snat": NAT, "dnat": NAT,
	"dr": DR, "dsr": DR, "direct": DR, "droute": DR, "route": DR, "gate": DR, "gateway": DR, "gatewaying": DR,
	"fullnat": FullNAT, "full-nat": FullNAT, "full_nat": FullNAT, "fnat": FullNAT,
	"tun": Tun, "tunnel": Tun, "ipip": Tun, "tunneling": Tun, "tunnelling": Tun,
}

// mode judges how packets come to a real server. It is "" when that is not known.
func mode(f field[string], at *node, role string, known []string) Forwarding {
	const all = `"tun" (in a tunnel), "dr" (as they came, in the same layer-2 network), "nat" (with another destination) or "fullnat" (with another source as well)`
	switch m := Forwarding(f.v); {
	case f.at == nil && !misspelt(at, "mode", known):
		at.badKey(role+" has no mode", `add the line mode = "tun", "dr", "nat" or "fullnat"`)
	case !f.ok:
	case m == NAT || m == DR || m == Tun || m == FullNAT:
		return m
	case forwardings[strings.ToLower(f.v)] != "":
		f.at.bad(fmt.Sprintf("mode cannot be %q", f.v), fmt.Sprintf("did you mean %q? %s", forwardings[strings.ToLower(f.v)], all))
	default:
		f.at.bad(fmt.Sprintf("mode cannot be %q", f.v), all)
	}
	return ""
}

// misspelt reports whether an unknown key, complained about already, is why a
// table has no key of that name.
func misspelt(at *node, name string, known []string) bool {
	return slices.ContainsFunc(at.keys, func(k string) bool {
		return !slices.Contains(known, k) && (near(k, known) == name || at.children[k].shape == table)
	})
}

// misplaced complains about keys that a role of this mode has no use for.
func misplaced(m Forwarding, why string, keys ...*node) {
	for _, k := range keys {
		if k != nil {
			k.badKey(fmt.Sprintf("%s is not a key of mode %s", k.name, m), why)
		}
	}
}

// addressList reads one address or a list of them. It is false when something
// was bad.
func addressList(f field[any], role string) ([]placedAddress, bool) {
	if f.at == nil {
		return nil, true
	}
	entries, good := []*node{f.at}, true
	if f.at.shape == array {
		if entries = f.at.elements; len(entries) == 0 {
			f.at.bad(f.at.name+" is an empty list", "an address, or a list of addresses")
			return nil, false
		}
	}
	var out []placedAddress
	for _, e := range entries {
		a, bad := netip.Addr{}, (*fault)(nil)
		text, isText := e.value.(string)
		if isText {
			a, bad = parseAddr(text)
		}
		switch {
		case !isText && e.element:
			e.mistyped(want{"an address", ""})
		case !isText:
			e.mistyped(want{"an address, or a list of addresses", ""})
		case bad != nil:
			e.bad(bad.text, bad.hint)
		case a.IsLinkLocalUnicast():
			e.bad(fmt.Sprintf("%s is a link-local address, which no router passes on", a), "an address that is reached from elsewhere")
		case slices.ContainsFunc(out, func(o placedAddress) bool { return o.addr == a }):
			e.bad(fmt.Sprintf("%s %s stands twice", f.at.name, a), "remove one of the two")
		default:
			out = append(out, placedAddress{a, e, role})
			continue
		}
		good = false
	}
	return out, good
}

func placedValues(list []placedAddress) []At[netip.Addr] {
	var out []At[netip.Addr]
	for _, p := range list {
		out = append(out, At[netip.Addr]{p.addr, p.at.pos()})
	}
	return out
}

var encapsulations = []string{"ipip", "gue", "gre"}

// tunnel judges the encapsulation of mode tun.
func tunnel(m Forwarding, encapsulation field[string], port field[int64]) Tunnel {
	if m.Translates() || m == DR {
		misplaced(m, "packets are encapsulated in mode tun alone", encapsulation.at, port.at)
		return Tunnel{}
	}
	t := Tunnel{Kind: "ipip"}
	if f := encapsulation; f.ok {
		t.Kind = f.v
		if !slices.Contains(encapsulations, f.v) {
			hint := `"ipip", "gue" (in UDP) or "gre"`
			if best := near(f.v, encapsulations); best != "" {
				hint = fmt.Sprintf("did you mean %q? %s", best, hint)
			}
			f.at.bad(fmt.Sprintf("encapsulation cannot be %q", f.v), hint)
			return t
		}
	}
	if v, ok := within(port, 1, 65535, "the UDP port of the tunnel"); ok {
		t.Port = uint16(v)
	}
	switch {
	case encapsulation.at != nil && !encapsulation.ok:
	case t.Kind == "gue" && port.at == nil:
		encapsulation.at.bad("encapsulation gue needs a UDP port", "add the line encapsulation_port = 6080, the same on the director and on its real servers")
	case t.Kind != "gue" && port.at != nil:
		port.at.badKey(fmt.Sprintf("encapsulation %s has no port", t.Kind), `remove the line, or add encapsulation = "gue"`)
	}
	return t
}

// leaveBy judges the uplink of a role's replies.
func (b *builder) leaveBy(f field[string], vips []placedAddress, c *Config) At[string] {
	if !f.ok {
		return At[string]{}
	}
	i := slices.IndexFunc(c.Uplinks, func(u Uplink) bool { return u.Name == f.v })
	if i >= 0 {
		for _, v := range vips {
			c.Uplinks[i].serves(v.at, v.addr)
		}
		return At[string]{f.v, f.at.pos()}
	}
	// A file that is checked alone does not tell what the others define.
	if !b.loader.folders {
		return At[string]{f.v, f.at.pos()}
	}
	var known []string
	for _, u := range c.Uplinks {
		known = append(known, u.Name)
	}
	slices.Sort(known)
	hint := "no uplink is defined: write the header [uplink.NAME], and its interface"
	if len(known) > 0 {
		hint = "the uplinks are " + strings.Join(known, ", ")
	}
	if best := near(f.v, known); best != "" {
		hint = fmt.Sprintf("did you mean %q? %s", best, hint)
	}
	f.at.bad(fmt.Sprintf("there is no uplink %q", f.v), hint)
	return At[string]{}
}

// claimVIP records a VIP of a role, and complains when another role has it and
// cannot share it.
func (b *builder) claimVIP(v placedVIP) {
	for _, earlier := range b.roles.holders[v.addr] {
		at := fmt.Sprintf("%s, at %s", earlier.role, earlier.at.pos())
		switch {
		case earlier.director != v.director:
			v.at.bad(fmt.Sprintf("VIP %s is in two roles, here and in %s", v.addr, at), "a host spreads the connections of a VIP or serves them; remove it from one of the two")
		case !v.director:
			v.at.bad(fmt.Sprintf("VIP %s is that of %s", v.addr, at), "a VIP comes in one mode, and stands on one interface: remove it from one of the two")
		case earlier.iface != "" && v.iface != "" && earlier.iface != v.iface:
			v.at.bad(fmt.Sprintf("VIP %s is put on %s here, and on %s by %s", v.addr, v.iface, earlier.iface, at), "an address stands on one interface: take the same in both, or name it in one of them alone")
		case earlier.uplink != "" && v.uplink != "" && earlier.uplink != v.uplink:
			v.at.bad(fmt.Sprintf("replies of VIP %s leave by uplink %s here, and by %s in %s", v.addr, v.uplink, earlier.uplink, at), "replies from an address leave by one uplink: take the same in both")
		default:
			continue
		}
		return
	}
	b.roles.vips = append(b.roles.vips, v)
	b.roles.holders[v.addr] = append(b.roles.holders[v.addr], v)
}

// strangers complains about addresses of roles that are something else as well.
func (b *builder) strangers(c *Config) {
	for _, r := range b.roles.rips {
		if v := b.roles.holders[r.addr]; len(v) > 0 {
			r.at.bad(fmt.Sprintf("%s is the VIP of %s, at %s", r.addr, v[0].role, v[0].at.pos()), "a real server is reached by an address of its own, the RIP")
		}
	}
	b.strangeSources()
	for _, d := range b.roles.dips {
		if v := b.roles.holders[d.addr]; len(v) > 0 {
			d.at.bad(fmt.Sprintf("%s is the VIP of %s on this host, at %s", d.addr, v[0].role, v[0].at.pos()), "the director's own address in the network of the real servers (the DIP) stands here")
		}
	}
	for _, v := range b.roles.vips {
		if o, both := b.addresses[v.addr]; both {
			v.at.bad(fmt.Sprintf("VIP %s stands in `addresses` of uplink %s, at %s", v.addr, o.uplink, o.at), "take it out there: replies of a VIP go by `uplink` of its role")
		}
		for _, u := range c.Uplinks {
			if v.addr == u.Gateway.IPv4 || v.addr == u.Gateway.IPv6 {
				v.at.bad(fmt.Sprintf("VIP %s is the gateway of uplink %s, at %s", v.addr, u.Name, u.Gateway.Pos), "a gateway is another host's address, and a VIP is this host's")
			}
		}
	}
	if sync := b.roles.ipvs.Sync.at; sync != nil && len(b.roles.crossings) > 0 {
		r := b.roles.crossings[0]
		sync.badKey(fmt.Sprintf("the kernel does not synchronise connections while a real server is not of its VIP's family: %s of %s, at %s", r.addr, r.role, r.at.pos()),
			"remove `sync`, or give the real server an address of the VIP's family")
	}
}
