package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// baseline is what events are compared with: the kernel also speaks when nothing
// that matters has changed.
type baseline struct {
	links      map[int]seenLink // by index
	addresses  map[seenAddress]seenAddressState
	values     map[netconfKey]int32
	interfaces map[string]bool
	tables     map[uint32]bool
	ownGroups  echoes[int, uint32]
	ownValues  echoes[netconfKey, int32]
	ownVIPs    echoes[seenAddress, bool] // of IPv6: added or deleted
}

// echoes are the kernel's announcements, still to come, of what this process
// did where the message does not say who it was.
type echoes[K, V comparable] map[K][]V

// take reports whether the value is the next one to come. When it is not,
// somebody else is at it as well, and everything is told.
func (e echoes[K, V]) take(key K, value V) bool {
	due := e[key]
	if len(due) == 0 {
		return false
	}
	if due[0] != value || len(due) == 1 {
		delete(e, key)
	} else {
		e[key] = due[1:]
	}
	return due[0] == value
}

// linkFlags are the flags of a link that a plan depends on.
const linkFlags = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING | unix.IFF_NOARP | unix.IFF_POINTOPOINT | unix.IFF_LOOPBACK

type seenLink struct {
	name      string
	flags     uint32
	group     uint32
	mtu       uint32
	operstate uint8
	// carriers counts how often it came to have a carrier. One that was lost for a
	// moment only is told when it is there again.
	carriers uint32
}

type seenAddress struct {
	index  int
	prefix netip.Prefix
	peer   netip.Addr
}

type seenAddressState struct {
	flags uint32
	scope uint8
}

// netconfKey is a value that RTM_NEWNETCONF announces; the index of "all"
// and "default" is negative.
type netconfKey struct {
	ipv6  bool
	index int
	value string
}

// Attributes of RTM_NEWNETCONF (linux/netconf.h).
const (
	netconfIfindex = 1
	netconfAll     = -1 // the indices of conf/all and conf/default
	netconfDefault = -2
)

// netconfNames are the files below conf/IF whose changes the kernel announces,
// by attribute.
var netconfNames = map[uint16]string{
	2: "forwarding", 3: "rp_filter", 4: "mc_forwarding", 5: "proxy_arp", 6: "ignore_routes_with_linkdown", 8: "bc_forwarding",
}

// announced reports whether the kernel tells of changes of a file below conf/IF.
func announced(name string) bool {
	for _, n := range netconfNames {
		if n == name {
			return true
		}
	}
	return false
}

// interpret says what a message of the kernel makes stale. own is whether it
// was caused by a request of this process.
func (s *baseline) interpret(kind, flags uint16, body []byte, own bool) (Event, bool) {
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return s.link(kind == unix.RTM_DELLINK, body)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return s.address(kind == unix.RTM_DELADDR, body, own)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if own {
			return Event{}, false
		}
		return s.route(kind == unix.RTM_DELROUTE, flags, body)
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		if own {
			return Event{}, false
		}
		return s.nexthop(kind == unix.RTM_DELNEXTHOP, flags, body)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if own {
			return Event{}, false
		}
		return rule(kind == unix.RTM_DELRULE, body)
	case unix.RTM_NEWNETCONF:
		return s.netconf(body)
	}
	return Event{}, false
}

// linkParts: a link that goes down takes its IPv4 routes along and says
// nothing of them; one that comes has values of its own.
const linkParts = PartLinks | PartMain | PartRoutes | PartValues

func (s *baseline) link(gone bool, body []byte) (Event, bool) {
	index, now, ok := decodeSeenLink(body)
	if !ok {
		return Event{}, false
	}
	before, known := s.links[index]
	if gone {
		delete(s.links, index)
		for a := range s.addresses {
			if a.index == index {
				delete(s.addresses, a)
			}
		}
		return Event{Parts: linkParts, Reason: fmt.Sprintf("link %s removed", now.name), Link: s.narrow(now)}, true
	}
	s.links[index] = now
	if known && before.group != now.group && s.ownGroups.take(index, now.group) {
		before.group = now.group
	}
	if known && before == now {
		return Event{}, false
	}
	event := Event{Parts: linkParts, Reason: "link " + linkChange(before, now, known), Link: s.narrow(now)}
	switch {
	case known && before.name != now.name:
		event.Link = ""
	case known && (before.flags&unix.IFF_UP == 0 || now.flags&unix.IFF_UP != 0):
		// It has not gone down, and took no route along.
		event.Parts &^= PartRoutes
	}
	// Replies of an uplink are unreachable until its routes are back.
	gained := ^before.flags & now.flags & (unix.IFF_UP | unix.IFF_LOWER_UP)
	event.Urgent = s.interfaces[now.name] && (!known || gained != 0)
	if known && before.carriers != now.carriers && now.flags&unix.IFF_LOWER_UP != 0 {
		event.Carrier = now.name
	}
	return event, true
}

