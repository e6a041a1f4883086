package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// guardedProfile is two uplinks whose gateways are learned, and a network
// behind the host that belongs to the second one.
const guardedProfile = `[uplink.isp1]
interface = "em1"
[uplink.isp2]
interface = "em2"
guard     = %t
sources   = ["198.51.100.128/25", "2001:db8:2:1::/64"]
`

// learnSecond gives main a default by the second uplink, as a DHCP client or a
// router advertisement does, that is not the best one.
func learnSecond(t *testing.T, two *lab.TwoUplinks) {
	t.Helper()
	for i, f := range []string{"-4", "-6"} {
		ip(t, two.Host, f, "route", "replace", "default", "via", two.Uplinks[1].Gateway.All()[i].String(), "dev", "em2", "metric", "5000")
	}
}

// chatter has somebody send a datagram from each address every few
// milliseconds until stop is called. Errors are what is hoped for and ignored.
func chatter(t *testing.T, h *lab.Host, from []netip.Addr, to lab.Addresses) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, source := range from {
		target := to.V4
		if source.Is6() {
			target = to.V6
		}
		all.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for {
				_ = h.Do(func() error {
					conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, 9)))
					if err != nil {
						return err
					}
					defer conn.Close()
					_, err = conn.Write([]byte("chatter"))
					return err
				})
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(stop)
	return stop
}

// leaked are the packets of the second uplink's networks at an interface.
func leaked(p lab.Packet) bool {
	a := p.Src.Addr()
	return p.Out && (netip.MustParsePrefix("198.51.100.0/24").Contains(a) || netip.MustParsePrefix("2001:db8:2::/48").Contains(a))
}

// unreachable has a request fail with the kernel's word for it, in place of silence.
func unreachable(h *lab.Host, from, to netip.Addr, protocols ...lab.Protocol) error {
	for _, p := range protocols {
		_, err := h.Ask(context.Background(), lab.Request{Protocol: p, From: from, To: netip.AddrPortFrom(to, lab.Port), Timeout: 3 * time.Second})
		if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			return fmt.Errorf("%s from %s on %s: %v, want %v", p, from, h.Name, err, syscall.EHOSTUNREACH)
		}
	}
	return nil
}

// linkLocal is the link-local address of an interface.
func linkLocal(t *testing.T, h *lab.Host, link string) string {
	t.Helper()
	for _, word := range strings.Fields(ip(t, h, "-6", "address", "show", "dev", link, "scope", "link")) {
		if p, err := netip.ParsePrefix(word); err == nil {
			return p.Addr().String()
		}
	}
	t.Fatalf("%s of %s has no link-local address", link, h.Name)
	return ""
}

