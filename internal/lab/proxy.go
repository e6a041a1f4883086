package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Proxy is a transparent proxy: it accepts what the kernel gives it, whatever
// address that is for, and asks there itself, from the client's address and
// another port.
type Proxy struct {
	Server // its connections
	host   *Host

	mu    sync.Mutex
	asked []Proxied
}

// Proxied is one connection, or one datagram, that a Proxy has passed on.
type Proxied struct {
	Protocol   Protocol
	Client, To netip.AddrPort
	// From is where the proxy asked from.
	From netip.AddrPort
}

// Proxy starts a transparent proxy for TCP and UDP on a port of all the host's
// addresses, of both families.
func (h *Host) Proxy(port uint16) (*Proxy, error) {
	p := &Proxy{Server: Server{open: map[io.Closer]bool{}}, host: h}
	var opened []io.Closer
	fail := func(err error) (*Proxy, error) {
		for _, c := range opened {
			c.Close()
		}
		return nil, fmt.Errorf("serve a proxy on port %d of %s: %w", port, h.Name, err)
	}
	var listeners []net.Listener
	var packets []*net.UDPConn
	err := h.Do(func() error {
		lc := net.ListenConfig{Control: transparent}
		lc.SetMultipathTCP(false)
		for _, family := range []string{"4", "6"} {
			l, err := lc.Listen(context.Background(), "tcp"+family, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			opened, listeners = append(opened, l), append(listeners, l)
			c, err := lc.ListenPacket(context.Background(), "udp"+family, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			opened, packets = append(opened, c), append(packets, c.(*net.UDPConn))
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	for _, l := range listeners {
		p.own(l, func() { p.acceptAll(l) })
	}
	for _, c := range packets {
		p.own(c, func() { p.datagrams(c) })
	}
	h.lab.keep(p)
	return p, nil
}

// Asked is what the proxy has passed on so far.
func (p *Proxy) Asked() []Proxied {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Proxied(nil), p.asked...)
}

func (p *Proxy) note(a Proxied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, a)
}

// transparent lets a socket have addresses that are not the host's, and be told
// where a datagram was sent to (ip(7), IP_TRANSPARENT and IP_RECVORIGDSTADDR).
func transparent(network, _ string, c syscall.RawConn) error {
	var failure error
	err := c.Control(func(fd uintptr) {
		level, option, original := unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR
		if network[len(network)-1] == '6' {
			level, option, original = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR
		}
		failure = unix.SetsockoptInt(int(fd), level, option, 1)
		if network[0] == 'u' {
			failure = errors.Join(failure, unix.SetsockoptInt(int(fd), level, original, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		}
	})
	return errors.Join(err, failure)
}

// dialAs opens a connection from an address that is not the host's.
func (p *Proxy) dialAs(protocol string, from, to netip.AddrPort) (conn net.Conn, err error) {
	family := "4"
	if to.Addr().Is6() {
		family = "6"
	}
	d := net.Dialer{Control: transparent, Timeout: conversation}
	if protocol == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	}
	err = p.host.Do(func() (err error) {
		conn, err = d.Dial(protocol+family, to.String())
		return err
	})
	return conn, err
}

func (p *Proxy) acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.own(conn, func() { p.relay(conn.(*net.TCPConn)) })
		}
	}
}

// relay serves one TCP connection. It ends with the side that ends first, and
// closes the other at once.
func (p *Proxy) relay(client *net.TCPConn) {
	from, to := client.RemoteAddr().(*net.TCPAddr).AddrPort(), client.LocalAddr().(*net.TCPAddr).AddrPort()
	from, to = unmap(from), unmap(to)
	server, err := p.dialAs("tcp", netip.AddrPortFrom(from.Addr(), 0), to)
	if err != nil {
		return
	}
	defer server.Close()
	p.note(Proxied{TCP, from, to, local(server)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
	_ = client.Close()
	<-done
}

// datagrams serves UDP: each datagram is a question with one answer.
func (p *Proxy) datagrams(c *net.UDPConn) {
	buf, control := make([]byte, 2048), make([]byte, 256)
	for {
		n, m, _, peer, err := c.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if to, ok := original(control[:m]); ok && err == nil {
			p.pass(buf[:n], unmap(peer), to)
		}
	}
}

func (p *Proxy) pass(question []byte, from, to netip.AddrPort) {
	server, err := p.dialAs("udp", netip.AddrPortFrom(from.Addr(), 0), to)
	if err != nil {
		return
	}
	defer server.Close()
	p.note(Proxied{UDP, from, to, local(server)})
	_ = server.SetDeadline(time.Now().Add(defaultTimeout))
	answer := make([]byte, 2048)
	if _, err := server.Write(question); err != nil {
		return
	}
	n, err := server.Read(answer)
	if err != nil {
		return
	}
	client, err := p.dialAs("udp", to, from)
	if err != nil {
		return
	}
	defer client.Close()
	_, _ = client.Write(answer[:n])
}

// original reads where a datagram was sent to: struct sockaddr_in or sockaddr_in6.
func original(control []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range messages {
		var addr netip.Addr
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8:
			addr = netip.AddrFrom4([4]byte(m.Data[4:]))
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR && len(m.Data) >= 24:
			addr = netip.AddrFrom16([16]byte(m.Data[8:]))
		default:
			continue
		}
		return netip.AddrPortFrom(addr, uint16(m.Data[2])<<8|uint16(m.Data[3])), true
	}
	return netip.AddrPort{}, false
}
