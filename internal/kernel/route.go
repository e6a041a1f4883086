package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

const (
	// The kernel lowers what is above without a word (net/ipv4/metrics.c).
	largestMTU    = 65535 - 15
	largestAdvMSS = 65535 - 40

	rtaNexthop = 30 // RTA_NH_ID (linux/rtnetlink.h)

	largestWeight = 256 // rtnh_hops is one byte and counts from 0
)

// observedRoute is a route as the kernel has it.
type observedRoute struct {
	state.Route
	Flags uint32 // rtm_flags, with the flags of every next hop (RTNH_F_*, RTM_F_*)
	Scope uint8  // rtm_scope; IPv6 has none
	// Object is the nexthop object of a route, one of somebody else's, 0: none. Its
	// next hops may not be told with it (net.ipv4.nexthop_compat_mode).
	Object uint32
	// Partial: the route says more than state.Route can. It is none that sisod wrote.
	Partial bool
}

// appendRoute appends the body of RTM_NEWROUTE. It refuses what the kernel
// would take and give back as something else. index is 0 for a link that is
// not there.
func appendRoute(b []byte, dst netip.Prefix, w state.Way, index func(string) int) ([]byte, error) {
	if err := checkRoute(dst, w); err != nil {
		return b, err
	}
	header := len(b)
	b = append(b, addressFamily(w.Family), byte(dst.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, w.Protocol, scopeOf(w), byte(w.Type), 0, 0, 0, 0)
	if dst.Bits() != 0 {
		b = appendAddr(b, unix.RTA_DST, dst.Addr())
	}
	b = appendUint32(b, unix.RTA_TABLE, w.Table)
	if w.Metric != 0 {
		b = appendUint32(b, unix.RTA_PRIORITY, w.Metric)
	}
	if w.Src.IsValid() {
		b = appendAddr(b, unix.RTA_PREFSRC, w.Src)
	}
	b = appendMetrics(b, w)
	if w.Nexthop != 0 {
		return appendUint32(b, rtaNexthop, w.Nexthop), nil
	}
	if hop, single := w.Hops.Single(); single {
		if hop.OnLink {
			binary.NativeEndian.PutUint32(b[header+8:], unix.RTNH_F_ONLINK)
		}
		b = appendVia(b, w.Family, hop.Via)
		if hop.Dev != "" {
			i, err := indexOf(hop.Dev, index)
			if err != nil {
				return b, err
			}
			b = appendUint32(b, unix.RTA_OIF, uint32(i))
		}
		return b, nil
	}
	return appendHops(b, w, index)
}

// appendRouteRemoval appends the body of RTM_DELROUTE: all that the route says,
// so that no other to the same destination goes in its place.
func appendRouteRemoval(b []byte, dst netip.Prefix, w state.Way, index func(string) int) ([]byte, error) {
	header := len(b)
	b, err := appendRoute(b, dst, w, index)
	if err == nil && w.Family == state.IPv4 {
		// The one thing that state.Way does not know; NOWHERE stands for any.
		b[header+6] = unix.RT_SCOPE_NOWHERE
	}
	return b, err
}

// appendHops appends the next hops of a multipath route.
func appendHops(b []byte, w state.Way, index func(string) int) ([]byte, error) {
	hops := w.Hops.All()
	if len(hops) == 0 {
		return b, nil
	}
	b, nest := openNest(b, unix.RTA_MULTIPATH)
	for _, h := range hops {
		i, err := indexOf(h.Dev, index)
		if err != nil {
			return b, err
		}
		start := len(b)
		var flags byte
		if h.OnLink {
			flags = unix.RTNH_F_ONLINK
		}
		b = append(b, 0, 0, flags, byte(h.Weight-1))
		b = binary.NativeEndian.AppendUint32(b, uint32(i))
		b = appendVia(b, w.Family, h.Via)
		binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	}
	closeNest(b, nest)
	return b, nil
}

func indexOf(dev string, index func(string) int) (int, error) {
	if dev == "" {
		return 0, nil
	}
	if i := index(dev); i != 0 {
		return i, nil
	}
	return 0, fmt.Errorf("device %s: %w", dev, unix.ENODEV)
}

// appendVia appends a gateway: of the route's own family, or, IPv4 only, an
// IPv6 one.
func appendVia(b []byte, f state.Family, via netip.Addr) []byte {
	switch {
	case !via.IsValid():
		return b
	case f == state.IPv4 && via.Is6():
		v := binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
		return appendAttribute(b, unix.RTA_VIA, append(v, via.AsSlice()...)...)
	}
	return appendAddr(b, unix.RTA_GATEWAY, via)
}

func appendMetrics(b []byte, w state.Way) []byte {
	if w.MTU == 0 && w.AdvMSS == 0 && w.InitCwnd == 0 && !w.QuickAck {
		return b
	}
	b, nest := openNest(b, unix.RTA_METRICS)
	if w.MTU != 0 {
		b = appendUint32(b, unix.RTAX_MTU, w.MTU)
	}
	if w.AdvMSS != 0 {
		b = appendUint32(b, unix.RTAX_ADVMSS, w.AdvMSS)
	}
	if w.InitCwnd != 0 {
		b = appendUint32(b, unix.RTAX_INITCWND, w.InitCwnd)
	}
	if w.QuickAck {
		b = appendUint32(b, unix.RTAX_QUICKACK, 1)
	}
	closeNest(b, nest)
	return b
}

// scopeOf is how far an IPv4 destination is: a gateway's scope must be nearer
// than that of the route by it (net/ipv4/fib_semantics.c, fib_check_nh).
func scopeOf(w state.Way) byte {
	switch {
	case w.Family == state.IPv6:
		return unix.RT_SCOPE_UNIVERSE
	case w.Type == state.Local:
		return unix.RT_SCOPE_HOST
	case w.Type != state.Unicast, w.Nexthop != 0:
		return unix.RT_SCOPE_UNIVERSE
	}
	for _, h := range w.Hops.All() {
		if h.Via.IsValid() {
			return unix.RT_SCOPE_UNIVERSE
		}
	}
	return unix.RT_SCOPE_LINK
}

// rejects reports whether packets of the type go nowhere. Such a route has no next hop.
func rejects(t state.RouteType) bool {
	switch t {
	case state.Blackhole, state.Unreachable, state.Prohibit, state.Throw:
		return true
	}
	return false
}

// checkRoute says why a route would not read back as it was written.
func checkRoute(dst netip.Prefix, w state.Way) error {
	switch {
	case !dst.IsValid() || dst.Addr().BitLen() != w.Family.Bits():
		return fmt.Errorf("the destination %s is not %s", dst, w.Family)
	case (w.Family == state.IPv6 || dst.Bits() == 0) && dst != dst.Masked():
		return fmt.Errorf("the destination %s has bits beyond its length", dst)
	case w.Table == state.TableUnspec:
		return errors.New("no table")
	case w.Family == state.IPv6 && w.Metric == 0:
		return errors.New("IPv6 has no metric 0")
	case w.Src.IsValid() && w.Src.BitLen() != w.Family.Bits():
		return fmt.Errorf("the source %s is not %s", w.Src, w.Family)
	case w.MTU > largestMTU:
		return fmt.Errorf("the largest mtu is %d", largestMTU)
	case w.AdvMSS > largestAdvMSS:
		return fmt.Errorf("the largest advmss is %d", largestAdvMSS)
	}
	hops := w.Hops.All()
	if w.Nexthop != 0 {
		switch {
		case !state.IsNexthopID(w.Nexthop, w.Family):
			return fmt.Errorf("the nexthop %d is none of sisod's for %s", w.Nexthop, w.Family)
		case w.Type != state.Unicast || len(hops) > 0:
			return fmt.Errorf("%s with the nexthop %d and %d next hops", w.Type, w.Nexthop, len(hops))
		}
		return nil
	}
	if rejects(w.Type) != (len(hops) == 0) {
		return fmt.Errorf("%s with %d next hops", w.Type, len(hops))
	}
	for _, h := range hops {
		switch {
		case h.Via.Zone() != "" || h.Via.Is4() && w.Family == state.IPv6:
			return fmt.Errorf("the gateway %s is not for %s", h.Via, w.Family)
		case h.OnLink && (!h.Via.IsValid() || h.Dev == ""):
			return errors.New("onlink needs a gateway and a device")
		case len(hops) == 1 && h.Weight != 1:
			return fmt.Errorf("an only next hop has weight 1, not %d", h.Weight)
		case h.Weight < 1 || h.Weight > largestWeight:
			return fmt.Errorf("the weight %d is not from 1 to %d", h.Weight, largestWeight)
		}
	}
	return nil
}

// decodeRoute reads the body of RTM_NEWROUTE. name spells a link.
func decodeRoute(b []byte, name func(int) string) (observedRoute, error) {
	if len(b) < unix.SizeofRtMsg {
		return observedRoute{}, fmt.Errorf("read route: %w", errMalformed)
	}
	family, ok := familyOf(b[0])
	if !ok {
		return observedRoute{}, fmt.Errorf("read route: family %d is neither IPv4 nor IPv6", b[0])
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	r := observedRoute{Flags: flags, Scope: b[6]}
	r.Family, r.Table, r.Protocol, r.Type = family, uint32(b[4]), b[5], state.RouteType(b[7])
	r.Partial = b[3] != 0 // a TOS
	var (
		dst     netip.Addr
		hop     state.Hop
		several []state.Hop
		oif     uint32
	)
	a := attributes{rest: b[unix.SizeofRtMsg:]}
	for a.next() {
		switch a.kind {
		case unix.RTA_DST:
			dst = a.addr()
		case unix.RTA_TABLE:
			r.Table = a.uint32()
		case unix.RTA_PRIORITY:
			r.Metric = a.uint32()
		case unix.RTA_PREFSRC:
			r.Src = a.addr()
		case unix.RTA_OIF:
			oif = a.uint32()
		case unix.RTA_GATEWAY:
			hop.Via = a.addr()
		case unix.RTA_VIA:
			hop.Via = a.via()
		case unix.RTA_METRICS:
			r.decodeMetrics(&a)
		case unix.RTA_MULTIPATH:
			several = r.decodeHops(&a, name)
		case unix.RTA_CACHEINFO:
			// rta_expires is the third of its numbers: a route that will go by itself.
			r.Partial = r.Partial || len(a.value) >= 12 && binary.NativeEndian.Uint32(a.value[8:]) != 0
		case rtaNexthop:
			r.Nexthop = a.uint32()
		case unix.RTA_PREF, unix.RTA_PAD:
		default:
			// realms, encap, a source prefix, and what is not invented yet.
			r.Partial = true
		}
	}
	if a.err != nil {
		return observedRoute{}, fmt.Errorf("read route: %w", a.err)
	}
	var err error
	if r.Dst, err = decodePrefix(dst, b[1], family); err != nil {
		return observedRoute{}, fmt.Errorf("read route: %w", err)
	}
	if r.Dst.Bits() <= 0 {
		r.Dst = state.AnyDestination(family)
	}
	if r.Nexthop != 0 && (r.Protocol != state.Protocol || !state.IsNexthopID(r.Nexthop, family)) {
		r.Object, r.Nexthop, r.Partial = r.Nexthop, 0, true
	}
	switch {
	case r.Nexthop != 0:
		// What it resolves to now is the nexthop's matter.
	case rejects(r.Type):
		// IPv6 shows lo, whatever was asked for.
	case several != nil:
		r.Hops = state.HopsOf(several...)
	case oif != 0 || hop.Via.IsValid():
		hop.Weight, hop.OnLink = 1, flags&unix.RTNH_F_ONLINK != 0
		hop.Dev = r.linkName(oif, name)
		r.Hops = state.HopsOf(hop)
	}
	r.Partial = r.Partial || checkRoute(r.Dst, r.Way) != nil
	return r, nil
}

// linkName spells a link, and marks the route when the link has gone meanwhile.
func (r *observedRoute) linkName(index uint32, name func(int) string) string {
	if index == 0 {
		return ""
	}
	if s := name(int(index)); s != "" {
		return s
	}
	r.Partial = true
	return "if" + strconv.Itoa(int(index))
}

func (r *observedRoute) decodeMetrics(parent *attributes) {
	a := attributes{rest: parent.value}
	for a.next() {
		switch a.kind {
		case unix.RTAX_MTU:
			r.MTU = a.uint32()
		case unix.RTAX_ADVMSS:
			r.AdvMSS = a.uint32()
		case unix.RTAX_INITCWND:
			r.InitCwnd = a.uint32()
		case unix.RTAX_QUICKACK:
			v := a.uint32()
			r.QuickAck = v != 0
			r.Partial = r.Partial || v > 1
		default:
			// hoplimit, rtt, congctl, a locked mtu and the rest.
			r.Partial = true
		}
	}
	if a.err != nil {
		parent.err = a.err
	}
}

func (r *observedRoute) decodeHops(parent *attributes, name func(int) string) []state.Hop {
	hops := []state.Hop{}
	for b := parent.value; len(b) > 0; {
		if len(b) < unix.SizeofRtNexthop {
			parent.err = errMalformed
			return nil
		}
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			parent.err = errMalformed
			return nil
		}
		flags := uint32(b[2])
		r.Flags |= flags
		h := state.Hop{
			OnLink: flags&unix.RTNH_F_ONLINK != 0,
			Weight: int(b[3]) + 1,
			Dev:    r.linkName(binary.NativeEndian.Uint32(b[4:]), name),
		}
		a := attributes{rest: b[unix.SizeofRtNexthop:length]}
		for a.next() {
			switch a.kind {
			case unix.RTA_GATEWAY:
				h.Via = a.addr()
			case unix.RTA_VIA:
				h.Via = a.via()
			default:
				r.Partial = true
			}
		}
		if a.err != nil {
			parent.err = a.err
			return nil
		}
		hops = append(hops, h)
		b = b[min(alignAttribute(length), len(b)):]
	}
	return hops
}

// via reads struct rtvia: a family and an address of it.
func (a *attributes) via() netip.Addr {
	if len(a.value) < 2 {
		a.err = errMalformed
		return netip.Addr{}
	}
	addr, ok := netip.AddrFromSlice(a.value[2:])
	if !ok {
		a.err = errMalformed
	}
	return addr
}
