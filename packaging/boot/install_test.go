//go:build boot

package boot

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func TestInstallationEnablesAndStarts(t *testing.T) {
	m := bare(t)
	m.run(t, "dpkg -i "+oldDeb)
	if got := m.run(t, "systemctl is-enabled sisod; systemctl is-active sisod"); got != "enabled\nactive" {
		t.Errorf("after the installation sisod is %q", got)
	}
	// Without a profile it changes nothing.
	if a := m.try(t, "sisod status"); a.code != 0 {
		t.Errorf("status: exit code %d: %s%s", a.code, a.stdout, a.stderr)
	}
	if rules := m.run(t, "{ ip rule; ip -6 rule; ip route show table all; } | grep 'proto sisod'; ipvsadm -Sn 2>/dev/null || true"); rules != "" {
		t.Errorf("without a profile there is\n%s", rules)
	}
}

func TestInstallationTakesOverWhatRootAppliedBeforeIt(t *testing.T) {
	m := bare(t)
	m.run(t, "modprobe -a ip_vs ipip; rm -rf /srv/rpmdb; dpkg-deb --fsys-tarfile "+oldDeb+" | tar -xOf - ./usr/sbin/sisod >/root/sisod; chmod +x /root/sisod")
	const rpm = "rpm --dbpath /srv/rpmdb --nodeps "
	for _, install := range []string{"dpkg -i " + oldDeb, rpm + "-i " + oldRPM + "; systemctl start sisod"} {
		m.write(t, profilePath, hostProfile)
		if a := m.try(t, "/root/sisod apply"); a.code == 1 {
			t.Fatalf("apply before the installation: %s%s", a.stdout, a.stderr)
		}
		if got := m.run(t, "stat -c %U /run/sisod/lock /var/lib/sisod/last-good"); got != "root\nroot" {
			t.Fatalf("before the installation the files are those of %q", got)
		}
		m.run(t, install)
		if got := m.run(t, "find /run/sisod /var/lib/sisod ! -user sisod -o ! -group sisod"); got != "" {
			t.Errorf("%s: these are not the daemon's:\n%s", install, got)
		} else {
			m.until(t, "sisod status && systemctl is-active sisod")
			expect(t, "the rules after "+install, m.owned(t), "from 198.51.100.2 lookup two")
		}
		m.run(t, "dpkg --purge sisod; "+rpm+"-e sisod; rm -rf /run/sisod /var/lib/sisod")
	}
	m.run(t, "rm /root/sisod")
}

func TestDaemonIsAUserOfItsOwnWithTwoCapabilities(t *testing.T) {
	m := ready(t)
	status := m.run(t, "cat /proc/$(systemctl show -P MainPID sisod)/status")
	uid := m.run(t, "id -u sisod")
	const netAdminAndRaw = "0000000000003000" // bits 12 and 13
	for name, want := range map[string]string{
		"Uid": uid, "NoNewPrivs": "1", "Seccomp": "2",
		"CapEff": netAdminAndRaw, "CapPrm": netAdminAndRaw, "CapBnd": netAdminAndRaw,
	} {
		got := regexp.MustCompile(`(?m)^` + name + `:\s+(\S+)`).FindStringSubmatch(status)
		if got == nil || got[1] != want {
			t.Errorf("%s of the daemon is %q, want %s", name, got, want)
		}
	}
	if uid == "0" {
		t.Error("the daemon's user is root")
	}
	// Not even root could write elsewhere, where the daemon is.
	in := "nsenter --mount --target $(systemctl show -P MainPID sisod) "
	for _, path := range []string{"/etc/sisod/profiles/x", "/etc/iproute2/rt_tables.d/x", "/var/lib/x", "/usr/x", "/root/x", "/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness"} {
		if a := m.try(t, in+"sh -c 'echo 1 >>"+path+"'"); a.code == 0 {
			t.Errorf("%s can be written to", path)
		}
	}
	for _, path := range []string{"/run/sisod/x", "/var/lib/sisod/x"} {
		m.run(t, in+"sh -c 'echo 1 >"+path+" && rm "+path+"'")
	}
	m.run(t, in+"sh -c 'cat /proc/sys/net/ipv4/ip_forward | tee /proc/sys/net/ipv4/ip_forward'")
}

