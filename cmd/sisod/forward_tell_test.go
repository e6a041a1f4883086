package main

import (
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

func TestShowPrintsTheTableAsNftDoes(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: 1})
	profile := strings.Replace(followProfile, "forward = true", "forward = true\nmasquerade = true", 1)
	writeProfile(t, two.Host, "isp.toml", profile)
	apply(t, two.Host, 2) // masquerade without ip_forward is a problem
	var shown []string
	for line := range strings.Lines(expect(t, two.Host, 0, "show").stdout) {
		text, origin, said := strings.Cut(strings.TrimRight(line, "\n"), "# ")
		text = strings.TrimRight(text, " ")
		switch {
		case strings.HasPrefix(text, "table inet sisod"), len(shown) > 0 && shown[len(shown)-1] != "}":
		default:
			continue
		}
		shown = append(shown, text)
		if rule := strings.TrimSpace(text); strings.Contains(rule, " mark ") && (!said || !strings.HasPrefix(origin, "isp.toml:")) {
			t.Errorf("no profile line for %q", line)
		}
	}
	var printed []string
	for line := range strings.Lines(run(t, two.Host, "nft", "-s", "list", "table", "inet", "sisod")) {
		if line = strings.TrimRight(strings.ReplaceAll(line, "\t", "  "), "\n"); line != "" {
			printed = append(printed, line)
		}
	}
	same(t, "sisod show", strings.Join(shown, "\n")+"\n", strings.Join(printed, "\n")+"\n")
}

func TestAPlanTellsWhichRulesOfTheTableComeAndGo(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	writeProfile(t, two.Host, "isp.toml", followProfile)
	contains(t, expect(t, two.Host, 2, "plan").stdout,
		"+ nft table  inet sisod (chains: 6, rules: 17)\n  + arriving: type filter hook prerouting priority raw - 10; policy accept;\n",
		`  + incoming: iifname "em2" ct direction original ct mark & 0x3f000000 != 0x02000000 ct mark set ct mark & 0xc2ffffff | 0x02000000   # isp.toml:5`)
	// What plan says as a script is what nft reads.
	script := expect(t, two.Host, 2, "plan", "-o", "script").stdout
	_, ruleset, _ := strings.Cut(script, "nft -f - <<'END'\n")
	ruleset, _, _ = strings.Cut(ruleset, "END\n")
	runInput(t, two.Host, ruleset, "nft", "-f", "-")
	byNft := run(t, two.Host, "nft", "-s", "list", "table", "inet", "sisod")
	run(t, two.Host, "nft", "delete", "table", "inet", "sisod")
	apply(t, two.Host, 0)
	same(t, "what nft makes of the script", byNft, run(t, two.Host, "nft", "-s", "list", "table", "inet", "sisod"))

	run(t, two.Host, "nft", "add", "rule", "inet", "sisod", "incoming", "drop")
	run(t, two.Host, "nft", "flush", "chain", "inet", "sisod", "delivered")
	r := expect(t, two.Host, 2, "plan")
	want := `~ nft table  inet sisod (chains: 6, rules: 17)
  - incoming: not written by sisod
  + delivered: meta mark & 0x3f000000 != 0x00000000 meta mark set meta mark & 0xc0ffffff   # isp.toml:1
1 step
`
	same(t, "plan", r.stdout, want)
	contains(t, expect(t, two.Host, 2, "plan", "-o", "json").stdout, `"op": "delete",`, `"text": "incoming: not written by sisod"`, `"profile": "isp.toml:1"`)
	contains(t, expect(t, two.Host, 2, "status").stdout, "to replace nft table inet sisod")
	apply(t, two.Host, 0)
	contains(t, expect(t, two.Host, 0, "status").stdout, "from 192.0.2.2, forward\n", "from 2001:db8:2::2, forward\n")
}

func TestWhoMayNotReadTheTableIsToldSo(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	writeProfile(t, two.Host, "isp.toml", followProfile)
	apply(t, two.Host, 0)
	as := unprivileged(t, two.Host)
	r := try(t, two.Host, append(as, "plan")...)
	if r.code != 0 {
		t.Errorf("sisod plan: exit code %d", r.code)
	}
	contains(t, r.stdout, "nothing to do", "nft table: whether sisod's table of nftables is as it should be is not known: reading nf_tables needs CAP_NET_ADMIN; run this as root")
	same(t, "show", try(t, two.Host, append(as, "show")...).stdout, expect(t, two.Host, 0, "show").stdout)
}

// What cannot be is a problem, and everything else is in force.
func TestAnUplinkThatCannotFollowKeepsNoOtherFromIt(t *testing.T) {
	t.Parallel()
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	h := two.Host
	if _, err := two.AddContainer(); err != nil {
		t.Fatal(err)
	}
	run(t, h, "nft", published)
	ip(t, h, "rule", "add", "fwmark", "0x1000000/0xff000000", "lookup", "77", "pref", "20")
	ip(t, h, "-6", "rule", "add", "fwmark", "0x1000000", "lookup", "77", "pref", "21")
	// Tailscale's and wg-quick's are in nobody's way.
	ip(t, h, "rule", "add", "fwmark", "0x80000/0xff0000", "lookup", "52", "pref", "22")
	ip(t, h, "rule", "add", "not", "fwmark", "51820", "lookup", "51820", "pref", "23")
	writeProfile(t, h, "isp.toml", followProfile+"[uplink.three]\ninterface = \"em9\"\ngateway = \"203.0.113.254\"\nforward = true\nmasquerade = true\n")
	r := apply(t, h, 2)
	contains(t, r.stderr, "uplink three: interface em9 is not there",
		"rule 20: somebody else's rule looks at bits of marks that are sisod's (mark_mask 0x3f000000): 20: from all fwmark 0x1000000/0xff000000 lookup 77;",
		"rule 21: somebody else's rule looks at bits")
	if strings.Contains(r.stderr, "rule 22") || strings.Contains(r.stderr, "rule 23") {
		t.Errorf("rules that are in nobody's way are reported:\n%s", r.stderr)
	}
	writeFile(t, h, "sisod.toml", "mark_mask = 0xc0000000\n")
	r = expect(t, h, 1, "apply")
	contains(t, r.stderr, "isp.toml:8:1: mark_mask 0xc0000000 has marks for 1 uplink with forward or masquerade, and this is one more", "two are room for 1 uplink")
	writeFile(t, h, "sisod.toml", "mark_mask = 0x00f00000\n")
	r = apply(t, h, 2)
	if strings.Contains(r.stderr, "rule 20") || strings.Contains(r.stderr, "rule 21") {
		t.Errorf("rules that look at other bits are reported:\n%s", r.stderr)
	}
	contains(t, r.stderr, "rule 22: somebody else's rule looks at bits")
	var list []conversation
	for _, u := range two.Uplinks {
		for v6, to := range u.Remote.All() {
			list = append(list, conversation{client: u.Client, remote: to, protocol: lab.TCP, to: u.Address.At(v6 == 1, toContainer), in: u.Link, out: u.Link, answered: true})
		}
	}
	converse(t, h, "with another mask", list, everyWay(two, true, false))
}
