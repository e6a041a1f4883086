package golden

import (
	"bufio"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// parseFacts reads facts written one a line in nearly iproute2's words:
//
//	link em1 [down] [nocarrier] [ptp] [noarp] [group N] [mtu N]
//	address em1 192.0.2.1/24 [secondary] [temporary] [tentative] [deprecated] [local] [peer P]
//	main 192.0.2.0/24 dev em1 [via A] [src A] [metric N]
//	stray 198.51.100.0/24 dev em1 via A count N
//	final 0.0.0.0/1 dev tun0 | final 0.0.0.0/0 unreachable
//	gateway em1 192.0.2.254|none SOURCE…
//	known NAME em1 4|6 A
//	system NUMBER NAME
//	foreign route 192.0.2.0/24 table N metric N via A dev em1
//	foreign rule PRIORITY [from P] [fwmark N/N] lookup N
//	sysctl PATH VALUE
//	skipped em1 N
//	foreign nexthop ID
//	nexthops missing WHY…
//	ipvs missing WHY… | nft missing WHY… | tproxy none WHY…
//	listening tcp|udp A PORT
//	foreign service tcp 192.0.2.1:80 SCHEDULER
//	awaited em1
//	connections tcp 192.0.2.1:80 10.0.0.7:80 ACTIVE INACTIVE [closed N]
//	connections fwmark 7 10.0.0.7:0 ACTIVE INACTIVE [closed N]
//	now SECONDS
func parseFacts(t *testing.T, file string) state.Facts {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	f := state.Facts{
		Known: map[state.GatewayKey]netip.Addr{}, SystemTables: map[string]uint32{}, OwnTables: map[string]uint32{},
		Sysctls: map[string]string{}, MainSkipped: map[string]int{}, Now: time.Unix(0, 0),
		IPVS: state.IPVSFacts{Foreign: map[state.ServiceKey]state.Service{}, Connections: map[state.DestinationKey]state.Connections{}},
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) == 0 || strings.HasPrefix(w[0], "#") {
			continue
		}
		has := func(word string) bool { return slices.Contains(w[2:], word) }
		after := func(word string) string {
			if i := slices.Index(w, word); i >= 0 && i+1 < len(w) {
				return w[i+1]
			}
			return ""
		}
		number := func(s string) uint32 {
			if s == "" {
				return 0
			}
			n, err := strconv.ParseUint(s, 0, 32)
			if err != nil {
				t.Fatalf("%s: %q: %v", file, lines.Text(), err)
			}
			return uint32(n)
		}
		route := func(dst string) state.Route {
			p := netip.MustParsePrefix(dst)
			r := state.Route{Dst: p, Way: state.Way{Family: familyOf(p.Addr()), Table: state.TableMain, Type: state.Unicast, Protocol: 2}}
			h := state.Hop{Dev: after("dev")}
			if via := after("via"); via != "" {
				h.Via = netip.MustParseAddr(via)
			}
			if src := after("src"); src != "" {
				r.Src = netip.MustParseAddr(src)
			}
			r.Metric = max(number(after("metric")), state.DefaultMetric(r.Family))
			r.Hops = state.HopsOf(h)
			return r
		}
		switch w[0] {
		case "link":
			f.Links = append(f.Links, state.Link{Name: w[1], Index: len(f.Links) + 1, Up: !has("down"), Carrier: !has("down") && !has("nocarrier"),
				PointToPoint: has("ptp"), NoARP: has("noarp"), Loopback: w[1] == "lo", Group: number(after("group")), MTU: int(number(after("mtu")))})
		case "address":
			a := state.Address{Link: w[1], Prefix: netip.MustParsePrefix(w[2]), Secondary: has("secondary"), Temporary: has("temporary"),
				Tentative: has("tentative"), Deprecated: has("deprecated"), LinkLocal: has("local")}
			if peer := after("peer"); peer != "" {
				a.Peer = netip.MustParsePrefix(peer)
			}
			f.Addresses = append(f.Addresses, a)
		case "main":
			f.Main = append(f.Main, route(w[1]))
		case "awaited":
			f.Awaited = map[string]time.Time{w[1]: {}}
		case "now":
			f.Now = time.Unix(int64(number(w[1])), 0)
		case "connections":
			real := netip.MustParseAddrPort(w[3])
			key := state.DestinationKey{Addr: real.Addr(), Port: real.Port()}
			if w[1] == "fwmark" {
				key.Service = state.ServiceKey{Family: familyOf(real.Addr()), Mark: number(w[2])}
			} else {
				key.Service = serviceOf(w[1], w[2])
			}
			f.IPVS.Connections[key] = state.Connections{Active: number(w[4]), Inactive: number(w[5]), Closed: number(after("closed"))}
		case "ipvs":
			f.IPVS.Missing = strings.Join(w[2:], " ")
		case "listening":
			f.Sockets.Listening = append(f.Sockets.Listening, state.Listening{
				Port: state.Port{Protocol: uint8(state.TransportNamed(w[1])), Number: uint16(number(w[3]))}, Addr: netip.MustParseAddr(w[2]), Transparent: true})
		case "tproxy":
			f.NFT.NoProxy = strings.Join(w[2:], " ")
		case "nexthops":
			f.Nexthops.Missing = strings.Join(w[2:], " ")
		case "nft":
			f.NFT.Missing = strings.Join(w[2:], " ")
		case "stray":
			f.Strays = map[string]state.Strays{after("dev"): {Count: int(number(after("count"))), First: route(w[1])}}
		case "final":
			r := route(w[1])
			if w[2] != "dev" {
				r.Type, _ = state.RouteTypeNamed(w[2])
				r.Hops = state.Hops{}
			}
			f.Final = append(f.Final, r)
		case "gateway":
			g := state.LearnedGateway{Link: w[1], Family: state.IPv4, Source: strings.Join(w[3:], " "), Main: w[3] == "main"}
			if w[2] != "none" {
				g.Via = netip.MustParseAddr(w[2])
				g.Family = familyOf(g.Via)
			}
			f.Gateways = append(f.Gateways, g)
		case "known":
			f.Known[state.GatewayKey{Uplink: w[1], Interface: w[2], Family: state.Family(number(w[3]))}] = netip.MustParseAddr(w[4])
		case "system":
			f.SystemTables[w[2]] = number(w[1])
		case "foreign":
			if w[1] == "route" {
				r := route(w[2])
				r.Table, r.Protocol = number(after("table")), 4
				f.ForeignRoutes = append(f.ForeignRoutes, r)
				break
			}
			if w[1] == "nexthop" {
				f.Nexthops.Foreign = map[uint32]bool{number(w[2]): true}
				break
			}
			if w[1] == "service" {
				s := state.Service{ServiceKey: serviceOf(w[2], w[3]), Scheduler: w[4]}
				f.IPVS.Foreign[s.ServiceKey] = s
				break
			}
			r := state.NewRule(state.IPv4, number(w[2]), number(after("lookup")))
			r.Protocol = 4
			if from := after("from"); from != "" {
				r.From = netip.MustParsePrefix(from)
			}
			if mark, mask, ok := strings.Cut(after("fwmark"), "/"); ok {
				r.Mark, r.Mask = number(mark), number(mask)
			}
			f.ForeignRules = append(f.ForeignRules, r)
		case "sysctl":
			f.Sysctls[w[1]] = w[2]
		case "skipped":
			f.MainSkipped[w[1]] = int(number(w[2]))
		default:
			t.Fatalf("%s: unknown fact %q", file, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return f
}

func serviceOf(protocol, at string) state.ServiceKey {
	p := netip.MustParseAddrPort(at)
	return state.ServiceKey{Family: familyOf(p.Addr()), Protocol: state.TransportNamed(protocol), Addr: p.Addr(), Port: p.Port()}
}

func familyOf(a netip.Addr) state.Family {
	if a.Is4() {
		return state.IPv4
	}
	return state.IPv6
}
