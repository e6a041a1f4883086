//go:build boot

package boot

import "testing"

// foundCommand shows what sisod changes on a host, and what must be as found
// after its removal. The tunnel device stays with its module.
const foundCommand = `ip rule; ip -6 rule; ip route show table all | grep -v tunl0 | sort; ip -o link | grep -v tunl0 | cut -d: -f2-
ip -o address | grep -v 'tunl0\|valid_lft' | cut -d' ' -f2-7
sysctl -a --pattern '^net\.ipv[46]\.(conf|ip_forward)' 2>/dev/null | grep -v '\.tunl0\.\|mtu\|stable_secret'
ls -A /etc/iproute2/rt_tables.d`

func TestStopLeavesRemovalGivesBackPurgeForgets(t *testing.T) {
	m := bare(t)
	m.run(t, "modprobe -a ip_vs ipip; ipvsadm -C")
	found := m.run(t, foundCommand)
	m = ready(t)
	owned := m.owned(t)

	m.events(t)
	m.run(t, "systemctl stop sisod")
	if after := m.owned(t); after != owned {
		t.Errorf("after the stop there is\n%s\nbefore there was\n%s", after, owned)
	}
	m.undisturbed(t, "stop")
	m.run(t, "systemctl start sisod; sisod status")

	m.run(t, "dpkg --remove sisod")
	if now := m.run(t, foundCommand); now != found {
		t.Errorf("after the removal there is\n%s\nthere was\n%s", now, found)
	}
	if got := m.run(t, "ipvsadm -Sn; ip -o address show dev tunl0; ip -o link show tunl0 up; ip -o link show group 115"); got != "" {
		t.Errorf("after the removal there is\n%s", got)
	}
	if got := m.run(t, "sysctl -n net.ipv4.vs.conntrack"); got != "0" {
		t.Errorf("after the removal net.ipv4.vs.conntrack is %s", got)
	}
	m.run(t, "test -e "+profilePath)
	if a := m.try(t, "systemctl is-active sisod"); a.code == 0 {
		t.Error("after the removal the daemon runs")
	}

	m.run(t, "dpkg --purge sisod")
	if got := m.run(t, "find /etc /run /var/lib -path /var/lib/dpkg -prune -o -path /run/systemd -prune -o -name '*sisod*' -print"); got != "" {
		t.Errorf("after the purge there is\n%s", got)
	}
}

func TestInstallationAfterARemovalHasTheOldProfiles(t *testing.T) {
	m := ready(t)
	before := m.owned(t)
	m.run(t, "dpkg --remove sisod; dpkg -i "+oldDeb)
	m.until(t, "sisod status")
	if after := m.owned(t); after != before {
		t.Errorf("there is\n%s\nbefore the removal there was\n%s", after, before)
	}
}
