package main

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// followProfile follows connections on both uplinks. Main's default may be
// either's.
const followProfile = `[uplink.one]
interface = "em1"
gateway = ["192.0.2.1", "2001:db8:1::1"]
forward = true
[uplink.two]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
forward = true
`

// Ports of the host that are forwarded elsewhere.
const (
	toContainer = 8080
	toPrivate   = 8081
	toNeighbour = 8082
	toWeb       = 8083 // in the private LAN
)

// published sends what comes to the host's ports on: to a container, to a
// private LAN, and to a machine on the network of the uplink that it did not come by.
const published = `table inet published {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		fib daddr type local meta l4proto { tcp, udp } th dport vmap { 8080 : jump container, 8081 : jump private, 8083 : jump web }
		iifname em1 fib daddr type local meta l4proto { tcp, udp } th dport 8082 jump second
		iifname em2 fib daddr type local meta l4proto { tcp, udp } th dport 8082 jump first
	}
	chain container { meta l4proto { tcp, udp } dnat ip to 172.17.0.2:80; meta l4proto { tcp, udp } dnat ip6 to [fd00:17::2]:80; }
	chain private { meta l4proto { tcp, udp } dnat ip to 10.1.0.2:80; meta l4proto { tcp, udp } dnat ip6 to [fd00:10:1::2]:80; }
	chain web { meta l4proto { tcp, udp } dnat ip to 10.1.0.2:81; meta l4proto { tcp, udp } dnat ip6 to [fd00:10:1::2]:81; }
	chain first { meta l4proto { tcp, udp } dnat ip to 192.0.2.3:80; meta l4proto { tcp, udp } dnat ip6 to [2001:db8:1::3]:80; }
	chain second { meta l4proto { tcp, udp } dnat ip to 198.51.100.3:80; meta l4proto { tcp, udp } dnat ip6 to [2001:db8:2::3]:80; }
}`

// forwarder is a host with two uplinks, a machine on each one's network, a
// container, a private LAN, and a LAN with addresses of one provider.
type forwarder struct {
	*lab.TwoUplinks
	usual        int // the uplink of main's default; the LAN has addresses of the other
	lan, private lab.Neighbour
}

// newForwarder builds a forwarder. A packet of 1450 bytes is too large for whatever
// comes by the uplink that is not the usual one and is forwarded.
func newForwarder(t *testing.T, filter, usual int) forwarder {
	t.Helper()
	f := forwarder{TwoUplinks: twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter, Neighbours: true}), usual: usual}
	var err error
	if f.lan, err = f.AddLAN(1 - usual); err != nil {
		t.Fatal(err)
	}
	if _, err := f.AddContainer(); err != nil {
		t.Fatal(err)
	}
	if f.private, err = f.AddPrivateLAN(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.private.Host.ServeWeb(81); err != nil {
		t.Fatal(err)
	}
	for _, u := range f.Uplinks {
		if _, err := u.Client.Serve(lab.Port); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Client.ServeWeb(81); err != nil {
			t.Fatal(err)
		}
	}
	u := f.Uplinks[usual]
	run(t, f.Host, "nft", published)
	for _, link := range []string{"lan0", "docker0", "lan1", u.Link} {
		ip(t, f.Host, "link", "set", link, "mtu", "1400")
	}
	ip(t, f.Host, "route", "replace", "default", "via", u.Gateway.V4.String())
	ip(t, f.Host, "-6", "route", "del", "default")
	ip(t, f.Host, "-6", "route", "add", "default", "via", u.Gateway.V6.String())
	// Every error counts here.
	if err := f.Host.Sysctl("net/ipv4/icmp_ratelimit=0", "net/ipv4/icmp_msgs_per_sec=100000", "net/ipv6/icmp/ratelimit=0"); err != nil {
		t.Fatal(err)
	}
	return f
}

// pathway is a way to ask for something that is not on the host.
type pathway struct {
	what string
	u    lab.Uplink
	by   int // index of u
	v6   int // 0 or 1
	to   netip.AddrPort
}

// pathways are all cases of the matrix.
func (f forwarder) pathways() []pathway {
	var list []pathway
	for by, u := range f.Uplinks {
		for v6 := range 2 {
			list = append(list,
				pathway{"container", u, by, v6, u.Address.At(v6 == 1, toContainer)},
				pathway{"port forward", u, by, v6, u.Address.At(v6 == 1, toPrivate)},
				pathway{"backend on the other uplink's network", u, by, v6, u.Address.At(v6 == 1, toNeighbour)})
			if by != f.usual {
				list = append(list, pathway{"routed LAN", u, by, v6, f.lan.Address.At(v6 == 1, lab.Port)})
			}
		}
	}
	return list
}

