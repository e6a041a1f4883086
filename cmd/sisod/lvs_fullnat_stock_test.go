//go:build stock

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// fullNAT is an LVS whose real servers have no way back to anybody beyond their
// network, and whose director has two more addresses there, POOL, and one of its own.
type fullNAT struct {
	*lab.LVS
	pool, own lab.Addresses // the second address of the pool, after the director's; one that is not of the pool
	found     []string
}

func newFullNAT(t *testing.T) *fullNAT {
	t.Helper()
	l := &fullNAT{LVS: newLVS(t, false)}
	l.pool = lab.Addresses{V4: netip.MustParseAddr("203.0.113.21"), V6: netip.MustParseAddr("2001:db8:1::21")}
	l.own = lab.Addresses{V4: netip.MustParseAddr("203.0.113.22"), V6: netip.MustParseAddr("2001:db8:1::22")}
	for i, a := range slices.Concat(l.pool.All(), l.own.All()) {
		ip(t, l.Director, "address", "add", fmt.Sprintf("%s/%d", a, []int{24, 64}[i%2]), "dev", "eth0")
	}
	for _, h := range l.RealServers {
		ip(t, h, "route", "delete", "default")
		ip(t, h, "-6", "route", "delete", "default")
	}
	l.found = snapshots(t, l.hosts()...)
	return l
}

func (l *fullNAT) hosts() []*lab.Host {
	return []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
}

// profile gives a host a profile, which must be applied without a rest.
func (l *fullNAT) profile(t *testing.T, h *lab.Host, text string) {
	t.Helper()
	writeProfile(t, h, "lvs.toml", l.spell(text))
	apply(t, h, 0)
	if r := apply(t, h, 0); r.stdout != "nothing to do\n" {
		t.Errorf("%s: the second apply said %s%s", h.Name, r.stdout, r.stderr)
	}
}

func (l *fullNAT) spell(text string) string {
	return strings.NewReplacer("POOL4", l.pool.V4.String(), "POOL6", l.pool.V6.String()).Replace(spell(l.LVS, text))
}

// fullNATDirector is a director with a line more; ports are mapped.
func fullNATDirector(mode, more string) string {
	return fmt.Sprintf(`
		[uplink.service]
		interface = "eth0"
		[director.web]
		mode = %q
		vip = ["VIP4", "VIP6"]
		interface = "eth0"
		services = ["tcp/8000"]
		scheduler = "rr"
		%s
		real_servers = [
		  { address = "RS14", port = 80 }, { address = "RS24", port = 80 },
		  { address = "RS16", port = 80 }, { address = "RS26", port = 80 },
		]`, mode, more)
}

const wholePool = `snat = ["DIR4", "POOL4", "DIR6", "POOL6"]`

// station is somebody who asks, and the addresses that others know it by.
type station struct {
	host *lab.Host
	own  lab.Addresses
}

// clients are those far away, and those of the real servers' own network.
func (l *fullNAT) clients() []station {
	return []station{{l.Client, l.ClientAddress}, {l.Neighbour, l.NeighbourAddress}}
}

// taken asks n times, each on a connection of its own: real servers take turns,
// and those that they saw are returned.
func (l *fullNAT) taken(t *testing.T, from *lab.Host, to netip.AddrPort, n int) map[netip.Addr]int {
	t.Helper()
	servers, peers := map[string]int{}, map[netip.Addr]int{}
	for range n {
		page, err := from.Fetch(t.Context(), to, 0, patient)
		if err != nil {
			t.Fatalf("%v\n%s%s", err, run(t, l.Director, "ipvsadm", "-Lnc"), run(t, l.Director, "nft", "list", "ruleset"))
		}
		servers[page.Server]++
		peers[page.Peer.Addr()]++
	}
	if want := map[string]int{"rs1": n / 2, "rs2": n / 2}; fmt.Sprint(servers) != fmt.Sprint(want) {
		t.Errorf("%s to %s: real servers answered %v, want %v", from.Name, to, servers, want)
	}
	return peers
}

