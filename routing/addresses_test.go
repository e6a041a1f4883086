package routing

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// crowd is a host with two uplinks and a LAN, and an address for each interface name.
type crowd map[netip.Addr]string

// add gives an interface n addresses at random places of a network.
func (c crowd) add(r *rand.Rand, n int, network netip.Prefix, links ...string) {
	for range n {
		b := network.Addr().As16()
		at := binary.BigEndian.Uint64(b[8:])
		free := network.Addr().BitLen() - network.Bits()
		binary.BigEndian.PutUint64(b[8:], at|r.Uint64N(1<<min(free, 62)))
		a := netip.AddrFrom16(b)
		if network.Addr().Is4() {
			a = a.Unmap()
		}
		c[a] = links[r.IntN(len(links))]
	}
}

// rules are the desired rules about addresses.
func (c crowd) desired(bits func(netip.Addr) int) state.Desired {
	config := &profiles.Config{Settings: profiles.DefaultSettings}
	facts := state.Facts{}
	for i, link := range []string{"em1", "em2", "lan0"} {
		facts.Links = append(facts.Links, state.Link{Name: link, Index: i + 1, Up: true, Carrier: true, PointToPoint: true})
		if link != "lan0" {
			config.Uplinks = append(config.Uplinks, profiles.Uplink{Name: link, Interface: link, Gateway: profiles.Gateway{None: true}})
		}
	}
	for a, link := range c {
		facts.Addresses = append(facts.Addresses, state.Address{Link: link, Prefix: netip.PrefixFrom(a, bits(a))})
	}
	d, _ := Desired(config, Assign(config, facts), facts)
	return d
}

// ruleList is what the kernel makes of rules: by priority, and of one priority in the
// order in which they came.
type ruleList []state.Rule

func (l ruleList) with(s state.Step) ruleList {
	r, ok := s.Object.(state.Rule)
	if !ok {
		return l
	}
	if s.Op.Removes() {
		i := slices.Index(l, r)
		return slices.Delete(l, i, i+1)
	}
	i := slices.IndexFunc(l, func(x state.Rule) bool { return x.Priority > r.Priority })
	if i < 0 {
		i = len(l)
	}
	return slices.Insert(l, i, r)
}

// table is the one that a packet of this host from an address is led to, by the rules about
// addresses, and how many of all rules it passes (net/core/fib_rules.c, fib_rules_lookup).
func (l ruleList) table(a netip.Addr) (table uint32, passed int) {
	for i := 0; i < len(l); i++ {
		r := l[i]
		passed++
		if r.Family != family(a) || r.From.IsValid() && !r.From.Contains(a) || r.IIF != "" && r.IIF != "lo" || r.OIF != "" {
			continue
		}
		switch {
		case r.Action == state.Goto:
			if to := slices.IndexFunc(l, func(x state.Rule) bool { return x.Priority == r.Target }); to >= 0 {
				i = to - 1
			}
		case r.Action == state.Lookup && r.From.IsValid():
			return r.Table, passed
		}
	}
	return 0, passed
}

// While a plan is carried out, message by message, what starts from an address that was
// there and stays leaves by its uplink; in the end all do, and what is no uplink's does not.
func TestEveryAddressLeavesByItsUplinkAtEveryMoment(t *testing.T) {
	for seed := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, 1))
		network := netip.MustParsePrefix([]string{"10.0.0.0/8", "10.0.0.0/20", "10.0.0.0/24", "2001:db8::/64", "2001:db8::/118"}[r.IntN(5)])
		single := r.IntN(2) == 0
		bits := func(a netip.Addr) int {
			if single {
				return a.BitLen()
			}
			return network.Bits()
		}
		before := crowd{}
		var list ruleList
		observed := state.Observed{State: state.New()}
		for step := range 6 {
			after := crowd{}
			for a, link := range before {
				if r.IntN(8) > 0 {
					after[a] = link
				}
			}
			after.add(r, r.IntN(100), network, "em1", "em2")
			after.add(r, r.IntN(40), network, "em1")
			if r.IntN(2) == 0 {
				after.add(r, 3, network, "lan0")
			}
			d := after.desired(bits)
			number := map[string]uint32{"lan0": 0}
			for n := range d.Names {
				number[n.Name] = n.Number
			}
			for i, s := range state.Diff(observed, d).Steps {
				list = list.with(s)
				for a, link := range before {
					if got, _ := list.table(a); after[a] == link && got != number[link] {
						t.Fatalf("seed %d, step %d, after %d messages, the last about %s: from %s leads to table %d, and it is on %s", seed, step, i+1, s.Object.Spell(nil), a, got, link)
					}
				}
			}
			for a, link := range after {
				if got, _ := list.table(a); got != number[link] {
					t.Fatalf("seed %d, step %d: from %s leads to table %d, and it is on %s", seed, step, a, got, link)
				}
			}
			before, observed = after, state.Observed{State: d.State}
		}
	}
}

