package routing

import (
	"cmp"
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// IANA numbers of the protocols that can be captured.
const (
	protocolTCP = 6
	protocolUDP = 17
)

var capturable = map[string]uint8{"tcp": protocolTCP, "udp": protocolUDP}

// captures gives packets that would only pass to transparent sockets of this
// host.
//
// Three kinds of packets are a proxy's: those that begin a connection to a
// captured service, those that go on with it, and those of the proxy's own
// connections that carry a client's address. The first are told by interface and
// port, the others by the socket that there is for them, whatever interface they
// come by. All get a mark, and rules deliver what has it to this host.
//
// The reverse-path filter looks up the way back to the sender with the packet's
// own mark (where src_valid_mark is set, and in rules of firewalls that compare
// it), and refuses every packet whose way back is a local route. Such a look has
// iif lo, no packet from elsewhere has, so it goes on behind the rules that
// deliver, as if there were no mark: the answer is the way that the proxy's own
// packets to that address take, because these begin at lo without a mark too. A
// rule for each interface that a packet may come by (`iif em1 fwmark …`) would
// have to know them all: replies of servers come by any.
func (b *builder) captures() {
	if len(b.config.Captures) == 0 {
		return
	}
	if why := cmp.Or(b.facts.NFT.Missing, b.facts.NFT.NoProxy); why != "" {
		for _, c := range b.config.Captures {
			b.problem("tproxy "+c.Name, c.Pos, "a transparent proxy needs nf_tables with tproxy and socket, which this kernel does not give: %s; nothing is captured", why)
		}
		return
	}
	mine := b.mark("capture", b.config.Settings.MarkMask, b.taken())
	b.Origins[mine] = b.config.Captures[0].Pos.Short()
	ways := b.capturedWays()
	b.captureRoutes(mine, ways)
	first := b.config.Captures[0].Pos.Short()
	b.captured(first, state.NFRule{state.NFDestination{Type: "local"}, state.NFAccept{}})
	b.transparent(mine, ways)
	for i := range b.config.Captures {
		b.capture(&b.config.Captures[i], mine, ways)
		b.listeners(&b.config.Captures[i])
	}
}

// captured adds a rule about what is for the proxies.
func (b *builder) captured(origin string, r state.NFRule) {
	b.packets.Captured = append(b.packets.Captured, b.Ask(origin, r))
}

// taken are the numbers of marks that somebody has.
func (b *builder) taken() map[uint32]bool {
	taken := map[uint32]bool{}
	for _, marks := range []map[state.Mark]bool{b.facts.Marks, b.Marks} {
		for m := range marks {
			taken[m.Number] = taken[m.Number] || m.Mask == b.config.Settings.MarkMask
		}
	}
	return taken
}

// capturedWay is an uplink with `forward` by which packets come that are
// captured. What comes by it has a mark that says so, because the answers leave by
// it, and the reverse-path filter must find the same.
type capturedWay struct {
	*profiles.Uplink
	mark state.Mark
}

func (b *builder) capturedWays() []capturedWay {
	var ways []capturedWay
	for i := range b.config.Uplinks {
		u := &b.config.Uplinks[i]
		out := func(e *Exit) bool { return e.Uplink == u.Name && e.Out }
		if !b.config.CapturesOn(u.Interface) {
			continue
		}
		if !u.Forward {
			if len(b.config.Uplinks) > 1 {
				b.problem("uplink "+u.Name, u.Pos, "what comes in by %s is captured, and the proxy's answers leave as main decides; add forward = true, and they leave by this uplink", u.Interface)
			}
			continue
		}
		if !slices.ContainsFunc(b.exits, out) {
			continue
		}
		w := capturedWay{u, b.mark("capture on "+u.Name, b.config.Settings.MarkMask, b.taken())}
		b.Origins[w.mark] = u.Pos.Short()
		for _, e := range b.exits {
			if out(e) {
				back := b.row(e.Family, state.RowMarked, e.Table)
				back.IIF, back.Mark, back.Mask = "lo", w.mark.Value(), w.mark.Mask
				b.rule(back, u.Pos.Short())
			}
		}
		ways = append(ways, w)
	}
	return ways
}

// captureRoutes makes the tables that deliver to this host, and leads marked
// packets there.
func (b *builder) captureRoutes(mine state.Mark, ways []capturedWay) {
	for i := range b.config.Captures {
		c := &b.config.Captures[i]
		table, _ := b.tables.Number(c.Table())
		origin := c.Pos.Short()
		marks := []state.Mark{mine}
		for _, w := range ways {
			if slices.ContainsFunc(c.Interfaces, func(n profiles.At[string]) bool { return n.Value == w.Interface }) {
				marks = append(marks, w.mark)
			}
		}
		for _, f := range state.Families {
			if !capturesFamily(c, f) {
				continue
			}
			b.route(state.Route{Dst: state.AnyDestination(f), Way: state.Way{
				Family: f, Table: table, Metric: state.DefaultMetric(f), Type: state.Local, Hops: state.HopsOf(state.Hop{Dev: "lo"}), Protocol: state.Protocol,
			}}, origin)
			for _, m := range marks {
				reverse := b.row(f, state.RowReverse, 0)
				reverse.Action, reverse.Target = state.Goto, b.config.Settings.Priority+state.RowUncaptured
				reverse.IIF, reverse.Mark, reverse.Mask = "lo", m.Value(), m.Mask
				b.rule(reverse, origin)
				deliver := b.row(f, state.RowCaptured, table)
				deliver.Mark, deliver.Mask = m.Value(), m.Mask
				b.rule(deliver, origin)
			}
			place := b.row(f, state.RowUncaptured, 0)
			place.Action = state.Nop
			b.rule(place, origin)
		}
	}
}

// capturesFamily reports whether packets of a family are captured: a proxy that listens
// at one address has no other.
func capturesFamily(c *profiles.Capture, f state.Family) bool {
	return !c.Listen.Addr.IsValid() || family(c.Listen.Addr) == f
}

// transparent marks what belongs to transparent sockets, and the ICMP errors about
// it. Sockets that wait for connections to any address are not meant: what they
// get is said by capture.
func (b *builder) transparent(mine state.Mark, ways []capturedWay) {
	first := b.config.Captures[0].Pos.Short()
	protocols := map[uint8]bool{}
	for _, c := range b.config.Captures {
		for _, s := range c.Services {
			protocols[capturable[s.Protocol]] = true
		}
		for f, icmp := range map[state.Family]uint8{state.IPv4: protocolICMP, state.IPv6: protocolICMPv6} {
			protocols[icmp] = protocols[icmp] || capturesFamily(&c, f)
		}
	}
	add := func(m state.Mark, matches ...state.NFStatement) {
		matches = append(matches, state.NFDestination{Not: true, Type: "multicast"}, state.NFSetMark{Mask: m.Mask, Value: m.Value()}, state.NFAccept{})
		b.captured(first, matches)
	}
	bound := state.NFWildcardSocket{Not: true}
	for _, p := range []uint8{protocolTCP, protocolUDP, protocolICMP, protocolICMPv6} {
		if !protocols[p] {
			continue
		}
		of := state.NFTransport{Protocol: p}
		for _, w := range ways {
			add(w.mark, state.NFInterface{Name: w.Interface}, state.NFDirection{}, of, state.NFTransparentSocket{}, bound)
		}
		add(mine, of, state.NFTransparentSocket{}, bound)
		if p != protocolTCP {
			continue
		}
		// What is left of a connection that the proxy has ended is asked whether it
		// is bound in vain (net/netfilter/nft_socket.c, sk_fullsock), and the server's
		// last segments are still for it. No connection begins in direction reply.
		reply := state.NFDirection{Reply: true}
		b.captured(first, state.NFRule{of, reply, state.NFTransparentSocket{}, state.NFWildcardSocket{}, state.NFAccept{}})
		add(mine, of, reply, state.NFTransparentSocket{})
	}
}

// capture gives what begins a connection to the proxy.
func (b *builder) capture(c *profiles.Capture, mine state.Mark, ways []capturedWay) {
	subject := "tproxy " + c.Name
	for _, in := range c.Interfaces {
		if !slices.ContainsFunc(b.facts.Links, func(l state.Link) bool { return l.Name == in.Value }) {
			b.problem(subject, in.Pos, "interface %s is not there; nothing is captured on it", in.Value)
		}
		m := mine
		for _, w := range ways {
			if w.Interface == in.Value {
				m = w.mark
			}
		}
		for _, s := range c.Services {
			for _, f := range state.Families {
				if !capturesFamily(c, f) {
					continue
				}
				rule := state.NFRule{
					state.NFInterface{Name: in.Value}, state.NFFamily{Family: f},
					state.NFDestinationPort{Protocol: capturable[s.Protocol], Port: s.Number}, state.NFDirection{},
				}
				if f == state.IPv4 {
					rule = append(rule, state.NFDestination{Type: "unicast"})
				} else {
					// The kernel calls unicast only what the host has a route to
					// (net/ipv6/netfilter/nft_fib_ipv6.c); a proxy needs none.
					rule = append(rule, state.NFDestination{Not: true, Type: "multicast"}, state.NFDestination{Not: true, Type: "anycast"})
				}
				b.captured(c.Pos.Short(), append(rule,
					state.NFTransparentProxy{Family: f, Addr: c.Listen.Addr, Port: c.Listen.PortFor(s)},
					state.NFSetMark{Mask: m.Mask, Value: m.Value()}, state.NFAccept{}))
			}
		}
	}
}
