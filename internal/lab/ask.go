package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoReply is in the error of a request that nobody answered in time.
var ErrNoReply = errors.New("no reply")

// defaultTimeout is well above a round trip inside a lab and below the first
// retransmission of a lost SYN.
const defaultTimeout = 800 * time.Millisecond

// Request is one request of a client.
type Request struct {
	Protocol Protocol       // TCP, UDP or ICMP; ICMP is ICMPv6 for an IPv6 destination
	To       netip.AddrPort // the port is not used by ICMP
	From     netip.Addr     // the socket is bound to it; zero Addr: the kernel chooses
	FromPort uint16         // of TCP and UDP; 0: the kernel chooses
	Device   string         // the socket is bound to it (SO_BINDTODEVICE); "": not bound
	Timeout  time.Duration  // for the whole exchange; 0: 800 ms
}

// String is "TCP to 192.0.2.2:80".
func (r Request) String() string {
	s := r.Protocol.String() + " to " + spellPort(r.To)
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.Device != "" {
		s += " dev " + r.Device
	}
	return s
}

// Reply is what came back.
type Reply struct {
	// Local is the address that the request was sent from, as the client knows it.
	Local netip.AddrPort
	// Peer is the address that the server saw. Zero for ICMP, where the kernel answers.
	Peer netip.AddrPort
}

// Ask sends a request from the host to a Server (or, with ICMP, to any kernel)
// and waits for the reply. Without one in time the error is ErrNoReply; a
// refusal or an unreachable destination is the kernel's error.
func (h *Host) Ask(ctx context.Context, r Request) (Reply, error) {
	if r.Timeout == 0 {
		r.Timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	defer context.AfterFunc(h.lab.ctx, cancel)()

	reply, err := h.ask(ctx, r)
	if err == nil {
		return reply, nil
	}
	var timeout net.Error
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		if cause := ctx.Err(); errors.Is(cause, context.Canceled) {
			return reply, fmt.Errorf("ask %s on %s: %w", r, h.Name, cause)
		}
		err = ErrNoReply
	}
	return reply, fmt.Errorf("ask %s on %s: %w", r, h.Name, err)
}

func (h *Host) ask(ctx context.Context, r Request) (Reply, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = dial(ctx, r)
		return err
	})
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	// A context that ends early ends the exchange too.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()

	reply := Reply{Local: local(conn)}
	if r.Protocol == ICMP {
		return reply, echo(conn.(*net.IPConn), r.To.Addr())
	}
	if _, err := conn.Write([]byte("who am I\n")); err != nil {
		return reply, err
	}
	buf := make([]byte, 256)
	n, err := conn.Read(buf)
	if err != nil {
		return reply, err
	}
	reply.Peer, err = netip.ParseAddrPort(strings.TrimSpace(string(buf[:n])))
	return reply, err
}

// dial opens a connected socket in the calling thread's namespace.
func dial(ctx context.Context, r Request) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failure error
		err := c.Control(func(fd uintptr) {
			if r.Device != "" {
				failure = unix.BindToDevice(int(fd), r.Device)
			}
			if r.FromPort != 0 {
				// The request before may not be over yet.
				failure = errors.Join(failure, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			}
		})
		return errors.Join(err, failure)
	}}
	switch r.Protocol {
	case TCP:
		if r.From.IsValid() || r.FromPort != 0 {
			d.LocalAddr = &net.TCPAddr{IP: r.From.AsSlice(), Port: int(r.FromPort)}
		}
		return d.DialContext(ctx, "tcp", r.To.String())
	case UDP:
		if r.From.IsValid() || r.FromPort != 0 {
			d.LocalAddr = &net.UDPAddr{IP: r.From.AsSlice(), Port: int(r.FromPort)}
		}
		return d.DialContext(ctx, "udp", r.To.String())
	case ICMP:
		if r.From.IsValid() {
			d.LocalAddr = &net.IPAddr{IP: r.From.AsSlice()}
		}
		network := "ip4:icmp"
		if r.To.Addr().Is6() {
			network = "ip6:58"
		}
		return d.DialContext(ctx, network, r.To.Addr().String())
	}
	return nil, fmt.Errorf("protocol %s cannot be asked", r.Protocol)
}

func local(conn net.Conn) netip.AddrPort {
	switch a := conn.LocalAddr().(type) {
	case *net.TCPAddr:
		return unmap(a.AddrPort())
	case *net.UDPAddr:
		return unmap(a.AddrPort())
	case *net.IPAddr:
		addr, _ := netip.AddrFromSlice(a.IP)
		return netip.AddrPortFrom(addr.Unmap(), 0)
	}
	return netip.AddrPort{}
}

// echo sends one ICMP echo request and waits for its reply.
func echo(conn *net.IPConn, to netip.Addr) error {
	request, reply := byte(echoRequest), byte(echoReply)
	if to.Is6() {
		request, reply = echoRequestV6, echoReplyV6
	}
	// type, code, checksum, identifier and sequence number, data
	message := append([]byte{request, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, rand.Uint32())...)
	message = append(message, "sisod lab"...)
	if to.Is4() {
		binary.BigEndian.PutUint16(message[2:], checksum(message)) // the kernel does it for ICMPv6
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for {
		// Not Read, which leaves the IPv4 header in front.
		n, _, err := conn.ReadFromIP(buf)
		if err != nil {
			return err
		}
		if n >= len(message) && buf[0] == reply && bytes.Equal(buf[4:n], message[4:]) {
			return nil
		}
	}
}

// checksum is the Internet checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, octet := range b {
		sum += uint32(octet) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
