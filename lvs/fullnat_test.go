package lvs_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
)

func listed(texts ...string) []profiles.At[netip.Addr] {
	var list []profiles.At[netip.Addr]
	for _, s := range texts {
		list = append(list, profiles.At[netip.Addr]{Value: netip.MustParseAddr(s)})
	}
	return list
}

// hidden is a director in mode fullnat, on a host with all of 10.0.0.5 and .6.
func hidden(name string, services ...profiles.Port) profiles.Director {
	return profiles.Director{
		Name: name, Mode: profiles.FullNAT, VIPs: listed("203.0.113.1"), Services: services, Scheduler: "rr", SNAT: listed("10.0.0.5", "10.0.0.6"),
		RealServers: []profiles.Backend{{Address: netip.MustParseAddr("10.0.0.7"), Port: 8080, Weight: 1}, {Address: netip.MustParseAddr("10.0.0.8"), Port: 8080, Weight: 1}},
	}
}

func factsOfDirector() state.Facts {
	f := state.Facts{
		Links: []state.Link{{Name: "eth0", MTU: 1500, Up: true}, {Name: "eth1", MTU: 1400, Up: true}},
		IPVS:  state.IPVSFacts{Connections: map[state.DestinationKey]state.Connections{}},
	}
	for link, list := range map[string][]string{"eth0": {"203.0.113.1/24"}, "eth1": {"10.0.0.5/24", "10.0.0.6/24"}} {
		for _, a := range list {
			f.Addresses = append(f.Addresses, state.Address{Link: link, Prefix: netip.MustParsePrefix(a)})
		}
	}
	return f
}

func wanted(f state.Facts, directors ...profiles.Director) state.Desired {
	d := state.Desired{State: state.New(), Origins: map[any]string{}}
	lvs.Add(&d, &profiles.Config{Settings: profiles.DefaultSettings, Directors: directors}, nil, f, state.Observed{State: state.New()})
	return d
}

