package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conversation is how long a server waits for its peer.
const conversation = 5 * time.Second

// Server answers every request with the address that it came from, as text on one
// line. Over TCP it answers one line, or one HTTP request; over UDP a
// datagram, from the address that was asked.
type Server struct {
	wait sync.WaitGroup

	mu     sync.Mutex
	open   map[io.Closer]bool
	closed bool
}

// Serve starts a server for TCP and UDP on a port of all the host's
// addresses, present and future, of both families.
func (h *Host) Serve(port uint16) (*Server, error) {
	s := &Server{open: map[io.Closer]bool{}}
	var listener net.Listener
	var packets []*net.UDPConn
	err := h.Do(func() (err error) {
		address := fmt.Sprintf(":%d", port)
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false) // one path is what is under test
		if listener, err = lc.Listen(context.Background(), "tcp", address); err != nil {
			return err
		}
		lc.Control = shareUDP
		for _, network := range []string{"udp4", "udp6"} {
			conn, err := lc.ListenPacket(context.Background(), network, address)
			if err != nil {
				return err
			}
			packets = append(packets, conn.(*net.UDPConn))
			if err := askForDestination(conn.(*net.UDPConn)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if listener != nil {
			listener.Close()
		}
		for _, p := range packets {
			p.Close()
		}
		return nil, fmt.Errorf("serve port %d on %s: %w", port, h.Name, err)
	}
	s.own(listener, func() { s.accept(listener) })
	for _, p := range packets {
		s.own(p, func() { s.echo(p) })
	}
	h.lab.keep(s)
	return s, nil
}

// shareUDP lets a transparent proxy of the host answer from this port of other
// hosts' addresses.
func shareUDP(_, _ string, c syscall.RawConn) error {
	var failure error
	err := c.Control(func(fd uintptr) { failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, failure)
}

// own runs serve until it returns, and closes c with the server or after serve.
func (s *Server) own(c io.Closer, serve func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.open[c] = true
	s.wait.Go(func() {
		serve()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[c] {
			delete(s.open, c)
			c.Close()
		}
	})
}

// Close ends the server and its connections.
func (s *Server) Close() error {
	s.mu.Lock()
	open := s.open
	s.open, s.closed = nil, true
	s.mu.Unlock()
	var errs []error
	for c := range open {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	s.wait.Wait()
	return errors.Join(errs...)
}

func (s *Server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.own(conn, func() { answer(conn) })
		}
	}
}

// answer serves one TCP connection. Errors are the peer's to notice.
func answer(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(conversation))
	peer := unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	body := peer.String() + "\n"
	if !strings.Contains(line, " HTTP/1.") {
		_, _ = io.WriteString(conn, body)
		return
	}
	for strings.TrimSpace(line) != "" {
		if line, err = in.ReadString('\n'); err != nil {
			return
		}
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}

// askForDestination has the kernel tell, with each datagram, which address it
// was sent to (ip(7), IP_PKTINFO). An answer from an unbound socket would
// otherwise carry the address of the interface that it leaves by.
func askForDestination(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		if conn.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
			failure = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		} else {
			failure = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	return errors.Join(err, failure)
}

func (s *Server) echo(conn *net.UDPConn) {
	buf := make([]byte, 2048)
	control := make([]byte, 256)
	for {
		_, n, _, peer, err := conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		// No route for the answer is what a test looks for at the other end.
		_, _, _ = conn.WriteMsgUDPAddrPort([]byte(unmap(peer).String()+"\n"), fromDestination(control[:n]), peer)
	}
}

// fromDestination is the control message that sends from the address that a
// datagram with this control message was sent to, by whatever interface the
// routes say.
func fromDestination(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: ifindex, spec_dst, addr
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:])})
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data)})
		}
	}
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
