package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// statusOf is what sisod status says, in both its forms.
func statusOf(t *testing.T, h *lab.Host) (st status, text string) {
	t.Helper()
	if err := json.Unmarshal([]byte(sisod(t, h, "status", "-o", "json").stdout), &st); err != nil {
		t.Fatal(err)
	}
	return st, sisod(t, h, "status").stdout
}

// severityShows holds the exit codes and the words of a status with at most one
// problem against what its JSON says of it.
func severityShows(t *testing.T, h *lab.Host, st status, text string) {
	t.Helper()
	code, verdict, section := 0, "in order\n", ""
	switch {
	case len(st.Problems) > 0 && st.Problems[0].Error:
		code, verdict, section = 1, "1 error\n", "\nerrors\n  "
	case len(st.Problems) > 0:
		code, verdict, section = 2, "1 problem\n", "\nproblems\n  "
	}
	if !strings.HasPrefix(text, verdict) || section != "" && !strings.Contains(text, section+st.Problems[0].Subject+": ") {
		t.Errorf("status does not begin with %q, or has no section %q:\n%s", verdict, section, text)
	}
	for _, format := range []string{"text", "json"} {
		if r := sisod(t, h, "status", "-o", format); r.code != code {
			t.Errorf("status -o %s of %+v: exit code %d, want %d\n%s", format, st.Problems, r.code, code, r.stderr)
		}
	}
}

// behind is a host with a LAN and one way out, and a profile that captures.
func behind(t *testing.T, profile string) proxied {
	t.Helper()
	p := newProxied(t, 1, 0)
	writeProfile(t, p.Host, "proxy.toml", "[uplink.two]\ninterface = \"em2\"\ngateway = [\"198.51.100.1\", \"2001:db8:2::1\"]\n"+
		"sources = [\"198.51.100.128/25\", \"2001:db8:2:1::/64\"]\n"+profile)
	return p
}

const captureLAN = `[tproxy.web]
services = ["tcp/80"]
interfaces = ["lan0"]
listen = ":3129"
`

// problemsOf are the problems' texts.
func problemsOf(st status) string {
	var b strings.Builder
	for _, p := range st.Problems {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

func TestProxyThatNobodyListensForIsAProblem(t *testing.T) {
	t.Parallel()
	p := behind(t, captureLAN)
	world := p.Uplinks[0].Remote
	untouched := func(when string) {
		for _, to := range world.All() {
			if r := ask(t, p.lan.Host, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(to, lab.Port)}); r.Peer != r.Local {
				t.Errorf("%s: the server saw %s, the client is %s", when, r.Peer, r.Local)
			}
		}
	}
	apply(t, p.Host, 2)
	st, _ := statusOf(t, p.Host)
	if text := problemsOf(st); !strings.Contains(text, "nobody listens on tcp port 3129") || strings.Count(text, "\n") != 1 {
		t.Errorf("problems: %s", text)
	}
	untouched("nobody listens")

	deaf, err := p.Host.Serve(proxyPort)
	if err != nil {
		t.Fatal(err)
	}
	st, _ = statusOf(t, p.Host)
	if text := problemsOf(st); !strings.Contains(text, "the socket on tcp port 3129 is not transparent") {
		t.Errorf("problems: %s", text)
	}
	untouched("not transparent")
	deaf.Close()

	proxy, err := p.Host.Proxy(proxyPort)
	if err != nil {
		t.Fatal(err)
	}
	st, _ = statusOf(t, p.Host)
	if text := problemsOf(st); text != "" || !st.InOrder {
		t.Errorf("problems: %s, in order: %t", text, st.InOrder)
	}
	p.run(t, "with a proxy", proxy, []errand{})
	if r := ask(t, p.lan.Host, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(world.V4, lab.Port)}); r.Peer == r.Local || len(proxy.Asked()) != 1 {
		t.Errorf("the proxy passed on %v", proxy.Asked())
	}
}

func TestCaptureNeedsNoUplinkAndNoRoute(t *testing.T) {
	t.Parallel()
	p := newProxied(t, 1, 1)
	if _, err := p.Host.Proxy(proxyPort); err != nil {
		t.Fatal(err)
	}
	ip(t, p.Host, "route", "del", "default")
	ip(t, p.Host, "-6", "route", "del", "default")
	writeProfile(t, p.Host, "proxy.toml", captureLAN)
	apply(t, p.Host, 0)
	for _, to := range p.Uplinks[0].Remote.All() {
		if _, err := p.Host.Run(t.Context(), "ip", "route", "get", to.String()); err == nil {
			t.Errorf("the host has a route to %s", to)
		}
		connects(t, p.lan.Host, netip.AddrPortFrom(to, lab.Port)) // which the proxy accepts
	}
}

