package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// addTwins adds what sisod is about to add a second time, as an
// administrator's: every rule with the same selectors and priority, and once
// more elsewhere; every route, in the same table, with another metric; and one
// route in the very place that sisod's would take.
func addTwins(t *testing.T, h *lab.Host) (rules, routes int) {
	t.Helper()
	var script strings.Builder
	for command := range strings.Lines(expect(t, h, 2, "plan", "-o", "script").stdout) {
		// The names of the tables are not there yet.
		command = strings.NewReplacer("isp1", "11500", "isp2", "11501", "protocol 115", "protocol static").Replace(command)
		switch {
		case !strings.HasPrefix(command, "ip "):
		case strings.Contains(command, " rule "):
			rules++
			script.WriteString(command)
			script.WriteString(strings.Replace(command, " priority 1", " priority 2", 1))
			script.WriteString(strings.Replace(command, "protocol static", "protocol zebra", 1))
		case strings.Contains(command, " route ") && !strings.Contains(command, " metric "):
			routes++
			script.WriteString(strings.Replace(command, "protocol static", "metric 50 protocol static", 1))
		}
	}
	script.WriteString("ip route add 192.0.2.0/24 dev em1 table 11500 protocol static\n")
	runInput(t, h, script.String(), "sh", "-ex")
	return rules, routes
}

// static keeps the lines about what administrators have added.
func static(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, "proto static") || strings.Contains(line, "proto zebra") {
			// The names of sisod's tables come and go.
			b.WriteString(strings.NewReplacer("isp1", "11500", "isp2", "11501").Replace(line))
		}
	}
	return b.String()
}

// strangers are rulesets of other people: tables with sisod's name in other
// families, chains with sisod's names and priorities, the marks of kube-proxy,
// Tailscale and mwan3, and one with sisod's own bits.
const strangers = `table ip sisod {
	chain incoming { type filter hook prerouting priority mangle; policy accept; meta mark set ct mark; }
}
table inet sisod-kept {
	set blocked { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 }; }
	chain incoming { type filter hook prerouting priority mangle; ip saddr @blocked counter drop; }
	chain kube { type nat hook postrouting priority srcnat; meta mark & 0x4000 == 0x4000 meta mark set mark ^ 0x4000 masquerade; }
	chain tailscale { type filter hook forward priority filter; iifname "ts0" meta mark set meta mark & 0xff00ffff | 0x00040000; }
	chain mwan3 { type route hook output priority mangle; ct mark set meta mark & 0x3f00; }
}
table netdev sisod { chain c { type filter hook ingress device "em1" priority 0; policy accept; }; }
`

// TestForeignObjectsSurviveAThousandCycles applies and flushes a thousand times
// on a host that is full of other people's objects.
func TestForeignObjectsSurviveAThousandCycles(t *testing.T) {
	t.Parallel()
	const cycles = 1000
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile+"forward = true\nmasquerade = true\n")
	if rules, routes := addTwins(t, h); rules < 14 || routes < 8 {
		t.Fatalf("only %d rules and %d routes have twins", rules, routes)
	}
	runInput(t, h, `
		ip route add 10.0.0.0/8 via 192.0.2.1 table 4000
		ip route add default via 198.51.100.1 metric 5 table 4000
		ip link add strangers type bridge
		ip link set strangers group 115
		ip link add others type bridge
		ip link set others group 77
		printf '200 mine\n' >> /etc/iproute2/rt_tables
		printf '# kept by hand\n201\ttheirs\n' > /etc/iproute2/rt_tables.d/other.conf
		printf 'no table at all' > /etc/iproute2/rt_tables.d/sisod.conf.orig
		echo 1 > /proc/sys/net/ipv4/conf/em1/arp_ignore
		echo 2 > /proc/sys/net/ipv4/conf/em1/rp_filter
		echo 2 > /proc/sys/net/ipv4/conf/lo/rp_filter
		echo 1 > /proc/sys/net/ipv4/conf/em2/ignore_routes_with_linkdown
	`, "sh", "-e")
	runInput(t, h, strangers, "nft", "-f", "-")
	found := wholeSnapshot(t, h)

	first := expect(t, h, 2, "apply")
	contains(t, first.stderr,
		"problem  table isp1: a route of somebody else takes the place of sisod's: 192.0.2.0/24 dev em1 table isp1",
		"problem  rule 11600: somebody else's rule stands in sisod's window of priorities and is left alone")
	same(t, "other people's objects while sisod's are there", static(wholeSnapshot(t, h)), static(found))
	own, ruleset := run(t, h, "nft", "-s", "list", "table", "inet", "sisod"), run(t, h, "nft", "-s", "list", "ruleset")
	contains(t, own, "ct mark set", "masquerade")
	same(t, "other people's rulesets while sisod's is there", strings.Replace(ruleset, own, "", 1), rulesetOf(found))
	contains(t, ownRules(t, h, "-4"), "11800:	from 192.0.2.2 lookup 11500 proto 115")
	expect(t, h, 0, "flush")
	same(t, "the host after one cycle", wholeSnapshot(t, h), found)
	for n := 2; n <= cycles; n++ {
		expect(t, h, 2, "apply", "--quiet")
		expect(t, h, 0, "flush")
		if n%100 == 0 {
			same(t, fmt.Sprintf("the host after %d cycles", n), wholeSnapshot(t, h), found)
		}
		if t.Failed() {
			return
		}
	}
}

// rulesetOf is the ruleset of a wholeSnapshot.
func rulesetOf(snapshot string) string {
	_, text, _ := strings.Cut(snapshot, rulesetTitle)
	return text
}

