package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// linkReads is how often the links are read while they change, before the read
// counts as failed.
const linkReads = 8

// links is what one network namespace has of interfaces and addresses, as of
// the last read. The index of a link lives here and nowhere outside this room.
type links struct {
	handle  *netlink.Handle
	list    []state.Link
	addrs   []state.Address
	byIndex map[int]int // position in list
	byName  map[string]int
	// listener hears of changes before they are made, so that the kernel's echo
	// of them is not taken for somebody else's doing. Nil while nobody listens.
	listener *Events
}

// openLinks opens a socket in the network namespace of the calling thread.
func openLinks() (*links, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for links: %w", err)
	}
	return &links{handle: h}, nil
}

func (l *links) close() { l.handle.Close() }

// read takes in all links and addresses. After an error the result of the
// read before stands.
func (l *links) read() error {
	var err error
	for range linkReads {
		var found []netlink.Link
		var addresses []netlink.Addr
		if found, err = l.handle.LinkList(); err == nil {
			addresses, err = l.handle.AddrList(nil, netlink.FAMILY_ALL)
		}
		if err == nil {
			// An address of a link that came between the two dumps: neither is usable.
			if err = l.take(found, addresses); err == nil {
				return nil
			}
		} else if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return fmt.Errorf("read links and addresses: %w", err)
}

func (l *links) take(found []netlink.Link, addresses []netlink.Addr) error {
	next := links{byIndex: map[int]int{}, byName: map[string]int{}}
	for _, f := range found {
		a := f.Attrs()
		next.byIndex[a.Index] = len(next.list)
		next.byName[a.Name] = len(next.list)
		next.list = append(next.list, state.Link{
			Name:         a.Name,
			Index:        a.Index,
			Group:        a.Group,
			MTU:          a.MTU,
			Up:           a.RawFlags&unix.IFF_UP != 0,
			Carrier:      a.RawFlags&unix.IFF_LOWER_UP != 0,
			Loopback:     a.RawFlags&unix.IFF_LOOPBACK != 0,
			PointToPoint: a.RawFlags&unix.IFF_POINTOPOINT != 0,
			NoARP:        a.RawFlags&unix.IFF_NOARP != 0,
		})
	}
	for _, a := range addresses {
		name := next.name(a.LinkIndex)
		if name == "" {
			return fmt.Errorf("address %s of link %d: %w", a.IPNet, a.LinkIndex, unix.ENODEV)
		}
		address, ok := addressOf(name, a)
		if !ok {
			return fmt.Errorf("address %s of link %s: %w", a.IPNet, name, unix.EBADMSG)
		}
		next.addrs = append(next.addrs, address)
	}
	l.list, l.addrs, l.byIndex, l.byName = next.list, next.addrs, next.byIndex, next.byName
	return nil
}

func addressOf(link string, a netlink.Addr) (state.Address, bool) {
	prefix, ok := ipNetPrefix(a.IPNet)
	if !ok {
		return state.Address{}, false
	}
	out := state.Address{
		Link:       link,
		Prefix:     prefix,
		LinkLocal:  a.Scope == unix.RT_SCOPE_LINK || a.Scope == unix.RT_SCOPE_HOST || prefix.Addr().IsLinkLocalUnicast() && prefix.Addr().Is6(),
		Tentative:  a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
		Deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
	}
	// One bit with two names (linux/if_addr.h).
	if a.Flags&unix.IFA_F_SECONDARY != 0 {
		out.Secondary, out.Temporary = prefix.Addr().Is4(), prefix.Addr().Is6()
	}
	if a.Peer != nil {
		if out.Peer, ok = ipNetPrefix(a.Peer); !ok {
			return state.Address{}, false
		}
	}
	return out, true
}

func ipNetPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, ones), true
}

// all lists the links, in the kernel's order.
func (l *links) all() []state.Link { return l.list }

// addresses lists the addresses, in the kernel's order.
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
