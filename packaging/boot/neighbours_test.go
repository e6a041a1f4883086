//go:build boot

package boot

import (
	"regexp"
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

// absence is a rule of sisod's that was deleted. Networkd takes back the
// addresses that it has set when it stops and starts (networkd's
// KeepConfiguration=), and such an address's rule goes with it and comes with it.
type absence struct {
	rule        string
	withAddress bool
	back        bool
	repair      time.Duration // from the deletion, or the return of the address, to the rule's return
}

// addressPattern is an address that comes, in the words of ip monitor.
var addressPattern = regexp.MustCompile(`^(Deleted )?\d+: \S+ inet6? ([0-9a-f.:]+)/`)

// configured waits until networkd has done all that it has to.
func (m *machine) configured(t *testing.T) {
	t.Helper()
	m.until(t, "networkctl --no-legend | grep -c 'routable *configured' | grep 3")
}

func absences(t *testing.T, log string) []absence {
	t.Helper()
	var list []*absence
	since := map[*absence]time.Time{}
	went := map[string]bool{} // addresses; sisod may learn of it when they are back
	for _, e := range parseLog(t, log) {
		if m := addressPattern.FindStringSubmatch(e.text); m != nil {
			went[m[2]] = went[m[2]] || m[1] != ""
			for _, a := range list {
				if !a.back && strings.Contains(a.rule, "from "+m[2]+" ") {
					a.withAddress = a.withAddress || m[1] != ""
					since[a] = e.at
				}
			}
			continue
		}
		if !ours(e.text) || !strings.Contains(e.text, " lookup ") {
			continue
		}
		if rule, deleted := strings.CutPrefix(e.text, "Deleted "); deleted {
			_, from, _ := strings.Cut(rule, "from ")
			from, _, _ = strings.Cut(from, " ")
			a := &absence{rule: rule, withAddress: went[from]}
			since[a], list = e.at, append(list, a)
			continue
		}
		for _, a := range list {
			if a.rule == e.text && !a.back {
				a.back, a.repair = true, e.at.Sub(since[a])
			}
		}
	}
	plain := make([]absence, len(list))
	for i, a := range list {
		plain[i] = *a
	}
	return plain
}

func TestNetworkdLeavesSisodAloneWithTheDropIn(t *testing.T) {
	m := ready(t)
	m.run(t, "test -e "+networkdDropIn)
	m.run(t, "systemctl restart systemd-networkd")
	m.configured(t)
	m.until(t, "sisod status")
	before := m.owned(t)
	if status := m.run(t, "sisod status"); !strings.Contains(status, "systemd-networkd") || strings.Contains(status, "deletes") {
		t.Errorf("status with the drop-in is\n%s", status)
	}
	for _, line := range disturbances {
		m.events(t)
		m.run(t, line)
		m.configured(t)
		m.until(t, "sisod status")
		if after := m.owned(t); after != before {
			t.Errorf("%s: there is\n%s\nbefore there was\n%s", line, after, before)
		}
		for _, a := range absences(t, m.events(t)) {
			if !a.withAddress {
				t.Errorf("%s: deleted: %s", line, a.rule)
			}
			t.Logf("%s: %s went with its address, and was back %v after it", line, a.rule, a.repair.Round(time.Millisecond))
		}
	}
}

func TestRestartOfNetworkdThatKeepsAddressesIsNotNoticed(t *testing.T) {
	m := ready(t)
	for _, link := range []string{"wan1", "wan2", "lan"} {
		m.write(t, "/etc/systemd/network/"+link+".network.d/keep.conf", "[Network]\nKeepConfiguration=yes\n")
	}
	t.Cleanup(func() { m.run(t, "rm -r /etc/systemd/network/*.network.d; systemctl restart systemd-networkd") })
	for _, first := range []bool{true, false} {
		m.events(t)
		m.run(t, "systemctl restart systemd-networkd")
		m.configured(t)
		m.until(t, "sisod status")
		for _, e := range parseLog(t, m.events(t)) {
			// The first restart is for the setting to be read.
			gone := strings.HasPrefix(e.text, "Deleted ") && addressPattern.MatchString(e.text)
			if !first && (ours(e.text) || gone) {
				t.Errorf("restart of networkd: %s", e.text)
			}
		}
	}
}

func TestWhatNetworkdDeletesIsRepaired(t *testing.T) {
	m := ready(t)
	m.run(t, "mkdir -p /etc/systemd/networkd.conf.d; ln -s /dev/null /etc/systemd/networkd.conf.d/10-sisod.conf")
	m.run(t, "systemctl restart systemd-networkd")
	m.configured(t)
	m.until(t, "sisod status")
	before := m.owned(t)
	expect(t, "status without the drop-in", m.run(t, "sisod status"), "systemd-networkd deletes others' rules and routes")
	deleted := 0
	for _, line := range disturbances {
		m.events(t)
		m.run(t, line)
		m.configured(t)
		m.until(t, "sisod status")
		if after := m.owned(t); after != before {
			t.Errorf("%s: there is\n%s\nbefore there was\n%s", line, after, before)
		}
		var longest time.Duration
		all := absences(t, m.events(t))
		for _, a := range all {
			longest = max(longest, a.repair)
			if !a.back {
				t.Errorf("%s: not repaired: %s", line, a.rule)
			}
			if !a.withAddress {
				deleted++
			}
		}
		t.Logf("%s: %d rules deleted, the longest repair %v", line, len(all), longest.Round(time.Millisecond))
	}
	if deleted == 0 {
		t.Error("networkd deleted nothing: this test shows nothing")
	}
}