// asked are requests in every flow. Replies leave by the uplink with the index that
// way says; strict filters of IPv4 drop requests for which that is not theirs.
func (f forwarder) asked(strict bool, way func(by int) int) []conversation {
	var list []conversation
	for _, x := range f.pathways() {
		out := f.Uplinks[way(x.by)].Link
		right := out == x.u.Link
		if strict && x.v6 == 0 && !right {
			out = ""
		}
		for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
			list = append(list, conversation{client: x.u.Client, remote: x.u.Remote.All()[x.v6], protocol: p, to: x.to, in: x.u.Link, out: out, answered: right})
		}
	}
	return list
}

// isTooBig recognises "fragmentation needed" (or another unreachable) and "packet too big".
func isTooBig(p lab.Packet) bool {
	return p.Protocol == lab.ICMP && p.Type == 3 || p.Protocol == lab.ICMPv6 && p.Type == 2
}

// tooBig sends a packet that is too large in every flow by the unusual uplink and
// checks the error's way out, and, unless lost, its arrival and source.
func (f forwarder) tooBig(t *testing.T, what string, strict bool, way int, arrives bool) {
	t.Helper()
	for _, x := range f.pathways() {
		if x.by == f.usual || strict && !arrives && x.v6 == 0 {
			continue
		}
		witness, err := f.Host.Capture()
		if err != nil {
			t.Fatal(err)
		}
		timeout := 5 * time.Second
		if !arrives {
			timeout = 50 * time.Millisecond // long enough to see where it goes
		}
		answer, err := x.u.Client.ProbeMTU(t.Context(), x.to, 1450, timeout)
		p, seen := witness.Wait(t.Context(), func(p lab.Packet) bool { return p.Out && isTooBig(p) && p.Dst.Addr() == x.u.Remote.All()[x.v6] })
		if err := witness.Close(); err != nil {
			t.Fatal(err)
		}
		if seen != nil || p.Link != f.Uplinks[way].Link {
			t.Errorf("%s: %s to %s: the error of a packet that is too big: %v %v, want it by %s; the host saw %v\n%s", what, x.what, x.to, p, seen, f.Uplinks[way].Link, witness.Packets(), decisions(t, f.Host))
		}
		if !arrives {
			continue
		}
		if err != nil || answer.MTU != 1400 || answer.From != x.u.Address.All()[x.v6] && answer.From != x.to.Addr() {
			t.Errorf("%s: %s to %s: a packet that is too big is answered by %+v, %v; want 1400 bytes from %s or %s", what, x.what, x.to, answer, err, x.u.Address.All()[x.v6], x.to.Addr())
		}
	}
}

func TestWhatIsForwardedIsAnsweredByTheUplinkOfTheRequest(t *testing.T) {
	t.Parallel()
	for usual := range 2 {
		for filter := range 3 {
			t.Run(fmt.Sprintf("default by em%d, rp_filter %d", usual+1, filter), func(t *testing.T) {
				t.Parallel()
				f := newForwarder(t, filter, usual)
				strict := filter == 1
				byUsual := func(int) int { return usual }
				bySame := func(by int) int { return by }
				before := wholeSnapshot(t, f.Host)
				converse(t, f.Host, "before", f.asked(strict, byUsual))
				f.tooBig(t, "before", strict, usual, false)

				writeProfile(t, f.Host, "isp.toml", followProfile)
				apply(t, f.Host, 0)
				if r := apply(t, f.Host, 0); r.stdout != "nothing to do\n" {
					t.Errorf("the second apply said %s%s", r.stdout, r.stderr)
				}
				own := everyWay(f.TwoUplinks, true, false)
				converse(t, f.Host, "after", f.asked(strict, bySame), own)
				f.tooBig(t, "after", strict, 1-usual, true)
				flush(t, f.Host)
				same(t, "flush", wholeSnapshot(t, f.Host), before)
			})
		}
	}
}

// Somebody on the network of one uplink who asks the address of another one is
// answered directly, not by the other provider.
func TestNeighboursReachAddressesOfTheOtherUplink(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		t.Run(fmt.Sprintf("rp_filter %d", filter), func(t *testing.T) {
			t.Parallel()
			two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter, Neighbours: true})
			asked := func(direct bool) []conversation {
				var list []conversation
				for i, n := range two.Neighbours {
					other := two.Uplinks[1-i]
					for v6, to := range other.Address.All() {
						out := n.Link
						if !direct {
							out = other.Link
							if filter == 1 && v6 == 0 {
								out = ""
							}
						}
						list = append(list, conversations(n.Host, n.Address.All()[v6], to, n.Link, out, direct)...)
					}
				}
				return list
			}
			converse(t, two.Host, "without sisod", asked(true))
			// What follows addresses alone takes them round by the other provider.
			writeProfile(t, two.Host, "isp.toml", twoProfile)
			apply(t, two.Host, 0)
			roundabout := slices.DeleteFunc(asked(false), func(c conversation) bool { return c.out == "" })
			for i := range roundabout {
				roundabout[i].answered = true // these providers know each other
			}
			converse(t, two.Host, "addresses followed", roundabout)
			writeProfile(t, two.Host, "isp.toml", followProfile)
			apply(t, two.Host, 0)
			converse(t, two.Host, "connections followed", asked(true), everyWay(two, true, false))
		})
	}
}