// value reads a value of an interface.
func value(t *testing.T, h *lab.Host, link, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, h, "cat", "/proc/sys/net/ipv4/conf/"+link+"/"+name))
}

// group is the link group of an interface, a number.
func group(t *testing.T, h *lab.Host, link string) string {
	t.Helper()
	words := strings.Fields(ip(t, h, "-N", "link", "show", "dev", link))
	i := slices.Index(words, "group")
	if i < 0 || i+1 == len(words) {
		t.Fatalf("no group in %v", words)
	}
	return words[i+1]
}

func TestValuesAreGivenBack(t *testing.T) {
	t.Parallel()
	const first, second = "[uplink.isp1]\ninterface = \"em1\"\nrp_filter = \"loose\"\n", "[uplink.isp2]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\nrp_filter = \"off\"\n"
	check := func(t *testing.T, h *lab.Host, when, em1, group1, em2, group2 string) {
		t.Helper()
		got := []string{value(t, h, "em1", "rp_filter"), group(t, h, "em1"), value(t, h, "em2", "rp_filter"), group(t, h, "em2")}
		if want := []string{em1, group1, em2, group2}; !slices.Equal(got, want) {
			t.Errorf("%s: em1 has rp_filter and group, em2 has rp_filter and group %v, want %v", when, got, want)
		}
	}
	start := func(t *testing.T) *lab.Host {
		t.Helper()
		h, _ := smallHost(t)
		if err := h.Sysctl("net/ipv4/conf/em2/rp_filter=1"); err != nil {
			t.Fatal(err)
		}
		writeProfile(t, h, "isp.toml", first+second)
		check(t, h, "before", "0", "0", "1", "0")
		expect(t, h, 0, "apply")
		check(t, h, "applied", "2", "115", "0", "115")
		return h
	}
	t.Run("when the uplink leaves the profile", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		writeProfile(t, h, "isp.toml", first)
		contains(t, expect(t, h, 0, "apply").stdout, "< sysctl     net/ipv4/conf/em2/rp_filter=1", "< link group dev em2 group 0")
		check(t, h, "isp2 dropped", "2", "115", "1", "0")
		expect(t, h, 0, "flush")
		check(t, h, "flushed", "0", "0", "1", "0")
	})
	t.Run("when only the wish for them does", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		writeProfile(t, h, "isp.toml", strings.ReplaceAll(first+second, "rp_filter", "#"))
		expect(t, h, 0, "apply")
		check(t, h, "rp_filter dropped", "0", "115", "1", "115")
	})
	t.Run("under the interface's new name", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		ip(t, h, "link", "set", "em2", "down")
		ip(t, h, "link", "set", "em2", "name", "wan2")
		expect(t, h, 0, "flush")
		if got := value(t, h, "wan2", "rp_filter") + " " + group(t, h, "wan2"); got != "1 0" {
			t.Errorf("wan2, which was em2, has rp_filter and group %s, want 1 0", got)
		}
	})
	t.Run("but not over somebody else's later change", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		if err := h.Sysctl("net/ipv4/conf/em2/rp_filter=2"); err != nil {
			t.Fatal(err)
		}
		ip(t, h, "link", "set", "em1", "group", "42")
		r := expect(t, h, 0, "flush")
		check(t, h, "flushed", "0", "42", "2", "0")
		contains(t, r.stderr, "changed by somebody else", "net/ipv4/conf/em2/rp_filter")
		same(t, "a second flush", expect(t, h, 0, "flush").stdout, "nothing of sisod's is here\n")
	})
	for name, between := range map[string][2]string{
		"when it is given back by hand":    {"rp_filter=1", "group 0"},
		"when it is somebody else's first": {"rp_filter=2", "group 42"},
	} {
		t.Run("once, and not what somebody sets to sisod's own value later, "+name, func(t *testing.T) {
			t.Parallel()
			h := start(t)
			set := func(values [2]string) {
				t.Helper()
				if err := h.Sysctl("net/ipv4/conf/em2/" + values[0]); err != nil {
					t.Fatal(err)
				}
				ip(t, h, append([]string{"link", "set", "em1"}, strings.Fields(values[1])...)...)
			}
			set(between)
			expect(t, h, 0, "flush")
			set([2]string{"rp_filter=0", "group 115"})
			expect(t, h, 0, "flush")
			check(t, h, "flushed again", "0", "115", "0", "0")
		})
	}
	t.Run("as somebody else left them before the last apply", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		if err := h.Sysctl("net/ipv4/conf/em2/rp_filter=2"); err != nil {
			t.Fatal(err)
		}
		contains(t, expect(t, h, 0, "apply").stdout, "~ sysctl     net/ipv4/conf/em2/rp_filter=0")
		check(t, h, "applied again", "2", "115", "0", "115")
		expect(t, h, 0, "flush")
		check(t, h, "flushed", "0", "0", "2", "0")
	})
	t.Run("not from the ledger of another namespace", func(t *testing.T) {
		t.Parallel()
		h := start(t)
		ledger := run(t, h, "cat", "/run/sisod/ledger.json")
		other, _ := smallHost(t)
		if err := other.Sysctl("net/ipv4/conf/em1/rp_filter=2"); err != nil {
			t.Fatal(err)
		}
		runInput(t, other, ledger, "sh", "-c", "mkdir -p /run/sisod && cat > /run/sisod/ledger.json")
		for _, command := range []string{"flush", "apply"} {
			contains(t, expect(t, other, 1, command).stderr, "belongs to another network namespace", "--run-dir")
		}
		check(t, other, "not flushed", "2", "0", "0", "0")
		same(t, "the other's ledger", run(t, other, "cat", "/run/sisod/ledger.json"), ledger)
	})
}