func TestLostUplinkNeverLeaksByTheOther(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	lan, err := two.AddLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	first, second := two.Uplinks[0], two.Uplinks[1]
	if _, err := first.Client.Serve(lab.Port); err != nil {
		t.Fatal(err)
	}
	// The kernel tells each source seldom that a target is unreachable: who
	// chatters is not who has to be told.
	if err := two.Host.Sysctl("net/ipv4/icmp_ratelimit=0", "net/ipv6/icmp/ratelimit=0"); err != nil {
		t.Fatal(err)
	}
	noise := lab.Addresses{V4: netip.MustParseAddr("198.51.100.131"), V6: netip.MustParseAddr("2001:db8:2:1::3")}
	if err := lan.Host.Addr("eth0", noise.V4.String()+"/25", noise.V6.String()+"/64"); err != nil {
		t.Fatal(err)
	}
	learnSecond(t, two)
	writeProfile(t, two.Host, "isp.toml", fmt.Sprintf(guardedProfile, true))
	startDaemon(t, two.Host)
	// LAN is the network behind, whose packets come whatever becomes of em2.
	fromLAN := func() error {
		for i, to := range first.Remote.All() {
			for _, p := range protocols {
				if _, err := lan.Host.Ask(t.Context(), lab.Request{Protocol: p, From: lan.Address.All()[i], To: netip.AddrPortFrom(to, lab.Port)}); err != nil {
					return fmt.Errorf("%s: %w", lan.Address.All()[i], err)
				}
			}
		}
		return nil
	}
	right := func(what string) {
		t.Helper()
		if err := lab.Wait(t.Context(), fromLAN); err != nil {
			t.Fatalf("%s: %v; the host has\n%s", what, err, decisions(t, two.Host))
		}
		converse(t, two.Host, what, everyWay(two, true, false))
	}
	right("at first")

	witness, err := two.Host.Capture("em1")
	if err != nil {
		t.Fatal(err)
	}
	// An IPv6 address goes with its link, and is a new one when it is back.
	quiet := []func(){
		chatter(t, lan.Host, noise.All(), first.Remote),
		chatter(t, two.Host, []netip.Addr{second.Address.V4}, first.Remote),
	}
	lost := func(what string, own bool) {
		t.Helper()
		wait(t, func() error {
			for i, to := range first.Remote.All() {
				if err := unreachable(lan.Host, lan.Address.All()[i], to, lab.TCP); err != nil {
					return err
				}
			}
			return nil
		})
		if !own {
			return
		}
		for i, to := range first.Remote.All() {
			if err := unreachable(two.Host, second.Address.All()[i], to, lab.TCP, lab.UDP); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}

	if err := two.Host.Down("em2"); err != nil {
		t.Fatal(err)
	}
	lost("link down", false)
	if err := unreachable(two.Host, second.Address.V4, first.Remote.V4, lab.TCP, lab.UDP); err != nil {
		t.Errorf("link down: %v", err)
	}
	if err := two.Host.Up("em2"); err != nil {
		t.Fatal(err)
	}
	ip(t, two.Host, "address", "replace", second.Address.V6.String()+"/64", "dev", "em2")
	learnSecond(t, two)
	right("link back")
	quiet = append(quiet, chatter(t, two.Host, []netip.Addr{second.Address.V6}, first.Remote))

	for _, f := range []string{"-4", "-6"} {
		ip(t, two.Host, f, "route", "del", "default", "dev", "em2")
	}
	lost("gateway gone", true)
	// Neighbours need no gateway; a DHCP server is one.
	var neighbours []conversation
	for i, own := range second.Gateway.All() {
		neighbours = append(neighbours, conversations(second.Router, own, second.Address.All()[i], "em2", "em2", true)...)
	}
	converse(t, two.Host, "gateway gone", neighbours)
	run(t, two.Host, "ping", "-c", "1", "-W", "5", "-I", "em2", linkLocal(t, second.Router, "host"))
	learnSecond(t, two)
	right("gateway back")

	cut(t, second)
	wait(t, func() error { return errWant("NO-CARRIER", ip(t, two.Host, "link", "show", "dev", "em2")) })
	wait(t, func() error { return errWant("no carrier", sisod(t, two.Host, "status").stdout) })
	mend(t, second)
	right("carrier back")
	for _, stop := range quiet {
		stop()
	}
	if err := witness.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range witness.Packets() {
		if leaked(p) {
			t.Errorf("at %s by the first uplink: %s", p.Time.UTC().Format(time.StampMilli), p)
		}
	}
}

// Without the guard the same packets do leave by the other uplink: so the
// operator chose, and so the witness of the other test is proved.
func TestWithoutGuardMainDecidesWhenTheUplinkIsLost(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	lan, err := two.AddLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	learnSecond(t, two)
	writeProfile(t, two.Host, "isp.toml", fmt.Sprintf(guardedProfile, false))
	apply(t, two.Host, 0)
	for _, f := range []string{"-4", "-6"} {
		ip(t, two.Host, f, "route", "del", "default", "dev", "em2")
	}
	r := apply(t, two.Host, 2)
	if err := errWant("its replies go as main decides (guard = false)", r.stderr); err != nil {
		t.Error(err)
	}
	witness, err := two.Host.Capture("em1")
	if err != nil {
		t.Fatal(err)
	}
	chatter(t, two.Host, two.Uplinks[1].Address.All(), two.Uplinks[0].Remote)
	chatter(t, lan.Host, lan.Address.All(), two.Uplinks[0].Remote)
	for _, from := range append(two.Uplinks[1].Address.All(), lan.Address.All()...) {
		if _, err := witness.Wait(t.Context(), func(p lab.Packet) bool { return leaked(p) && p.Src.Addr() == from }); err != nil {
			t.Errorf("from %s: %v\n%s", from, err, decisions(t, two.Host))
		}
	}
	if routes := ip(t, two.Host, "route", "show", "table", "all") + ip(t, two.Host, "-6", "route", "show", "table", "isp2"); strings.Contains(routes, "unreachable default dev lo table isp2") || strings.Contains(routes, "unreachable default table isp2") {
		t.Errorf("a guard stands:\n%s", routes)
	}
}