// given ends a test: all is as found, and nothing is left in nf_tables.
func (l *fullNAT) given(t *testing.T) {
	t.Helper()
	asFound(t, l.found, l.hosts()...)
	if left := run(t, l.Director, "nft", "list", "tables"); left != "" {
		t.Errorf("after flush, the director has %s", left)
	}
}

func TestStockFullNATServesEverybodyThroughServersWithoutAWayBack(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	l.profile(t, l.Director, fullNATDirector("nat", ""))
	for _, c := range l.clients() {
		for _, v6 := range []bool{false, true} {
			unanswered(t, c.host, l.VIP.At(v6, 8000))
		}
	}
	for _, h := range l.RealServers {
		if _, err := h.Serve(5300); err != nil {
			t.Fatal(err)
		}
	}
	// What an uplink would do with the source of all that leaves comes second.
	followed := strings.Replace(fullNATDirector("fullnat", wholePool), "[uplink.service]", "[uplink.service]\nmasquerade = true", 1)
	l.profile(t, l.Director, followed+`
		[director.names]
		mode = "fullnat"
		vip = ["VIP4", "VIP6"]
		services = ["udp/53"]
		scheduler = "rr"
		snat = ["POOL4", "POOL6"]
		real_servers = [
		  { address = "RS14", port = 5300 }, { address = "RS24", port = 5300 },
		  { address = "RS16", port = 5300 }, { address = "RS26", port = 5300 },
		]`)
	for _, c := range l.clients() {
		for i, v6 := range []bool{false, true} {
			sources := []netip.Addr{l.DirectorAddress.All()[i], l.pool.All()[i]}
			peers := l.taken(t, c.host, l.VIP.At(v6, 8000), 8)
			if want := map[netip.Addr]int{sources[0]: 4, sources[1]: 4}; fmt.Sprint(peers) != fmt.Sprint(want) {
				t.Errorf("%s to %s: real servers saw %v, want %v", c.host.Name, l.VIP.All()[i], peers, want)
			}
			for range 4 {
				if saw := ask(t, c.host, lab.Request{Protocol: lab.UDP, To: l.VIP.At(v6, 53)}).Peer.Addr(); saw != sources[1] {
					t.Errorf("udp of %s to %s: the real server saw %s, want %s", c.host.Name, l.VIP.All()[i], saw, sources[1])
				}
			}
		}
	}
	l.given(t)
}

func TestStockFullNATChangesTheSourceOfItsServicesAlone(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool)+`
		[director.plain]
		mode = "nat"
		vip = ["VIP4", "VIP6"]
		services = ["tcp/8001"]
		real_servers = [ { address = "RS14", port = 80 }, { address = "RS16", port = 80 } ]`)
	for i, v6 := range []bool{false, true} {
		rs := l.RealAddresses[0].At(v6, lab.Port)
		saw := func(what string, from *lab.Host, to netip.AddrPort, want netip.Addr) {
			witness, err := l.RealServers[0].Capture()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = from.Fetch(t.Context(), to, 0, brief) // the real server has no way back to some
			p, err := witness.Wait(t.Context(), func(p lab.Packet) bool { return !p.Out && p.Dst == rs && p.Flags == lab.SYN })
			if err != nil || p.Src.Addr() != want {
				t.Errorf("%s: the real server saw %s, want %s (%v)", what, p, want, err)
			}
		}
		saw("a service of mode nat", l.Client, l.VIP.At(v6, 8001), l.ClientAddress.All()[i])
		if err := l.Director.PortForward(t.Context(), netip.AddrPortFrom(l.own.All()[i], 8000), rs); err != nil {
			t.Fatal(err)
		}
		saw("a port forward", l.Client, netip.AddrPortFrom(l.own.All()[i], 8000), l.ClientAddress.All()[i])
		ip(t, l.Neighbour, "route", "add", rs.Addr().String(), "via", l.DirectorAddress.All()[i].String())
		saw("a forwarded connection", l.Neighbour, rs, l.NeighbourAddress.All()[i])
		page, err := l.Director.Fetch(t.Context(), rs, 0, patient)
		if err != nil || page.Peer.Addr() == l.pool.All()[i] {
			t.Errorf("the director's own connection: %v, %v", page, err)
		}
	}
}

