package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// defaultEventBuffer is how many bytes of messages wait in the kernel before
// it begins to drop them.
const defaultEventBuffer = 1 << 20

// lostEvents is the reason of an event that stands for those that were lost.
const lostEvents = "lost events"

// eventGroups are the multicast groups of NETLINK_ROUTE that tell of what a
// plan depends on. Neighbours are not among them: they change with traffic.
var eventGroups = [...]int{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Event is a hint that parts of what was read are stale.
type Event struct {
	Parts Parts
	// Urgent: packets may leave by a wrong way until it is dealt with.
	Urgent bool
	Reason string // "address 192.0.2.1/24 added on em1", "link em1 down", "lost events"
	// Peer is the netlink port of the socket whose request caused the change, 0
	// when the kernel did it by itself or does not say.
	Peer uint32
	// Family, Table and Link narrow what is stale of PartMain and PartRoutes: routes
	// of this family, of this table, by this interface. Zero values do not.
	Family state.Family
	Table  uint32
	Link   string
	// Carrier is the interface that has its carrier again, "": none has.
	Carrier string
	// Marks: rules of others that use sisod's bits of marks have come or gone. To
	// read PartMarks is not urgent, and takes long.
	Marks bool
}

// Events is a stream of the changes that others make to a network namespace.
type Events struct {
	c    chan Event
	done chan struct{}
	stop context.CancelFunc
	file *os.File
	raw  syscall.RawConn
	nft  *os.File // nil: this kernel has no nf_tables to tell of
	ask  *conn    // for what the first messages, and those after a loss, are compared with
	own  map[uint32]bool
	log  *slog.Logger
	err  error // why the stream ended by itself; read after done

	mu     sync.Mutex
	last   baseline
	ownNFT uint32 // the port of the socket that writes to nf_tables
	marks  markWatch
}

// Listen begins to listen in the network namespace of the calling thread. What
// happened before is no event: Read after Listen. The stream ends when ctx is
// done, or with Close; a Host has one stream at a time.
//
// Changes made through h itself are not events, those of a second sisod are. A
// link that h makes or brings up is one all the same: much changes with it that
// nobody asked for.
func (h *Host) Listen(ctx context.Context) (*Events, error) {
	e := &Events{
		c: make(chan Event, 16), done: make(chan struct{}), log: h.options.Log,
		own:  map[uint32]bool{h.conn.portID(): true},
		last: baseline{ownGroups: echoes[int, uint32]{}, ownValues: echoes[netconfKey, int32]{}, ownVIPs: echoes[seenAddress, bool]{}},
	}
	if err := e.open(h.options.EventBuffer); err != nil {
		return nil, fmt.Errorf("listen to kernel events: %w", err)
	}
	h.links.listener = e
	ctx, e.stop = context.WithCancel(ctx)
	go e.run(ctx)
	return e, nil
}

// open makes the sockets and takes in what the first messages are compared with.
func (e *Events) open(buffer int) (err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	e.file = os.NewFile(uintptr(fd), "netlink events")
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.raw, err = e.file.SyscallConn(); err != nil {
		return err
	}
	size := cmp.Or(buffer, defaultEventBuffer)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size); err != nil {
			return err
		}
	}
	if err := e.attachFilter(nil); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for _, g := range eventGroups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			return fmt.Errorf("join group %d: %w", g, err)
		}
	}
	// Kernels before 5.3 have no such group, and no nexthop objects.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEXTHOP); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("join group %d: %w", unix.RTNLGRP_NEXTHOP, err)
	}
	if e.ask, err = openConn(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if e.nft, err = openNFTEvents(); err != nil {
		e.log.Debug("not told of changes to nf_tables", "error", err)
		e.nft = nil
	}
	return e.look()
}

func (e *Events) close() {
	_ = e.file.Close()
	if e.nft != nil {
		_ = e.nft.Close()
	}
	if e.ask != nil {
		e.ask.close()
	}
}

// C is the stream. It is closed when the stream has ended.
func (e *Events) C() <-chan Event { return e.c }

// Err waits for the end of the stream and returns why it ended: nil after Close
// or the end of its context.
func (e *Events) Err() error {
	<-e.done
	return e.err
}

// Close ends the stream and waits until nothing of it runs any more.
func (e *Events) Close() {
	e.stop()
	<-e.done
}

// SetInterest says which interfaces' routes in main matter, and which tables
// are sisod's. Until it is called, of other people's routes only main's
// defaults do.
func (e *Events) SetInterest(interfaces []string, tables []uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last.interfaces, e.last.tables = map[string]bool{}, map[uint32]bool{}
	for _, i := range interfaces {
		e.last.interfaces[i] = true
	}
	for _, t := range tables {
		e.last.tables[t] = true
	}
	if err := e.attachFilter(tables); err != nil && !errors.Is(err, os.ErrClosed) {
		// The one before stands and knows other tables: none is safer.
		e.log.Warn("event filter not replaced, doing without", "error", err)
		e.detachFilter()
	}
}

