package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// candidatesProfile makes both uplinks candidates for the host's default route.
const candidatesProfile = `[uplink.isp1]
interface = "em1"
[uplink.isp1.default]
metric = %d
weight = %d
[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
[uplink.isp2.default]
metric = %d
weight = %d
`

// candidates is a TwoUplinks whose clients and routers serve, with a profile
// for the default candidates of its host.
func candidates(t *testing.T, metric1, weight1, metric2, weight2 int) *lab.TwoUplinks {
	t.Helper()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	for _, u := range two.Uplinks {
		for _, h := range []*lab.Host{u.Client, u.Router} {
			if _, err := h.Serve(lab.Port); err != nil {
				t.Fatal(err)
			}
		}
	}
	writeProfile(t, two.Host, "isp.toml", fmt.Sprintf(candidatesProfile, metric1, weight1, metric2, weight2))
	return two
}

// unbound tells by which uplink the host's own connections to somebody on
// the Internet leave, or why they do not.
func unbound(t *testing.T, two *lab.TwoUplinks, to lab.Addresses, uplink int) error {
	for i, a := range to.All() {
		for _, p := range protocols {
			reply, err := two.Host.Ask(t.Context(), lab.Request{Protocol: p, To: netip.AddrPortFrom(a, lab.Port)})
			if err != nil {
				return err
			}
			if want := two.Uplinks[uplink].Address.All()[i]; reply.Local.Addr() != want {
				return fmt.Errorf("%s to %s starts from %s, want %s", p, a, reply.Local, want)
			}
		}
	}
	return nil
}

// cut takes an uplink's carrier away: the provider's end goes down.
func cut(t *testing.T, u lab.Uplink) {
	t.Helper()
	// The provider's own addresses are to be there when the cable is back.
	if err := u.Router.Sysctl("net/ipv6/conf/host/keep_addr_on_down=1"); err != nil {
		t.Fatal(err)
	}
	if err := u.Router.Down("host"); err != nil {
		t.Fatal(err)
	}
}

// mend undoes cut.
func mend(t *testing.T, u lab.Uplink) {
	t.Helper()
	if err := u.Router.Up("host"); err != nil {
		t.Fatal(err)
	}
	wait(t, func() error { return errWant("LOWER_UP", ip(t, u.Router, "link", "show", "dev", "host")) })
	for _, network := range []struct {
		host, gateway netip.Addr
		bits          int
	}{{u.Address.V4, u.Gateway.V4, 24}, {u.Address.V6, u.Gateway.V6, 48}} {
		wait(t, func() error {
			return errWant(network.gateway.String()+"/", ip(t, u.Router, "address", "show", "dev", "host"))
		})
		wait(t, func() error {
			_, err := u.Router.Run(t.Context(), "ip", "route", "replace", netip.PrefixFrom(network.host, network.bits).Masked().String(), "via", network.host.String())
			return err
		})
	}
}

func TestOwnConnectionsFailOverAndComeBack(t *testing.T) {
	t.Parallel()
	two := candidates(t, 100, 1, 200, 1)
	first, second := two.Uplinks[0], two.Uplinks[1]
	main := func() string {
		return ip(t, two.Host, "route", "show", "table", "main") + ip(t, two.Host, "-6", "route", "show", "table", "main")
	}
	before := main()
	for _, way := range []struct {
		name string
		// settle brings the host to the profile after a change, until cond is true.
		settle func(code int, cond func() error)
	}{
		{"apply", func(code int, cond func() error) {
			t.Helper()
			apply(t, two.Host, code)
			if err := cond(); err != nil {
				t.Fatalf("%v; the host has\n%s", err, decisions(t, two.Host))
			}
		}},
		{"daemon", func(_ int, cond func() error) {
			t.Helper()
			if err := lab.Wait(t.Context(), cond); err != nil {
				t.Fatalf("%v; the host has\n%s", err, decisions(t, two.Host))
			}
		}},
	} {
		if way.name == "daemon" {
			startDaemon(t, two.Host)
		}
		by := func(uplink int) func() error {
			return func() error { return unbound(t, two, two.Uplinks[1-uplink].Remote, uplink) }
		}
		way.settle(0, by(0))
		if now := main(); now != before {
			t.Errorf("main was written:\n%s\nbefore:\n%s", now, before)
		}

		cut(t, first)
		way.settle(2, by(1))
		mend(t, first)
		way.settle(0, by(0))

		// The gateway is learned from main's default, which a DHCP client takes away.
		for _, f := range []string{"-4", "-6"} {
			ip(t, two.Host, f, "route", "del", "default")
		}
		way.settle(2, by(1))
		for i, f := range []string{"-4", "-6"} {
			ip(t, two.Host, f, "route", "add", "default", "via", first.Gateway.All()[i].String(), "proto", "static")
		}
		way.settle(0, by(0))

		// The second is lost: nothing changes, and replies are right again when it is back.
		cut(t, second)
		way.settle(2, by(0))
		mend(t, second)
		way.settle(0, by(0))
		converse(t, two.Host, way.name, everyWay(two, true, false))
	}
}

