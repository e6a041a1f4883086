package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// Programs that share sisod's bits of marks are told of, from the moment when they
// come to when they go, and left alone.
func TestRulesOfOthersOnSisodsMarksAreAProblem(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	h := two.Host
	// These have bits of their own.
	runInput(t, h, foreignMarks(0x80014080), "nft", "-f", "-")
	run(t, h, "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--restore-mark", "--nfmask", "0x3f00", "--ctmask", "0x3f00")
	writeProfile(t, h, "isp.toml", followProfile)
	apply(t, h, 0)
	started(t, h)
	for _, c := range []struct{ add, remove, table, does, rule string }{
		{"iptables-nft -t mangle -A PREROUTING -j MARK --set-mark 100", "iptables-nft -t mangle -D PREROUTING -j MARK --set-mark 100",
			"ip mangle", "writes bits 0x3f000000 of meta mark;", "mark set 0x64|MARK set"},
		{"ip6tables-nft -A FORWARD -m connmark --mark 0x1000000/0xff000000 -j ACCEPT", "ip6tables-nft -F FORWARD",
			"ip6 filter", "looks at bits 0x3f000000 of ct mark;", "ct mark|connmark"},
		{"nft add table inet wan; nft 'add chain inet wan c { type filter hook prerouting priority 0; }'; nft add rule inet wan c meta mark set ct mark; nft add rule inet wan c meta mark 0x01000000 accept", "nft delete table inet wan",
			"inet wan", "writes bits 0x3f000000 of meta mark, and 1 more there;", "meta mark set ct mark"},
	} {
		run(t, h, "sh", "-c", c.add)
		before := run(t, h, "nft", "-s", "-a", "list", "ruleset")
		listed := run(t, h, "nft", append([]string{"-a", "list", "table"}, strings.Fields(c.table)...)...)
		found := regexp.MustCompile(`(?:` + c.rule + `).* # handle (\d+)`).FindStringSubmatch(listed)
		if found == nil {
			t.Fatalf("no rule %s in\n%s", c.rule, listed)
		}
		want := fmt.Sprintf("nft table %s: somebody else's rules use bits of marks that are sisod's (mark_mask 0x3f000000): the rule with handle %s of chain ", c.table, found[1])
		problems := func() string {
			var b strings.Builder
			st := daemonStatus(t, h)
			if st.Daemon == nil {
				return "no daemon: " + st.DaemonError
			}
			for _, p := range st.Daemon.Problems {
				b.WriteString(p.String() + "\n")
			}
			return b.String()
		}
		patiently(t, func() error {
			if said := problems(); !strings.HasPrefix(said, want) || !strings.Contains(said, c.does) || strings.Count(said, "\n") != 1 {
				return fmt.Errorf("the daemon says %q, want %q, in\n%s", said, want, listed)
			}
			return nil
		})
		if r := expect(t, h, 2, "status"); !strings.Contains(r.stdout, want) {
			t.Errorf("status says\n%s", r.stdout)
		}
		same(t, "rules of others", run(t, h, "nft", "-s", "-a", "list", "ruleset"), before)
		run(t, h, "sh", "-c", c.remove)
		patiently(t, func() error {
			if said := problems(); said != "" {
				return fmt.Errorf("after %s: %s", c.remove, said)
			}
			return nil
		})
	}
	expect(t, h, 0, "status")
}
