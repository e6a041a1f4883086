package routing

import (
	"cmp"
	"iter"
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
		alone, shared := b.sourcesOf(f)
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

// hostAddress is an address of the host, and the exit that gets what starts from it;
// nil: none does.
type hostAddress struct {
	addr netip.Addr
	exit *Exit
	done bool // a shared rule stands for it
}

// hostAddresses are all addresses of the host in a family, in order, each with the first
// exit that follows it.
func (b *builder) hostAddresses(f state.Family) hostAddresses {
	all := make(hostAddresses, 0, len(b.facts.Addresses))
	for i := range b.facts.Addresses {
		if a := b.facts.Addresses[i].Prefix.Addr(); family(a) == f {
			all = append(all, hostAddress{addr: a})
		}
	}
	slices.SortFunc(all, func(x, y hostAddress) int { return x.addr.Compare(y.addr) })
	all = slices.CompactFunc(all, func(x, y hostAddress) bool { return x.addr == y.addr })
	for _, e := range b.exits {
		if !e.Active || e.Family != f {
			continue
		}
		for a := range all.of(e) {
			if a.exit != nil {
				b.problem("uplink "+e.Uplink, e.profile.Pos, "address %s is also on interface %s of uplink %s, which gets its replies; give each interface an address of its own, or share them out with addresses = [ … ]",
					a.addr, a.exit.Interface, a.exit.Uplink)
				continue
			}
			a.exit = e
		}
	}
	return all
}

type hostAddresses []hostAddress

// of finds the addresses that an exit follows, one after the other. The next one is
// mostly the neighbour of the last.
func (all hostAddresses) of(e *Exit) iter.Seq[*hostAddress] {
	return func(yield func(*hostAddress) bool) {
		at := 0
		for _, a := range e.Addresses {
			if at == len(all) || all[at].addr != a {
				at = all.from(a)
			}
			if !yield(&all[at]) {
				return
			}
			at++
		}
	}
}

// from is the position of an address, or of the first one above it.
func (all hostAddresses) from(a netip.Addr) int {
	at, _ := slices.BinarySearchFunc(all, a, func(x hostAddress, a netip.Addr) int { return x.addr.Compare(a) })
	return at
}

// sourcesOf lists the rules about the addresses of a family: those about one address,
// and those about several. An exit of few addresses has a rule for each. Of more, those
// in a network of the interface's share the largest parts of it that hold no address of
// anybody else; others share a prefix that they fill, or very many of them, one that
// they fill to some part.
func (b *builder) sourcesOf(f state.Family) (alone, shared []source) {
	all := b.hostAddresses(f)
	for _, e := range b.exits {
		if !e.Active || e.Family != f {
			continue
		}
		own := make([]*hostAddress, 0, len(e.Addresses))
		for a := range all.of(e) {
			if a.exit == e {
				own = append(own, a)
			}
		}
		slices.SortFunc(own, func(x, y *hostAddress) int { return x.addr.Compare(y.addr) })
		c := cover{exit: e}
		if len(own) >= aggregateFrom {
			for _, n := range e.ampleNetworks() {
				c.within(n, all.between(n))
			}
			left := func() []*hostAddress {
				return slices.DeleteFunc(own, func(a *hostAddress) bool { return a.done })
			}
			if own = left(); len(own) > flatRules {
				c.crowded(all.between(common(own[0].addr, own[len(own)-1].addr)))
				own = left()
			}
			own = c.filled(own)
		}
		for _, a := range own {
			alone = append(alone, source{prefix: host(a.addr), exit: e})
		}
		shared = append(shared, c.found...)
	}
	return alone, shared
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

// between is the part of the addresses that a prefix holds.
func (all hostAddresses) between(p netip.Prefix) hostAddresses {
	all = all[all.from(p.Addr()):]
	n, _ := slices.BinarySearchFunc(all, p, func(x hostAddress, p netip.Prefix) int {
		if p.Contains(x.addr) {
			return -1
		}
		return 1
	})
	return all[:n]
}

// cover finds prefixes that stand for many addresses of an exit.
type cover struct {
	exit  *Exit
	found []source
}

// mine reports whether an address is the exit's, and a role decides nothing about it.
func (c *cover) mine(a *hostAddress) bool {
	return a.exit == c.exit && !slices.Contains(c.exit.vips, a.addr)
}

// within covers the exit's addresses among those of the host in a prefix, by the fewest
// parts of it that hold no other.
func (c *cover) within(p netip.Prefix, addresses hostAddresses) {
	mine := 0
	for i := range addresses {
		if c.mine(&addresses[i]) {
			mine++
		}
	}
	switch {
	case mine < 2:
		return // one has a rule of its own
	case mine < len(addresses):
		low, high := halves(p)
		n := len(addresses.between(low))
		c.within(low, addresses[:n])
		c.within(high, addresses[n:])
		return
	}
	c.take(source{prefix: p, exit: c.exit, host: true}, addresses)
}

// crowded covers addresses of the exit by prefixes that hold no other one of the host's,
// and are full to some part.
func (c *cover) crowded(addresses hostAddresses) {
	if len(addresses) < 2 {
		return
	}
	p := common(addresses[0].addr, addresses[len(addresses)-1].addr)
	places := p.Addr().BitLen() - p.Bits() // as a power of two
	dense := places-(bits.Len(uint(len(addresses)))-1) <= spareBits
	for i := 0; dense && i < len(addresses); i++ {
		dense = c.mine(&addresses[i]) && !addresses[i].done
	}
	if dense {
		c.take(source{prefix: p, exit: c.exit, host: len(addresses)>>places == 0}, addresses)
		return
	}
	low, _ := halves(p)
	n := len(addresses.between(low))
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
func (c *cover) filled(own []*hostAddress) (rest []*hostAddress) {
	for len(own) > 0 {
		run := 1
		for run < len(own) && own[run-1].addr.Next() == own[run].addr {
			run++
		}
		first := own[0].addr
		bits := first.BitLen()
		n := 1
		for n*2 <= run && c.mine(own[0]) {
			wider := netip.PrefixFrom(first, bits-1).Masked()
			if wider.Addr() != first || slices.ContainsFunc(own[n:n*2], func(a *hostAddress) bool { return !c.mine(a) }) {
				break
			}
			bits, n = bits-1, n*2
		}
		if n == 1 {
			rest = append(rest, own[0])
		} else {
			c.found = append(c.found, source{prefix: netip.PrefixFrom(first, bits), exit: c.exit})
		}
		own = own[n:]
	}
	return rest
}

func (c *cover) take(s source, addresses hostAddresses) {
	c.found = append(c.found, s)
	for i := range addresses {
		addresses[i].done = true
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
