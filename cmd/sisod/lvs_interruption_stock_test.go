//go:build stock

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// directorHosts are small hosts on which IPVS has a service of somebody else's,
// on a VIP of sisod's, and GUE over IPv6 is received.
func directorHosts(t *testing.T, n int) []*lab.Host {
	t.Helper()
	loadLVS(t)
	var hosts []*lab.Host
	for range n {
		h, _ := smallHost(t)
		shell(t, h, `ipvsadm -A -t 203.0.113.1:9999 -s rr; ipvsadm -a -t 203.0.113.1:9999 -r 192.0.2.99:99 -m -w 9
			ip fou add port 6080 gue -6; ip -4 link set tunl0 up; ip link set tunl0 down`)
		hosts = append(hosts, h)
	}
	return hosts
}

// services is what ipvsadm has, in an order that does not depend on where the
// kernel put it. A list in several parts repeats or leaves out one when another
// namespace changes meanwhile (net/netfilter/ipvs/ip_vs_ctl.c counts them all), so that
// it counts when it is read twice.
func services(t *testing.T, h *lab.Host) string {
	t.Helper()
	for last := ""; ; {
		list := "\n" + sortedLines(run(t, h, "ipvsadm", "-Sn"))
		if list == last {
			return list[1:]
		}
		last = list
	}
}

// roleSnapshot is the part of lvsSnapshot that roles change, which is quicker.
func roleSnapshot(t *testing.T, h *lab.Host) string {
	t.Helper()
	return services(t, h) + shell(t, h, `ipvsadm -L --timeout; ip fou show; ip rule; ip route show table all
		{ ip -o address; ip -d -o link; } | sed 's/^[0-9]*: //'
		ls /etc/iproute2/rt_tables.d; cd /proc/sys/net
		grep -s . ipv4/ip_forward ipv4/vs/* ipv?/conf/*/forwarding ipv4/conf/*/*_redirects ipv4/conf/*/arp_* ipv4/conf/*/rp_filter || true`)
}

// settle applies until nothing is to do: what was removed drains first.
func settle(t *testing.T, h *lab.Host) {
	t.Helper()
	for range 4 {
		if expect(t, h, 0, "apply").stdout == "nothing to do\n" {
			return
		}
	}
	t.Errorf("apply does not come to an end:\n%s", sisod(t, h, "plan").stdout)
}

// killing is where a process is killed: before a change, of which each run has
// as many that are alike. What the kernel does in between can add one or take
// one away.
type killing struct {
	change
	// half is how many of the messages of that change the kernel still gets, for a
	// kill between them; 0: none.
	half int
}

// killEverywhere ends a command by SIGKILL at each of the places. Each time
// prepare makes a host ready, and check looks at what is left. Several hosts
// share the work. A place that a run does not have is one where nothing is
// killed; there may be few of them.
func killEverywhere(t *testing.T, hosts []*lab.Host, places []killing, prepare func(*testing.T, *lab.Host), command string, check func(t *testing.T, h *lab.Host, what string)) {
	t.Helper()
	var next, missed atomic.Int64
	t.Run("killed", func(t *testing.T) {
		var all sync.WaitGroup
		for i, h := range hosts {
			// No parallel subtests: those would wait for every test that is.
			all.Go(func() {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					for !t.Failed() {
						n := int(next.Add(1)) - 1
						if n >= len(places) {
							return
						}
						prepare(t, h)
						done := killAt(t, h, places[n], command)
						if done == "" {
							missed.Add(1)
							done = command + ", which came to its end before " + places[n].String()
							t.Log(done)
						}
						check(t, h, done)
					}
				})
			})
		}
		all.Wait()
	})
	if n := int(missed.Load()); n > 2 {
		t.Errorf("%s had %d of %d places less than it had when they were counted", command, n, len(places))
	}
}