// narrow is the name of a link when a change of it concerns no other's routes. Of
// those that are point-to-point, VPNs among them, all of main is of interest.
func (s *baseline) narrow(l seenLink) string {
	if l.flags&unix.IFF_POINTOPOINT != 0 && !s.interfaces[l.name] {
		return ""
	}
	return l.name
}

// linkChange words the most telling difference.
func linkChange(before, now seenLink, known bool) string {
	changed := before.flags ^ now.flags
	switch {
	case !known:
		return now.name + " added"
	case before.name != now.name:
		return before.name + " renamed to " + now.name
	case changed&unix.IFF_UP != 0 && now.flags&unix.IFF_UP != 0:
		return now.name + " up"
	case changed&unix.IFF_UP != 0:
		return now.name + " down"
	case (changed&(unix.IFF_LOWER_UP|unix.IFF_RUNNING) != 0 || before.carriers != now.carriers) && now.flags&unix.IFF_LOWER_UP != 0:
		return now.name + " has carrier"
	case changed&(unix.IFF_LOWER_UP|unix.IFF_RUNNING) != 0:
		return now.name + " lost carrier"
	case before.group != now.group:
		return fmt.Sprintf("%s put into group %d", now.name, now.group)
	case before.mtu != now.mtu:
		return fmt.Sprintf("%s has mtu %d", now.name, now.mtu)
	}
	return now.name + " changed"
}

// addressParts: an address that goes takes IPv4 routes along, and says nothing of them.
// What comes with one is told by itself.
const addressParts = PartLinks | PartMain | PartRoutes

func (s *baseline) address(gone bool, body []byte, own bool) (Event, bool) {
	a, now, ok := decodeSeenAddress(body)
	if !ok {
		return Event{}, false
	}
	before, known := s.addresses[a]
	did := "added on"
	switch {
	case gone:
		delete(s.addresses, a)
		did = "removed from"
	case known && before == now:
		// A lifetime was extended.
		return Event{}, false
	case known:
		did = "changed on"
	}
	if !gone {
		s.addresses[a] = now
	}
	if own || s.ownVIPs.take(a, !gone) {
		return Event{}, false
	}
	link := s.linkName(a.index)
	parts := addressParts
	if !gone {
		parts = PartLinks
	}
	return Event{
		Parts: parts, Reason: fmt.Sprintf("address %s %s %s", a.prefix, did, link), Link: link, Family: familyOfAddr(a.prefix.Addr()),
		// What starts from a new address goes as main decides until it has its rule.
		Urgent: !gone,
	}, true
}

func (s *baseline) route(gone bool, flags uint16, body []byte) (Event, bool) {
	if flags&unix.NLM_F_REPLACE == 0 && s.concernsNobody(glanceAt(body)) {
		return Event{}, false
	}
	r, err := decodeRoute(body, s.linkName)
	if err != nil {
		return Event{Parts: PartMain | PartRoutes, Reason: "a route changed that could not be read"}, true
	}
	parts := s.relevantRoute(r, flags&unix.NLM_F_REPLACE != 0)
	if parts == 0 {
		return Event{}, false
	}
	did := "added"
	switch {
	case gone:
		did = "deleted"
	case flags&unix.NLM_F_REPLACE != 0:
		did = "replaced"
	}
	event := Event{Parts: parts, Reason: fmt.Sprintf("route %s %s", r.Route, did), Family: r.Family}
	if r.Table != state.TableMain {
		event.Table = r.Table
	}
	// What comes with a link or an address, and the way out.
	event.Urgent = !gone && parts&PartMain != 0 && (r.Protocol == unix.RTPROT_KERNEL || r.Dst.Bits() == 0 && hostProtocol(r.Protocol))
	if hop, single := r.Hops.Single(); single && s.knows(hop.Dev) && flags&unix.NLM_F_REPLACE == 0 && r.Dst.Bits() != 1 {
		event.Link = hop.Dev
	}
	return event, true
}

// concernsNobody reports whether a route is one of main's by a link that nobody follows.
// There may be very many, and this costs less than relevantRoute.
func (s *baseline) concernsNobody(g glance) bool {
	l, known := s.links[g.oif]
	return known && !s.interfaces[l.name] && g.table == state.TableMain && g.bits > 0 && g.protocol != state.Protocol && !g.several
}

// relevantRoute is what of a route decides whether it matters.
func (s *baseline) relevantRoute(r observedRoute, replaces bool) Parts {
	switch {
	case r.Flags&unix.RTM_F_CLONED != 0:
		return 0
	case r.Protocol == state.Protocol || s.tables[r.Table]:
		return PartRoutes
	case r.Dst.Bits() == 0 && r.Table == state.TableMain:
		return PartMain
	case r.Dst.Bits() == 0 && hostProtocol(r.Protocol) && s.onInterest(r):
		return PartMain
	case r.Table == state.TableMain && hostProtocol(r.Protocol) && (s.onInterest(r) || replaces):
		// A route that replaces another says nothing of where that one led.
		return PartMain
	}
	return 0
}

