package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// ownBits are the bits of marks that are sisod's by default.
const ownBits = 0x3f000000

// foreignMarks writes foreign bits into every packet and connection before
// sisod's chains, and counts after them.
func foreignMarks(bits uint32) string {
	var b strings.Builder
	b.WriteString("table inet foreign {\n")
	hooks := []string{"prerouting", "input", "forward", "output", "postrouting"}
	for _, hook := range hooks {
		for _, name := range []string{"packets_kept", "packets_changed", "connections_kept", "connections_changed"} {
			fmt.Fprintf(&b, "\tcounter %s_%s { }\n", hook, name)
		}
	}
	b.WriteString("\tcounter marked { }\n")
	for _, hook := range hooks {
		fmt.Fprintf(&b, "\tchain before_%[1]s { type filter hook %[1]s priority -199; meta mark set mark & %#[2]x | %#[3]x; ct mark set ct mark & %#[2]x | %#[3]x; }\n", hook, ownBits, bits)
		fmt.Fprintf(&b, "\tchain after_%s { type filter hook %[1]s priority -120;\n", hook)
		for key, name := range map[string]string{"meta": "packets", "ct": "connections"} {
			fmt.Fprintf(&b, "\t\t%[1]s mark & %#[4]x == %#[5]x counter name %[2]s_%[3]s_kept\n\t\t%[1]s mark & %#[4]x != %#[5]x counter name %[2]s_%[3]s_changed\n", key, hook, name, ^uint32(ownBits), bits)
		}
		b.WriteString("\t}\n")
	}
	return b.String() + "}\n"
}

var counterOf = regexp.MustCompile(`counter (\w+) \{\s+packets (\d+)`)

// counters are the named counters of a table of nftables.
func counters(t *testing.T, h *lab.Host, table string) map[string]int {
	t.Helper()
	list := map[string]int{}
	for _, m := range counterOf.FindAllStringSubmatch(run(t, h, "nft", "list", "counters", "table", "inet", table), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		list[m[1]] = n
	}
	return list
}

func TestBitsOfOthersInMarksStay(t *testing.T) {
	t.Parallel()
	// mwan3, kube-proxy, Calico and Tailscale; all; none.
	for _, bits := range []uint32{0x80014080, ^uint32(ownBits), 0} {
		t.Run(fmt.Sprintf("%#x", bits), func(t *testing.T) {
			t.Parallel()
			f := newForwarder(t, 1, 0)
			runInput(t, f.Host, foreignMarks(bits), "nft", "-f", "-")
			writeProfile(t, f.Host, "isp.toml", strings.ReplaceAll(followProfile, "forward = true", "forward = true\nmasquerade = true"))
			apply(t, f.Host, 0)
			// This is a look at sisod's bits, which would be a problem.
			for _, hook := range []string{"prerouting", "forward", "output"} {
				run(t, f.Host, "nft", "add", "rule", "inet", "foreign", "after_"+hook, fmt.Sprintf("meta mark & %#x != 0 counter name marked", ownBits))
			}
			converse(t, f.Host, "with marks of others", f.asked(true, func(by int) int { return by }), everyWay(f.TwoUplinks, true, false))
			f.tooBig(t, "with marks of others", true, 1, true)
			f.leaves(t, "with marks of others", 0)
			got := counters(t, f.Host, "foreign")
			if got["marked"] == 0 || len(got) != 21 {
				t.Errorf("sisod has marked nothing: %v", got)
			}
			for name, n := range got {
				if strings.HasSuffix(name, "_kept") && n == 0 || strings.HasSuffix(name, "_changed") && n > 0 {
					t.Errorf("%s: %d packets", name, n)
				}
			}
			if t.Failed() {
				t.Log(run(t, f.Host, "nft", "list", "ruleset"))
			}
		})
	}
}

// leaves has machines behind the host ask the Internet and checks which uplink's
// address they come with.
func (f forwarder) leaves(t *testing.T, what string, by int) {
	t.Helper()
	for v6 := range 2 {
		for i, u := range f.Uplinks {
			for _, p := range []lab.Protocol{lab.TCP, lab.UDP} {
				reply := ask(t, f.private.Host, lab.Request{Protocol: p, To: u.Remote.At(v6 == 1, lab.Port)})
				if want := f.Uplinks[by].Address.All()[v6]; reply.Peer.Addr() != want {
					t.Errorf("%s: %s from the LAN to client %d comes from %s, want %s", what, p, i+1, reply.Peer, want)
				}
			}
		}
	}
}

func TestDaemonRepairsItsTableOfNftables(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	h := two.Host
	writeProfile(t, h, "isp.toml", followProfile)
	runInput(t, h, strangers, "nft", "-f", "-")
	_, log := started(t, h)
	settled(t, h)
	own := func() string {
		// The table may not be there.
		out, _ := h.Run(t.Context(), "nft", "-s", "list", "table", "inet", "sisod")
		return out
	}
	others := func() string { return strings.Replace(run(t, h, "nft", "-s", "list", "ruleset"), own(), "", 1) }
	wanted, foreign := own(), others()
	contains(t, wanted, "ct mark set")
	for _, damage := range []string{
		"nft delete table inet sisod",
		"nft add rule inet sisod incoming drop",
		"nft insert rule inet sisod sent meta mark set 7",
		"nft flush chain inet sisod incoming",
		"nft delete rule inet sisod delivered handle $(nft -a list chain inet sisod delivered | sed -n 's/.*0xc0ffffff # handle //p')",
		"nft add chain inet sisod more '{ type filter hook forward priority 0; policy drop; }'",
		"nft 'add table inet sisod { flags dormant; }'",
		"nft flush ruleset",
	} {
		done, said := daemonStatus(t, h).Daemon.Repairs, strings.Count(log.String(), "drift=true")
		run(t, h, "sh", "-c", damage)
		start := time.Now()
		patiently(t, func() error {
			if now := own(); now != wanted {
				return errors.New(difference(t, wanted, now))
			}
			return nil
		})
		t.Logf("%s: repaired within %s", damage, time.Since(start).Round(time.Millisecond))
		patiently(t, func() error {
			if n := daemonStatus(t, h).Daemon.Repairs - done; n != 1 {
				return fmt.Errorf("%s: %d repairs are counted, want 1", damage, n)
			}
			if n := strings.Count(log.String(), "drift=true") - said; n != 1 {
				return fmt.Errorf("%s: %d repairs are logged, want 1", damage, n)
			}
			return nil
		})
		if strings.Contains(damage, "ruleset") {
			foreign = ""
		}
		same(t, "rulesets of others after "+damage, others(), foreign)
	}
	settled(t, h)
}