// killAt ends a command by SIGKILL at a place, and says what was done by then:
// nothing if the command came to its end without that place.
func killAt(t *testing.T, h *lab.Host, place killing, command string) string {
	t.Helper()
	halved := false
	r := traced(t, h, func(c change) verdict {
		switch {
		case halved:
			return kill
		case c.alike != place.alike || c.nth != place.nth:
			return proceed
		case place.half > 0:
			halved = true
			c.drop(place.half)
			return proceed
		}
		return kill
	}, command)
	switch r.code {
	case killed:
		return fmt.Sprintf("%s killed before %s", command, place)
	case 0:
		if halved {
			t.Fatalf("sisod %s came to its end after %d of %d messages of %s", command, place.half, place.messages, place.what)
		}
		return ""
	}
	t.Fatalf("sisod %s: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
	return ""
}

func (k killing) String() string {
	return fmt.Sprintf("change %d, %s (the %d. of its kind, %d of %d messages sent)", k.number, k.what, k.nth, k.half, k.messages)
}

// everyChange runs a command to its end and returns its changes.
func everyChange(t *testing.T, h *lab.Host, command string) []change {
	t.Helper()
	var all []change
	r := traced(t, h, func(c change) verdict { all = append(all, c); return proceed }, command)
	if r.code != 0 {
		t.Fatalf("sisod %s: exit code %d\n%s%s", command, r.code, r.stdout, r.stderr)
	}
	return all
}

// steps are the changes that steps of a plan consist of, ledger included. Those
// before and after, the lock and the copy of the profiles, are the same for all
// plans, and killed at in TestKillBetweenAnyTwoSteps.
func steps(changes []change) []change {
	own := func(c change) bool {
		return strings.HasPrefix(c.what, "netlink") || strings.Contains(c.what, "ledger.json") || strings.Contains(c.what, "rt_tables.d") || strings.Contains(c.what, "/proc/sys/")
	}
	first := slices.IndexFunc(changes, own)
	last := len(changes)
	for ; last > first && !own(changes[last-1]); last-- {
	}
	return changes[first:last]
}

// within are places between the messages of a change. The kernel takes what is
// sent at once as a whole; how much that is depends on its buffers.
func within(c change) []killing {
	var places []killing
	for _, half := range []int{1, c.messages / 2, c.messages - 1} {
		places = append(places, killing{change: c, half: half})
	}
	return places
}

// TestStockKilledDirectorComesBack: fifty services of every kind. Whenever the
// first apply is killed, the next one ends with all of them, and owns them.
func TestStockKilledDirectorComesBack(t *testing.T) {
	t.Parallel()
	profile, err := os.ReadFile("testdata/lvs-fifty.toml")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/lvs-fifty.ipvsadm")
	if err != nil {
		t.Fatal(err)
	}
	hosts := directorHosts(t, 2)
	found, whole := map[*lab.Host]string{}, map[*lab.Host]string{}
	var changes []change
	for _, h := range hosts {
		writeProfile(t, h, "lvs.toml", string(profile))
		found[h], whole[h] = roleSnapshot(t, h), lvsSnapshot(t, h)
		if changes == nil {
			changes = everyChange(t, h, "apply")
			same(t, "without interruption", services(t, h), string(golden))
			expect(t, h, 0, "flush")
		}
	}
	var places []killing
	messages := 0
	for _, c := range steps(changes) {
		places = append(places, killing{change: c})
		if strings.HasPrefix(c.what, "netlink IPVS NEW_") {
			places = append(places, within(c)...)
			messages += c.messages
		}
	}
	if messages != 50+120 {
		t.Errorf("services and real servers came by %d messages, want one each: the trace does not see them", messages)
	}
	t.Logf("%d changes, %d places to be killed at", len(changes), len(places))
	killEverywhere(t, hosts, places, func(t *testing.T, h *lab.Host) {
		shell(t, h, "rm -rf /run/sisod /var/lib/sisod/*")
	}, "apply", func(t *testing.T, h *lab.Host, what string) {
		expect(t, h, 0, "apply")
		same(t, what+", apply", services(t, h), string(golden))
		expect(t, h, 0, "flush")
		same(t, what+", apply, flush", roleSnapshot(t, h), found[h])
	})
	for _, h := range hosts {
		same(t, "in the end", lvsSnapshot(t, h), whole[h])
	}
}

// rolesProfile asks for something of every kind of role's objects, and
// otherRoles differs in everything.
const (
	rolesProfile = `[ipvs]
timeouts = { tcp = "600s", udp = "100s" }
[director.web]
mode = "nat"
vip = ["203.0.113.1", "2001:db8:1::101"]
interface = "em1"
scheduler = "wrr"
services = ["tcp/80", "tcp/443"]
drain = "0s"
real_servers = [
  { address = "192.0.2.11", weight = 1 },
  { address = "192.0.2.12", weight = 2 },
  { address = "2001:db8:1::11", weight = 3 },
]
[real_server.tunnelled]
mode = "tun"
vip = "203.0.113.9"
director = "192.0.2.1"
encapsulation = "gue"
encapsulation_port = 6080
`
	otherRoles = `[ipvs]
timeouts = { tcp = "700s" }
[director.web]
mode = "nat"
vip = "203.0.113.1"
interface = "em1"
scheduler = "wlc"
persistence = "60s"
services = ["tcp/80", "udp/53"]
drain = "0s"
real_servers = [
  { address = "192.0.2.11", weight = 5 },
  { address = "192.0.2.13", weight = 6 },
]
[real_server.tunnelled]
mode = "tun"
vip = "203.0.113.10"
director = "192.0.2.2"
encapsulation = "gue"
encapsulation_port = 6081
`
)

// TestStockKilledRolesComeBack kills apply of a director and a real server, the
// apply of others in their place, and flush. What the next command makes of it
// is what it makes of a host where nothing was killed, and sisod knows of
// everything that is its.
func TestStockKilledRolesComeBack(t *testing.T) {
	t.Parallel()
	hosts := directorHosts(t, 2)
	found, whole, wanted := map[*lab.Host]string{}, map[*lab.Host]string{}, map[*lab.Host]string{}
	clean := func(t *testing.T, h *lab.Host) {
		shell(t, h, "rm -rf /run/sisod /var/lib/sisod/*")
		writeProfile(t, h, "lvs.toml", rolesProfile)
	}
	for _, h := range hosts {
		clean(t, h)
		found[h], whole[h] = roleSnapshot(t, h), lvsSnapshot(t, h)
	}
	for _, c := range []struct {
		name, command, cure string
		prepare             func(*testing.T, *lab.Host)
	}{
		{"apply", "apply", "flush", clean},
		{"another apply", "apply", "apply", func(t *testing.T, h *lab.Host) {
			clean(t, h)
			expect(t, h, 0, "apply")
			writeProfile(t, h, "lvs.toml", otherRoles)
		}},
		{"flush", "flush", "flush", func(t *testing.T, h *lab.Host) {
			clean(t, h)
			expect(t, h, 0, "apply")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var changes []change
			for _, h := range hosts {
				c.prepare(t, h)
				if changes == nil {
					changes = everyChange(t, h, c.command)
				} else {
					expect(t, h, 0, c.command)
				}
				if c.cure == "apply" {
					settle(t, h)
					wanted[h] = roleSnapshot(t, h)
					// That of udp, which the others ask for no more, is the kernel's own again.
					contains(t, wanted[h], "Timeout (tcp tcpfin udp): 700 120 300\n")
				}
				expect(t, h, 0, "flush")
				same(t, "flush without interruption", roleSnapshot(t, h), found[h])
			}
			var places []killing
			for _, change := range steps(changes) {
				// What is written before it is renamed nobody looks at.
				if !strings.Contains(change.what, "/.") {
					places = append(places, killing{change: change})
				}
			}
			t.Logf("%d changes, %d places to be killed at", len(changes), len(places))
			killEverywhere(t, hosts, places, c.prepare, c.command, func(t *testing.T, h *lab.Host, what string) {
				if c.cure == "apply" {
					settle(t, h)
					same(t, what+", apply", roleSnapshot(t, h), wanted[h])
				}
				expect(t, h, 0, "flush")
				same(t, what+", "+c.cure+", flush", roleSnapshot(t, h), found[h])
			})
		})
	}
	for _, h := range hosts {
		same(t, "in the end", lvsSnapshot(t, h), whole[h])
	}
}
