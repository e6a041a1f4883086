package kernel

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// openNFTEvents opens a socket that is told of every change of nf_tables.
func openNFTEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES),
	); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, defaultEventBuffer)
	return os.NewFile(uintptr(fd), "nf_tables events"), nil
}

// followNFT tells of changes that others make to sisod's table, and to rules of
// theirs about its marks, until the result is called.
func (e *Events) followNFT(ctx context.Context) (stop func()) {
	if e.nft == nil {
		return func() {}
	}
	raw, err := e.nft.SyscallConn()
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		buffer := make([]byte, dumpBytes)
		for {
			var n int
			var err error
			if raw.Read(func(fd uintptr) bool {
				n, _, err = unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
				return !errors.Is(err, unix.EAGAIN)
			}) != nil || ctx.Err() != nil {
				return
			}
			event := Event{Parts: PartNFT, Urgent: true}
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				event.Reason, event.Marks = lostEvents, true
			default:
				peer, ours, marks := e.changesNFT(buffer[:n])
				event.Marks = marks
				switch {
				case ours:
					event.Peer, event.Reason = peer, "nft table inet "+state.NFTableName+" changed"
				case marks:
					event.Parts, event.Urgent = 0, false
				default:
					continue
				}
			}
			if !e.emit(ctx, event) {
				return
			}
		}
	})
	return func() {
		cancel()
		_ = e.nft.SetReadDeadline(time.Unix(1, 0))
		running.Wait()
	}
}

// changesNFT reports whether somebody else changed sisod's table, and who, and
// whether rules about sisod's marks changed.
func (e *Events) changesNFT(datagram []byte) (peer uint32, changed, marks bool) {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		return 0, true, true
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range messages {
		if m.Header.Pid == e.ownNFT {
			continue
		}
		if eventOfNFT(m.Header.Type, m.Data) {
			peer, changed = m.Header.Pid, true
		}
		marks = marks || e.marks.concerned(m.Header.Type, m.Data)
	}
	return peer, changed, marks
}

// ignoreNFT says at which socket this process changes nf_tables. A nil e does
// nothing.
func (e *Events) ignoreNFT(port uint32) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ownNFT = port
}