func TestNeighboursOfBothUplinksAreReachedDirectly(t *testing.T) {
	t.Parallel()
	two := candidates(t, 100, 1, 200, 1)
	// What main knows of em2 by another router stays there, too.
	ip(t, two.Host, "route", "add", two.Uplinks[1].Remote.V4.String(), "via", two.Uplinks[1].Gateway.V4.String())
	ip(t, two.Host, "route", "add", two.Uplinks[1].Remote.V6.String(), "via", two.Uplinks[1].Gateway.V6.String())
	apply(t, two.Host, 0)
	for i, u := range two.Uplinks {
		if err := unbound(t, two, u.Gateway, i); err != nil {
			t.Error(err)
		}
	}
	if err := unbound(t, two, two.Uplinks[1].Remote, 1); err != nil {
		t.Error(err)
	}
	if err := unbound(t, two, two.Uplinks[0].Remote, 0); err != nil {
		t.Error(err)
	}
	// Nothing else is caught: a connection to an address of its own, and loopback.
	for _, to := range []string{"192.0.2.2", "198.51.100.2", "127.0.0.1", "2001:db8:2::2", "::1"} {
		ask(t, two.Host, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(to), lab.Port)})
	}
}

func TestEqualCandidatesShareByWeight(t *testing.T) {
	t.Parallel()
	two := candidates(t, 100, 1, 100, 3)
	apply(t, two.Host, 0)
	// The kernel chooses by source and destination, so these differ.
	const many = 80
	var batch strings.Builder
	var to []netip.Addr
	for i := range many {
		v4, v6 := netip.AddrFrom4([4]byte{203, 0, 113, byte(20 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:c1::1:%x", i))
		fmt.Fprintf(&batch, "address add %s/25 dev eth0\naddress add %s/64 dev eth0\n", v4, v6)
		to = append(to, v4, v6)
	}
	runInput(t, two.Uplinks[0].Client, batch.String(), "ip", "-batch", "-")
	share := func(what string, right func(first, second int) bool) {
		t.Helper()
		count := map[netip.Addr]int{}
		for _, a := range to {
			// The provider drops what has the other uplink's source.
			reply := ask(t, two.Host, lab.Request{Protocol: lab.UDP, To: netip.AddrPortFrom(a, lab.Port)})
			count[reply.Peer.Addr()]++
		}
		for i := range 2 { // families
			first, second := count[two.Uplinks[0].Address.All()[i]], count[two.Uplinks[1].Address.All()[i]]
			if first+second != many || !right(first, second) {
				t.Errorf("%s: of %d connections %d left by weight 1 and %d by weight 3", what, many, first, second)
			}
		}
	}
	byWeight := func(first, second int) bool { return first > 0 && second > first }
	share("both", byWeight)
	cut(t, two.Uplinks[1])
	wait(t, func() error { return errWant("NO-CARRIER", ip(t, two.Host, "link", "show", "dev", "em2")) })
	apply(t, two.Host, 2)
	share("the second has no carrier", func(first, _ int) bool { return first == many })
	mend(t, two.Uplinks[1])
	apply(t, two.Host, 0)
	share("both again", byWeight)
}

func TestBroadcastAndMulticastArriveUnderStrictReversePathFilter(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: 1})
	writeProfile(t, two.Host, "isp.toml", fmt.Sprintf(candidatesProfile, 100, 1, 200, 1))
	for _, moment := range []string{"before", "after"} {
		if moment == "after" {
			apply(t, two.Host, 0)
		}
		for _, u := range two.Uplinks {
			broadcast := netip.MustParseAddr("192.0.2.127")
			if u.Link == "em2" {
				broadcast = netip.MustParseAddr("198.51.100.127")
			}
			for _, to := range []netip.Addr{broadcast, netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("224.0.0.18")} {
				if err := overhear(two.Host, u.Link, u.Router, "host", to); err != nil {
					t.Errorf("%s: %s to %s: %v", moment, u.Router.Name, to, err)
				}
			}
		}
	}
}

// overhear sends a datagram to a broadcast or multicast address, and waits
// until a socket of the listener has it.
func overhear(listener *lab.Host, link string, sender *lab.Host, by string, to netip.Addr) error {
	var ear *net.UDPConn
	err := listener.Do(func() (err error) {
		if !to.IsMulticast() {
			ear, err = net.ListenUDP("udp4", &net.UDPAddr{})
			return err
		}
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		ear, err = net.ListenMulticastUDP("udp4", i, &net.UDPAddr{IP: to.AsSlice()})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ear.Close()
	port := ear.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	err = sender.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			var failure error
			if err := c.Control(func(fd uintptr) { failure = unix.BindToDevice(int(fd), by) }); err != nil {
				return err
			}
			return failure
		}}
		mouth, err := d.Dial("udp4", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer mouth.Close()
		_, err = mouth.Write([]byte(to.String()))
		return err
	})
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := ear.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	heard := make([]byte, 64)
	n, err := ear.Read(heard)
	if err != nil {
		if os.IsTimeout(err) {
			return fmt.Errorf("nothing is received")
		}
		return err
	}
	if string(heard[:n]) != to.String() {
		return fmt.Errorf("received %q", heard[:n])
	}
	return nil
}
