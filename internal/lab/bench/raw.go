package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// perSend is how many messages the floor gives the kernel at once. More make it
// no faster.
const perSend = 512

// batch is messages for one send, of which the last is acknowledged.
type batch struct {
	bytes []byte
	last  uint32 // sequence number of the last
}

// encoder makes batches of requests.
type encoder struct {
	perSend int
	batches []batch
	n       int // in the batch under way
	start   int // of the message under way
	seq     uint32
}

// begin begins a request, with the header of its kind as body.
func (e *encoder) begin(kind uint16, flags uint16, body []byte) {
	if e.n == 0 {
		e.batches = append(e.batches, batch{})
	}
	b := &e.batches[len(e.batches)-1]
	e.start, e.seq, e.n = len(b.bytes), e.seq+1, e.n+1
	b.last = e.seq
	b.bytes = append(b.bytes, make([]byte, unix.SizeofNlMsghdr)...)
	h := b.bytes[e.start:]
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(h[8:], e.seq)
	b.bytes = append(b.bytes, body...)
}

// attribute adds one to the request under way.
func (e *encoder) attribute(kind uint16, value []byte) {
	b := &e.batches[len(e.batches)-1]
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, uint16(unix.SizeofNlAttr+len(value)))
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, kind)
	b.bytes = append(b.bytes, value...)
	for len(b.bytes)%unix.NLMSG_ALIGNTO != 0 {
		b.bytes = append(b.bytes, 0)
	}
}

func (e *encoder) number(kind uint16, value uint32) {
	e.attribute(kind, binary.NativeEndian.AppendUint32(nil, value))
}

func (e *encoder) short(kind, value uint16) {
	e.attribute(kind, binary.NativeEndian.AppendUint16(nil, value))
}

// nested adds an attribute of the attributes that f adds.
func (e *encoder) nested(kind uint16, f func()) {
	b := &e.batches[len(e.batches)-1]
	start := len(b.bytes)
	e.attribute(kind|unix.NLA_F_NESTED, nil)
	f()
	binary.NativeEndian.PutUint16(b.bytes[start:], uint16(len(b.bytes)-start))
}

// end ends the request under way.
func (e *encoder) end() {
	b := &e.batches[len(e.batches)-1]
	binary.NativeEndian.PutUint32(b.bytes[e.start:], uint32(len(b.bytes)-e.start))
	if e.n == e.perSend {
		e.finish()
	}
}

// finish has the last request of the batch acknowledged.
func (e *encoder) finish() {
	if e.n == 0 {
		return
	}
	h := e.batches[len(e.batches)-1].bytes[e.start:]
	binary.NativeEndian.PutUint16(h[6:], binary.NativeEndian.Uint16(h[6:])|unix.NLM_F_ACK)
	e.n = 0
}

// rtaNexthop is RTA_NH_ID of linux/rtnetlink.h.
const rtaNexthop = 30

// way is where raw routes lead: by a gateway and a link, or by a nexthop object.
type way struct {
	gateway  netip.Addr
	link     uint32
	nexthop  uint32
	table    uint32
	protocol uint8
}

// routes encodes a request for a route to each prefix.
func routes(kind, flags uint16, list []netip.Prefix, w way) []batch {
	e := &encoder{perSend: perSend}
	for _, p := range list {
		e.begin(kind, flags, []byte{family(p.Addr()), byte(p.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, w.protocol, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0})
		e.attribute(unix.RTA_DST, p.Addr().AsSlice())
		e.number(unix.RTA_TABLE, w.table)
		if w.nexthop != 0 {
			e.number(rtaNexthop, w.nexthop)
		} else {
			e.attribute(unix.RTA_GATEWAY, w.gateway.AsSlice())
			e.number(unix.RTA_OIF, w.link)
		}
		e.end()
	}
	e.finish()
	return e.batches
}

// nexthop encodes a nexthop object, new or in the place of the one with its number.
func nexthop(w way, flags uint16) []batch {
	e := &encoder{perSend: 1}
	e.begin(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|flags, []byte{family(w.gateway), 0, w.protocol, 0, 0, 0, 0, 0})
	e.number(unix.NHA_ID, w.nexthop)
	e.attribute(unix.NHA_GATEWAY, w.gateway.AsSlice())
	e.number(unix.NHA_OIF, w.link)
	e.end()
	return e.batches
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// rawSocket is a socket of netlink in the namespace of the thread that opened it.
type rawSocket int

func openRaw(protocol int) (rawSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	return rawSocket(fd), nil
}

func (s rawSocket) close() { unix.Close(int(s)) }

// send sends batches, each when the one before is acknowledged.
func (s rawSocket) send(batches []batch) error {
	buffer := make([]byte, 1<<16)
	for _, b := range batches {
		if err := unix.Send(int(s), b.bytes, 0); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		for done := false; !done; {
			n, _, err := unix.Recvfrom(int(s), buffer, 0)
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			answers, err := syscall.ParseNetlinkMessage(buffer[:n])
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			for _, a := range answers {
				if a.Header.Type != unix.NLMSG_ERROR {
					continue
				}
				if errno := -int32(binary.NativeEndian.Uint32(a.Data)); errno != 0 {
					return fmt.Errorf("request %d: %w", a.Header.Seq, unix.Errno(errno))
				}
				done = done || a.Header.Seq == b.last
			}
		}
	}
	return nil
}

// dump asks for all objects of a kind, and returns what the kernel tells of them.
func (s rawSocket) dump(kind uint16, body []byte) ([]notice, error) {
	return s.ask(kind, unix.NLM_F_DUMP, body, func(*encoder) {})
}

// ask sends one request, with the attributes that more adds, and returns the
// answers before its end, which flags make the kernel tell.
func (s rawSocket) ask(kind, flags uint16, body []byte, more func(*encoder)) ([]notice, error) {
	e := &encoder{perSend: 1}
	e.begin(kind, flags, body)
	more(e)
	e.end()
	if err := unix.Send(int(s), e.batches[0].bytes, 0); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	buffer := make([]byte, 1<<17)
	var all []notice
	for {
		n, _, err := unix.Recvfrom(int(s), buffer, 0)
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(bytes.Clone(buffer[:n]))
		if err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		for _, a := range answers {
			switch a.Header.Type {
			case unix.NLMSG_DONE:
				return all, nil
			case unix.NLMSG_ERROR:
				if errno := -int32(binary.NativeEndian.Uint32(a.Data)); errno != 0 {
					return nil, unix.Errno(errno)
				}
				return all, nil
			}
			all = append(all, notice{kind: a.Header.Type, body: a.Data})
		}
	}
}