func TestStockFullNATTakesPacketsWithAMark(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	run(t, l.Director, "nft", `add table inet firewall
		add chain inet firewall marks { type filter hook prerouting priority mangle; }
		add rule inet firewall marks tcp dport { 80, 443, 8000 } meta mark set 7`)
	l.profile(t, l.Director, `
		[director.web]
		mode = "fullnat"
		fwmark = 7
		vip = ["VIP4", "VIP6"]
		interface = "eth0"
		scheduler = "rr"
		snat = ["DIR4", "POOL4", "DIR6", "POOL6"]
		real_servers = [
		  { address = "RS14", port = 80 }, { address = "RS24", port = 80 },
		  { address = "RS16", port = 80 }, { address = "RS26", port = 80 },
		]`)
	for _, c := range l.clients() {
		for i, v6 := range []bool{false, true} {
			for _, port := range []uint16{443, 8000} {
				peers := l.taken(t, c.host, l.VIP.At(v6, port), 4)
				delete(peers, l.DirectorAddress.All()[i])
				delete(peers, l.pool.All()[i])
				if len(peers) > 0 {
					t.Errorf("%s to %s: real servers saw %v", c.host.Name, l.VIP.All()[i], peers)
				}
			}
		}
	}
	// It has the mark, and goes to a real server without the balancer.
	for i, v6 := range []bool{false, true} {
		rs := l.RealAddresses[0].At(v6, lab.Port)
		ip(t, l.Neighbour, "route", "add", rs.Addr().String(), "via", l.DirectorAddress.All()[i].String())
		page, err := l.Neighbour.Fetch(t.Context(), rs, 0, patient)
		if err != nil || page.Peer.Addr() != l.NeighbourAddress.All()[i] {
			t.Errorf("a forwarded connection: %v, %v", page, err)
		}
	}
	run(t, l.Director, "nft", "delete table inet firewall")
	l.given(t)
}

// announces is the MSS of the SYN-ACK that a host gets for a new connection, and
// the largest packet of an upload on it.
func announces(t *testing.T, from *lab.Host, to netip.AddrPort) (mss uint16, largest int) {
	t.Helper()
	witness, err := from.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	const upload = 20_000
	page, err := from.Fetch(t.Context(), to, upload, patient)
	if err != nil || page.Bytes != upload {
		t.Fatalf("upload to %s: %v, %v", to, page, err)
	}
	if err := witness.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range witness.Packets() {
		if p.Src == to && p.Flags == lab.SYN|lab.ACK {
			mss = p.MSS
		}
		if p.Dst == to {
			largest = max(largest, p.Length)
		}
	}
	return mss, largest
}

