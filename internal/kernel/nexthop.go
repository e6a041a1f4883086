package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// sizeofNhmsg is struct nhmsg: family, scope, protocol, a byte of nothing, flags
// (linux/nexthop.h).
const sizeofNhmsg = 8

// errNoNexthops is a kernel without nexthop objects, before 5.3.
var errNoNexthops = errors.New("this kernel has no nexthop objects")

// observedNexthop is a nexthop object as the kernel has it.
type observedNexthop struct {
	state.Nexthop
	// Members are those of a group, with their weights.
	Members []groupMember
	// Partial: it says more than state.Nexthop and members can.
	Partial bool
}

// written reports whether it is one that sisod may have made.
func (n observedNexthop) written() bool {
	return n.Protocol == state.Protocol && !n.Partial && n.Members == nil && checkNexthop(n.Nexthop) == nil
}

type groupMember struct {
	id     uint32
	weight int
}

// appendNexthop appends the body of RTM_NEWNEXTHOP. index is 0 for a link that is
// not there.
func appendNexthop(b []byte, n state.Nexthop, index func(string) int) ([]byte, error) {
	if err := checkNexthop(n); err != nil {
		return b, err
	}
	i, err := indexOf(n.Dev, index)
	if err != nil {
		return b, err
	}
	var flags uint32
	if n.OnLink {
		flags = unix.RTNH_F_ONLINK
	}
	b = append(b, addressFamily(n.Family), 0, n.Protocol, 0)
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = appendUint32(b, unix.NHA_ID, n.ID)
	b = appendUint32(b, unix.NHA_OIF, uint32(i))
	if n.Via.IsValid() {
		b = appendAddr(b, unix.NHA_GATEWAY, n.Via)
	}
	return b, nil
}

// appendNexthopRemoval appends the body of RTM_DELNEXTHOP.
func appendNexthopRemoval(b []byte, id uint32) []byte {
	return appendUint32(append(b, make([]byte, sizeofNhmsg)...), unix.NHA_ID, id)
}

// checkNexthop says why a nexthop would not read back as it was written.
func checkNexthop(n state.Nexthop) error {
	switch {
	case n.Family != state.IPv4 && n.Family != state.IPv6:
		return fmt.Errorf("the family %d is neither IPv4 nor IPv6", n.Family)
	case n.Family == state.IPv4 && !state.IsNexthopID(n.ID, state.IPv4),
		// The gateway of IPv4 routes may be of either.
		n.Family == state.IPv6 && !state.IsNexthopID(n.ID, state.IPv6) && !(n.Via.IsValid() && state.IsNexthopID(n.ID, state.IPv4)):
		return fmt.Errorf("the number %d is none of sisod's for %s", n.ID, n.Family)
	case n.Dev == "":
		return errors.New("no device")
	case n.Via.IsValid() && (n.Via.BitLen() != n.Family.Bits() || n.Via.Zone() != ""):
		return fmt.Errorf("the gateway %s is not for %s", n.Via, n.Family)
	case n.OnLink && !n.Via.IsValid():
		return errors.New("onlink needs a gateway")
	}
	return nil
}

// decodeNexthop reads the body of RTM_NEWNEXTHOP and RTM_DELNEXTHOP. name spells
// a link.
func decodeNexthop(b []byte, name func(int) string) (observedNexthop, error) {
	if len(b) < sizeofNhmsg {
		return observedNexthop{}, fmt.Errorf("read nexthop: %w", errMalformed)
	}
	n := observedNexthop{}
	n.Family, _ = familyOf(b[0])
	n.Protocol = b[2]
	n.OnLink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	a := attributes{rest: b[sizeofNhmsg:]}
	for a.next() {
		switch a.kind {
		case unix.NHA_ID:
			n.ID = a.uint32()
		case unix.NHA_OIF:
			if n.Dev = name(int(a.uint32())); n.Dev == "" {
				n.Partial = true
			}
		case unix.NHA_GATEWAY:
			n.Via = a.addr()
		case unix.NHA_GROUP:
			n.decodeGroup(&a)
		default:
			// A blackhole, an encapsulation, a table of bridges, and what is not
			// invented yet.
			n.Partial = true
		}
	}
	if a.err != nil {
		return observedNexthop{}, fmt.Errorf("read nexthop: %w", a.err)
	}
	return n, nil
}

// decodeGroup reads the members of a group, struct nexthop_grp each: an ID, a
// weight that counts from 0, three bytes of other matters.
func (n *observedNexthop) decodeGroup(a *attributes) {
	const size = 8
	n.Members = []groupMember{}
	if len(a.value)%size != 0 {
		a.err = errMalformed
		return
	}
	for m := range slices.Chunk(a.value, size) {
		n.Members = append(n.Members, groupMember{binary.NativeEndian.Uint32(m), int(m[4]) + 1})
	}
}

// nexthopTable is every nexthop object of the network namespace, by ID.
type nexthopTable map[uint32]observedNexthop

