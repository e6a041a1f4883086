package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// otherProfile differs from smallProfile in everything: one uplink gone, one
// with another name, values, routes and rules.
const otherProfile = `[uplink.second]
interface = "em2"
gateway = "198.51.100.1"
rp_filter = "loose"
mtu = 1400
routes = [{ to = "10.0.0.0/8", via = "198.51.100.9" }]

[uplink.second.default]
metric = 7

[[rule]]
priority = 900
from = "10.1.0.0/16"
lookup = "second"
`

// TestKillBetweenAnyTwoStepsConverges ends sisod by SIGKILL before the first
// change it makes, before the second, and so on until it ends by itself. Each
// time apply must bring the host to what an undisturbed apply makes of it, and
// flush to what it was.
func TestKillBetweenAnyTwoStepsConverges(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first, then string // profiles; "" is none
		command     string // that is killed
	}{
		"apply":          {then: smallProfile, command: "apply"},
		"another apply":  {first: smallProfile, then: otherProfile, command: "apply"},
		"flush":          {first: smallProfile, then: smallProfile, command: "flush"},
		"wishes dropped": {first: otherProfile, then: "", command: "apply"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, _ := smallHost(t)
			writeProfile(t, h, "isp.toml", "")
			found := wholeSnapshot(t, h)
			// prepare brings the host to where the command starts.
			prepare := func() {
				run(t, h, "sh", "-c", "rm -rf /run/sisod /var/lib/sisod/*")
				if c.first != "" {
					writeProfile(t, h, "isp.toml", c.first)
					expect(t, h, 0, "apply")
				}
				writeProfile(t, h, "isp.toml", c.then)
			}
			prepare()
			expect(t, h, 0, "apply")
			wanted := wholeSnapshot(t, h)
			expect(t, h, 0, "flush")
			same(t, "flush without interruption", wholeSnapshot(t, h), found)

			kills := 0
			for ended := false; !ended && !t.Failed(); kills++ {
				for _, cure := range []struct{ command, want string }{{"apply", wanted}, {"flush", found}} {
					prepare()
					var last change
					r := traced(t, h, func(c change) verdict {
						if last = c; c.number > kills {
							return kill
						}
						return proceed
					}, c.command)
					if r.code != killed {
						ended = true
						if r.code != 0 {
							t.Errorf("sisod %s, not killed: exit code %d\n%s", c.command, r.code, r.stderr)
						}
					}
					checkRulesLeadSomewhere(t, h, last)
					expect(t, h, 0, cure.command)
					same(t, fmt.Sprintf("%s after %s was killed before %s", cure.command, c.command, last.what), wholeSnapshot(t, h), cure.want)
					if cure.command == "apply" {
						contains(t, expect(t, h, 0, "plan").stdout, "nothing to do")
						expect(t, h, 0, "flush")
						same(t, "flush after that", wholeSnapshot(t, h), found)
					}
				}
			}
			if kills < 10 {
				t.Errorf("%s made only %d changes: the trace does not see them", c.command, kills)
			}
		})
	}
}

// checkRulesLeadSomewhere fails the test when a rule leads to a table without a
// default: packets would fall through it to main.
func checkRulesLeadSomewhere(t *testing.T, h *lab.Host, before change) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(ownRules(t, h, family)) {
			_, table, _ := strings.Cut(line, " lookup ")
			table, _, _ = strings.Cut(strings.TrimSpace(table), " ")
			if table == "254" {
				continue
			}
			if out := ip(t, h, family, "route", "show", "table", table); !strings.Contains(out, "default") {
				t.Errorf("killed before %s: rule %q leads to a table without a default:\n%s", before.what, strings.TrimSpace(line), out)
			}
		}
	}
}

// ownRules are sisod's rules of a family, -4 or -6, with numbers for names.
func ownRules(t testing.TB, h *lab.Host, family string) string {
	t.Helper()
	var own strings.Builder
	for line := range strings.Lines(ip(t, h, "-N", family, "rule")) {
		if strings.Contains(line, "proto 115") {
			own.WriteString(line)
		}
	}
	return own.String()
}

