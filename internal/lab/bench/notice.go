package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// notice is one message of the kernel, and when it was received.
type notice struct {
	at   time.Time
	kind uint16
	body []byte
}

// witness hears what the kernel tells of a host.
type witness struct {
	file    *os.File
	notices chan notice
	err     error // valid when notices is closed
}

// allGroups is all that is told of links, addresses, routes, rules and nexthops.
var allGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEXTHOP,
}

// listen starts a witness. With a filter it hears only what that lets through:
// reading a million messages would take a processor from those who are measured.
func listen(h *lab.Host, filter []unix.SockFilter) (*witness, error) {
	w := &witness{notices: make(chan notice, 1<<18)}
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		w.file = os.NewFile(uintptr(fd), "witness")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20); err != nil {
			return err
		}
		if filter != nil {
			program := unix.SockFprog{Len: uint16(len(filter)), Filter: unsafe.SliceData(filter)}
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
				return err
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		for _, g := range allGroups {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if w.file != nil {
			w.file.Close()
		}
		return nil, fmt.Errorf("listen on %s: %w", h.Name, err)
	}
	go w.read()
	return w, nil
}

func (w *witness) read() {
	defer close(w.notices)
	buffer := make([]byte, 1<<16)
	for {
		n, err := w.file.Read(buffer)
		now := time.Now()
		if err != nil {
			w.err = err
			return
		}
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buffer[:n]))
		if err != nil {
			w.err = err
			return
		}
		for _, m := range messages {
			w.notices <- notice{now, m.Header.Type, m.Data}
		}
	}
}

func (w *witness) close() {
	w.file.Close()
	for range w.notices {
		// It ends when the reader has.
	}
}

// forget drops what was heard so far.
func (w *witness) forget() {
	for len(w.notices) > 0 {
		<-w.notices
	}
}

// errSilence is in the error of what was waited for in vain.
var errSilence = errors.New("the kernel did not tell of it")

// until hands out notices until f says that it was the last one, and returns
// when that was heard.
func (w *witness) until(patience time.Duration, f func(notice) bool) (time.Time, error) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case n, ok := <-w.notices:
			if !ok {
				return time.Time{}, fmt.Errorf("listen: %w", w.err)
			}
			if f(n) {
				return n.at, nil
			}
		case <-deadline.C:
			return time.Time{}, fmt.Errorf("%w in %v", errSilence, patience)
		}
	}
}

// attributes are those of a message, behind its header.
func attributes(rest []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(rest) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(rest))
			if length < unix.SizeofNlAttr || length > len(rest) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(rest[2:]), rest[unix.SizeofNlAttr:length]) {
				return
			}
			rest = rest[min((length+3)&^3, len(rest)):]
		}
	}
}

// attribute finds one of a message behind a header of the given length.
func attribute(body []byte, header int, kind uint16) []byte {
	for k, value := range attributes(body[min(header, len(body)):]) {
		if k == kind {
			return value
		}
	}
	return nil
}

// routeTo matches the message about a route to p, in any table.
func routeTo(kind uint16, p netip.Prefix) func(notice) bool {
	return func(n notice) bool {
		return n.kind == kind && len(n.body) >= unix.SizeofRtMsg && int(n.body[1]) == p.Bits() && n.body[0] == family(p.Addr()) &&
			(p.Bits() == 0 || bytes.Equal(attribute(n.body, unix.SizeofRtMsg, unix.RTA_DST), p.Addr().AsSlice()))
	}
}

// inTable says which table a message about a route names.
func inTable(n notice) uint32 {
	if t := attribute(n.body, unix.SizeofRtMsg, unix.RTA_TABLE); len(t) == 4 {
		return binary.NativeEndian.Uint32(t)
	}
	return 0
}

// Sampling hears of one block of a list4 in sampleEvery: of an odd one, because who
// writes the list from coarse to fine comes to those at last.
const sampleEvery = 1 << 12

// sampled says whether a witness with sampling hears of a prefix of a list4.
func sampled(p netip.Prefix) bool {
	a := p.Addr().As4()
	return binary.BigEndian.Uint32(a[:])>>(blockBits+1)%sampleEvery == sampleEvery-1
}

// sampling lets through everything but routes of IPv4 to other prefixes than the
// sampled ones. The kernel puts a route's table first and its destination
// second (net/ipv4/fib_semantics.c, fib_dump_info).
var sampling = func() []unix.SockFilter {
	const (
		load1 = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		load4 = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		and   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K
		// In a netlink message: its type, the family and the length of a route's
		// destination, and the destination.
		kind, group, length, destination = 4, 16, 17, 16 + unix.SizeofRtMsg + 8 + unix.SizeofNlAttr
	)
	return []unix.SockFilter{
		{Code: load1, K: kind},
		{Code: equal, K: unix.RTM_NEWROUTE, Jt: 1},
		{Code: equal, K: unix.RTM_DELROUTE, Jf: 7},
		{Code: load1, K: group},
		{Code: equal, K: unix.AF_INET, Jf: 5},
		{Code: load1, K: length},
		{Code: equal, K: 0, Jt: 3},
		{Code: load4, K: destination},
		{Code: and, K: (sampleEvery - 1) << (blockBits + 1)},
		{Code: equal, K: (sampleEvery - 1) << (blockBits + 1), Jf: 1},
		{Code: end, K: 1 << 16},
		{Code: end, K: 0},
	}
}()
