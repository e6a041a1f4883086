package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// proxyPort is where the tests' proxies listen, and uncaptured a port that
// nothing is captured on.
const (
	proxyPort  = 3129
	uncaptured = 81
)

// proxyProfile captures what a LAN asks of the world and what the second
// provider's clients ask of the LAN, which leaves by that provider.
const proxyProfile = `[uplink.one]
interface = "em1"
forward = true
[uplink.two]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
sources = ["198.51.100.128/25", "2001:db8:2:1::/64"]
forward = true
[tproxy.web]
services = ["tcp/80", "udp/80"]
interfaces = ["lan0", "em2"]
listen = ":3129"
`

// firewall is the reverse-path filter of firewalld for IPv6, which is strict and
// compares marks, at the priority of one release or another.
const firewall = `table inet firewall {
	chain prerouting {
		type filter hook prerouting priority PRIORITY
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
		meta nfproto ipv6 fib saddr . mark . iif oif missing drop
	}
}
`

// proxied is a host with two uplinks, a LAN behind it and servers everywhere.
type proxied struct {
	*lab.TwoUplinks
	lan, container lab.Neighbour
}

func newProxied(t *testing.T, filter, validMark int) proxied {
	t.Helper()
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter})
	lan, err := two.AddLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	container, err := two.AddContainer()
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Host.Sysctl(fmt.Sprintf("net/ipv4/conf/all/src_valid_mark=%d", validMark)); err != nil {
		t.Fatal(err)
	}
	priority := []string{"filter + 10", "mangle + 10", "raw + 10"}[filter]
	runInput(t, two.Host, strings.Replace(firewall, "PRIORITY", priority, 1), "nft", "-f", "-")
	for _, s := range []struct {
		host *lab.Host
		port uint16
	}{{two.Uplinks[0].Client, lab.Port}, {two.Uplinks[0].Client, uncaptured}, {lan.Host, uncaptured}} {
		if _, err := s.host.Serve(s.port); err != nil {
			t.Fatal(err)
		}
	}
	return proxied{two, lan, container}
}

// errand is a request that passes the host, or is for it.
type errand struct {
	what     string
	client   *lab.Host
	from     uint16 // the client's port; 0: any
	to       netip.Addr
	port     uint16
	captured bool
}

// errands are one of each kind in both families.
func (p proxied) errands() []errand {
	var list []errand
	for i := range 2 {
		lan, world, own := p.lan.Address.All()[i], p.Uplinks[0].Remote.All()[i], p.Uplinks[1].Address.All()[i]
		stranger := p.Uplinks[1].Client
		list = append(list,
			errand{"the LAN to the world", p.lan.Host, 0, world, lab.Port, true},
			errand{"the second provider's client to the LAN", stranger, 0, lan, lab.Port, true},
			errand{"the LAN to the world, not captured", p.lan.Host, 0, world, uncaptured, false},
			errand{"the second provider's client to the LAN, not captured", stranger, 0, lan, uncaptured, false},
			errand{"the LAN to the host", p.lan.Host, 0, own, lab.Port, false},
			errand{"the second provider's client to the host", stranger, 0, own, lab.Port, false},
			errand{"the first provider's client to the LAN, by the second", p.Uplinks[0].Client, 0, lan, lab.Port, true},
			errand{"the LAN to the world, not captured, from the proxy's port", p.lan.Host, proxyPort, world, uncaptured, false},
			errand{"the second provider's client to the LAN, not captured, from a captured port", stranger, lab.Port, lan, uncaptured, false},
			errand{"a container to the LAN", p.container.Host, 0, lan, lab.Port, false})
	}
	return list
}

