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
	exits []*Exit
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
		for _, e := range b.exits {
			if e.Uplink == u.Name && e.Out {
				f.exits = append(f.exits, e)
			}
		}
		if len(f.exits) == 0 {
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
// asked at another uplink's address.
//
// A connection carries the mark of the uplink that its requests come in by, and
// its replies get it. Requests get it too where the reverse-path filter is
// strict: the kernel then looks up the way back to the client with the packet's
// own mark, and with the interface that the packet is about to leave by in place
// of the one it came by (net/ipv4/fib_frontend.c, __fib_validate_source).
func (b *builder) forward() {
	list := b.followers()
	if len(list) == 0 {
		return
	}
	mask := b.config.Settings.MarkMask
	carries := func(m uint32) state.NFMark { return state.NFMark{Connection: true, Mask: mask, Value: m} }
	var ingress, replies, filtered []state.NFRule
	for _, f := range list {
		by := state.NFInterface{Name: f.Interface}
		elsewhere := state.NFInterface{Out: true, Not: true, Name: f.Interface}
		own, outgoing := f.mark.Value(), f.mark.Outgoing()
		if f.Forward {
			b.forwardRules(f)
			ingress = append(ingress, state.NFRule{by, state.NFDirection{}, state.NFMark{Connection: true, Not: true, Mask: mask, Value: own},
				state.NFSetMark{Connection: true, Mask: mask, Value: own}})
			replies = append(replies, state.NFRule{state.NFDirection{Reply: true}, carries(own), state.NFSetMark{Mask: mask, Value: own}})
			if b.strict(f.Uplink) {
				filtered = append(filtered, state.NFRule{state.NFFamily{Family: state.IPv4}, by, state.NFDirection{}, carries(own), state.NFSetMark{Mask: mask, Value: own}})
				b.sysctl(state.Sysctl{Path: "net/ipv4/conf/" + f.Interface + "/src_valid_mark", Value: "1"}, f.Pos)
			}
			for _, e := range f.exits {
				if !e.src.IsValid() {
					continue
				}
				protocol := uint8(protocolICMP)
				if e.Family == state.IPv6 {
					protocol = protocolICMPv6
				}
				// The kernel chose the source for the way that the error would have taken.
				b.packets.Sent = append(b.packets.Sent, state.NFRule{state.NFTransport{Protocol: protocol}, state.NFRelated{}, state.NFDirection{Reply: true},
					carries(own), elsewhere, state.NFSetSource{Addr: e.src}})
			}
			b.packets.Sent = append(b.packets.Sent, state.NFRule{state.NFDirection{Reply: true}, carries(own), elsewhere, state.NFSetMark{Mask: mask, Value: own}})
		}
		if f.Masquerade {
			out := state.NFInterface{Out: true, Name: f.Interface}
			b.packets.Outgoing = append(b.packets.Outgoing, state.NFRule{out, state.NFDirection{}, state.NFForeignSource{}, carries(0), state.NFSetMark{Connection: true, Mask: mask, Value: outgoing}})
			b.packets.Translate = append(b.packets.Translate, state.NFRule{out, carries(outgoing), state.NFMasquerade{}})
			b.masquerades(f)
		}
	}
	b.packets.Incoming = append(b.packets.Incoming, slices.Concat(ingress, replies, filtered)...)
}

// marked clears sisod's bits where a packet has arrived: nobody looks at them
// any more, and IPVS looks at the whole mark.
func (b *builder) marked() {
	mask := b.config.Settings.MarkMask
	if len(b.packets.Incoming) > 0 {
		b.packets.Delivered = append(b.packets.Delivered, state.NFRule{state.NFMark{Not: true, Mask: mask}, state.NFSetMark{Mask: mask}})
	}
}

// forwardRules leads packets by their marks. What came in by the uplink may be
// for a host on another uplink's network, which main knows; and for a reply that
// came from such a host the reverse-path filter asks the same question.
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
	if b.facts.Sysctls[ipForward] == "0" && slices.ContainsFunc(f.exits, func(e *Exit) bool { return e.Family == state.IPv4 }) {
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
