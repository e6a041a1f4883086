//go:build boot

package boot

import "testing"

func TestKilledDaemonComesBackAndNothingIsAbsent(t *testing.T) {
	m := ready(t)
	before := m.owned(t)
	m.events(t)
	for _, how := range []string{"KILL", "SEGV"} {
		pid := m.run(t, "systemctl show -P MainPID sisod")
		m.run(t, "kill -"+how+" "+pid)
		m.until(t, "now=$(systemctl show -P MainPID sisod); test $now != 0 -a $now != "+pid+" && systemctl is-active sisod")
	}
	m.until(t, "sisod status")
	m.undisturbed(t, "kill")
	if after := m.owned(t); after != before {
		t.Errorf("there is\n%s\nbefore there was\n%s", after, before)
	}
}

func TestHangingDaemonIsEndedByTheWatchdog(t *testing.T) {
	m := ready(t)
	if got := m.run(t, "systemctl show -P WatchdogUSec sisod"); got == "0" || got == "infinity" {
		t.Errorf("the unit's watchdog is %s", got)
	}
	m.write(t, "/etc/systemd/system/sisod.service.d/soon.conf", "[Service]\nWatchdogSec=6s\n")
	m.run(t, "systemctl daemon-reload; systemctl restart sisod")
	pid := m.run(t, "systemctl show -P MainPID sisod")
	// It lives on for two of them.
	m.until(t, "test $(($(cut -d. -f1 /proc/uptime) - $(($(systemctl show -P ActiveEnterTimestampMonotonic sisod) / 1000000)))) -ge 13")
	if now := m.run(t, "systemctl show -P MainPID sisod"); now != pid {
		t.Fatalf("the daemon was %s and is %s, and nothing was wrong", pid, now)
	}
	m.run(t, "kill -STOP "+pid)
	m.until(t, "now=$(systemctl show -P MainPID sisod); test $now != 0 -a $now != "+pid+" && systemctl is-active sisod")
	expect(t, "the journal", m.run(t, "journalctl -b --no-pager -u sisod | grep -i watchdog"), "watchdog")
	m.until(t, "sisod status")
}
