//go:build boot

package boot

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// managers are those who can have the host's interfaces, each with its units.
// testdata/disk tells all of them the same addresses.
var managers = map[string][]string{
	networkd:         {"systemd-networkd.service", "systemd-networkd-wait-online.service"},
	"NetworkManager": {"NetworkManager.service", "NetworkManager-wait-online.service"},
	"ifupdown":       {"networking.service"},
}

const networkd = "systemd-networkd"

// manage hands the interfaces over to a manager, and boots, unless it has them.
func (m *machine) manage(t *testing.T, manager string) {
	t.Helper()
	if m.manager == manager {
		return
	}
	var others []string
	for name, units := range managers {
		if name != manager {
			others = append(others, units...)
		}
	}
	m.run(t, "systemctl -q disable "+strings.Join(others, " ")+" && systemctl -q enable "+strings.Join(managers[manager], " "))
	m.manager = manager
	m.reboot(t)
}

// witnessed is what the network was like when it was online.
func (m *machine) witnessed(t *testing.T) string {
	t.Helper()
	m.until(t, "test -e /run/witness.done")
	return m.run(t, "cat /run/witness")
}

// again waits until sisod has what it had before.
func (m *machine) again(t *testing.T, before, by string) {
	t.Helper()
	m.until(t, "sisod status")
	var after string
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if after = m.owned(t); after == before {
			return
		}
	}
	t.Errorf("%s: there is\n%s\nbefore there was\n%s", by, after, before)
}

// neighbours is who else configures the network, as status tells.
func (m *machine) neighbours(t *testing.T) []string {
	t.Helper()
	_, text, _ := strings.Cut(m.run(t, "sisod status"), "\nneighbours\n")
	var list []string
	for line := range strings.Lines(text) {
		name, indented := strings.CutPrefix(line, "  ")
		if !indented {
			break
		}
		list = append(list, strings.TrimSpace(name))
	}
	return list
}

// reached fails unless the client behind the providers gets an answer from each
// address of the host. A reply by another way than the request's is lost.
func (m *machine) reached(t *testing.T, by string) {
	t.Helper()
	for _, url := range []string{"http://203.0.113.20:8080/", "http://198.51.100.2:8080/", "http://[2001:db8:2::2]:8080/"} {
		source := "192.0.2.10"
		if strings.Contains(url, "[") {
			source = "2001:db8:9::10"
		}
		if a := m.try(t, "ip netns exec world curl -sg --max-time 20 --interface "+source+" "+url); a.stdout != "hello\n" {
			t.Errorf("%s: the client got %q from %s, curl's exit code is %d", by, a.stdout, url, a.code)
		}
	}
}

// serve starts a web server on the host.
func (m *machine) serve(t *testing.T) {
	t.Helper()
	m.run(t, "mkdir -p /srv/web; echo hello >/srv/web/index.html; systemctl stop web 2>/dev/null; systemd-run -q --collect --unit=web busybox httpd -f -p 8080 -h /srv/web")
	m.until(t, "ss -Hltn sport = 8080 | grep .")
}

// learnedWhole is what the host has once all is learned.
var learnedWhole = []string{
	"from 203.0.113.20 lookup one", "from 198.51.100.2 lookup two", "from 2001:db8:2::2 lookup two",
	"default via 203.0.113.1 dev wan1 table one", "default via 198.51.100.1 dev wan2 table two",
	"default via 2001:db8:2::1 dev wan2 table two",
}

func TestNetworkManagerAndSisodAreGoodNeighbours(t *testing.T) {
	m := ready(t)
	m.manage(t, "NetworkManager")
	m.until(t, "sisod status")
	expect(t, "when the network is online", m.witnessed(t), append(slices.Clone(learnedWhole), "198.51.100.80/32")...)
	if got := m.neighbours(t); !slices.Equal(got, []string{"NetworkManager"}) {
		t.Errorf("status names %q", got)
	}
	// An interface with a VIP and nothing else is somebody else's to NetworkManager:
	// the VIP has waited until it had wan2.
	if got := m.run(t, "nmcli -g GENERAL.STATE device show wan2"); !strings.HasSuffix(got, "(connected)") {
		t.Errorf("wan2 is %s", got)
	}
	// wan2 is never-default: main has nothing of its gateway.
	if got := m.run(t, "ip route show default"); strings.Contains(got, "wan2") || !strings.Contains(got, "via 203.0.113.1 dev wan1 proto dhcp") {
		t.Fatalf("this test shows nothing: main's defaults are\n%s", got)
	}
	expect(t, "status", m.run(t, "sisod status"), "via 203.0.113.1, main (dhcp)", "via 198.51.100.1, lease of NetworkManager (/run/NetworkManager/devices/", "via 2001:db8:2::1, main (static)")
	m.serve(t)
	m.reached(t, "NetworkManager's host")

	before := m.owned(t)
	for _, c := range []struct{ line, but string }{
		{"systemctl restart NetworkManager", ""},
		{"nmcli -w 60 connection up lan", "dev lan"},
		// It takes away what it did not set, the VIP, and sisod gives it back.
		{"nmcli -w 60 device reapply wan2", "198.51.100.80"},
	} {
		m.events(t)
		m.run(t, c.line+" && nm-online -s -q -t 60")
		m.again(t, before, c.line)
		m.undisturbedBut(t, c.line, c.but)
	}
	// What it does not configure has its VIP all the same, in the end.
	m.run(t, "nmcli -w 60 connection down wan2")
	m.until(t, "sisod status | grep 'waits for NetworkManager to configure wan2'")
	m.until(t, "ip address show dev wan2 to 198.51.100.80 | grep inet")
	// Here the addresses go and come.
	for _, line := range []string{"nmcli -w 60 connection up wan2", "nmcli -w 60 connection down wan1 && nmcli -w 60 connection up wan1"} {
		m.run(t, line+" && nm-online -s -q -t 60")
		m.again(t, before, line)
		m.reached(t, line)
	}
}

func TestSecondDefaultThatIfupdownWasRefusedIsFoundInItsLease(t *testing.T) {
	m := ready(t)
	m.manage(t, "ifupdown")
	m.until(t, "sisod status")
	expect(t, "when the network is online", m.witnessed(t), learnedWhole...)
	if got := m.neighbours(t); !slices.Equal(got, []string{"ifupdown"}) {
		t.Errorf("status names %q", got)
	}
	if got := m.run(t, "ip route show default"); got != "default via 203.0.113.1 dev wan1" {
		t.Fatalf("this test shows nothing: main's defaults are\n%s", got)
	}
	expect(t, "status", m.run(t, "sisod status"), "via 203.0.113.1, main (boot)", "via 198.51.100.1, lease of dhclient (/var/lib/dhcp/dhclient.wan2.leases)", "via 2001:db8:2::1, main (boot)")
	m.serve(t)
	m.reached(t, "ifupdown's host")

	before := m.owned(t)
	m.events(t)
	m.run(t, "ifdown lan && ifup lan")
	m.again(t, before, "ifup lan")
	m.undisturbedBut(t, "ifup lan", "dev lan")
	// Here the addresses go and come. A VIP goes with its interface's last address
	// of its network, or not: it is put back.
	for _, line := range []string{"ifdown wan2 && ifup wan2", "systemctl restart networking"} {
		m.run(t, line)
		m.again(t, before, line)
		m.reached(t, line)
	}
}
