//go:build boot

package boot

import "testing"

func TestRPMLivesAsTheDebDoes(t *testing.T) {
	m := bare(t)
	m.run(t, "modprobe -a ip_vs ipip; rm -rf /srv/rpmdb")
	found := m.run(t, foundCommand)
	// Debian has what it depends on, and rpm does not know.
	const rpm = "rpm --dbpath /srv/rpmdb --nodeps "
	m.run(t, rpm+"-i "+oldRPM)
	if got := m.run(t, "systemctl is-enabled sisod; id -un sisod; stat -c %U /run/sisod"); got != "enabled\nsisod\nsisod" {
		t.Errorf("after the installation: %s", got)
	}
	m.write(t, profilePath, hostProfile)
	m.run(t, "systemctl start sisod")
	m.until(t, "sisod status")
	before := m.owned(t)
	s := m.startStream(t)
	m.events(t)
	m.run(t, rpm+"-U "+newRPM)
	s.flows(t)
	m.until(t, "sisod status && sisod version | grep "+newVersion)
	if answered, lost, lostPings := s.end(t); lost > 0 || lostPings > 0 {
		t.Errorf("in the upgrade %d requests were answered, %d and %d pings lost", answered, lost, lostPings)
	}
	m.undisturbed(t, "upgrade")
	if after := m.owned(t); after != before {
		t.Errorf("after the upgrade there is\n%s\nbefore there was\n%s", after, before)
	}
	m.run(t, rpm+"-e sisod")
	if now := m.run(t, foundCommand); now != found {
		t.Errorf("after the removal there is\n%s\nthere was\n%s", now, found)
	}
}

func TestRPMInARootOfItsOwnLeavesTheHostAlone(t *testing.T) {
	m := ready(t)
	before := m.owned(t)
	pid := m.run(t, "systemctl show -P MainPID sisod")
	m.run(t, `mkdir -p /run/own && mount -t tmpfs tmpfs /run/own && mkdir /run/own/upper /run/own/work /run/own/root
mount -t overlay -o lowerdir=/,upperdir=/run/own/upper,workdir=/run/own/work overlay /run/own/root
chroot /run/own/root sh -c 'dpkg --purge sisod; userdel sisod; rm -rf /etc/sisod' >/dev/null 2>&1`)
	defer m.run(t, "umount /run/own/root /run/own")
	const rpm = "rpm --root /run/own/root --dbpath /srv/ownrpm --nodeps "
	m.run(t, rpm+"-i "+oldRPM)
	m.run(t, "grep ^sisod: /run/own/root/etc/passwd; test -L /run/own/root/etc/systemd/system/multi-user.target.wants/sisod.service")
	m.run(t, "chroot /run/own/root sisod check")
	m.run(t, rpm+"-U "+newRPM)
	m.run(t, rpm+"-e sisod")
	if left := m.run(t, "find /run/own/upper/usr/sbin /run/own/upper/usr/lib -name '*sisod*' -type f"); left != "" {
		t.Errorf("after the removal there is\n%s", left)
	}
	if now := m.run(t, "systemctl show -P MainPID sisod"); now != pid {
		t.Errorf("the host's daemon was %s and is %s", pid, now)
	}
	if after := m.owned(t); after != before {
		t.Errorf("the host has\n%s\nand had\n%s", after, before)
	}
}
