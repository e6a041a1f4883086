//go:build stock

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// knocks sends a datagram from each of these ports: each is a connection to a
// balancer. A socket for each would take several times as long.
func knocks(t *testing.T, h *lab.Host, to netip.AddrPort, first, last int) {
	t.Helper()
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for port := first; port <= last; port++ {
			const length = 8 // nothing but the header, without a checksum
			header := make([]byte, length)
			binary.BigEndian.PutUint16(header, uint16(port))
			binary.BigEndian.PutUint16(header[2:], to.Port())
			binary.BigEndian.PutUint16(header[4:], length)
			err := unix.Sendto(fd, header, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
			// A queue of the kernel's is full: what is dropped there, or further on, is
			// for the caller to miss.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("send from port %d: %w", port, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStockFullNATSaysWhenItsPortsRunOut(t *testing.T) {
	l := newFullNAT(t)
	writeProfile(t, l.Director, "lvs.toml", spell(l.LVS, `
		[director.log]
		mode = "fullnat"
		vip = "VIP4"
		interface = "eth0"
		services = ["udp/514"]
		snat = ["DIR4"]
		real_servers = [ { address = "RS14" } ]`))
	apply(t, l.Director, 0)
	// Nobody need answer, and no timeout may come in between.
	run(t, l.Director, "ipvsadm", "--set", "900", "120", "3600")
	const each, first = 64512, 1024
	sent := 0
	for _, s := range []struct {
		n, code int
		text    string
	}{
		{each*60/100 - 1, 0, ""},
		{each*60/100 + 1, 2, "1 problem\n"},
		{each*85/100 - 1, 2, "1 problem\n"},
		{each*85/100 + 1, 1, "1 error\n"},
	} {
		var st status
		patiently(t, func() error {
			knocks(t, l.Client, netip.AddrPortFrom(l.VIP.V4, 514), first+sent, first+s.n-1)
			r := sisod(t, l.Director, "status", "-o", "json")
			st = status{}
			if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
				t.Fatal(err)
			}
			if c := st.Roles[0].Capacity; c == nil || c.InUse != s.n || c.Tuples != each || r.code != s.code {
				return fmt.Errorf("capacity %+v, exit code %d, want %d in use, %d\n%s", c, r.code, s.n, s.code, run(t, l.Director, "ipvsadm", "-Ln"))
			}
			return nil
		})
		sent = s.n
		if said := len(st.Problems) > 0; said != (s.code > 0) || said && st.Problems[0].Error != (s.code == 1) {
			t.Errorf("%d connections: problems %+v", s.n, st.Problems)
		}
		if text := expect(t, l.Director, s.code, "status").stdout; !strings.HasPrefix(text, s.text) {
			t.Errorf("%d connections: status says\n%s", s.n, text)
		}
	}
	// What is wrong with the ports is no failure of an application.
	if r := apply(t, l.Director, 2); !strings.Contains(r.stderr, "error    director log: more than 85 %") {
		t.Errorf("apply says\n%s%s", r.stdout, r.stderr)
	}
	asFound(t, l.found, l.hosts()...)
}
