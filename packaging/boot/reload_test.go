//go:build boot

package boot

import (
	"testing"
)

func TestReloadTakesAGoodProfileAndRefusesABrokenOne(t *testing.T) {
	m := ready(t)
	// Only a reload shall be one.
	m.run(t, "cp -a /etc/sisod/sisod.toml /root/; echo 'watch = false' >>/etc/sisod/sisod.toml; systemctl reload sisod")
	defer m.run(t, "cp -a /root/sisod.toml /etc/sisod/")
	m.until(t, "systemctl is-active sisod")
	pid := m.run(t, "systemctl show -P MainPID sisod")

	m.write(t, "/etc/sisod/profiles/more.toml", "[[rule]]\npriority = 11400\nfrom = \"10.9.0.0/16\"\nlookup = \"two\"\n")
	m.run(t, "systemctl reload sisod")
	m.until(t, "ip rule show priority 11400 | grep 'from 10.9.0.0/16 lookup two'")
	good := m.owned(t)
	m.events(t)

	m.write(t, "/etc/sisod/profiles/more.toml", brokenProfile)
	m.run(t, "systemctl reload sisod")
	m.until(t, "systemctl status --no-pager --full sisod | grep more.toml:3:1")
	expect(t, "systemctl status", m.run(t, "systemctl status --no-pager --full sisod"), "active (running)", "gatway", "the ones before stay in force")
	if a := m.try(t, "sisod check"); a.code != 1 {
		t.Errorf("check: exit code %d, want 1", a.code)
	}
	a := m.try(t, "sisod status")
	if a.code != 1 {
		t.Errorf("status: exit code %d, want 1", a.code)
	}
	expect(t, "sisod status", a.stdout, "more.toml:3:1", "gatway")
	if after := m.owned(t); after != good {
		t.Errorf("a broken profile has changed\n%s\ninto\n%s", good, after)
	}
	m.undisturbed(t, "a broken profile")

	m.run(t, "rm /etc/sisod/profiles/more.toml; systemctl reload sisod")
	m.until(t, "sisod status && ! ip rule show priority 11400 | grep .")
	if now := m.run(t, "systemctl show -P MainPID sisod"); now != pid {
		t.Errorf("the daemon was %s and is %s: that was no reload", pid, now)
	}
}
