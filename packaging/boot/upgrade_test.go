//go:build boot

package boot

import (
	"strings"
	"testing"
)

func TestUpgradeLosesNothing(t *testing.T) {
	m := ready(t)
	before := m.owned(t)
	pid := m.run(t, "systemctl show -P MainPID sisod")
	s := m.startStream(t)
	m.events(t)
	m.run(t, "dpkg -i "+newDeb)
	s.flows(t)
	m.until(t, "sisod status")
	if got := m.run(t, "sisod version"); !strings.Contains(got, newVersion) {
		t.Errorf("after the upgrade it is %s", got)
	}
	if now := m.run(t, "systemctl show -P MainPID sisod"); now == pid || now == "0" {
		t.Errorf("the daemon was %s before the upgrade, and is %s", pid, now)
	}
	answered, lost, lostPings := s.end(t)
	t.Logf("requests answered during the upgrade: %d, lost: %d, lost pings: %d", answered, lost, lostPings)
	if lost > 0 || lostPings > 0 {
		t.Errorf("%d requests and %d pings were lost", lost, lostPings)
	}
	m.undisturbed(t, "upgrade")
	if after := m.owned(t); after != before {
		t.Errorf("after the upgrade there is\n%s\nbefore there was\n%s", after, before)
	}
}