// run has the errands done, over TCP and UDP, and holds what the servers saw
// against what the proxy did.
func (p proxied) run(t *testing.T, what string, proxy *lab.Proxy, list []errand) {
	t.Helper()
	for _, e := range list {
		for _, protocol := range []lab.Protocol{lab.TCP, lab.UDP} {
			to := netip.AddrPortFrom(e.to, e.port)
			reply := ask(t, e.client, lab.Request{Protocol: protocol, FromPort: e.from, To: to})
			asked := slices.ContainsFunc(proxy.Asked(), func(a lab.Proxied) bool {
				return a.Protocol == protocol && a.Client == reply.Local && a.To == to && a.From == reply.Peer
			})
			switch {
			case reply.Peer.Addr() != reply.Local.Addr():
				t.Errorf("%s: %s, %s: the server saw %s, the client is %s", what, e.what, protocol, reply.Peer, reply.Local)
			case e.captured != asked || e.captured != (reply.Peer != reply.Local):
				t.Errorf("%s: %s, %s: passed the proxy: %t, want %t; client %s, as the server saw it %s", what, e.what, protocol, asked, e.captured, reply.Local, reply.Peer)
			}
		}
	}
}

// packetsOf is what a host has that decides about packets on their way.
func packetsOf(t *testing.T, h *lab.Host) string {
	t.Helper()
	return ip(t, h, "rule") + ip(t, h, "-6", "rule") + ip(t, h, "route", "show", "table", "all", "proto", "115") +
		ip(t, h, "-6", "route", "show", "table", "all", "proto", "115") + run(t, h, "nft", "-s", "list", "ruleset")
}

func TestCapturedConnectionsPassTheProxyWithTheirAddresses(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		for validMark := range 2 {
			t.Run(fmt.Sprintf("rp_filter %d, src_valid_mark %d", filter, validMark), func(t *testing.T) {
				p := newProxied(t, filter, validMark)
				before := packetsOf(t, p.Host)
				proxy, err := p.Host.Proxy(proxyPort)
				if err != nil {
					t.Fatal(err)
				}
				writeProfile(t, p.Host, "proxy.toml", proxyProfile)
				apply(t, p.Host, 0)
				if r := apply(t, p.Host, 0); r.stdout != "nothing to do\n" {
					t.Errorf("the second apply said %s%s", r.stdout, r.stderr)
				}
				p.run(t, "captured", proxy, p.errands())
				// Now no rule about sources leads the proxy's answers.
				writeProfile(t, p.Host, "proxy.toml", strings.Replace(proxyProfile, "sources = ", "# ", 1))
				apply(t, p.Host, 0)
				p.run(t, "without sources", proxy, slices.DeleteFunc(p.errands(), func(e errand) bool { return !e.captured || e.client == p.lan.Host }))
				flush(t, p.Host)
				if after := packetsOf(t, p.Host); after != before {
					t.Errorf("flush left\n%s\nthe host had\n%s", after, before)
				}
			})
		}
	}
}

func TestCapturesAreWhatNftAndIPPrint(t *testing.T) {
	t.Parallel()
	p := newProxied(t, 1, 0)
	if _, err := p.Host.Proxy(proxyPort); err != nil {
		t.Fatal(err)
	}
	writeProfile(t, p.Host, "proxy.toml", proxyProfile+`[tproxy.dns]
services = ["udp/53"]
interfaces = ["lan0"]
listen = "127.0.0.1:0"
[tproxy.old]
services = ["tcp/25"]
interfaces = ["lan0"]
listen = "[::1]:25"
`)
	script := sisod(t, p.Host, "plan", "-o", "script").stdout
	apply(t, p.Host, 2) // nobody listens for dns and old
	chain := func(text string) string {
		_, text, _ = strings.Cut(text, "chain captured {\n")
		text, _, _ = strings.Cut(text, "}")
		return text
	}
	if want, got := chain(script), chain(run(t, p.Host, "nft", "-s", "list", "table", "inet", "sisod")); want != got || strings.Count(want, "tproxy") != 10 {
		t.Errorf("the plan says\n%s\nnft says\n%s", want, got)
	}
	for _, family := range []string{"-4", "-6"} {
		rules := ip(t, p.Host, family, "rule")
		for line := range strings.Lines(script) {
			// ip -6 rule add priority 11500 from all fwmark 0x3000000/0x3f000000 iif lo goto 11549 protocol 115
			_, rest, ok := strings.Cut(line, "rule add priority ")
			if words := strings.Fields(rest); ok && strings.HasPrefix(line, "ip -6") == (family == "-6") {
				want := words[0] + ":\t" + strings.Join(words[1:len(words)-2], " ") + " proto 115"
				if !strings.Contains(rules, want) && !strings.Contains(rules, strings.Replace(want, "proto 115", "proto sisod", 1)) {
					t.Errorf("the plan has %q, ip %s rule says\n%s", want, family, rules)
				}
			}
		}
	}
}

