package routing_test

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

var update = flag.Bool("update", false, "write the golden files from what the code says now")

// moment is one look at a host: its facts, what routing makes of them, and the
// plan from the moment before.
type moment struct {
	name    string
	facts   state.Facts
	desired state.Desired
	exits   []*routing.Exit
}

// cases returns every folder of testdata.
func cases(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	return dirs
}

// moments plays a case: its facts in order, with what a daemon carries from
// one pass to the next.
func moments(t *testing.T, dir string) []moment {
	t.Helper()
	c, err := profiles.Load("", abs(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.facts"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no facts in %s: %v", dir, err)
	}
	var out []moment
	known := map[state.GatewayKey]netip.Addr{}
	own := map[string]uint32{}
	before := state.Observed{State: state.New()}
	for _, file := range files {
		f := parseFacts(t, file)
		for k, v := range known {
			if _, ok := f.Known[k]; !ok {
				f.Known[k] = v
			}
		}
		for k, v := range own {
			f.OwnTables[k] = v
		}
		tables := routing.Assign(c, f)
		d, exits := routing.Desired(c, tables, f)
		lvs.Add(&d, c, tables.ByName(), f, before)
		before = observedFrom(d)
		known = d.Known
		for n := range d.Names {
			own[n.Name] = n.Number
		}
		out = append(out, moment{strings.TrimSuffix(filepath.Base(file), ".facts"), f, d, exits})
	}
	return out
}

func abs(t *testing.T, path string) string {
	t.Helper()
	a, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestDesiredAndPlansAreAsWritten(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			before := state.Observed{State: state.New()}
			for _, m := range moments(t, dir) {
				var b strings.Builder
				for _, e := range m.exits {
					fmt.Fprintf(&b, "uplink %s %s: %s\n", e.Uplink, e.Family, e.State())
				}
				for _, p := range m.desired.Problems {
					fmt.Fprintf(&b, "problem %s\n", p)
				}
				plan := state.Diff(before, m.desired)
				for _, s := range plan.Steps {
					for line := range strings.SplitSeq(s.Object.Spell(plan.Names), "\n") {
						if r, ok := s.Object.(state.Rule); ok && r.Family == state.IPv6 {
							line = "-6 " + line
						}
						fmt.Fprintf(&b, "%s %s %s", s.Op.Sign(), s.Object.Kind(), line)
						if s.Origin != "" {
							fmt.Fprintf(&b, "  # %s", s.Origin)
						}
						b.WriteByte('\n')
					}
				}
				golden(t, filepath.Join(dir, m.name+".txt"), b.String())
				before = observedFrom(m.desired)
			}
		})
	}
}

// observedFrom is what the kernel has after a desired state was applied.
func observedFrom(d state.Desired) state.Observed {
	o := state.Observed{State: d.State, Before: state.Before{Groups: map[string]uint32{}, Sysctls: map[string]string{}, Up: map[string]bool{}}}
	for link := range d.Groups {
		o.Before.Groups[link] = 0
	}
	for link := range d.Up {
		o.Before.Up[link] = false
	}
	for path := range d.Sysctls {
		o.Before.Sysctls[path] = "7"
	}
	return o
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./routing -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// parseFacts reads facts written one a line in nearly iproute2's words:
//
//	link em1 [down] [nocarrier] [ptp] [group N]
//	address em1 192.0.2.1/24 [secondary] [temporary] [tentative] [deprecated] [local] [peer P]
//	main 192.0.2.0/24 dev em1 [via A] [src A] [metric N]
//	stray 198.51.100.0/24 dev em1 via A count N
//	final 0.0.0.0/1 dev tun0 | final 0.0.0.0/0 unreachable
//	gateway em1 192.0.2.254|none SOURCE…
//	known NAME em1 4|6 A
//	system NUMBER NAME
//	foreign route 192.0.2.0/24 table N metric N via A dev em1
//	foreign rule PRIORITY from P lookup N
//	sysctl PATH VALUE
//	skipped em1 N
func parseFacts(t *testing.T, file string) state.Facts {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	f := state.Facts{
		Known: map[state.GatewayKey]netip.Addr{}, SystemTables: map[string]uint32{}, OwnTables: map[string]uint32{},
		Sysctls: map[string]string{}, MainSkipped: map[string]int{},
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
			n, err := strconv.ParseUint(s, 10, 32)
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
				PointToPoint: has("ptp"), Group: number(after("group"))})
		case "address":
			a := state.Address{Link: w[1], Prefix: netip.MustParsePrefix(w[2]), Secondary: has("secondary"), Temporary: has("temporary"),
				Tentative: has("tentative"), Deprecated: has("deprecated"), LinkLocal: has("local")}
			if peer := after("peer"); peer != "" {
				a.Peer = netip.MustParsePrefix(peer)
			}
			f.Addresses = append(f.Addresses, a)
		case "main":
			f.Main = append(f.Main, route(w[1]))
		case "ipvs":
			f.IPVS.Missing = strings.Join(w[2:], " ")
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
			r := state.NewRule(state.IPv4, number(w[2]), number(after("lookup")))
			r.From, r.Protocol = netip.MustParsePrefix(after("from")), 4
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

func familyOf(a netip.Addr) state.Family {
	if a.Is4() {
		return state.IPv4
	}
	return state.IPv6
}
