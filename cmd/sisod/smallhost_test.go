package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// smallProfile asks for something of every kind: table names, link groups, a
// sysctl, routes and rules of both families, one gateway learned and two named.
const smallProfile = `[uplink.isp1]
interface = "em1"
rp_filter = "loose"

[uplink.isp2]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
rp_filter = "strict"
`

// smallHost is a host with two uplinks, em1 and em2, and one router at the
// other end of both. Main's default goes by em1. There are no profiles yet.
func smallHost(t testing.TB) (host, router *lab.Host) {
	t.Helper()
	l := lab.New(t.Context())
	closeLab(t, l)
	hosts, err := l.Hosts("host", "router")
	if err != nil {
		t.Fatal(err)
	}
	host, router = hosts[0], hosts[1]
	for _, ends := range [][2]lab.End{
		{{Host: host, Link: "em1", Addresses: []string{"192.0.2.2/24", "2001:db8:1::2/64"}},
			{Host: router, Link: "host1", Addresses: []string{"192.0.2.1/24", "2001:db8:1::1/64"}}},
		{{Host: host, Link: "em2", Addresses: []string{"198.51.100.2/24", "2001:db8:2::2/64"}},
			{Host: router, Link: "host2", Addresses: []string{"198.51.100.1/24", "2001:db8:2::1/64"}}},
	} {
		if err := l.Link(ends[0], ends[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.Routes([2]string{"default4", "192.0.2.1"}, [2]string{"default6", "2001:db8:1::1"}); err != nil {
		t.Fatal(err)
	}
	return host, router
}

// names is the content of all rt_tables files, each after its name.
func names(t testing.TB, h *lab.Host) string {
	t.Helper()
	return run(t, h, "sh", "-c", "ls -lR --time-style=+ /etc/iproute2; for f in /etc/iproute2/rt_tables /etc/iproute2/rt_tables.d/*; do echo \"== $f\"; cat \"$f\" 2>/dev/null; done; true")
}

// rulesetTitle stands before the ruleset in a wholeSnapshot.
const rulesetTitle = "# nft list ruleset\n"

// wholeSnapshot is snapshot, the files of iproute2, and the ruleset of nftables.
func wholeSnapshot(t *testing.T, h *lab.Host) string {
	t.Helper()
	return snapshot(t, h) + names(t, h) + rulesetTitle + run(t, h, "nft", "-s", "list", "ruleset")
}

// same fails the test with the lines that differ.
func same(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s", what, difference(t, want, got))
	}
}

// difference is what diff says of two texts.
func difference(t testing.TB, old, fresh string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"want": old, "got": fresh} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("diff", "-U0", "want", "got")
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// diff ends with 1 when the texts differ.
	_ = cmd.Run()
	return out.String()
}

// expect runs sisod, which must end with code.
func expect(t testing.TB, h *lab.Host, code int, args ...string) result {
	t.Helper()
	r := sisod(t, h, args...)
	if r.code != code {
		t.Fatalf("sisod %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.stdout, r.stderr)
	}
	return r
}

// contains fails the test when a word is missing in a text.
func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}
