//go:build boot

package boot

import (
	"strings"
	"testing"
	"time"
)

// networkdDropIn is what sisod's package tells networkd.
const networkdDropIn = "/usr/lib/systemd/networkd.conf.d/10-sisod.conf"

// disturbances are what networkd does to rules and routes that it did not set.
var disturbances = []string{
	"systemctl restart systemd-networkd",
	"networkctl reconfigure lan",
}

func TestNetworkdLeavesSisodAloneWithTheDropIn(t *testing.T) {
	m := ready(t)
	m.run(t, "test -e "+networkdDropIn)
	m.run(t, "systemctl restart systemd-networkd")
	m.until(t, "networkctl --no-legend | grep -c 'routable *configured' | grep 3")
	m.until(t, "sisod status")
	before := m.owned(t)
	if status := m.run(t, "sisod status"); !strings.Contains(status, "systemd-networkd") || strings.Contains(status, "deletes") {
		t.Errorf("status with the drop-in is\n%s", status)
	}
	for _, line := range disturbances {
		m.events(t)
		m.run(t, line)
		m.until(t, "networkctl --no-legend | grep -c 'routable *configured' | grep 3")
		m.until(t, "sisod status")
		if after := m.owned(t); after != before {
			t.Errorf("%s: there is\n%s\nbefore there was\n%s", line, after, before)
		}
		for _, e := range parseLog(t, m.events(t)) {
			if strings.HasPrefix(e.text, "Deleted") && ours(e.text) && strings.Contains(e.text, "lookup") {
				t.Errorf("%s: %s", line, e.text)
			}
		}
	}
}

func TestWhatNetworkdDeletesIsRepaired(t *testing.T) {
	m := ready(t)
	m.run(t, "mkdir -p /etc/systemd/networkd.conf.d; ln -s /dev/null /etc/systemd/networkd.conf.d/10-sisod.conf")
	m.run(t, "systemctl restart systemd-networkd")
	m.until(t, "networkctl --no-legend | grep -c 'routable *configured' | grep 3")
	m.until(t, "sisod status")
	before := m.owned(t)
	expect(t, "status without the drop-in", m.run(t, "sisod status"), "systemd-networkd deletes others' rules and routes")
	deleted := 0
	for _, line := range disturbances {
		m.events(t)
		m.run(t, line)
		m.until(t, "networkctl --no-legend | grep -c 'routable *configured' | grep 3")
		m.until(t, "sisod status")
		if after := m.owned(t); after != before {
			t.Errorf("%s: there is\n%s\nbefore there was\n%s", line, after, before)
		}
		gone := map[string]time.Time{}
		var longest time.Duration
		n := 0
		for _, e := range parseLog(t, m.events(t)) {
			if !strings.Contains(e.text, "lookup") || !ours(e.text) {
				continue
			}
			text, isGone := strings.CutPrefix(e.text, "Deleted ")
			if isGone {
				gone[text] = e.at
				n++
			} else if since, ok := gone[text]; ok {
				longest = max(longest, e.at.Sub(since))
				delete(gone, text)
			}
		}
		deleted += n
		t.Logf("%s: %d rules deleted, the longest absence %v", line, n, longest.Round(time.Millisecond))
		for text := range gone {
			t.Errorf("%s: not repaired: %s", line, text)
		}
	}
	if deleted == 0 {
		t.Error("networkd deleted nothing: this test shows nothing")
	}
}
