package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// twoProfile is all that the host of a lab.TwoUplinks has to be told.
const twoProfile = `[uplink.isp1]
interface = "em1"
[uplink.isp2]
interface = "em2"
gateway   = ["198.51.100.1", "2001:db8:2::1"]
`

// conversation is a request of a client, with the way that it and its reply
// are to take at the host that is asked.
type conversation struct {
	client   *lab.Host
	remote   netip.Addr // the client's address, as the host sees it
	protocol lab.Protocol
	to       netip.AddrPort
	at       netip.Addr // where the host answers; the zero Addr is that of to

	in, out  string // interfaces of the host, "" for a packet that must not be seen
	answered bool
}

// protocols are those that every conversation is tried with.
var protocols = [...]lab.Protocol{lab.TCP, lab.UDP, lab.ICMP}

// conversations is the same conversation with every protocol.
func conversations(client *lab.Host, remote, to netip.Addr, in, out string, answered bool) []conversation {
	var list []conversation
	for _, p := range protocols {
		list = append(list, conversation{client: client, remote: remote, protocol: p, to: netip.AddrPortFrom(to, lab.Port), in: in, out: out, answered: answered})
	}
	return list
}

func (c conversation) String() string {
	return fmt.Sprintf("%s of %s (%s) to %s", c.protocol, c.client.Name, c.remote, c.to)
}

func (c conversation) carries(p lab.Packet, out bool) bool {
	src, dst := c.remote, c.at
	if out {
		src, dst = dst, src
	}
	return p.Out == out && p.Protocol.Is(c.protocol) && p.Src.Addr() == src && p.Dst.Addr() == dst && (c.protocol != lab.ICMP || p.Echo())
}

// bridgePort is where packets of a bridge are seen a second time.
const bridgePort = "veth0"

// ports are those that the client has used.
func (c conversation) ports(packets []lab.Packet) map[uint16]bool {
	ports := map[uint16]bool{}
	for _, p := range packets {
		if c.carries(p, false) {
			ports[p.Src.Port()] = true
		}
	}
	return ports
}

// fate tells the ways that were seen and whether there was a reply.
func fate(in, out string, answered bool) string {
	for _, s := range []*string{&in, &out} {
		if *s == "" {
			*s = "-"
		}
	}
	if answered {
		return fmt.Sprintf("in %s, out %s, reply", in, out)
	}
	return fmt.Sprintf("in %s, out %s, no reply", in, out)
}

// converse has all conversations at once and holds each against what it is to be.
func converse(t *testing.T, server *lab.Host, what string, lists ...[]conversation) {
	t.Helper()
	witness, err := server.Capture()
	if err != nil {
		t.Fatal(err)
	}
	list := slices.Concat(lists...)
	got := make([]string, len(list))
	var wait sync.WaitGroup
	for i := range list {
		c := &list[i]
		if !c.at.IsValid() {
			c.at = c.to.Addr()
		}
		wait.Go(func() {
			r := lab.Request{Protocol: c.protocol, To: c.to, From: c.remote}
			if c.answered {
				r.Timeout = 15 * time.Second // only a fault is ever waited for
			}
			_, err := c.client.Ask(t.Context(), r)
			in, out := passed(t, witness, *c, false), passed(t, witness, *c, true)
			got[i] = fate(in, out, err == nil)
		})
	}
	wait.Wait()
	if err := witness.Close(); err != nil {
		t.Fatal(err)
	}
	for i, c := range list {
		if want := fate(c.in, c.out, c.answered); got[i] != want {
			t.Errorf("%s: %s: %s; want %s", what, c, got[i], want)
		}
	}
	if t.Failed() {
		t.Fatalf("%s: the host has\n%s", what, decisions(t, server))
	}
}

// passed are the interfaces that a conversation's packets passed in a direction.
// A packet that is expected is waited for.
func passed(t *testing.T, witness *lab.Capture, c conversation, out bool) string {
	packets := func() []lab.Packet {
		all := witness.Packets()
		// The host may still repeat the SYN+ACK of an earlier request.
		ports := c.ports(all)
		return slices.DeleteFunc(all, func(p lab.Packet) bool {
			return !c.carries(p, out) || out && !ports[p.Dst.Port()] || p.Link == bridgePort
		})
	}
	if out && c.out != "" || !out && c.in != "" {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_ = lab.Wait(ctx, func() error { // the caller sees that there is none
			if len(packets()) == 0 {
				return errors.New("no packet")
			}
			return nil
		})
	}
	var links []string
	for _, p := range packets() {
		if !slices.Contains(links, p.Link) {
			links = append(links, p.Link)
		}
	}
	return strings.Join(links, " and ")
}

