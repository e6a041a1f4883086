//go:build stock

package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// sctpSocket is a socket of the thread's namespace whose calls give up after a
// time.
func sctpSocket(a netip.Addr, timeout time.Duration) (int, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	return fd, nil
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// serveSCTP answers every connection to an address of a host's with the name
// of the host and the address of the client, until the test ends.
func serveSCTP(t *testing.T, h *lab.Host, at netip.AddrPort) {
	t.Helper()
	var fd int
	err := h.Do(func() (err error) {
		if fd, err = sctpSocket(at.Addr(), 100*time.Millisecond); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(at)); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(fd, 8))
	})
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		for {
			select {
			case <-stop:
				return
			default:
			}
			conn, from, err := unix.Accept(fd)
			if err != nil {
				continue // nobody yet
			}
			var peer netip.Addr
			switch a := from.(type) {
			case *unix.SockaddrInet4:
				peer = netip.AddrFrom4(a.Addr)
			case *unix.SockaddrInet6:
				peer = netip.AddrFrom16(a.Addr)
			}
			// A client that has gone notices by itself.
			_, _ = unix.Write(conn, fmt.Appendf(nil, "%s %s", h.Name, peer))
			_ = unix.Close(conn)
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
}

// askSCTP is what a server of serveSCTP answers. The socket is bound to an
// address, or the association would have all that the host has.
func askSCTP(from *lab.Host, own netip.Addr, to netip.AddrPort) (server string, client netip.Addr, err error) {
	answer := make([]byte, 64)
	err = from.Do(func() error {
		fd, err := sctpSocket(to.Addr(), patient)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(own, 0))); err != nil {
			return os.NewSyscallError("bind", err)
		}
		if err := unix.Connect(fd, sockaddr(to)); err != nil {
			return os.NewSyscallError("connect", err)
		}
		n, err := unix.Read(fd, answer)
		answer = answer[:max(n, 0)]
		return os.NewSyscallError("read", err)
	})
	if err != nil {
		return "", netip.Addr{}, fmt.Errorf("ask SCTP %s on %s: %w", to, from.Name, err)
	}
	server, peer, _ := strings.Cut(string(answer), " ")
	client, err = netip.ParseAddr(peer)
	return server, client, err
}

// associations have SCTP served by dr and, with its port mapped, by nat: each is
// one connection.
func associations(t *testing.T, l *lab.LVS) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		for i, h := range l.RealServers {
			// A server of every address would tell the client of all that the host has.
			serveSCTP(t, h, l.VIP.At(v6, 2905))
			serveSCTP(t, h, l.RealAddresses[i].At(v6, 5355))
		}
		for _, port := range []uint16{2905, 5300} {
			vip, own := l.VIP.At(v6, port), l.ClientAddress.At(v6, 0).Addr()
			var order []string
			for range 4 {
				server, client, err := askSCTP(l.Client, own, vip)
				if err != nil {
					t.Error(err)
					break
				}
				if client != own {
					t.Errorf("%s: %s saw %s, want the client %s", vip, server, client, own)
				}
				order = append(order, server)
			}
			if got := strings.Join(order, " "); got != "rs1 rs2 rs1 rs2" && got != "rs2 rs1 rs2 rs1" {
				t.Errorf("%s by round robin: %s", vip, got)
			}
		}
	}
}
