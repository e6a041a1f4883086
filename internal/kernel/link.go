package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

const (
	// linkReads is how often both lists are read while an address is of a link that
	// only came between the two.
	linkReads = 8

	skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS (linux/rtnetlink.h)
)

// links is what one network namespace has of interfaces and addresses, as of
// the last read. The index of a link lives here and nowhere outside this room.
type links struct {
	handle *netlink.Handle
	// conn is for lists of them. A list of routes may ask for a link in its midst.
	conn    *conn
	list    []state.Link
	addrs   []state.Address
	byIndex map[int]int // position in list
	byName  map[string]int
	// listener hears of changes before they are made, so that the kernel's echo
	// of them is not taken for somebody else's doing. Nil while nobody listens.
	listener *Events
}

// openLinks opens sockets in the network namespace of the calling thread.
func openLinks() (*links, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for links: %w", err)
	}
	c, err := openConn(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, err
	}
	return &links{handle: h, conn: c}, nil
}

func (l *links) close() {
	l.conn.close()
	l.handle.Close()
}

// read takes in all links and addresses. After an error the result of the
// read before stands.
func (l *links) read() error {
	var err error
	for range linkReads {
		if err = l.readOnce(); !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("read links and addresses: %w", err)
	}
	return nil
}

func (l *links) readOnce() error {
	next := links{}
	restart := func() { next.list, next.byIndex, next.byName = nil, map[int]int{}, map[string]int{} }
	restart()
	err := l.conn.eachLink(restart, func(index int, s seenLink) {
		next.byIndex[index] = len(next.list)
		next.byName[s.name] = len(next.list)
		next.list = append(next.list, state.Link{
			Name:         s.name,
			Index:        index,
			Group:        s.group,
			MTU:          int(s.mtu),
			Up:           s.flags&unix.IFF_UP != 0,
			Carrier:      s.flags&unix.IFF_LOWER_UP != 0,
			Loopback:     s.flags&unix.IFF_LOOPBACK != 0,
			PointToPoint: s.flags&unix.IFF_POINTOPOINT != 0,
			NoARP:        s.flags&unix.IFF_NOARP != 0,
		})
	})
	if err != nil {
		return err
	}
	var stranger error
	next.addrs = make([]state.Address, 0, len(l.addrs))
	err = l.conn.eachAddress(func() { next.addrs, stranger = next.addrs[:0], nil }, func(a seenAddress, s seenAddressState) {
		name := next.name(a.index)
		if name == "" {
			stranger = fmt.Errorf("address %s of link %d: %w", a.prefix, a.index, unix.ENODEV)
		}
		next.addrs = append(next.addrs, addressOf(name, a, s))
	})
	if err = cmp.Or(err, stranger); err != nil {
		return err
	}
	l.list, l.addrs, l.byIndex, l.byName = next.list, next.addrs, next.byIndex, next.byName
	return nil
}

// eachLink lists the links. What each saw before a call of restart is void.
func (c *conn) eachLink(restart func(), each func(index int, l seenLink)) error {
	body := appendUint32(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, skipStatistics)
	return c.dump(message{kind: unix.RTM_GETLINK, body: body}, restart, func(kind uint16, body []byte) error {
		if kind != unix.RTM_NEWLINK {
			return nil
		}
		index, l, ok := decodeSeenLink(body)
		if !ok {
			return errMalformed
		}
		each(index, l)
		return nil
	})
}

// eachAddress lists the addresses of IPv4 and IPv6. What each saw before a call of
// restart is void.
func (c *conn) eachAddress(restart func(), each func(seenAddress, seenAddressState)) error {
	body := make([]byte, unix.SizeofIfAddrmsg)
	return c.dump(message{kind: unix.RTM_GETADDR, body: body}, restart, func(kind uint16, body []byte) error {
		return listedAddress(kind, body, each)
	})
}

// listedAddress reads one message of such a list. The kernel also tells addresses of
// other families, which are of other lengths.
func listedAddress(kind uint16, body []byte, each func(seenAddress, seenAddressState)) error {
	if kind != unix.RTM_NEWADDR || len(body) > 0 && body[0] != unix.AF_INET && body[0] != unix.AF_INET6 {
		return nil
	}
	a, s, ok := decodeSeenAddress(body)
	if !ok {
		return errMalformed
	}
	each(a, s)
	return nil
}

func addressOf(link string, a seenAddress, s seenAddressState) state.Address {
	out := state.Address{
		Link:       link,
		Prefix:     a.prefix,
		LinkLocal:  s.scope == unix.RT_SCOPE_LINK || s.scope == unix.RT_SCOPE_HOST || a.prefix.Addr().IsLinkLocalUnicast() && a.prefix.Addr().Is6(),
		Tentative:  s.flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
		Deprecated: s.flags&unix.IFA_F_DEPRECATED != 0,
	}
	// One bit with two names (linux/if_addr.h).
	if s.flags&unix.IFA_F_SECONDARY != 0 {
		out.Secondary, out.Temporary = a.prefix.Addr().Is4(), a.prefix.Addr().Is6()
	}
	if a.peer.IsValid() {
		// The length is that of the other end's network.
		out.Peer = netip.PrefixFrom(a.peer, a.prefix.Bits())
		out.Prefix = netip.PrefixFrom(a.prefix.Addr(), a.prefix.Addr().BitLen())
	}
	return out
}

// all lists the links, in the kernel's order. No list that was handed out changes.
func (l *links) all() []state.Link { return l.list }

// addresses lists the addresses, in the kernel's order. No list that was handed
// out changes.
func (l *links) addresses() []state.Address { return l.addrs }

// name is the name of the link with that index, "" when there is none.
func (l *links) name(index int) string {
	if i, ok := l.byIndex[index]; ok {
		return l.list[i].Name
	}
	return ""
}

// index is the index of the link with that name, 0 when there is none.
func (l *links) index(name string) int {
	if i, ok := l.byName[name]; ok {
		return l.list[i].Index
	}
	return 0
}

// withoutGateway reports whether the device alone can be a way out: there is
// nobody to be resolved on it.
func (l *links) withoutGateway(index int) bool {
	i, ok := l.byIndex[index]
	return ok && (l.list[i].PointToPoint || l.list[i].NoARP)
}

// group asks the kernel for the group that a link is in now.
func (l *links) group(index int) (uint32, error) {
	link, err := l.handle.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("read group of link %d: %w", index, err)
	}
	return link.Attrs().Group, nil
}

// setGroup puts a link into a group.
func (l *links) setGroup(index int, group uint32) error {
	failed := l.listener.expectGroup(index, group)
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := l.handle.LinkSetGroup(link, int(group)); err != nil {
		failed()
		return err
	}
	if i, ok := l.byIndex[index]; ok {
		l.list = slices.Clone(l.list)
		l.list[i].Group = group
	}
	return nil
}