// The proxy ends a connection first, and the server's end comes when little is
// left of the proxy's socket.
func TestServersLastSegmentsComeToTheProxy(t *testing.T) {
	t.Parallel()
	p := newProxied(t, 1, 1)
	if _, err := p.Host.Proxy(proxyPort); err != nil {
		t.Fatal(err)
	}
	for i, to := range p.Uplinks[0].Remote.All() {
		server := accepts(t, p.Uplinks[0].Client, 8080+uint16(i))
		writeProfile(t, p.Host, "proxy.toml", strings.Replace(proxyProfile, "tcp/80", fmt.Sprintf("tcp/%d", 8080+i), 1))
		apply(t, p.Host, 0)
		connects(t, p.lan.Host, netip.AddrPortFrom(to, 8080+uint16(i))).Close()
		conn := <-server
		shows := func(h *lab.Host, socket string, n int) {
			t.Helper()
			wait(t, func() error {
				if out := run(t, h, "ss", append([]string{"-tanHo"}, strings.Fields(socket)...)...); strings.Count(out, "\n") != n {
					return fmt.Errorf("%s: ss %s shows %q", h.Name, socket, out)
				}
				return nil
			})
		}
		shows(p.Host, fmt.Sprintf("state fin-wait-2 dport = :%d", 8080+i), 1)
		witness, err := p.lan.Host.Capture()
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		shows(p.Host, fmt.Sprintf("state time-wait dport = :%d", 8080+i), 1)
		shows(p.Uplinks[0].Client, fmt.Sprintf("state last-ack sport = :%d", 8080+i), 0)
		port := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Port()
		if n := witness.Count(func(p lab.Packet) bool { return p.Src.Addr() == to && p.Dst.Port() == port }); n != 0 {
			t.Errorf("%s: %d segments of the server passed the proxy by", to, n)
		}
		if err := witness.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// accepts has a host accept one connection on a port.
func accepts(t *testing.T, h *lab.Host, port uint16) <-chan net.Conn {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	err := h.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			if conn, err := l.Accept(); err == nil {
				accepted <- conn
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return accepted
}

func TestPathsOfTheProxysConnectionsAreLearned(t *testing.T) {
	t.Parallel()
	p := newProxied(t, 1, 1)
	if _, err := p.Host.Proxy(proxyPort); err != nil {
		t.Fatal(err)
	}
	writeProfile(t, p.Host, "proxy.toml", strings.Replace(proxyProfile, "tcp/80", "tcp/8080", 1))
	apply(t, p.Host, 0)
	web, err := p.Uplinks[0].Client.ServeWeb(8080)
	if err != nil {
		t.Fatal(err)
	}
	// Between the providers, where neither end sees it.
	ip(t, p.Uplinks[1].Router, "link", "set", "backbone", "mtu", "1300")
	for _, to := range p.Uplinks[0].Remote.All() {
		before := web.Received()
		page, err := p.lan.Host.Fetch(t.Context(), netip.AddrPortFrom(to, 8080), 200_000, 5*time.Second)
		if err != nil || page.Bytes != 200_000 {
			t.Errorf("%s: %d bytes came, %v\n%s", to, web.Received()-before, err, ip(t, p.Host, "route", "get", to.String()))
		}
	}
}
