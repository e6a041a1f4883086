package routing_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

// nested is a prefix of a small world, so that many lie in each other.
func nested(r *rand.Rand, f state.Family) netip.Prefix {
	a := netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2)) << 7, byte(r.IntN(2))})
	if f == state.IPv6 {
		a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(r.IntN(2)), byte(r.IntN(2)) << 7, 7: byte(r.IntN(2))})
	}
	p, _ := a.Prefix(8 + r.IntN(f.Bits()-7))
	return p
}

// listsOf writes the lists of some uplinks; no prefix is in two uplinks.
func listsOf(t *testing.T, r *rand.Rand, uplinks int) (*profiles.Config, [][]netip.Prefix) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "profiles"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, "profiles", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lists := make([][]netip.Prefix, uplinks)
	taken := map[netip.Prefix]bool{}
	var profile strings.Builder
	for i := range lists {
		fmt.Fprintf(&profile, "[uplink.u%d]\ninterface = \"em%d\"\ngateway = [\"192.168.%d.1\", \"fd00:%d::1\"]\nto = [", i, i, i, i)
		for file := range 2 {
			var text strings.Builder
			for range r.IntN(15) {
				p := nested(r, state.Families[r.IntN(2)])
				if !taken[p] {
					taken[p] = true
					lists[i] = append(lists[i], p)
					fmt.Fprintln(&text, p)
				}
			}
			if text.Len() > 0 {
				name := fmt.Sprintf("u%d.%d", i, file)
				write(name, text.String())
				fmt.Fprintf(&profile, "%q, ", "@"+name)
			}
		}
		profile.WriteString("]\n")
	}
	write("all.toml", profile.String())
	c, err := profiles.Load("", dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, lists
}

// moment makes facts in which some uplinks are out, some networks of theirs lie
// among the lists, and somebody else has routes in the table.
func moment(r *rand.Rand, uplinks int, table uint32) state.Facts {
	f := state.Facts{}
	for i := range uplinks {
		link := fmt.Sprintf("em%d", i)
		f.Links = append(f.Links, state.Link{Name: link, Index: i + 1, Up: r.IntN(8) > 0, Carrier: r.IntN(4) > 0})
		f.Addresses = append(f.Addresses,
			state.Address{Link: link, Prefix: netip.MustParsePrefix(fmt.Sprintf("192.168.%d.2/24", i))},
			state.Address{Link: link, Prefix: netip.MustParsePrefix(fmt.Sprintf("fd00:%d::2/64", i))})
	}
	way := func(family state.Family, table uint32) state.Way {
		return state.Way{Family: family, Table: table, Metric: state.DefaultMetric(family), Type: state.Unicast, Protocol: 2,
			Hops: state.HopsOf(state.Hop{Dev: fmt.Sprintf("em%d", r.IntN(uplinks))})}
	}
	for range r.IntN(5) {
		family := state.Families[r.IntN(2)]
		f.Main = append(f.Main, state.Route{Dst: nested(r, family), Way: way(family, state.TableMain)})
		if r.IntN(2) == 0 {
			foreign := state.Route{Dst: nested(r, family), Way: way(family, table)}
			foreign.Protocol = 4
			f.ForeignRoutes = append(f.ForeignRoutes, foreign)
		}
	}
	return f
}

// lookup is the longest prefix around an address, done the slow way, with the
// route that has it.
func lookup(table map[netip.Prefix]state.Way, a netip.Addr) (best netip.Prefix, way state.Way) {
	for bits := 0; bits <= a.BitLen(); bits++ {
		p, _ := a.Prefix(bits)
		if w, there := table[p]; there {
			best, way = p, w
		}
	}
	return best, way
}

// Whatever of the lists is left out, every packet takes the way it would take if
// every line were a route.
func TestListsLeadAsIfEveryLineWereARoute(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	const uplinks = 3
	fewer, shadowed := 0, 0
	for range 60 {
		c, lists := listsOf(t, r, uplinks)
		for range 20 {
			tables := routing.Assign(c, state.Facts{})
			number, _ := tables.Number(routing.DestinationsTable)
			facts := moment(r, uplinks, number)
			d, exits := routing.Desired(c, tables, facts)
			wanted, naive := map[netip.Prefix]state.Way{}, map[netip.Prefix]state.Way{}
			ours := 0
			lead := map[string]state.Way{} // of each uplink and family, by its lists
			for route := range d.Routes.All() {
				if route.Table != number {
					continue
				}
				wanted[route.Dst] = route.Way
				if hop, _ := route.Hops.Single(); hop.Via.IsValid() {
					ours++
					lead[hop.Dev+route.Family.String()] = route.Way
				} else {
					naive[route.Dst] = route.Way
				}
			}
			for _, f := range facts.ForeignRoutes {
				wanted[f.Dst], naive[f.Dst] = f.Way, f.Way
			}
			lines := 0
			for _, e := range exits {
				if !e.Active || !e.Out || !e.Carrier {
					continue
				}
				for _, p := range lists[e.Uplink[1]-'0'] {
					if (p.Addr().Is6()) != (e.Family == state.IPv6) {
						continue
					}
					way, some := lead[e.Interface+e.Family.String()]
					if _, other := naive[p]; other {
						shadowed++
						continue
					}
					if !some {
						t.Fatalf("%s of uplink %s, and no route by it\nlists %v", p, e.Uplink, lists)
					}
					lines++
					naive[p] = way
				}
			}
			if ours < lines {
				fewer++
			}
			if ours > lines {
				t.Fatalf("%d routes of %d lines", ours, lines)
			}
			for _, list := range lists {
				for _, p := range list {
					for _, a := range []netip.Addr{p.Addr(), p.Addr().Next(), last(p)} {
						at, way := lookup(wanted, a)
						wantAt, want := lookup(naive, a)
						if way != want {
							t.Fatalf("%s goes by %s %+v, not by %s %+v\nlists %v\nmain %v\nforeign %v", a, at, way, wantAt, want, lists, facts.Main, facts.ForeignRoutes)
						}
					}
				}
			}
		}
	}
	if fewer == 0 || shadowed == 0 {
		t.Errorf("in %d moments routes were left out, %d lines were networks of others: the test shows nothing", fewer, shadowed)
	}
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