func TestStockFullNATLeavesRoomForTheClientsAddress(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	const wire = 1500
	headers := map[bool]int{false: 40, true: 60}
	expect := func(what string, to lab.Addresses, port uint16, room int) {
		t.Helper()
		for _, c := range l.clients() {
			for _, v6 := range []bool{false, true} {
				if to != l.VIP && c.host == l.Client {
					continue // the real server has no way back to it
				}
				mss, largest := announces(t, c.host, to.At(v6, port))
				if int(mss) != wire-room-headers[v6] || largest != wire-room {
					t.Errorf("%s: %s to %s: MSS %d, largest packet %d; want %d and %d", what, c.host.Name, to.At(v6, port), mss, largest, wire-room-headers[v6], wire-room)
				}
			}
		}
	}
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool))
	expect("as it comes", l.VIP, 8000, 0)
	const more = `
		[director.more]
		mode = "fullnat"
		vip = ["VIP4", "VIP6"]
		services = ["tcp/8002"]
		snat = ["DIR4", "DIR6"]
		real_servers = [ { address = "RS14", port = 80 }, { address = "RS16", port = 80 } ]`
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool+"\nmss_room = 8")+more)
	expect("clamped by the director", l.VIP, 8000, 8)
	expect("another service of the director", l.VIP, 8002, 0)
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool)+more)
	for _, h := range l.RealServers {
		l.profile(t, h, `
			[real_server.web]
			mode = "fullnat"
			director = ["DIR4", "POOL4", "DIR6", "POOL6"]
			mss_room = 16`)
	}
	expect("announced by the real servers", l.VIP, 8000, 16)
	expect("to others than the director", l.RealAddresses[0], lab.Port, 0)
	l.given(t)
}

func TestStockFullNATShowsHowMuchItHolds(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	l.profile(t, l.Director, fullNATDirector("fullnat", wholePool))
	var visits []*lab.Visit
	for _, v6 := range []bool{false, true, false} {
		v, err := l.Client.Visit(t.Context(), l.VIP.At(v6, 8000), patient)
		if err != nil {
			t.Fatal(err)
		}
		visits = append(visits, v)
	}
	run(t, l.Director, "sysctl", "-w", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=60")
	r := expect(t, l.Director, 0, "status", "-o", "json")
	var st status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatal(err)
	}
	// In each family two sources and two real servers.
	const tuples = 2 * 2 * 2 * 64512
	if c := st.Roles[0].Capacity; c == nil || c.Tuples != tuples || c.InUse != 3 || c.Rate != tuples/60 {
		t.Errorf("capacity %+v, want %d tuples, 3 in use", c, tuples)
	}
	if text := expect(t, l.Director, 0, "status").stdout; !strings.Contains(text, "3 of 516096 tuples in use") || !strings.Contains(text, "sustains 8602 new connections a second") {
		t.Errorf("status says\n%s", text)
	}
	for _, v := range visits {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStockFullNATDoesNotUseASourceThatIsNotThere(t *testing.T) {
	t.Parallel()
	l := newFullNAT(t)
	for i, a := range l.pool.All() {
		ip(t, l.Director, "address", "delete", fmt.Sprintf("%s/%d", a, []int{24, 64}[i]), "dev", "eth0")
	}
	writeProfile(t, l.Director, "lvs.toml", l.spell(fullNATDirector("fullnat", wholePool)))
	r := apply(t, l.Director, 2)
	for _, a := range l.pool.All() {
		if !strings.Contains(r.stderr+r.stdout, "snat "+a.String()+" is no address of this host") {
			t.Errorf("apply does not tell of %s:\n%s%s", a, r.stdout, r.stderr)
		}
	}
	for i, v6 := range []bool{false, true} {
		if peers := l.taken(t, l.Client, l.VIP.At(v6, 8000), 4); peers[l.DirectorAddress.All()[i]] != 4 {
			t.Errorf("real servers saw %v", peers)
		}
	}
	// The daemon takes it as soon as it comes.
	startDaemon(t, l.Director)
	for i, a := range l.pool.All() {
		ip(t, l.Director, "address", "add", fmt.Sprintf("%s/%d", a, []int{24, 64}[i]), "dev", "eth0")
	}
	patiently(t, func() error {
		return errWant("snat ip6 to "+l.pool.V6.String(), run(t, l.Director, "nft", "list", "table", "inet", "sisod"))
	})
	for i, v6 := range []bool{false, true} {
		if peers := l.taken(t, l.Client, l.VIP.At(v6, 8000), 4); peers[l.pool.All()[i]] != 2 {
			t.Errorf("real servers saw %v", peers)
		}
	}
}