// run is the stream's own goroutine.
func (e *Events) run(ctx context.Context) {
	defer close(e.done)
	defer close(e.c)
	defer e.followNFT(ctx)()
	defer e.close()
	defer e.stop()
	defer context.AfterFunc(ctx, func() { _ = e.file.SetReadDeadline(time.Unix(1, 0)) })()
	buffer := make([]byte, dumpBytes)
	for {
		n, err := e.receive(buffer)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS) || err == nil && n > len(buffer):
			// Until the queue is empty the kernel drops every further message, and says
			// so only once (net/netlink/af_netlink.c, NETLINK_S_CONGESTED).
			e.drain(buffer)
			// Look before telling: a change after the look comes as a message that
			// differs from it, and one before is read by whoever is told.
			if err := e.look(); err != nil {
				e.log.Warn("links not read again after lost events", "error", err)
			}
			if !e.emit(ctx, Event{Parts: AllParts, Reason: lostEvents}) {
				return
			}
		case err != nil:
			e.err = fmt.Errorf("receive kernel events: %w", err)
			return
		case !e.deliver(ctx, buffer[:n]):
			return
		}
	}
}

// receive waits for one datagram of the kernel and returns its true length.
func (e *Events) receive(buffer []byte) (n int, err error) {
	for {
		var from unix.Sockaddr
		wait := e.raw.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			return !errors.Is(err, unix.EAGAIN)
		})
		if wait != nil {
			return 0, wait
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if sender, ok := from.(*unix.SockaddrNetlink); ok && sender.Pid == 0 {
			return n, nil
		}
	}
}

// drain empties the queue.
func (e *Events) drain(buffer []byte) {
	_ = e.raw.Control(func(fd uintptr) {
		for {
			_, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
}

// deliver turns the messages of a datagram into events. It reports whether to
// go on.
func (e *Events) deliver(ctx context.Context, datagram []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		return e.emit(ctx, Event{Parts: AllParts, Reason: "a message that could not be read"})
	}
	for _, m := range messages {
		e.mu.Lock()
		event, ok := e.last.interpret(m.Header.Type, m.Header.Flags, m.Data, e.own[m.Header.Pid])
		e.mu.Unlock()
		event.Peer = m.Header.Pid
		if ok && !e.emit(ctx, event) {
			return false
		}
	}
	return true
}

// emit hands out an event. While nobody takes it, further ones wait in the
// kernel, and are lost there when they are too many.
func (e *Events) emit(ctx context.Context, event Event) bool {
	select {
	case e.c <- event:
		return true
	case <-ctx.Done():
		return false
	}
}

// look takes in the links and addresses that later messages are compared with.
func (e *Events) look() error {
	links, addresses := map[int]seenLink{}, map[seenAddress]seenAddressState{}
	err := e.ask.eachLink(func() { clear(links) }, func(index int, l seenLink) { links[index] = l })
	if err == nil {
		err = e.ask.eachAddress(func() { clear(addresses) }, func(a seenAddress, s seenAddressState) { addresses[a] = s })
	}
	if err != nil {
		// Nothing is known then, so that every message is an event.
		clear(links)
		clear(addresses)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last.links, e.last.addresses, e.last.values = links, addresses, map[netconfKey]int32{}
	return err
}

// expectGroup tells that a link is about to be put into a group by the host
// that is listening itself. The result takes it back. A nil e does nothing.
func (e *Events) expectGroup(index int, group uint32) (failed func()) {
	if e == nil {
		return func() {}
	}
	return expect(e, e.last.ownGroups, index, group)
}

// expectValue tells that a sysctl is about to be written by the host that is
// listening itself. The result takes it back. A nil e does nothing.
func (e *Events) expectValue(key netconfKey, value int32) (failed func()) {
	if e == nil || !announced(key.value) {
		return func() {}
	}
	return expect(e, e.last.ownValues, key, value)
}

// expectVIP tells that an IPv6 address is about to be added or deleted by the
// host that is listening itself. The result takes it back. A nil e does nothing.
func (e *Events) expectVIP(index int, addr netip.Addr, there bool) (failed func()) {
	if e == nil {
		return func() {}
	}
	return expect(e, e.last.ownVIPs, seenAddress{index: index, prefix: netip.PrefixFrom(addr, addr.BitLen())}, there)
}

func expect[K comparable, V comparable](e *Events, own echoes[K, V], key K, value V) (failed func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	own[key] = append(own[key], value)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		own[key] = own[key][:max(0, len(own[key])-1)]
	}
}