// decisions is what decides about packets, for the reader of a failure.
func decisions(t *testing.T, h *lab.Host) string {
	var b strings.Builder
	for _, command := range []string{"rule", "route show table all type unicast", "route show table all type unreachable", "-6 rule", "-6 route show table all type unicast", "-brief address"} {
		out, err := h.Run(context.WithoutCancel(t.Context()), "ip", strings.Fields(command)...)
		fmt.Fprintf(&b, "# ip %s\n%s", command, out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}

// ask has one request answered, and returns the reply.
func ask(t *testing.T, client *lab.Host, r lab.Request) lab.Reply {
	t.Helper()
	r.Timeout = 5 * time.Second
	reply, err := client.Ask(t.Context(), r)
	if err != nil {
		t.Fatalf("%v; %s has\n%s", err, client.Name, decisions(t, client))
	}
	return reply
}

// flush gives a host back as it was.
func flush(t *testing.T, h *lab.Host) {
	t.Helper()
	if r := sisod(t, h, "flush"); r.code != 0 {
		t.Fatalf("sisod flush: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// everyWay is every client of two asking every address of its host. Before a
// cure all replies leave by the first uplink; strict means that requests that
// come in by the second one are not even accepted (IPv4 alone has that filter).
func everyWay(two *lab.TwoUplinks, right, strict bool) []conversation {
	var list []conversation
	for c, client := range two.Uplinks {
		for _, asked := range two.Uplinks {
			for i, to := range asked.Address.All() {
				way, answered := asked.Link, true
				if !right {
					way, answered = two.Uplinks[0].Link, asked.Link == two.Uplinks[0].Link
				}
				// Only what the host does by itself is strict's business: the way in
				// is right where main's route back is.
				if strict && !right && asked.Link != way && i == 0 {
					way = ""
				}
				list = append(list, conversations(two.Uplinks[c].Client, client.Remote.All()[i], to, asked.Link, way, answered)...)
			}
		}
	}
	return list
}

func TestRepliesLeaveByTheWayOfTheRequestUnderEveryReversePathFilter(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	for _, all := range []int{0, 1, 2} {
		for _, own := range []int{0, 1, 2} {
			what := fmt.Sprintf("all %d, interfaces %d", all, own)
			values := []string{fmt.Sprintf("net/ipv4/conf/all/rp_filter=%d", all)}
			for _, u := range two.Uplinks {
				values = append(values, fmt.Sprintf("net/ipv4/conf/%s/rp_filter=%d", u.Link, own))
			}
			if err := two.Host.Sysctl(values...); err != nil {
				t.Fatal(err)
			}
			converse(t, two.Host, what+", before", everyWay(two, false, max(all, own) == 1))
			apply(t, two.Host, 0)
			converse(t, two.Host, what+", after", everyWay(two, true, max(all, own) == 1))
			flush(t, two.Host)
		}
	}
}

func TestSocketBoundToTheSecondUplinkReachesTheInternet(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	client := two.Uplinks[0]
	if _, err := client.Client.Serve(lab.Port); err != nil {
		t.Fatal(err)
	}
	request := func(p lab.Protocol, to netip.Addr) lab.Request {
		return lab.Request{Protocol: p, To: netip.AddrPortFrom(to, lab.Port), Device: "em2"}
	}
	// Main's default is the other interface's: the kernel looks for the Internet on the link.
	for _, p := range protocols {
		if _, err := two.Host.Ask(t.Context(), request(p, client.Remote.V4)); err == nil {
			t.Fatalf("%s over em2 is answered before apply: nothing is proved", p)
		}
	}
	if entry := ip(t, two.Host, "neighbour", "show", client.Remote.V4.String(), "dev", "em2"); !strings.Contains(entry, client.Remote.V4.String()) {
		t.Fatalf("em2 has not asked for %s by ARP before apply: %q", client.Remote.V4, entry)
	}
	ip(t, two.Host, "neighbour", "flush", "dev", "em2", "nud", "all")
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	apply(t, two.Host, 0)
	for i, to := range client.Remote.All() {
		for _, p := range protocols {
			if reply, source := ask(t, two.Host, request(p, to)), two.Uplinks[1].Address.All()[i]; reply.Local.Addr() != source {
				t.Errorf("%s starts from %s, want %s", request(p, to), reply.Local, source)
			}
		}
		if entry := ip(t, two.Host, "neighbour", "show", to.String(), "dev", "em2"); entry != "" {
			t.Errorf("em2 has looked for a neighbour %s: %s", to, entry)
		}
	}
	run(t, two.Host, "ping", "-c", "1", "-W", "5", "-I", "em2", client.Remote.V4.String())
	run(t, two.Host, "ping", "-c", "1", "-W", "5", "-I", "em2", client.Remote.V6.String())
}

// errWant is what a wait condition returns when text is not there yet.
func errWant(want, text string) error {
	if strings.Contains(text, want) {
		return nil
	}
	return errors.New("no " + want + " in:\n" + text)
}