// hops are the next hops that an ID stands for, false when it is not known or
// says more than next hops can.
func (t nexthopTable) hops(id uint32) (state.Hops, bool) {
	n, known := t[id]
	members := n.Members
	if members == nil {
		members = []groupMember{{id, 1}}
	}
	var hops []state.Hop
	for _, m := range members {
		one, there := t[m.id]
		if !known || !there || one.Partial || one.Members != nil {
			return state.Hops{}, false
		}
		hops = append(hops, state.Hop{Via: one.Via, Dev: one.Dev, OnLink: one.OnLink, Weight: m.weight})
	}
	if len(hops) == 1 {
		hops[0].Weight = 1
	}
	return state.HopsOf(hops...), len(hops) > 0
}

// listNexthops lists the nexthop objects of all families.
func (c *conn) listNexthops() (nexthopTable, error) {
	return c.nexthopsBy(unix.RTM_GETNEXTHOP)
}

// nexthopsBy lists nexthop objects by a request of a kind. A kernel that does not
// know the kind has none.
func (c *conn) nexthopsBy(kind uint16) (nexthopTable, error) {
	table := nexthopTable{}
	request := message{kind: kind, body: make([]byte, sizeofNhmsg)}
	err := c.dump(request, func() { clear(table) }, func(kind uint16, body []byte) error {
		if kind != unix.RTM_NEWNEXTHOP {
			return nil
		}
		n, err := decodeNexthop(body, c.linkName)
		if err == nil {
			table[n.ID] = n
		}
		return err
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, errNoNexthops
	case err != nil:
		return nil, fmt.Errorf("list nexthops: %w", err)
	}
	return table, nil
}

// readNexthops reads the nexthop objects: sisod's, and which numbers are taken.
func (h *Host) readNexthops() error {
	table, err := h.conn.listNexthops()
	facts := state.NexthopFacts{}
	if errors.Is(err, errNoNexthops) {
		facts.Missing, err = err.Error(), nil
	}
	if err != nil {
		return err
	}
	own := map[uint32]state.Nexthop{}
	for id, n := range table {
		if n.written() {
			own[id] = n.Nexthop
			continue
		}
		if facts.Foreign == nil {
			facts.Foreign = map[uint32]bool{}
		}
		facts.Foreign[id] = true
	}
	h.conn.nexthops = table
	h.cached.Observed.Nexthops, h.cached.Facts.Nexthops = own, facts
	return nil
}

// applyNexthops carries out steps about nexthops and gives one error a step. One
// that is added must not be there: it would be somebody else's.
func (h *Host) applyNexthops(steps []state.Step) []error {
	errs := make([]error, len(steps))
	var msgs []message
	var places []int
	for i, s := range steps {
		n, ok := s.Object.(state.Nexthop)
		if !ok {
			errs[i] = fmt.Errorf("apply %s: not a nexthop", s.Object.Kind())
			continue
		}
		m := message{kind: unix.RTM_NEWNEXTHOP, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL}
		if s.Op == state.Replace {
			m.flags = unix.NLM_F_REPLACE
		}
		var err error
		if s.Op.Removes() {
			m = message{kind: unix.RTM_DELNEXTHOP, body: appendNexthopRemoval(nil, n.ID)}
		} else if m.body, err = appendNexthop(nil, n, h.links.index); err != nil {
			errs[i] = fmt.Errorf("%s nexthop %s: %w", s.Op, n, err)
			continue
		}
		msgs, places = append(msgs, m), append(places, i)
	}
	for k, err := range h.conn.do(msgs) {
		s := steps[places[k]]
		if err != nil && !(s.Op.Removes() && gone(err)) {
			errs[places[k]] = fmt.Errorf("%s nexthop %s: %w", s.Op, s.Object.Spell(nil), err)
		}
	}
	return errs
}

// withNexthop reports whether a route could not be deleted because its nexthop is not
// there any more, and so the route is not.
func withNexthop(r state.Route, err error) bool { return r.Nexthop != 0 && errors.Is(err, unix.EINVAL) }

// nexthop: routes go with their nexthop object, and without a word in IPv4. One of
// somebody else's that is replaced may lead main's default elsewhere.
func (s *baseline) nexthop(gone bool, flags uint16, body []byte) (Event, bool) {
	n, err := decodeNexthop(body, s.linkName)
	if err != nil {
		return Event{Parts: PartMain | PartRoutes, Reason: "a nexthop changed that could not be read"}, true
	}
	replaced := !gone && flags&unix.NLM_F_REPLACE != 0
	parts := Parts(0)
	switch {
	case n.Protocol == state.Protocol, state.IsNexthopID(n.ID, state.IPv4), state.IsNexthopID(n.ID, state.IPv6):
		parts = PartRoutes
	case replaced:
		parts = PartMain
	}
	did := "added"
	switch {
	case gone:
		did = "deleted"
	case replaced:
		did = "replaced"
	}
	return Event{Parts: parts, Reason: fmt.Sprintf("nexthop %d %s", n.ID, did)}, parts != 0
}
