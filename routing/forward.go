package routing

import (
	"slices"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// IANA numbers of the protocols of ICMP errors.
const (
	protocolICMP   = 1
	protocolICMPv6 = 58
)

// follower is an uplink that follows connections.
type follower struct {
	*profiles.Uplink
	mark  state.Mark
	exits []*Exit // in which there is a way out, or was
}

// followers gives the uplinks with `forward` or `masquerade` their marks. One
// whose way out is gone has none: what is known of its connections is forgotten,
// so that clients connect anew by another uplink at once.
func (b *builder) followers() []follower {
	var list []follower
	mask := b.config.Settings.MarkMask
	taken := map[uint32]bool{}
	for m := range b.facts.Marks {
		taken[m.Number] = taken[m.Number] || m.Mask == mask
	}
	for i := range b.config.Uplinks {
		u := &b.config.Uplinks[i]
		if !u.Forward && !u.Masquerade {
			continue
		}
		if why := b.facts.NFT.Missing; why != "" {
			b.problem("uplink "+u.Name, u.Pos, "forward and masquerade need nf_tables, which this kernel does not give: %s; only the host's own replies follow this uplink", why)
			continue
		}
		f := follower{Uplink: u}
		out := false
		for _, e := range b.exits {
			if e.Uplink == u.Name && e.Active {
				f.exits = append(f.exits, e)
				out = out || e.Out
			}
		}
		if !out {
			continue
		}
		f.mark = b.mark("uplink "+u.Name, mask, taken)
		b.Origins[f.mark] = u.Pos.Short()
		list = append(list, f)
	}
	return list
}

// mark is the number that an owner has, or the lowest that is free.
func (b *builder) mark(owner string, mask uint32, taken map[uint32]bool) state.Mark {
	for m := range b.facts.Marks {
		if m.Owner == owner && m.Mask == mask {
			b.Marks[m] = true
			return m
		}
	}
	m := state.Mark{Owner: owner, Number: 1, Mask: mask}
	for taken[m.Number] {
		m.Number++
	}
	taken[m.Number] = true
	b.Marks[m] = true
	return m
}

// forward makes replies of connections that came in by an uplink leave by it,
// whoever sends them: hosts behind, containers, IPVS, local sockets that were
// asked at another uplink's address. It masquerades what goes out.
//
// A connection carries the mark of the uplink that its requests come in by, and
// its replies get it; one that was masqueraded carries that of the uplink that it
// went out by, and its requests get it. Requests get it too where the reverse-path filter is
// strict: the kernel then looks up the way back to the client with the packet's
// own mark, and with the interface that the packet is about to leave by in place
// of the one it came by (net/ipv4/fib_frontend.c, __fib_validate_source).
//
// Firewalls have such filters too, in both families and at priorities of their own
// (nftables' `fib saddr . mark . iif oif`). In prerouting they do not know where a
// packet goes, so that its mark must be that of the uplink that it comes by, a
// reply's too, and the marks that decide its way come after them.
func (b *builder) forward() {
	list := b.followers()
	if len(list) == 0 {
		return
	}
	mask := b.config.Settings.MarkMask
	carries := func(m uint32) state.NFMark { return state.NFMark{Connection: true, Mask: mask, Value: m} }
	requests, replies := state.NFDirection{}, state.NFDirection{Reply: true}
	var known, cleared, marked, filtered []state.NFRule
	unmarked := state.NFMark{Mask: mask}
	for _, f := range list {
		by, out := state.NFInterface{Name: f.Interface}, state.NFInterface{Out: true, Name: f.Interface}
		elsewhere := state.NFInterface{Out: true, Not: true, Name: f.Interface}
		own, outgoing, mark := f.mark.Value(), f.mark.Outgoing(), state.NFSetMark{Mask: mask, Value: f.mark.Value()}
		add := func(rules *[]state.NFRule, r ...state.NFStatement) { *rules = append(*rules, b.Ask(f.Pos.Short(), r)) }
		strict := b.strict(f.Uplink)
		if strict {
			b.sysctl(state.Sysctl{Path: "net/ipv4/conf/" + f.Interface + "/src_valid_mark", Value: "1"}, f.Pos)
		}
		b.forwardRules(f)
		// Masquerading needs it too: what came in by one uplink and goes out by another
		// is nobody's LAN.
		add(&known, by, requests, state.NFMark{Connection: true, Not: true, Mask: mask, Value: own}, state.NFSetMark{Connection: true, Mask: mask, Value: own})
		b.arriving(f, by, mark, add)
		add(&cleared, by, state.NFMark{Mask: mask, Value: own}, state.NFSetMark{Mask: mask})
		if f.Forward {
			add(&marked, replies, carries(own), unmarked, mark)
			if strict {
				add(&filtered, state.NFFamily{Family: state.IPv4}, by, requests, carries(own), unmarked, mark)
			}
			add(&b.packets.Forwarded, by, requests, carries(own), mark)
			for _, e := range f.exits {
				if !e.Out || !e.src.IsValid() {
					continue
				}
				protocol := uint8(protocolICMP)
				if e.Family == state.IPv6 {
					protocol = protocolICMPv6
				}
				// The kernel chose the source for the way that the error would have taken.
				add(&b.packets.Sent, state.NFTransport{Protocol: protocol}, state.NFRelated{}, replies, carries(own), elsewhere, state.NFSetSource{Addr: e.src})
			}
			add(&b.packets.Sent, replies, carries(own), elsewhere, mark)
		}
		if f.Masquerade {
			// A connection has the uplink's address, and no other uplink is of use to it
			// (the kernel ends it there, net/netfilter/nf_nat_core.c, nf_nat_oif_changed).
			add(&marked, requests, carries(outgoing), unmarked, mark)
			if strict {
				add(&filtered, state.NFFamily{Family: state.IPv4}, by, replies, carries(outgoing), unmarked, mark)
			}
			add(&b.packets.Outgoing, out, requests, state.NFForeignSource{}, carries(0), state.NFSetMark{Connection: true, Mask: mask, Value: outgoing})
			add(&b.packets.Translate, out, carries(outgoing), state.NFMasquerade{})
			b.masquerades(f)
		}
	}
	b.packets.Incoming = append(b.packets.Incoming, known...)
	b.packets.Onward = append(b.packets.Onward, slices.Concat(cleared, marked, filtered)...)
}

// arriving marks what comes in by an uplink, in the families in which it has a way out.
func (b *builder) arriving(f follower, by state.NFInterface, mark state.NFSetMark, add func(*[]state.NFRule, ...state.NFStatement)) {
	var families []state.Family
	for _, e := range f.exits {
		if e.Out {
			families = append(families, e.Family)
		}
	}
	if len(families) == len(state.Families) {
		add(&b.packets.Arriving, by, mark)
		return
	}
	for _, of := range families {
		add(&b.packets.Arriving, state.NFFamily{Family: of}, by, mark)
	}
}

// marked clears sisod's bits where a packet has arrived: nobody looks at them
// any more, and IPVS looks at the whole mark.
func (b *builder) marked() {
	mask := b.config.Settings.MarkMask
	if first := slices.Concat(b.packets.Incoming, b.packets.Captured); len(first) > 0 {
		// Whoever asked for the first mark has asked for this too.
		origin := b.Origins[state.NFRuleText(first[0].String())]
		b.packets.Delivered = append(b.packets.Delivered, b.Ask(origin, state.NFRule{state.NFMark{Not: true, Mask: mask}, state.NFSetMark{Mask: mask}}))
	}
}

// forwardRules leads packets by their marks. What came in by the uplink may be
// for a host on another uplink's network, which main knows; and for a reply that
// came from such a host the reverse-path filter asks the same question. Where one
// family's way out is gone, replies meet the guard, and no other uplink.
func (b *builder) forwardRules(f follower) {
	for _, e := range f.exits {
		between := b.row(e.Family, state.RowBetween, state.TableMain).WithoutDefaults()
		between.Mark, between.Mask, between.IIF = f.mark.Value(), f.mark.Mask, f.Interface
		b.rule(between, f.Pos.Short())
		marked := b.row(e.Family, state.RowMarked, e.Table)
		marked.Mark, marked.Mask = f.mark.Value(), f.mark.Mask
		b.rule(marked, f.Pos.Short())
	}
}

// masquerades says why nothing would be translated.
func (b *builder) masquerades(f follower) {
	if b.facts.Sysctls[ipForward] == "0" && slices.ContainsFunc(f.exits, func(e *Exit) bool { return e.Family == state.IPv4 && e.Out }) {
		b.problem("uplink "+f.Name, f.Pos, "masquerade is for a LAN behind this host, and net.ipv4.ip_forward is 0: the host forwards nothing; set it in /etc/sysctl.d")
	}
}

const ipForward = "net/ipv4/ip_forward"

// strict reports whether the reverse-path filter of an uplink's interface asks
// for the very way that a packet came by.
func (b *builder) strict(u *profiles.Uplink) bool {
	value := b.facts.Sysctls[RPFilterPath(u.Interface)]
	if u.RPFilter != "" {
		value = rpFilters[u.RPFilter]
	}
	return max(value, b.facts.Sysctls[RPFilterPath("all")]) == "1"
}

func (b *builder) sysctl(s state.Sysctl, pos profiles.Position) {
	b.Sysctls[s.Path] = s.Value
	b.Origins[s] = pos.Short()
}
