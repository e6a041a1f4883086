package lab

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// twoPort is the server of a TwoUplinks at its first uplink.
func twoPort(two *TwoUplinks) netip.AddrPort {
	return netip.AddrPortFrom(two.Uplinks[0].Address.V4, Port)
}

// pair is two hosts with one cable between them, a with two addresses of each
// family, and a server on b.
func pair(t *testing.T) (a, b *Host) {
	t.Helper()
	l := New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	err = l.Link(
		End{hosts[0], "eth0", []string{"192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64"}},
		End{hosts[1], "eth0", []string{"192.0.2.10/24", "192.0.2.11/24", "2001:db8::10/64", "2001:db8::11/64"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hosts[1].Serve(Port); err != nil {
		t.Fatal(err)
	}
	return hosts[0], hosts[1]
}

// need fails a test whose oracle is not installed.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("%v: install it, on Debian with apt-get install %s", err, program)
	}
}

func TestServerTellsTheAddressThatItSaw(t *testing.T) {
	need(t, "curl")
	a, _ := pair(t)
	for _, way := range [][2]string{
		{"192.0.2.1", "192.0.2.10"}, {"192.0.2.2", "192.0.2.11"}, {"2001:db8::1", "2001:db8::10"}, {"2001:db8::2", "2001:db8::11"},
	} {
		source, target := netip.MustParseAddr(way[0]), netip.AddrPortFrom(netip.MustParseAddr(way[1]), Port)
		for _, protocol := range []Protocol{TCP, UDP} {
			r, err := a.Ask(t.Context(), Request{Protocol: protocol, To: target, From: source, Device: "eth0"})
			if err != nil || r.Peer.Addr() != source || r.Peer != r.Local {
				t.Errorf("%s from %s to %s: %+v, %v", protocol, source, target, r, err)
			}
		}
		if r, err := a.Ask(t.Context(), Request{Protocol: ICMP, To: target, From: source, Device: "eth0"}); err != nil || r.Local.Addr() != source {
			t.Errorf("ICMP from %s to %s: %+v, %v", source, target, r, err)
		}
		out, err := a.Run(t.Context(), "curl", "--silent", "--show-error", "--interface", source.String(), "http://"+target.String()+"/")
		if peer, parseErr := netip.ParseAddrPort(strings.TrimSpace(out)); err != nil || parseErr != nil || peer.Addr() != source {
			t.Errorf("curl from %s: %q, %v", source, out, err)
		}
	}
}

func TestAskTellsRefusalFromSilence(t *testing.T) {
	a, b := pair(t)
	closed := netip.MustParseAddrPort("192.0.2.10:81")
	for _, protocol := range []Protocol{TCP, UDP} {
		if _, err := a.Ask(t.Context(), Request{Protocol: protocol, To: closed}); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to a closed port: %v, want %v", protocol, err, syscall.ECONNREFUSED)
		}
	}
	if _, err := a.Ask(t.Context(), Request{Protocol: TCP, To: netip.MustParseAddrPort("203.0.113.1:80")}); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("without a route: %v, want %v", err, syscall.ENETUNREACH)
	}
	if _, err := a.Ask(t.Context(), Request{Protocol: UDP, To: closed, Device: "nosuch"}); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("bound to no device: %v, want %v", err, syscall.ENODEV)
	}
	if err := b.AcceptOnly("eth0"); err != nil {
		t.Fatal(err)
	}
	// Local addresses are before the filter: only what is forwarded is dropped.
	ask(t, a, Request{Protocol: TCP, To: netip.MustParseAddrPort("192.0.2.10:80")}, true)
	if err := b.Forward(); err != nil {
		t.Fatal(err)
	}
	if err := a.Routes([2]string{"default4", "192.0.2.10"}, [2]string{"default6", "2001:db8::10"}); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"203.0.113.1", "2001:db8:1::1"} {
		for _, protocol := range protocols {
			ask(t, a, Request{Protocol: protocol, To: netip.AddrPortFrom(netip.MustParseAddr(to), Port)}, false)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Ask(ctx, Request{Protocol: TCP, To: netip.MustParseAddrPort("203.0.113.1:80")})
	if err == nil || errors.Is(err, ErrNoReply) {
		t.Errorf("cancelled: %v, want another error than %v", err, ErrNoReply)
	}
}

// The independent witness is tcpdump.
func TestCaptureAgreesWithTcpdump(t *testing.T) {
	need(t, "tcpdump")
	a, b := pair(t)
	var said, stdout Lines
	cmd := exec.Command("tcpdump", "--immediate-mode", "-l", "-n", "-t", "-q", "-i", "eth0", "udp")
	cmd.Stdout, cmd.Stderr = &stdout, &said
	dump, err := b.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(t.Context(), func() error {
		if !strings.Contains(said.String(), "listening on") {
			return errors.New("tcpdump does not listen: " + said.String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c := capture(t, b, "eth0")
	other := capture(t, b, "lo")
	for _, to := range []string{"192.0.2.10", "2001:db8::11"} {
		ask(t, a, Request{Protocol: UDP, To: netip.AddrPortFrom(netip.MustParseAddr(to), Port)}, true)
	}
	err = Wait(t.Context(), func() error {
		if n := strings.Count(stdout.String(), "UDP"); n < 4 {
			return errors.New("tcpdump has not seen everything")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := dump.Wait(); err != nil {
		t.Errorf("tcpdump: %v: %s", err, &said)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	var own, theirs []string
	for _, p := range c.Packets() {
		if p.Protocol == UDP {
			own = append(own, strings.NewReplacer("[", "", "]", "").Replace(spellPort(p.Src)+" "+spellPort(p.Dst)))
		}
	}
	for line := range strings.Lines(stdout.String()) {
		// IP 192.0.2.1.40000 > 192.0.2.10.80: UDP, length 9
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "IP") {
			continue // an empty line at its end
		}
		theirs = append(theirs, colon(f[1])+" "+colon(strings.TrimSuffix(f[3], ":")))
	}
	if !slices.Equal(own, theirs) {
		t.Errorf("capture has %q, tcpdump %q", own, theirs)
	}
	for i, p := range slices.DeleteFunc(c.Packets(), func(p Packet) bool { return p.Protocol != UDP }) {
		if p.Link != "eth0" || p.Out != (i%2 == 1) {
			t.Errorf("packet %d is %s, want requests in and replies out", i, p)
		}
	}
	if n := len(other.Packets()); n != 0 {
		t.Errorf("capture of lo saw %d packets of eth0", n)
	}
}

// colon spells tcpdump's address.port as address:port.
func colon(s string) string {
	i := strings.LastIndexByte(s, '.')
	return s[:i] + ":" + s[i+1:]
}

func TestCaptureSurvivesLinkFlap(t *testing.T) {
	a, b := pair(t)
	c := capture(t, b)
	if err := errors.Join(b.Down("eth0"), b.Up("eth0")); err != nil {
		t.Fatal(err)
	}
	if err := Wait(t.Context(), func() error { return b.serves("eth0", true) }); err != nil {
		t.Fatal(err)
	}
	c.Reset()
	ask(t, a, Request{Protocol: TCP, To: netip.MustParseAddrPort("192.0.2.10:80")}, true)
	if _, err := c.Wait(t.Context(), func(p Packet) bool { return p.Out && p.Flags == SYN|ACK }); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close capture after a flap: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close capture twice: %v", err)
	}
}

func TestDecode(t *testing.T) {
	v4 := func(proto byte, offset byte, payload ...byte) []byte {
		h := []byte{0x45, 0, 0, 40, 0, 0, 0, offset, 64, proto, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}
		return append(h, payload...)
	}
	v6 := func(next byte, payload ...byte) []byte {
		h := []byte{0x60, 0, 0, 0, 0, 20, next, 64}
		h = append(h, netip.MustParseAddr("2001:db8::1").AsSlice()...)
		h = append(h, netip.MustParseAddr("2001:db8::2").AsSlice()...)
		return append(h, payload...)
	}
	tcp := []byte{0x30, 0x39, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0}
	options := []byte{6, 0, 1, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		name   string
		packet []byte
		want   string
	}{
		{"tcp", v4(6, 0, tcp...), "TCP 192.0.2.1:12345 > 192.0.2.2:80 [S.]"},
		{"tcp cut short", v4(6, 0, tcp[:8]...), "TCP 192.0.2.1 > 192.0.2.2 []"},
		{"later fragment", v4(17, 5, tcp...), "UDP 192.0.2.1 > 192.0.2.2"},
		{"icmp", v4(1, 0, 8, 0), "ICMP 192.0.2.1 > 192.0.2.2 type 8"},
		{"tcp over IPv6", v6(6, tcp...), "TCP [2001:db8::1]:12345 > [2001:db8::2]:80 [S.]"},
		{"behind hop-by-hop options", v6(0, append(options, tcp...)...), "TCP [2001:db8::1]:12345 > [2001:db8::2]:80 [S.]"},
		{"first fragment of IPv6", v6(44, append([]byte{6, 0, 0, 1, 0, 0, 0, 1}, tcp...)...), "TCP [2001:db8::1]:12345 > [2001:db8::2]:80 [S.]"},
		{"later fragment of IPv6", v6(44, append([]byte{6, 0, 0, 8, 0, 0, 0, 1}, tcp...)...), "TCP 2001:db8::1 > 2001:db8::2 []"},
		{"icmpv6", v6(58, 128, 0), "ICMPv6 2001:db8::1 > 2001:db8::2 type 128"},
	} {
		p, ok := decode(c.packet)
		if got := strings.TrimPrefix(p.String(), " in  "); !ok || got != c.want {
			t.Errorf("%s: %q (%t), want %q", c.name, got, ok, c.want)
		}
	}
	for _, b := range [][]byte{nil, {0x45}, v4(6, 0)[:19], v6(6)[:39], {0x10, 0}, bytes.Repeat([]byte{0x4f}, 59)} {
		if p, ok := decode(b); ok {
			t.Errorf("decode %x: %s, want nothing", b, p)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 20, 0, 64}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decode(b)
		if ok != p.Src.Addr().IsValid() {
			t.Errorf("decode %x: %v, %v", b, p, ok)
		}
	})
}
