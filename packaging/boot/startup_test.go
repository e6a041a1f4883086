//go:build boot

package boot

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unitTime is when a unit began or came to its end, counted in microseconds
// from the kernel's start.
func (m *machine) unitTime(t *testing.T, property, unit string) time.Duration {
	t.Helper()
	text := m.run(t, "systemctl show -P "+property+"TimestampMonotonic "+unit)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n == 0 {
		t.Fatalf("%s of %s is %q", property, unit, text)
	}
	return time.Duration(n) * time.Microsecond
}

// stampPattern begins a line of ip -ts monitor.
var stampPattern = regexp.MustCompile(`^\[(\S+)\] (.*)$`)

// logged is a line of ip -ts monitor.
type logged struct {
	at   time.Time
	text string
}

func parseLog(t *testing.T, log string) []logged {
	t.Helper()
	var list []logged
	for line := range strings.Lines(log) {
		m := stampPattern.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		at, err := time.Parse("2006-01-02T15:04:05.999999", m[1])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, logged{at, strings.Join(strings.Fields(m[2]), " ")})
	}
	return list
}

func TestBootHasEverythingBeforeTheNetworkIsOnline(t *testing.T) {
	m := ready(t)
	// An interface that is not there must not hold up anything.
	m.write(t, "/etc/sisod/profiles/later.toml", "[uplink.later]\ninterface = \"wan9\"\n")
	m.until(t, "sisod status | grep wan9")
	before := m.owned(t)
	m.reboot(t)
	m.until(t, "test -e /run/witness.done")

	if after := m.owned(t); after != before {
		t.Errorf("after the boot there is\n%s\nbefore there was\n%s", after, before)
	}
	// What a service finds that waits for the network.
	expect(t, "when the network is online", m.run(t, "cat /run/witness"),
		"from 203.0.113.20 lookup one", "from 198.51.100.2 lookup two", "from 2001:db8:2::2 lookup two",
		"default via 203.0.113.1 dev wan1 table one", "default via 198.51.100.1 dev wan2 table two",
		"TCP 198.51.100.80:80 wrr", "-> 10.0.0.7:80 Masq 2", "203.0.113.145/32", "198.51.100.80/32",
		"net.ipv4.conf.tunl0.rp_filter = 2", "net.ipv4.conf.all.arp_ignore = 1", "net.ipv4.conf.all.arp_announce = 2")
	// And it was there before, by the clock.
	online := m.run(t, "systemctl show --timestamp=us+utc -P ActiveEnterTimestamp network-online.target")
	at, err := time.Parse("Mon 2006-01-02 15:04:05.999999 MST", online)
	if err != nil {
		t.Fatal(err)
	}
	var last logged
	for _, e := range parseLog(t, m.events(t)) {
		if ours(e.text) && !strings.HasPrefix(e.text, "Deleted") {
			last = e
		}
	}
	if last.at.IsZero() || !last.at.Before(at) {
		t.Errorf("%q came at %v, the network was online at %v", last.text, last.at, at)
	}
	t.Logf("the last rule or route came %v before network-online.target", at.Sub(last.at).Round(time.Millisecond))

	// A late lease is in order, and not by luck.
	m.run(t, "systemctl is-active sisod-online.service")
	if done := m.unitTime(t, "ActiveEnter", "sisod-online.service"); done > m.unitTime(t, "ActiveEnter", "network-online.target") {
		t.Errorf("sisod-online.service ended %v after the boot began, behind network-online.target", done)
	}

	started, readyAt := m.unitTime(t, "InactiveExit", "sisod.service"), m.unitTime(t, "ActiveEnter", "sisod.service")
	if wait := m.unitTime(t, "ActiveEnter", "network-online.target"); readyAt > wait {
		t.Errorf("sisod was ready %v after network-online.target", readyAt-wait)
	}
	if netTarget := m.unitTime(t, "ActiveEnter", "network.target"); readyAt > netTarget {
		t.Errorf("sisod was ready %v after network.target", readyAt-netTarget)
	}
	// It is the network's manager that is waited for, not sisod.
	if manager := m.unitTime(t, "ActiveEnter", "systemd-networkd-wait-online.service"); readyAt > manager {
		t.Errorf("sisod was ready %v after systemd-networkd-wait-online.service", readyAt-manager)
	}
	t.Logf("from the unit's start to READY=1 %v at boot", (readyAt - started).Round(time.Millisecond))
	if got := m.run(t, "systemctl show -P Before sisod.service"); !strings.Contains(got, "keepalived.service") {
		t.Errorf("sisod.service is before %s, and not before keepalived", got)
	}
	m.run(t, "systemctl restart sisod")
	started, readyAt = m.unitTime(t, "InactiveExit", "sisod.service"), m.unitTime(t, "ActiveEnter", "sisod.service")
	t.Logf("from the unit's start to READY=1 %v at a restart", (readyAt - started).Round(time.Millisecond))
}

const brokenProfile = "[uplink.three]\ninterface = \"wan2\"\ngatway = \"198.51.100.1\"\n"

func TestBrokenProfileAtBootDoesNotCostTheHostItsRouting(t *testing.T) {
	m := ready(t)
	before := m.owned(t)
	m.write(t, "/etc/sisod/profiles/broken.toml", brokenProfile)
	m.reboot(t)
	if after := m.owned(t); after != before {
		t.Errorf("after the boot there is\n%s\nbefore there was\n%s", after, before)
	}
	if got := m.run(t, "systemctl is-active sisod"); got != "active" {
		t.Errorf("sisod is %s", got)
	}
	expect(t, "systemctl status", m.run(t, "systemctl status --no-pager --full sisod"), "broken.toml:3:1", "gatway", "last good")
	a := m.try(t, "sisod status")
	if a.code != 1 {
		t.Errorf("status: exit code %d, want 1", a.code)
	}
	expect(t, "sisod status", a.stdout, "broken.toml:3:1", "gatway", "last good")
	m.run(t, "rm /etc/sisod/profiles/broken.toml")
	m.until(t, "sisod status")
}