// TestApplyThatFailsHalfWaySaysSo takes an interface away between the look at
// the kernel and the first change of it.
func TestApplyThatFailsHalfWaySaysSo(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	expect(t, h, 0, "apply")
	wanted := wholeSnapshot(t, h)
	expect(t, h, 0, "flush")

	down := sync.OnceFunc(func() { ip(t, h, "link", "set", "em2", "down") })
	r := traced(t, h, func(c change) verdict {
		if c.what == "netlink NEWROUTE" {
			down()
		}
		return proceed
	}, "apply")
	if r.code != 1 {
		t.Fatalf("exit code %d, want 1\n%s%s", r.code, r.stdout, r.stderr)
	}
	contains(t, r.stdout,
		"+ table name 11501 isp2",
		"+ route      default via 192.0.2.1 dev em1 table isp1 src 192.0.2.2",
		"+ rule       11800: from 192.0.2.2 lookup isp1")
	contains(t, r.stderr,
		// The kernel's words, with what it was asked for.
		"failed    add route default via 198.51.100.1 dev em2 table isp2 src 198.51.100.2: Nexthop has invalid gateway (network is unreachable)",
		"to do     + rule       11800: from 198.51.100.2 lookup isp2",
		"(waits for the routes of table isp2)",
		"mend what failed and run sisod apply again")
	if strings.Contains(r.stdout, "lookup isp2") || strings.Contains(ip(t, h, "rule"), "lookup isp2") {
		t.Errorf("a rule leads to the table that is not complete:\n%s%s", r.stdout, ip(t, h, "rule"))
	}

	ip(t, h, "link", "set", "em2", "up")
	// IPv6 forgot it with the link.
	ip(t, h, "address", "add", "2001:db8:2::2/64", "dev", "em2")
	wait(t, func() error {
		if out := ip(t, h, "-6", "address", "show", "dev", "em2", "scope", "link"); !strings.Contains(out, "fe80") || strings.Contains(out, "tentative") {
			return fmt.Errorf("em2 has no link-local address: %s", out)
		}
		return nil
	})
	r = expect(t, h, 0, "apply")
	contains(t, r.stdout, "+ rule       11800: from 198.51.100.2 lookup isp2")
	if strings.Contains(r.stdout, "lookup isp1") {
		t.Errorf("what was done is done again:\n%s", r.stdout)
	}
	same(t, "the second apply", sortedLines(wholeSnapshot(t, h)), sortedLines(wanted))
}

func sortedLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// TestSignalStopsApplyBetweenSteps interrupts apply at its first change of the
// kernel: what is begun is finished, and what stays to do is said.
func TestSignalStopsApplyBetweenSteps(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	var list strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&list, "10.%d.%d.0/24\n", i>>8, i&0xff)
	}
	writeFile(t, h, "profiles/far.zone", list.String())
	writeProfile(t, h, "isp.toml", smallProfile+`to = ["@far.zone"]`+"\n")
	found := wholeSnapshot(t, h)

	interrupt := sync.OnceFunc(func() { run(t, h, "sh", "-c", "kill -TERM $(cat /run/sisod/lock)") })
	r := traced(t, h, func(c change) verdict {
		if c.what == "netlink NEWROUTE" {
			interrupt()
		}
		return proceed
	}, "apply")
	if r.code != 1 {
		t.Fatalf("exit code %d, want 1\n%s%s", r.code, r.stdout, r.stderr)
	}
	contains(t, r.stderr, "stopped", "to do ", "run sisod apply again")
	if rules := ip(t, h, "rule"); strings.Contains(rules, "lookup destinations") {
		t.Errorf("a rule before its routes:\n%s", rules)
	}
	expect(t, h, 0, "apply")
	contains(t, ip(t, h, "rule"), "lookup destinations")
	contains(t, expect(t, h, 0, "plan").stdout, "nothing to do")
	expect(t, h, 0, "flush")
	same(t, "flush", wholeSnapshot(t, h), found)
}

// TestLockKeepsAppliersApart holds one apply in the middle while another waits
// in vain.
func TestLockKeepsAppliersApart(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	var once sync.Once
	r := traced(t, h, func(c change) verdict {
		if c.what == "netlink NEWRULE" {
			once.Do(func() {
				pid := strings.TrimSpace(run(t, h, "cat", "/run/sisod/lock"))
				var others sync.WaitGroup
				for _, command := range []string{"apply", "flush"} {
					others.Go(func() {
						second := sisod(t, h, command)
						if second.code != 1 {
							t.Errorf("the second, %s: exit code %d\n%s", command, second.code, second.stderr)
						}
						contains(t, second.stderr, "lock /run/sisod/lock: held by pid "+pid+", sisod: wait until that has finished, or end it if it hangs")
					})
				}
				// Looking needs no lock.
				expect(t, h, 2, "plan")
				expect(t, h, 2, "status")
				others.Wait()
			})
		}
		return proceed
	}, "apply")
	if r.code != 0 {
		t.Errorf("the first: exit code %d\n%s", r.code, r.stderr)
	}
	contains(t, expect(t, h, 0, "apply").stdout, "nothing to do")
}

func TestAppliersAtTheSameTimeDoTheWorkOnce(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	results := make([]string, 8)
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			out, err := h.Run(t.Context(), program, "apply")
			if err != nil {
				t.Error(err)
			}
			results[i] = out
		})
	}
	all.Wait()
	worked := slices.DeleteFunc(slices.Clone(results), func(s string) bool { return s == "nothing to do\n" })
	if len(worked) != 1 {
		t.Errorf("%d of %d did something:\n%s", len(worked), len(results), strings.Join(worked, "\n"))
	}
}

// TestApplyFinishesWithoutReader closes the reader of apply's words after the
// first of them, as "sisod apply | head -1" does.
func TestApplyFinishesWithoutReader(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	cmd := exec.Command("sh", "-c", `{ "$0" apply; echo "code $?" >&2; } | head -c 1 >/dev/null`, program)
	var said lab.Lines
	cmd.Stderr = &said
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	contains(t, said.String(), "code 0")
	contains(t, expect(t, h, 0, "plan").stdout, "nothing to do")
}