// rulesOf are the rules of a table of nftables, and what is amiss.
func rulesOf(d state.Desired) string {
	var b strings.Builder
	for line := range strings.Lines(d.NFTable.Text) {
		if strings.HasPrefix(line, "\t\t") && !strings.Contains(line, "hook") {
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
	}
	var amiss []string
	for _, p := range d.Problems {
		amiss = append(amiss, p.Subject+": "+p.Text+"\n")
	}
	slices.Sort(amiss)
	return b.String() + strings.Join(amiss, "")
}

func TestFullNATTellsItsConnectionsFromOthers(t *testing.T) {
	const original = "meta l4proto tcp ct original ip daddr 203.0.113.1"
	web, all := profiles.Port{Protocol: "tcp", Number: 80}, profiles.Port{Protocol: "tcp"}
	plain := hidden("plain", profiles.Port{Protocol: "tcp", Number: 443})
	plain.Mode, plain.SNAT = profiles.NAT, nil
	roomy := hidden("roomy", web)
	roomy.MSSRoom = 8
	absent := hidden("absent", web)
	absent.SNAT = listed("10.0.0.5", "10.0.0.99")
	marked := hidden("marked")
	marked.VIPs, marked.FWMark, marked.Family = nil, 7, profiles.Families{IPv4: true}
	marked.SNAT = marked.SNAT[:1]
	without := factsOfDirector()
	without.NFT.Missing = "no module"
	for _, c := range []struct {
		name string
		got  state.Desired
		want string
	}{
		{"sources take turns", wanted(factsOfDirector(), hidden("web", web)),
			original + " ct original proto-dst 80 numgen inc mod 2 0 snat ip to 10.0.0.5\n" +
				original + " ct original proto-dst 80 snat ip to 10.0.0.6\n"},
		{"every port is what no other service has", wanted(factsOfDirector(), hidden("all", all), hidden("web", web), plain),
			original + " ct original proto-dst 443 accept\n" +
				original + " ct original proto-dst 80 numgen inc mod 2 0 snat ip to 10.0.0.5\n" +
				original + " ct original proto-dst 80 snat ip to 10.0.0.6\n" +
				original + " numgen inc mod 2 0 snat ip to 10.0.0.5\n" +
				original + " snat ip to 10.0.0.6\n"},
		// The way to the real servers is the narrower one.
		{"room", wanted(factsOfDirector(), roomy),
			"ct direction reply " + original + " ct original proto-dst 80 tcp flags syn,ack / syn,ack tcp option maxseg size set 1352\n" +
				original + " ct original proto-dst 80 numgen inc mod 2 0 snat ip to 10.0.0.5\n" +
				original + " ct original proto-dst 80 snat ip to 10.0.0.6\n"},
		{"a source is not there", wanted(factsOfDirector(), absent),
			original + " ct original proto-dst 80 snat ip to 10.0.0.5\n" +
				"director absent: snat 10.0.0.99 is no address of this host, so replies to it would not come back; it is not used until it is\n"},
		{"a mark", wanted(factsOfDirector(), marked),
			"meta mark & 0xc0ffffff == 0x00000007 ip daddr 10.0.0.7 ct original ip daddr != 10.0.0.7 snat ip to 10.0.0.5\n" +
				"meta mark & 0xc0ffffff == 0x00000007 ip daddr 10.0.0.8 ct original ip daddr != 10.0.0.8 snat ip to 10.0.0.5\n"},
		{"no nf_tables", wanted(without, hidden("web", web)),
			"director web: mode fullnat needs nf_tables, which this kernel does not give: no module; real servers see the clients' addresses, and answer past this host\n"},
	} {
		if got := rulesOf(c.got); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestFullNATTellsWhenItsPortsRunShort(t *testing.T) {
	web, other := hidden("web", profiles.Port{Protocol: "tcp", Number: 80}), hidden("other", profiles.Port{Protocol: "tcp", Number: 443})
	service := func(port uint16) state.ServiceKey {
		return state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: netip.MustParseAddr("203.0.113.1"), Port: port}
	}
	const each = 2 * 64512 // towards one port of one real server
	for _, c := range []struct {
		web, other int // connections with the first real server
		problems   string
		failing    bool
	}{
		{0, 0, "", false},
		{each*60/100 - 1, 0, "", false},
		{each*60/100 + 1, 0, "more than 60 %", false},
		// They share sources and real servers.
		{each * 30 / 100, each*30/100 + 2, "more than 60 %", false},
		{each*85/100 - 1, 0, "more than 60 %", false},
		{each*85/100 + 1, 0, "more than 85 %", true},
	} {
		f := factsOfDirector()
		to := netip.MustParseAddr("10.0.0.7")
		f.IPVS.Connections[state.DestinationKey{Service: service(80), Addr: to, Port: 8080}] = state.Connections{Active: uint32(c.web / 2), Inactive: uint32(c.web - c.web/2)}
		f.IPVS.Connections[state.DestinationKey{Service: service(443), Addr: to, Port: 8080}] = state.Connections{Active: uint32(c.other)}
		d := wanted(f, web, other)
		told := 0
		for _, p := range d.Problems {
			if c.problems != "" && strings.HasPrefix(p.Text, c.problems) && p.Error == c.failing {
				told++
			}
		}
		if want := map[bool]int{true: 2}[c.problems != ""]; told != want || told != len(d.Problems) {
			t.Errorf("%d and %d connections: %+v, want %q of both", c.web, c.other, d.Problems, c.problems)
		}
		if d.Recheck == 0 {
			t.Error("nobody looks again")
		}
		config := &profiles.Config{Directors: []profiles.Director{web, other}}
		f.Sysctls = map[string]string{"net/netfilter/nf_conntrack_tcp_timeout_time_wait": "60"}
		all := lvs.CapacityOf(&web, config, d.State, f)
		want := fmt.Sprintf("%d of 258048 tuples in use, the fullest real server %.0f %% (sources: 2, real servers' ports: 2); sustains 4301 new connections a second", c.web+c.other, float64(c.web+c.other)/each*100)
		if all.String() != want {
			t.Errorf("%s\nwant %s", all, want)
		}
	}
}

// A real server's replies to a director go as main decides, where no uplink is
// named, whatever main knows, and announce room on each way.
func TestFullNATServerAnnouncesRoomOnTheWayThatRepliesTake(t *testing.T) {
	const one, two, own = 101, 102, 103 // tables
	way := func(table uint32, dst, via, dev string) state.Route {
		r := state.Route{Dst: netip.MustParsePrefix(dst), Way: state.Way{Family: state.IPv4, Table: table, Type: state.Unicast, Protocol: state.Protocol, Hops: state.HopsOf(state.Hop{Dev: dev})}}
		if via != "" {
			r.Hops = state.HopsOf(state.Hop{Via: netip.MustParseAddr(via), Dev: dev})
		}
		return r
	}
	synAck := func(to, by string, size int) string {
		return fmt.Sprintf("ip daddr %s tcp flags syn,ack / syn,ack %stcp option maxseg size set %d\n", to, by, size)
	}
	f := state.Facts{
		Links: []state.Link{{Name: "em1", MTU: 1500, Up: true}, {Name: "em2", MTU: 1400, Up: true}, {Name: "lan", MTU: 9000, Up: true}, {Name: "off", MTU: 1300}},
	}
	for _, a := range [][2]string{{"em1", "192.0.2.2/24"}, {"em1", "192.0.2.3/24"}, {"em2", "198.51.100.2/24"}, {"lan", "10.0.0.7/24"}} {
		f.Addresses = append(f.Addresses, state.Address{Link: a[0], Prefix: netip.MustParsePrefix(a[1])})
	}
	for _, c := range []struct{ name, director, uplink, missing, want string }{
		{"as main decides", "203.0.113.5", "", "", synAck("203.0.113.5", "", 8952) + synAck("203.0.113.5", `oifname "em1" `, 1452) + synAck("203.0.113.5", `oifname "em2" `, 1352)},
		{"without nf_tables", "203.0.113.5", "", "no module", "real server web: to announce to the director 203.0.113.5 that its segments are to leave room takes nf_tables, " +
			"which this kernel does not give: no module; full ones have none for the client's address; name the uplink, whose routes then tell it: uplink = …\n"},
		{"by an uplink", "203.0.113.5", "two", "no module", "203.0.113.5 via 198.51.100.1 dev em2 table own advmss 1352\n11560: from all to 203.0.113.5 lookup own\n"},
		{"in an uplink's network", "198.51.100.5", "two", "", "198.51.100.5 dev em2 table own advmss 1352\n11560: from all to 198.51.100.5 lookup own\n"},
	} {
		d := state.Desired{State: state.New(), Origins: map[any]string{}}
		for table, dev := range map[uint32]string{one: "em1", two: "em2"} {
			r := state.NewRule(state.IPv4, 12000, table)
			r.OIF = dev
			d.Rules[r] = true
		}
		for _, r := range []state.Route{way(two, "0.0.0.0/0", "198.51.100.1", "em2"), way(two, "198.51.100.0/24", "", "em2"), way(one, "0.0.0.0/0", "192.0.2.1", "em1")} {
			d.Routes.Add(r.Way, r.Dst)
		}
		config := &profiles.Config{
			Settings: profiles.DefaultSettings,
			Uplinks:  []profiles.Uplink{{Name: "one", Interface: "em1"}, {Name: "two", Interface: "em2"}},
			RealServers: []profiles.RealServer{{
				Name: "web", Mode: profiles.FullNAT, Directors: listed(c.director), Uplink: profiles.At[string]{Value: c.uplink}, MSSRoom: 8,
			}},
		}
		f.NFT.Missing = c.missing
		tables := map[string]uint32{"one": one, "two": two}
		if name := config.RealServers[0].Table(); name != "" {
			tables[name] = own
		}
		lvs.Add(&d, config, tables, f, state.Observed{State: state.New()})
		got, names := "", state.Names{own: "own"}
		for r := range d.Routes.All() {
			if r.Table == own {
				got += r.Spell(names) + "\n"
			}
		}
		for _, r := range d.SortedRules() {
			if r.Table == own {
				got += r.Spell(names) + "\n"
			}
		}
		if got += rulesOf(d); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}
