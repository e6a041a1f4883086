package state

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func way(table uint32, via string) Way {
	return Way{Family: IPv4, Table: table, Type: Unicast, Hops: HopsOf(Hop{Via: netip.MustParseAddr(via), Dev: "em1"}), Protocol: Protocol}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestHopsKeepEveryHop(t *testing.T) {
	hops := []Hop{
		{Via: netip.MustParseAddr("192.0.2.1"), Dev: "em1", Weight: 3},
		{Via: netip.MustParseAddr("fe80::1"), Dev: "em2", OnLink: true, Weight: 1},
		{Dev: "wg0", Weight: 256},
	}
	for n := range len(hops) + 1 {
		if got := HopsOf(hops[:n]...).All(); !slices.Equal(got, hops[:n]) {
			t.Errorf("%d hops came back as %v", n, got)
		}
	}
	if HopsOf(hops...) != HopsOf(slices.Clone(hops)...) || HopsOf(hops...) == HopsOf(hops[0], hops[2], hops[1]) {
		t.Error("lists compare wrongly")
	}
}

func TestAnOverwrittenRouteIsNotDeleted(t *testing.T) {
	observed, desired := Observed{State: New()}, Desired{State: New()}
	observed.Routes.Add(way(101, "192.0.2.1"), prefixes("0.0.0.0/0", "10.0.0.0/8")...)
	desired.Routes.Add(way(101, "192.0.2.2"), prefixes("0.0.0.0/0")...)
	other := way(101, "192.0.2.1")
	other.Metric = 5
	desired.Routes.Add(other, prefixes("10.0.0.0/8")...)
	got := strings.Join(Diff(observed, desired).Commands(), "\n")
	want := `ip route replace default via 192.0.2.2 dev em1 table 101 protocol 115
ip route replace 10.0.0.0/8 via 192.0.2.1 dev em1 table 101 metric 5 protocol 115
ip route del 10.0.0.0/8 via 192.0.2.1 dev em1 table 101 protocol 115`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOnePrefixOfAMillionIsOneRoute(t *testing.T) {
	observed, desired := Observed{State: New()}, Desired{State: New()}
	var list []netip.Prefix
	for i := range 1 << 20 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 0}), 24))
	}
	list = slices.Compact(list)
	observed.Routes.Add(way(101, "192.0.2.1"), list[1:]...)
	desired.Routes.Add(way(101, "192.0.2.1"), list[:len(list)-1]...)
	plan := Diff(observed, desired)
	if len(plan.Steps) != 2 || len(plan.Commands()) != 2 {
		t.Fatalf("%d steps, %d commands: want one route added, one deleted", len(plan.Steps), len(plan.Commands()))
	}
}

func TestEqualStatesHaveNoPlan(t *testing.T) {
	d := Desired{State: New()}
	d.Names[TableName{101, "china"}] = true
	d.Groups["em1"] = 115
	d.Sysctls["net/ipv4/conf/em1/rp_filter"] = "1"
	d.Routes.Add(way(101, "192.0.2.1"), prefixes("0.0.0.0/0")...)
	d.Rules[NewRule(IPv4, 11800, 101)] = true
	o := Observed{State: d.State, Before: Before{Groups: map[string]uint32{"em1": 0}, Sysctls: map[string]string{"net/ipv4/conf/em1/rp_filter": "0"}}}
	if p := Diff(o, d); !p.Empty() {
		t.Errorf("equal states have a plan: %v", p.Steps)
	}
}