func TestCaptureOnInterfacesThatAreThere(t *testing.T) {
	t.Parallel()
	p := behind(t, strings.Replace(captureLAN, `["lan0"]`, `["lan7", "lan0", "em1"]`, 1)+"[uplink.one]\ninterface = \"em1\"\n")
	proxy, err := p.Host.Proxy(proxyPort)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, p.Host, 2)
	st, _ := statusOf(t, p.Host)
	text := problemsOf(st)
	for _, want := range []string{"interface lan7 is not there", "what comes in by em1 is captured, and the proxy's answers leave as main decides"} {
		if !strings.Contains(text, want) {
			t.Errorf("no problem says %q: %s", want, text)
		}
	}
	// Capturing needs no forwarding.
	if err := p.Host.Sysctl("net/ipv4/ip_forward=0", "net/ipv6/conf/all/forwarding=0"); err != nil {
		t.Fatal(err)
	}
	for _, to := range p.Uplinks[0].Remote.All() {
		r := ask(t, p.lan.Host, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(to, lab.Port)})
		if r.Peer == r.Local || r.Peer.Addr() != r.Local.Addr() {
			t.Errorf("the server saw %s, the client is %s", r.Peer, r.Local)
		}
		if _, err := p.lan.Host.Ask(t.Context(), lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(to, uncaptured)}); err == nil {
			t.Errorf("%s port %d answers through a host that forwards nothing", to, uncaptured)
		}
	}
	if n := len(proxy.Asked()); n != 2 {
		t.Errorf("%d connections passed the proxy, want 2", n)
	}
}

// holds has a host accept connections and end each when its client has.
func holds(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	err := h.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					conn.Close()
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// connects opens a connection that ends with the test.
func connects(t *testing.T, h *lab.Host, to netip.AddrPort) (conn net.Conn) {
	t.Helper()
	err := h.Do(func() (err error) {
		conn, err = net.Dial("tcp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestRoomForConnectionsIsShownAndReported(t *testing.T) {
	t.Parallel()
	p := behind(t, strings.Replace(captureLAN, "tcp/80", "tcp/8080", 1)+"upstreams = 1\n")
	holds(t, p.Uplinks[0].Client, 8080)
	if _, err := p.Host.Proxy(proxyPort); err != nil {
		t.Fatal(err)
	}
	apply(t, p.Host, 0)
	_, text := statusOf(t, p.Host)
	if want := "room for 28232 connections (0 clients, 1 server, 28232 ports), 0 in use, 0 %, 470 new ones a second"; !strings.Contains(text, want) {
		t.Errorf("status lacks %q:\n%s", want, text)
	}
	if err := p.Host.Sysctl("net/ipv4/ip_local_port_range=40000 40019"); err != nil {
		t.Fatal(err)
	}
	// A proxy that takes the client's own port by chance shares its tracked connection.
	if err := p.lan.Host.Sysctl("net/ipv4/ip_local_port_range=50000 59999"); err != nil {
		t.Fatal(err)
	}
	server := p.Uplinks[0].Remote.V4
	connects(t, p.Host, netip.AddrPortFrom(server, 8080)) // its own is none of the proxy's
	var open []net.Conn
	connections := func(how string, n int) {
		t.Helper()
		wait(t, func() error {
			if have := strings.Count(run(t, p.Host, "ss", "-tanH", "state", how, "src", p.lan.Address.V4.String(), "dport = :8080"), "\n"); have != n {
				return fmt.Errorf("ss shows %d %s connections to servers, want %d, and in all\n%s", have, how, n, run(t, p.Host, "ss", "-tano"))
			}
			return nil
		})
	}
	for _, s := range []struct {
		n       int
		problem string
		failing bool
	}{{11, "", false}, {12, "over 60 % of the connections", false}, {16, "over 60 % of the connections", false}, {17, "over 85 % of the connections", true}} {
		for len(open) < s.n {
			open = append(open, connects(t, p.lan.Host, netip.AddrPortFrom(server, 8080)))
			connections("established", len(open))
		}
		st, text := statusOf(t, p.Host)
		have := st.Roles[0].Capacity
		if have == nil || have.InUse != s.n || have.Tuples != 20 || have.Clients != 1 || have.Percent != 5*s.n || have.Busiest == nil || have.Busiest.Client != p.lan.Address.V4 || have.Busiest.InUse != s.n {
			t.Fatalf("%d connections: capacity %+v", s.n, have)
		}
		want := fmt.Sprintf("room for 20 connections (1 client, 1 server, 20 ports), %d in use, %d %%, 0 new ones a second", s.n, 5*s.n)
		if !strings.Contains(text, want) {
			t.Errorf("status lacks %q:\n%s", want, text)
		}
		switch said := problemsOf(st); {
		case s.problem == "" && said != "", !strings.Contains(said, s.problem):
			t.Errorf("%d connections: problems %s", s.n, said)
		case s.problem != "" && st.Problems[0].Error != s.failing:
			t.Errorf("%d connections: %+v", s.n, st.Problems[0])
		}
		severityShows(t, p.Host, st, text)
	}
	for _, c := range open {
		c.Close()
	}
	// What the proxy has ended keeps its port.
	connections("time-wait", len(open))
	if st, _ := statusOf(t, p.Host); st.Roles[0].Capacity.InUse != len(open) || problemsOf(st) == "" {
		t.Errorf("in TIME_WAIT: %+v", st.Roles[0].Capacity)
	}
}
