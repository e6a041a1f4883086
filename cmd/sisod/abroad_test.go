package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// chinaProfile is the published case's: table 1 is called china.
const chinaProfile = `[uplink.china]
interface = "em1"
gateway   = "192.168.1.253"
table     = 1
`

const firewallProfile = `[uplink.firewall]
interface = "em2"
`

// abroad is a lab.Abroad that ends with the test.
func abroad(t *testing.T) *lab.Abroad {
	t.Helper()
	a, err := lab.NewAbroad(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closeLab(t, a.Lab)
	return a
}

// replies says by which interface the web server answers: the domestic client
// at the firewall and at the server's own address, the foreign client at both.
func replies(a *lab.Abroad, domesticForwarded, domesticDirect, foreignForwarded, foreignDirect string) []conversation {
	domestic, foreign := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("203.0.113.10")
	var list []conversation
	for _, protocol := range []lab.Protocol{lab.TCP, lab.UDP} { // what the firewall forwards
		list = append(list,
			conversation{client: a.DomesticClient, remote: domestic, protocol: protocol, to: a.Forwarded, at: a.Private, in: "em2", out: domesticForwarded},
			conversation{client: a.ForeignClient, remote: foreign, protocol: protocol, to: a.Forwarded, at: a.Private, in: "em2", out: foreignForwarded},
			conversation{client: a.DomesticClient, remote: domestic, protocol: protocol, to: a.Direct, in: "em1", out: domesticDirect},
			conversation{client: a.ForeignClient, remote: foreign, protocol: protocol, to: a.Direct, in: "em1", out: foreignDirect})
	}
	for i := range list {
		list[i].answered = list[i].in == list[i].out
	}
	return list
}

func TestNationalRoutesOfOneUplinkDoNotCatchRepliesOfTheOther(t *testing.T) {
	t.Parallel()
	a := abroad(t)
	before := replies(a, "em1", "em1", "em2", "em2")
	converse(t, a.Web, "before", before)

	writeProfile(t, a.Web, "web.toml", chinaProfile+firewallProfile)
	apply(t, a.Web, 0)
	right := replies(a, "em2", "em1", "em2", "em1")
	converse(t, a.Web, "both uplinks", right)
	// As an operator looks at the published cure.
	for _, line := range []struct{ command, want string }{
		{"route show table china", "default via 192.168.1.253 dev em1"},
		{"route show table china", "192.168.1.252/30 dev em1 proto 115 scope link src 192.168.1.254"},
		{"rule show", "from 192.168.1.254 lookup china proto 115"},
		{"route show table 1", "default via 192.168.1.253"},
	} {
		out := ip(t, a.Web, strings.Fields(line.command)...)
		if err := errWant(line.want, strings.ReplaceAll(out, "proto sisod", "proto 115")); err != nil {
			t.Errorf("ip %s: %v", line.command, err)
		}
	}
	main := ip(t, a.Web, "route", "show", "table", "main")
	for _, n := range a.National {
		if err := errWant(n.String()+" via 192.168.1.253 dev em1", main); err != nil {
			t.Errorf("main: %v", err)
		}
	}

	// Main's default is then that of an interface that is no uplink.
	writeProfile(t, a.Web, "web.toml", chinaProfile)
	apply(t, a.Web, 0)
	converse(t, a.Web, "only em1 an uplink", replies(a, "em1", "em1", "em2", "em1"))

	// And here main's national routes are: what main knows of em1, which is
	// none of sisod's business, stays main's decision, and sisod says so.
	writeProfile(t, a.Web, "web.toml", firewallProfile)
	out := apply(t, a.Web, 2)
	if err := errWant("by em1, which is no uplink", out.stderr); err != nil {
		t.Error(err)
	}
	converse(t, a.Web, "only em2 an uplink", before)
	// An operator who will not have em1 as an uplink can say it for one address.
	writeProfile(t, a.Web, "web.toml", firewallProfile+"[[rule]]\npriority = 11400\nfrom = \"192.168.10.2\"\nlookup = \"firewall\"\n")
	apply(t, a.Web, 2)
	converse(t, a.Web, "only em2 an uplink, with a rule", replies(a, "em2", "em1", "em2", "em2"))

	// As it was published: the national routes are removed, and china is enough.
	flush(t, a.Web)
	for _, n := range a.National {
		ip(t, a.Web, "route", "del", n.String())
	}
	converse(t, a.Web, "without national routes, before", replies(a, "em2", "em2", "em2", "em2"))
	writeProfile(t, a.Web, "web.toml", chinaProfile)
	apply(t, a.Web, 0)
	converse(t, a.Web, "without national routes, only em1 an uplink", right)
	writeProfile(t, a.Web, "web.toml", firewallProfile)
	apply(t, a.Web, 0)
	converse(t, a.Web, "without national routes, only em2 an uplink", replies(a, "em2", "em2", "em2", "em2"))
}