func TestValuesOfOthersAreGivenBackOnce(t *testing.T) {
	o := Observed{State: New(), Before: Before{Groups: map[string]uint32{"em1": 3}, Sysctls: map[string]string{"net/ipv4/conf/em1/rp_filter": "2"}}}
	o.Groups["em1"], o.Groups["em2"] = 115, 9
	o.Sysctls["net/ipv4/conf/all/rp_filter"] = "1"
	got := strings.Join(Diff(o, Desired{State: New()}).Commands(), "\n")
	want := "sysctl -qw net/ipv4/conf/em1/rp_filter=2\nip link set dev em1 group 3"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestRulesAreSpelledAsIPRuleDoes(t *testing.T) {
	r := NewRule(IPv4, 100, 1000)
	r.Not, r.From, r.To = true, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")
	r.TOS, r.Mark, r.Mask, r.IIF, r.OIF = 0x10, 1, 0xff, "em1", "em2"
	r.UIDs, r.IPProto, r.SPort, r.DPort = UIDRange{0, 10}, 6, PortRange{80, 80}, PortRange{1000, 2000}
	r.SuppressPrefixLength, r.SuppressGroup = 0, 115
	want := "100: not from 10.0.0.0/8 to 192.0.2.1 tos 0x10 fwmark 0x1/0xff iif em1 oif em2 uidrange 0-10 ipproto tcp sport 80 dport 1000-2000 lookup china suppress_prefixlength 0 suppress_ifgroup 115"
	if got := r.Spell(Names{1000: "china"}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEveryPhaseHasAReason(t *testing.T) {
	type row struct {
		kind       Kind
		back, long bool
	}
	seen := map[row]int{}
	for _, p := range phases {
		if p.why == "" {
			t.Errorf("phase of %s has no reason", p.kind)
		}
		seen[row{p.kind, p.back, p.long}]++
	}
	for k := range kindNames {
		if kind := Kind(k); seen[row{kind, false, false}] != 1 || seen[row{kind, true, false}] != 1 {
			t.Errorf("%s stands %d times forth and %d back in the order: want once each", kind, seen[row{kind, false, false}], seen[row{kind, true, false}])
		}
	}
	for _, long := range []row{{KindRoute, false, true}, {KindRoute, true, true}, {KindRule, false, true}} {
		if seen[long] != 1 {
			t.Errorf("long ones of %s stand %d times in the order: want once", long.kind, seen[long])
		}
	}
}

// A service whose only real server is exchanged is never without one.
func TestWhoTakesOverComesBeforeWhoStops(t *testing.T) {
	key := ServiceKey{Family: IPv4, Protocol: TCP, Addr: netip.MustParseAddr("203.0.113.1"), Port: 80}
	server := func(addr string, weight int) Destination {
		return Destination{DestinationKey: DestinationKey{Service: key, Addr: netip.MustParseAddr(addr), Port: 80}, Forward: DirectTo, Weight: weight}
	}
	observed, desired := Observed{State: New()}, Desired{State: New()}
	for _, d := range []Destination{server("10.0.0.1", 1), server("10.0.0.3", 0)} {
		observed.Destinations[d.DestinationKey] = d
	}
	for _, d := range []Destination{server("10.0.0.1", 0), server("10.0.0.2", 1), server("10.0.0.3", 1)} {
		desired.Destinations[d.DestinationKey] = d
	}
	const want = `ipvsadm -a -t 203.0.113.1:80 -r 10.0.0.2:80 -g -w 1
ipvsadm -e -t 203.0.113.1:80 -r 10.0.0.3:80 -g -w 1
ipvsadm -e -t 203.0.113.1:80 -r 10.0.0.1:80 -g -w 0`
	if got := strings.Join(Diff(observed, desired).Commands(), "\n"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestATimeoutThatIsAskedForNoMoreIsGivenBack(t *testing.T) {
	found := Timeouts{TCP: 900 * time.Second, TCPFin: 120 * time.Second, UDP: 300 * time.Second}
	for _, c := range []struct {
		name      string
		now, want Timeouts
		found     *Timeouts
		command   string
	}{
		{"first", found, Timeouts{TCP: time.Hour}, nil, "ipvsadm --set 3600 0 0"},
		{"one of two", Timeouts{time.Hour, 120 * time.Second, time.Minute}, Timeouts{UDP: time.Minute}, &found, "ipvsadm --set 900 120 60"},
		{"given back", Timeouts{900 * time.Second, 120 * time.Second, time.Minute}, Timeouts{UDP: time.Minute}, &found, ""},
		{"another one", Timeouts{time.Hour, 120 * time.Second, 300 * time.Second}, Timeouts{TCPFin: time.Minute}, &found, "ipvsadm --set 900 60 300"},
		// The ledger tells of nothing that somebody else has changed since.
		{"somebody else's", Timeouts{time.Minute, 120 * time.Second, time.Minute}, Timeouts{UDP: time.Minute}, nil, ""},
		{"none", Timeouts{time.Hour, 120 * time.Second, time.Minute}, Timeouts{}, &found, "ipvsadm --set 900 120 300"},
	} {
		o, d := Observed{State: New(), Before: Before{Timeouts: c.found}}, Desired{State: New(), Origins: map[any]string{c.want: "ipvs.toml:2"}}
		o.Timeouts, d.Timeouts = c.now, c.want
		plan := Diff(o, d)
		if got := strings.Join(plan.Commands(), "\n"); got != c.command {
			t.Errorf("%s: %q, want %q", c.name, got, c.command)
		}
		for _, s := range plan.Steps {
			if s.Op == Replace && s.Origin != "ipvs.toml:2" {
				t.Errorf("%s: asked for by %q", c.name, s.Origin)
			}
		}
	}
}