// onInterest reports whether the route leaves by an interface of interest, or
// by one that is not known.
func (s *baseline) onInterest(r observedRoute) bool {
	if r.Object != 0 && r.Hops.None() {
		return true
	}
	for _, hop := range r.Hops.All() {
		if s.interfaces[hop.Dev] || !s.knows(hop.Dev) {
			return true
		}
	}
	return false
}

func rule(gone bool, body []byte) (Event, bool) {
	did := "added"
	if gone {
		did = "deleted"
	}
	r, err := decodeRule(body)
	if err != nil {
		return Event{Parts: PartRules, Reason: "rule " + did}, true
	}
	return Event{Parts: PartRules, Reason: fmt.Sprintf("rule %d %s", r.Priority, did)}, true
}

func (s *baseline) netconf(body []byte) (Event, bool) {
	// struct netconfmsg is one byte of family, aligned to four.
	if len(body) < 4 || body[0] != unix.AF_INET && body[0] != unix.AF_INET6 {
		return Event{}, false
	}
	key := netconfKey{ipv6: body[0] == unix.AF_INET6}
	values := map[string]int32{}
	a := attributes{rest: body[4:]}
	for a.next() {
		if len(a.value) != 4 {
			continue
		}
		v := int32(a.uint32())
		if a.kind == netconfIfindex {
			key.index = int(v)
		} else if name, ok := netconfNames[a.kind]; ok {
			values[name] = v
		}
	}
	var changed []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		key.value = name
		before, known := s.values[key]
		if !s.ownValues.take(key, values[name]) && (!known || before != values[name]) {
			changed = append(changed, name)
		}
		s.values[key] = values[name]
	}
	if len(changed) == 0 {
		return Event{}, false
	}
	family := "ipv4"
	if key.ipv6 {
		family = "ipv6"
	}
	return Event{Parts: PartValues, Reason: fmt.Sprintf("sysctl net/%s/conf/%s/%s changed", family, s.linkName(key.index), strings.Join(changed, ","))}, true
}

// linkName spells an index, "" when no such link was seen.
func (s *baseline) linkName(index int) string {
	switch index {
	case netconfAll:
		return "all"
	case netconfDefault:
		return "default"
	}
	return s.links[index].name
}

// knows reports whether a link of that name was seen.
func (s *baseline) knows(name string) bool {
	for _, l := range s.links {
		if l.name == name {
			return true
		}
	}
	return false
}

// decodeSeenLink reads RTM_NEWLINK. A bridge's message about its port is not one.
func decodeSeenLink(body []byte) (index int, l seenLink, ok bool) {
	if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
		return 0, seenLink{}, false
	}
	index = int(int32(binary.NativeEndian.Uint32(body[4:])))
	l.flags = binary.NativeEndian.Uint32(body[8:]) & linkFlags
	a := attributes{rest: body[unix.SizeofIfInfomsg:]}
	for a.next() {
		switch a.kind {
		case unix.IFLA_IFNAME:
			l.name = a.text()
		case unix.IFLA_GROUP:
			l.group = a.uint32()
		case unix.IFLA_MTU:
			l.mtu = a.uint32()
		case unix.IFLA_OPERSTATE:
			l.operstate = a.uint8()
		case unix.IFLA_CARRIER_UP_COUNT:
			l.carriers = a.uint32()
		}
	}
	return index, l, a.err == nil && l.name != ""
}

// decodeSeenAddress reads RTM_NEWADDR.
func decodeSeenAddress(body []byte) (seenAddress, seenAddressState, bool) {
	if len(body) < unix.SizeofIfAddrmsg {
		return seenAddress{}, seenAddressState{}, false
	}
	s := seenAddressState{flags: uint32(body[2]), scope: body[3]}
	key := seenAddress{index: int(binary.NativeEndian.Uint32(body[4:]))}
	var local, address netip.Addr
	a := attributes{rest: body[unix.SizeofIfAddrmsg:]}
	for a.next() {
		switch a.kind {
		case unix.IFA_LOCAL:
			local = a.addr()
		case unix.IFA_ADDRESS:
			address = a.addr()
		case unix.IFA_FLAGS:
			s.flags = a.uint32()
		}
	}
	bits := int(body[1])
	switch {
	case !local.IsValid():
		local = address
	case !address.IsValid():
		// The other end is 0.0.0.0, and the length that of its network.
		bits = local.BitLen()
	case local != address:
		key.peer = address
	}
	key.prefix = netip.PrefixFrom(local, bits)
	return key, s, a.err == nil && local.IsValid()
}