func TestUnitIsExposedLittle(t *testing.T) {
	m := ready(t)
	for _, unit := range []string{"sisod.service", "sisod-online.service"} {
		a := m.try(t, "systemd-analyze security --no-pager "+unit)
		got := regexp.MustCompile(`Overall exposure level for ` + unit + `: (\S+)`).FindStringSubmatch(a.stdout)
		if got == nil {
			t.Errorf("no verdict in\n%s%s", a.stdout, a.stderr)
			continue
		}
		score, err := strconv.ParseFloat(got[1], 64)
		if err != nil || score > 1.5 {
			t.Errorf("exposure of %s is %s (%v), want at most 1.5:\n%s", unit, got[1], err, a.stdout)
		}
		t.Logf("exposure of %s by systemd-analyze security: %s", unit, got[1])
	}
}

func TestCommandsOfRootAndTheDaemonShareTheirFiles(t *testing.T) {
	m := ready(t)
	foreign := "find /run/sisod /var/lib/sisod ! -user sisod"
	before := m.owned(t)
	// Root applies while nobody else has touched the folders since the boot.
	m.run(t, "systemctl stop sisod; sisod flush; rm -rf /run/sisod/* /var/lib/sisod/*; sisod apply")
	if got := m.run(t, foreign); got != "" {
		t.Errorf("root left files that are not the daemon's:\n%s", got)
	}
	if after := m.owned(t); after != before {
		t.Errorf("root applied\n%s\nthe daemon had\n%s", after, before)
	}
	// The daemon takes over, root changes the profile and applies, the daemon keeps.
	m.run(t, "systemctl start sisod && sisod status")
	m.write(t, profilePath, hostProfile+"\n[[rule]]\npriority = 11400\nfrom = \"10.9.0.0/16\"\nlookup = \"two\"\n")
	m.run(t, "sisod apply && ip rule show priority 11400 | grep 10.9.0.0/16")
	m.run(t, "ip rule del priority 11400")
	m.until(t, "ip rule show priority 11400 | grep 10.9.0.0/16")
	m.run(t, "sisod flush")
	if got := m.run(t, "{ ip rule; ip -6 rule; } | grep 'proto sisod' || true"); got != "" {
		t.Errorf("after flush there is\n%s", got)
	}
	m.run(t, "systemctl reload sisod")
	m.until(t, "ip rule show priority 11400 | grep 10.9.0.0/16")
	if got := m.run(t, foreign); got != "" {
		t.Errorf("root left files that are not the daemon's:\n%s", got)
	}
	// Who may look at services and nftables is the kernel's to say: only root. The
	// roles have both.
	uplinks, _, _ := strings.Cut(hostProfile, "[real_server")
	m.write(t, profilePath, uplinks)
	m.until(t, "sisod status && ! ipvsadm -Sn | grep . && ! nft list tables | grep sisod")
	if a := m.try(t, "setpriv --reuid=nobody --regid=nogroup --clear-groups sisod status"); a.code != 0 {
		t.Errorf("status of an ordinary user: exit code %d: %s%s", a.code, a.stdout, a.stderr)
	}
	// Nobody else can lock sisod out.
	if a := m.try(t, "setpriv --reuid=nobody --regid=nogroup --clear-groups flock -n /run/sisod/lock true"); a.code == 0 {
		t.Error("an ordinary user can take the lock")
	}
}

func TestVIPsAreAnnouncedFromTheSandbox(t *testing.T) {
	m := ready(t)
	m.run(t, "systemctl stop sisod; ip address del 198.51.100.80/32 dev wan2; ip -n world neigh flush all; ip -n world neigh add 198.51.100.80 lladdr 02:00:00:00:00:99 dev w2 nud stale")
	m.run(t, "systemctl start sisod")
	mac := m.run(t, "cat /sys/class/net/wan2/address")
	if got := m.until(t, "ip -n world neigh show 198.51.100.80 | grep -v 00:99"); !strings.Contains(got, mac) {
		t.Errorf("the provider has %q for the VIP, want %s", got, mac)
	}
}
