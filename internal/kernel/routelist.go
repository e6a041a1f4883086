package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// routeFilter says which routes a dump is about. The zero value of a field
// filters nothing.
type routeFilter struct {
	family   state.Family // IPv4 or IPv6, always given
	table    uint32
	protocol uint8
	kind     state.RouteType
	oif      int
	// skips, which may be nil, spares routes of no interest the decoding.
	skips func(glance) bool
	// restart is called when the routes changed below the dump and it begins
	// again: what was yielded is void. Without it routes are gathered, and
	// yielded after the dump is complete.
	restart func()
	// another, which may be nil, is called in the place of yield for a route that
	// differs from the one before it in its destination alone.
	another func(dst netip.Prefix)
}

// dumpRoutes hands the routes that pass the filter to yield until that returns
// false. A table or a link that does not exist has none.
func (c *conn) dumpRoutes(filter routeFilter, yield func(observedRoute) bool) error {
	if filter.restart == nil {
		return c.gatherRoutes(filter, yield)
	}
	body := make([]byte, unix.SizeofRtMsg, 64)
	body[0] = addressFamily(filter.family)
	body[5] = filter.protocol
	body[7] = uint8(filter.kind)
	if filter.table != 0 {
		body = appendUint32(body, unix.RTA_TABLE, filter.table)
	}
	if filter.oif != 0 {
		body = appendUint32(body, unix.RTA_OIF, uint32(filter.oif))
	}
	oif := ""
	if filter.oif != 0 {
		if oif = c.linkName(filter.oif); oif == "" {
			return nil
		}
	}
	stopped, passed := false, false
	var before stencil
	err := c.dump(message{kind: unix.RTM_GETROUTE, body: body}, func() { filter.restart(); stopped, before = false, stencil{} },
		func(kind uint16, body []byte) error {
			if kind != unix.RTM_NEWROUTE || stopped {
				return nil
			}
			if filter.another != nil {
				if dst, ok := before.read(body); ok {
					if passed {
						filter.another(dst)
					}
					return nil
				}
			}
			if filter.skips != nil && filter.skips(glanceAt(body)) {
				return nil
			}
			r, err := decodeRoute(body, c.linkName)
			if err != nil {
				return err
			}
			before.cut(body)
			if r.Object != 0 && r.Hops.None() {
				r.Hops, _ = c.nexthops.hops(r.Object)
			}
			led := r
			if oif != "" && r.Nexthop != 0 {
				led.Hops, _ = c.nexthops.hops(r.Nexthop)
			}
			if passed = filter.passes(led, oif); passed {
				stopped = !yield(r)
			}
			return nil
		})
	if c.strict && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)) {
		// The strict answer for a table or a link that is not there.
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s routes: %w", filter.family, err)
	}
	return nil
}

// gatherRoutes is dumpRoutes for a caller that cannot begin again.
func (c *conn) gatherRoutes(filter routeFilter, yield func(observedRoute) bool) error {
	var routes []observedRoute
	filter.restart = func() { routes = nil }
	err := c.dumpRoutes(filter, func(r observedRoute) bool {
		routes = append(routes, r)
		return true
	})
	if err != nil {
		return err
	}
	for _, r := range routes {
		if !yield(r) {
			break
		}
	}
	return nil
}

// passes repeats the filter for kernels that do not filter, and leaves out
// what the kernel itself learned from packets.
func (f routeFilter) passes(r observedRoute, oif string) bool {
	switch {
	case r.Flags&unix.RTM_F_CLONED != 0,
		r.Family != f.family,
		f.table != 0 && r.Table != f.table,
		f.kind != 0 && r.Type != f.kind,
		f.protocol != 0 && r.Protocol != f.protocol:
		return false
	case oif == "":
		return true
	}
	return r.Hops.By(oif)
}

// glance is what costs little to see of a route's message.
type glance struct {
	table    uint8 // RT_TABLE_COMPAT for a large number
	bits     uint8 // the length of the destination
	protocol uint8
	kind     state.RouteType
	oif      int  // 0: none, or several
	gateway  bool // there is one
	several  bool // next hops
	object   bool // a nexthop object stands for them
}

// glanceAt looks at the body of RTM_NEWROUTE. One that is malformed is left to
// decodeRoute: it looks like a default.
func glanceAt(b []byte) (g glance) {
	if len(b) < unix.SizeofRtMsg {
		return glance{}
	}
	g = glance{table: b[4], bits: b[1], protocol: b[5], kind: state.RouteType(b[7])}
	a := attributes{rest: b[unix.SizeofRtMsg:]}
	for a.next() {
		switch a.kind {
		case unix.RTA_OIF:
			g.oif = int(a.uint32())
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			g.gateway = true
		case unix.RTA_MULTIPATH:
			g.several = true
		case rtaNexthop:
			g.object = true
		}
	}
	if a.err != nil {
		return glance{}
	}
	return g
}
