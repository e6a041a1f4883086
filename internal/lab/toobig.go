package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TooBig is what a host learned of a packet that was too large for its way: who
// said so, and how much would have passed.
type TooBig struct {
	From netip.Addr
	MTU  int // bytes, IP header included
}

// ProbeMTU sends one UDP datagram, a packet of so many bytes that may not be
// fragmented, and returns the error message of ICMP that comes back for it, as the
// host's own socket is told of it. Without one in time the error is ErrNoReply.
func (h *Host) ProbeMTU(ctx context.Context, to netip.AddrPort, size int, timeout time.Duration) (TooBig, error) {
	var answer TooBig
	err := inTime(ctx, timeout, func(ctx context.Context) error {
		var conn net.Conn
		err := h.Do(func() (err error) {
			conn, err = dial(ctx, Request{Protocol: UDP, To: to})
			return err
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
		answer, err = probe(conn.(*net.UDPConn), to.Addr().Is6(), size)
		return err
	})
	if err != nil {
		return answer, fmt.Errorf("send %d bytes to %s on %s: %w", size, to, h.Name, err)
	}
	return answer, nil
}

// probe sends the datagram and waits for the socket's error queue (ip(7), IP_RECVERR).
func probe(conn *net.UDPConn, v6 bool, size int) (TooBig, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return TooBig{}, err
	}
	level, discover, receive, header := unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR, headerV4
	if v6 {
		level, discover, receive, header = unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR, headerV6
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		// PROBE sends whatever the host thinks of the path (IP_PMTUDISC_PROBE, 3).
		failure = errors.Join(unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_PROBE), unix.SetsockoptInt(int(fd), level, receive, 1))
	})
	if err := errors.Join(err, failure); err != nil {
		return TooBig{}, err
	}
	const udpHeader = 8
	if _, err := conn.Write(make([]byte, size-header-udpHeader)); err != nil {
		return TooBig{}, err
	}
	control := make([]byte, 256)
	var n int
	err = raw.Read(func(fd uintptr) bool {
		_, n, _, _, failure = unix.Recvmsg(int(fd), make([]byte, size), control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		return failure != unix.EAGAIN
	})
	if err := errors.Join(err, failure); err != nil {
		return TooBig{}, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return TooBig{}, err
	}
	for _, m := range messages {
		// struct sock_extended_err, and the sockaddr of who sent the message behind it.
		const extended = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		if m.Header.Level != int32(level) || len(m.Data) < extended+unix.SizeofSockaddrInet4 {
			continue
		}
		e := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
		if e.Errno != uint32(unix.EMSGSIZE) {
			return TooBig{}, unix.Errno(e.Errno)
		}
		from := netip.AddrFrom4([4]byte(m.Data[extended+4:]))
		if v6 {
			from = netip.AddrFrom16([16]byte(m.Data[extended+8:]))
		}
		return TooBig{From: from, MTU: int(e.Info)}, nil
	}
	return TooBig{}, errors.New("an error of another kind")
}
