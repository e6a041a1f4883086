package routing

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

const (
	// aggregateFrom is from how many addresses of an uplink on they share rules: each
	// rule costs every packet that passes it about 13 ns.
	aggregateFrom = 8
	// flatRules is how many rules about addresses stand one after the other. With more
	// of them a lookup is led to those that may concern it.
	flatRules = 32
	// spareBits is how many bits wider than a full one a prefix may be that stands for more
	// addresses than flatRules without a network of their own: they fill an eighth of it.
	spareBits = 3
)

// source is what one rule about addresses says: what starts from these leaves by that exit.
type source struct {
	prefix netip.Prefix
	exit   *Exit
	// host: only what this host sends. The prefix also covers addresses that are nobody's
	// here, and must not catch what is forwarded.
	host bool
}

// addressRules leads what starts from an uplink's address into its table.
func (b *builder) addressRules() {
	for _, f := range state.Families {
		owned := b.owned(f)
		alone, shared := b.sourcesOf(f, owned)
		if len(alone)+len(shared) <= flatRules {
			for _, s := range slices.Concat(alone, shared) {
				b.sourceRule(state.RowAddresses, s)
			}
			continue
		}
		// What a role decides about its VIP comes before all the others.
		var among []source
		for _, s := range slices.Concat(alone, shared) {
			if s.prefix.IsSingleIP() && slices.Contains(s.exit.vips, s.prefix.Addr()) {
				b.sourceRule(state.RowAddresses, s)
			} else {
				among = append(among, s)
			}
		}
		b.sourceTree(f, among)
	}
}

func (b *builder) sourceRule(row int, s source) {
	r := b.row(s.exit.Family, row, s.exit.Table)
	r.From = s.prefix
	if s.host {
		r.IIF = "lo" // "sent by this host"
	}
	b.rule(r, s.exit.profile.Pos.Short())
}

// owned tells for each address of a family which exit gets what starts from it.
func (b *builder) owned(f state.Family) map[netip.Addr]*Exit {
	n := 0
	for _, e := range b.exits {
		if e.Family == f {
			n += len(e.Addresses)
		}
	}
	owner := make(map[netip.Addr]*Exit, n)
	for _, e := range b.exits {
		if !e.Active || e.Family != f {
			continue
		}
		for _, a := range e.Addresses {
			if first := owner[a]; first != nil {
				b.problem("uplink "+e.Uplink, e.profile.Pos, "address %s is also on interface %s of uplink %s, which gets its replies; give each interface an address of its own, or share them out with addresses = [ … ]",
					a, first.Interface, first.Uplink)
				continue
			}
			owner[a] = e
		}
	}
	return owner
}

// sourcesOf lists the rules about the addresses of a family: those about one address,
// and those about several. An exit of few addresses has a rule for each. Of more, those
// in a network of the interface's share the largest parts of it that hold no address of
// anybody else; others share a prefix that they fill, or very many of them, one that
// they fill to some part.
func (b *builder) sourcesOf(f state.Family, owner map[netip.Addr]*Exit) (alone, shared []source) {
	all := b.hostAddresses(f)
	for _, e := range b.exits {
		if !e.Active || e.Family != f {
			continue
		}
		own := make([]netip.Addr, 0, len(e.Addresses))
		for _, a := range e.Addresses {
			if owner[a] == e {
				own = append(own, a)
			}
		}
		slices.SortFunc(own, netip.Addr.Compare)
		c := cover{exit: e, mine: func(a netip.Addr) bool { return owner[a] == e && !slices.Contains(e.vips, a) }}
		if len(own) >= aggregateFrom {
			for _, n := range e.ampleNetworks() {
				c.within(n, between(all, n))
			}
			left := func() []netip.Addr {
				return slices.DeleteFunc(own, func(a netip.Addr) bool { return c.done[a] })
			}
			if own = left(); len(own) > flatRules {
				c.crowded(between(all, common(own[0], own[len(own)-1])))
				own = left()
			}
			own = c.filled(own)
		}
		for _, a := range own {
			alone = append(alone, source{prefix: host(a), exit: e})
		}
		shared = append(shared, c.found...)
	}
	return alone, shared
}

