//go:build stock

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// pour serves so many bytes to everybody who connects to a port of a host.
func pour(t *testing.T, h *lab.Host, port uint16, bytes int) {
	t.Helper()
	var listener net.Listener
	err := h.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		listener, err = lc.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(2 * patient))
			_, _ = conn.Write(make([]byte, bytes)) // the client counts
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
}

// drawn is how many bytes a host gets from a service that pours.
func drawn(t *testing.T, from *lab.Host, to netip.AddrPort) int64 {
	t.Helper()
	var conn net.Conn
	err := from.Do(func() (err error) {
		d := net.Dialer{Timeout: patient}
		d.SetMultipathTCP(false)
		conn, err = d.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * patient))
	n, _ := io.Copy(io.Discard, conn) // what has come by then is what counts
	return n
}

// A router towards the client tells the VIP that a packet was too big. It is the
// real server that has to know, under the address that it knows.
func TestStockFullNATTellsRealServersThatPacketsAreTooBig(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	ip(t, l.Router, "link", "set", "client", "mtu", "1300")
	const bytes = 100_000
	for _, h := range l.RealServers {
		pour(t, h, 90, bytes)
	}
	l.profile(t, l.Director, `
		[uplink.service]
		interface = "eth0"
		[director.web]
		mode = "fullnat"
		vip = ["VIP4", "VIP6"]
		interface = "eth0"
		services = ["tcp/8000"]
		scheduler = "rr"
		snat = ["DIR4", "POOL4", "DIR6", "POOL6"]
		real_servers = [
		  { address = "RS14", port = 90 }, { address = "RS24", port = 90 },
		  { address = "RS16", port = 90 }, { address = "RS26", port = 90 },
		]`)
	for _, v6 := range []bool{false, true} {
		witness, err := l.Router.Capture("lan")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if n := drawn(t, l.Client, l.VIP.At(v6, 8000)); n != bytes {
				t.Errorf("the client got %d of %d bytes from %s", n, bytes, l.VIP.At(v6, 8000))
			}
		}
		tooBig := func(p lab.Packet) bool {
			return p.Out && (p.Protocol == lab.ICMP && p.Type == 3 || p.Protocol == lab.ICMPv6 && p.Type == 2)
		}
		if witness.Count(tooBig) == 0 {
			t.Errorf("%s: nothing was too big: nothing is proved", l.VIP.At(v6, 8000))
		}
	}
}

// Connections of a director that is gone end by themselves, or after a minute:
// until then their addresses are translated, though no service asks for it.
func TestStockFullNATDrains(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool))
	var visits []*lab.Visit
	for _, v6 := range []bool{false, true} {
		v, err := l.Client.Visit(t.Context(), l.VIP.At(v6, 8000), patient)
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		visits = append(visits, v)
	}
	fetch := func(when string) {
		for _, v := range visits {
			if _, err := v.Fetch(t.Context(), 0, patient); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	fetch("before")
	writeProfile(t, l.Director, "lvs.toml", "[uplink.service]\ninterface = \"eth0\"\n")
	apply(t, l.Director, 0)
	fetch("while they drain")
	apply(t, l.Director, 2)
	fetch("while they drain, and that is told")
	for _, v := range visits {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
	patiently(t, func() error {
		if left := run(t, l.Director, "ipvsadm", "-Sn"); left != "" {
			sisod(t, l.Director, "apply")
			return fmt.Errorf("left:\n%s", left)
		}
		return nil
	})
	if left := run(t, l.Director, "nft", "list", "tables"); left != "" {
		t.Errorf("nothing drains any more, and there is %s", left)
	}
}