// What a lookup passes grows with the square root of the addresses, and one more address is
// a handful of messages.
func TestManyAddressesCostALookupLittle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct{ addresses, most int }{{30, 40}, {100, 40}, {1000, 100}, {10000, 400}} {
		host := crowd{}
		host.add(r, c.addresses, netip.MustParsePrefix("10.0.0.0/8"), "em1", "em2")
		bits := func(a netip.Addr) int { return 32 }
		d := host.desired(bits)
		var list ruleList
		for _, s := range state.Diff(state.Observed{State: state.New()}, d).Steps {
			list = list.with(s)
		}
		most, sum := 0, 0
		for a := range host {
			_, n := list.table(a)
			most, sum = max(most, n), sum+n
		}
		if most > c.most {
			t.Errorf("of %d addresses: a lookup passes %d rules, and %d on average", c.addresses, most, sum/len(host))
		}
		changes := 0
		for i := range 20 {
			more := crowd{netip.MustParseAddr(fmt.Sprintf("11.%d.0.%d", i, i)): "em1"}
			for a, link := range host {
				more[a] = link
			}
			next := more.desired(bits)
			changes += len(state.Diff(state.Observed{State: d.State}, next).Steps)
			host, d = more, next
		}
		t.Logf("%5d addresses: %d rules, a lookup passes %d on average, %d at most; an address more is %.1f messages", c.addresses, len(d.Rules), sum/len(host), most, float64(changes)/20)
	}
}

// Addresses without a network of their own share rules where they stand close together, each
// uplink's among themselves, and no further than that.
func TestCrowdedAddressesShareRules(t *testing.T) {
	host := crowd{}
	at := func(third, n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(third), byte(n >> 8), byte(n)}) }
	for i := range 5000 {
		host[at(1, 3*i)], host[at(2, 3*i)] = "em1", "em2"
	}
	for i := range 16 {
		host[at(3, i)] = "em1"
	}
	host[at(1, 3*100+1)] = "lan0"
	for i := range 8 {
		host[at(9, 997*i)] = "em1"
	}
	d := host.desired(func(netip.Addr) int { return 32 })
	var list ruleList
	for _, s := range state.Diff(state.Observed{State: state.New()}, d).Steps {
		list = list.with(s)
	}
	number := map[string]uint32{"lan0": 0}
	for n := range d.Names {
		number[n.Name] = n.Number
	}
	for a, link := range host {
		if got, _ := list.table(a); got != number[link] {
			t.Errorf("from %s leads to table %d, and it is on %s", a, got, link)
		}
	}
	for _, a := range []netip.Addr{at(1, 1<<15), at(9, 500), at(0, 1)} {
		if got, _ := list.table(a); got != 0 {
			t.Errorf("from %s, far from all that is the host's, leads to table %d", a, got)
		}
	}
	if len(d.Rules) > 50 {
		t.Errorf("%d rules", len(d.Rules))
	}
	for r := range d.Rules {
		if full := r.From == netip.MustParsePrefix("10.3.0.0/28"); r.From.IsValid() && !r.From.IsSingleIP() && (r.IIF == "lo") == full {
			t.Errorf("%s: what others forward from between the addresses is theirs, and only then", r)
		}
	}
}

// TestByEndInAnyOrder: whatever the order of the host's addresses, each interface and
// family has its own, in that order, and the host's list stays as it is.
func TestByEndInAnyOrder(t *testing.T) {
	var all []state.Address
	for _, link := range []string{"em1", "em2", "em3"} {
		for i := range 6 {
			all = append(all,
				state.Address{Link: link, Prefix: netip.MustParsePrefix(fmt.Sprintf("10.0.%d.%d/24", len(all), i)), LinkLocal: i == 3},
				state.Address{Link: link, Prefix: netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::%d/64", len(all), i)), LinkLocal: i == 1})
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		want := map[end][]state.Address{}
		for _, a := range all {
			if at := (end{a.Link, family(a.Prefix.Addr())}); !a.LinkLocal {
				want[at] = append(want[at], a)
			}
		}
		before := slices.Clone(all)
		if got := byEnd(all); !maps.EqualFunc(got, want, slices.Equal[[]state.Address]) {
			t.Fatalf("of %+v\ngot %+v\nwant %+v", all, got, want)
		}
		if !slices.Equal(all, before) {
			t.Fatal("the host's list is another")
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
}