// hostAddresses are all addresses of the host in a family, in order.
func (b *builder) hostAddresses(f state.Family) []netip.Addr {
	var all []netip.Addr
	for _, a := range b.facts.Addresses {
		if family(a.Prefix.Addr()) == f {
			all = append(all, a.Prefix.Addr())
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// ampleNetworks are the networks that hold many of the exit's addresses, without those
// inside of others.
func (e *Exit) ampleNetworks() []netip.Prefix {
	count := map[netip.Prefix]int{}
	for _, a := range e.addresses {
		if !a.Prefix.IsSingleIP() {
			count[a.Prefix.Masked()]++
		}
	}
	var networks []netip.Prefix
	for p, n := range count {
		if n >= aggregateFrom {
			networks = append(networks, p)
		}
	}
	// A network comes before those inside of it.
	slices.SortFunc(networks, comparePrefixes)
	out := networks[:0]
	for _, p := range networks {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// comparePrefixes orders by address, the wider first.
func comparePrefixes(p, q netip.Prefix) int {
	return cmp.Or(p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()))
}

// between is the part of sorted addresses that a prefix holds.
func between(all []netip.Addr, p netip.Prefix) []netip.Addr {
	from, _ := slices.BinarySearchFunc(all, p.Addr(), netip.Addr.Compare)
	all = all[from:]
	n, _ := slices.BinarySearchFunc(all, p, func(a netip.Addr, p netip.Prefix) int {
		if p.Contains(a) {
			return -1
		}
		return 1
	})
	return all[:n]
}

// cover finds prefixes that stand for many addresses of an exit.
type cover struct {
	exit  *Exit
	mine  func(netip.Addr) bool
	found []source
	done  map[netip.Addr]bool // addresses that found stands for
}

// within covers the exit's addresses among those of the host in a prefix, by the fewest
// parts of it that hold no other.
func (c *cover) within(p netip.Prefix, addresses []netip.Addr) {
	mine := 0
	for _, a := range addresses {
		if c.mine(a) {
			mine++
		}
	}
	switch {
	case mine < 2:
		return // one has a rule of its own
	case mine < len(addresses):
		low, high := halves(p)
		n := len(between(addresses, low))
		c.within(low, addresses[:n])
		c.within(high, addresses[n:])
		return
	}
	c.take(source{prefix: p, exit: c.exit, host: true}, addresses)
}

// crowded covers addresses of the exit by prefixes that hold no other one of the host's,
// and are full to some part.
func (c *cover) crowded(addresses []netip.Addr) {
	if len(addresses) < 2 {
		return
	}
	p := common(addresses[0], addresses[len(addresses)-1])
	places := p.Addr().BitLen() - p.Bits() // as a power of two
	if places-(bits.Len(uint(len(addresses)))-1) <= spareBits && !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return !c.mine(a) || c.done[a] }) {
		c.take(source{prefix: p, exit: c.exit, host: len(addresses)>>places == 0}, addresses)
		return
	}
	low, _ := halves(p)
	n := len(between(addresses, low))
	c.crowded(addresses[:n])
	c.crowded(addresses[n:])
}

// common is the longest prefix of two addresses.
func common(a, b netip.Addr) netip.Prefix {
	n := 0
	for n < a.BitLen() && netip.PrefixFrom(a, n+1).Masked().Contains(b) {
		n++
	}
	return netip.PrefixFrom(a, n).Masked()
}

// filled covers runs of sorted addresses that fill a prefix, and returns the rest.
func (c *cover) filled(own []netip.Addr) (rest []netip.Addr) {
	for len(own) > 0 {
		run := 1
		for run < len(own) && own[run-1].Next() == own[run] {
			run++
		}
		bits := own[0].BitLen()
		n := 1
		for n*2 <= run && c.mine(own[0]) {
			wider := netip.PrefixFrom(own[0], bits-1).Masked()
			if wider.Addr() != own[0] || slices.ContainsFunc(own[n:n*2], func(a netip.Addr) bool { return !c.mine(a) }) {
				break
			}
			bits, n = bits-1, n*2
		}
		if n == 1 {
			rest = append(rest, own[0])
		} else {
			c.take(source{prefix: netip.PrefixFrom(own[0], bits), exit: c.exit}, own[:n])
		}
		own = own[n:]
	}
	return rest
}

func (c *cover) take(s source, addresses []netip.Addr) {
	c.found = append(c.found, s)
	if c.done == nil {
		c.done = make(map[netip.Addr]bool, len(addresses))
	}
	for _, a := range addresses {
		c.done[a] = true
	}
}

// halves are the two parts of a prefix.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	low = netip.PrefixFrom(p.Addr(), bits+1)
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	above, _ := netip.AddrFromSlice(b)
	return low, netip.PrefixFrom(above, bits+1)
}
