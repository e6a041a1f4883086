package main

import (
	"strconv"
	"strings"
	"testing"
)

// TestRootGoesOnAsTheUserOfTheRunFolder has the folders of an installed host: the
// daemon's user owns them, and the table names are a link into one of them.
func TestRootGoesOnAsTheUserOfTheRunFolder(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	runInput(t, h, `
		mkdir -p /run/sisod /var/lib/sisod /etc/iproute2/rt_tables.d
		chown 4711:4712 /run/sisod /var/lib/sisod
		ln -s /var/lib/sisod/rt_tables.conf /etc/iproute2/rt_tables.d/sisod.conf
	`, "sh", "-e")
	foreign := func(after string) {
		t.Helper()
		if files := run(t, h, "find", "/run/sisod", "/var/lib/sisod", "(", "!", "-user", "4711", "-o", "!", "-group", "4712", ")"); files != "" {
			t.Errorf("after %s, files of others are\n%s", after, files)
		}
	}
	expect(t, h, 0, "apply")
	foreign("apply")
	contains(t, run(t, h, "ip", "rule"), "lookup isp1")
	contains(t, run(t, h, "ls", "/run/sisod", "/var/lib/sisod"), "ledger.json", "last-good", "rt_tables.conf")
	expect(t, h, 0, "status")

	started(t, h)
	pid := strconv.Itoa(daemonStatus(t, h).Daemon.PID)
	if uid := strings.Fields(run(t, h, "grep", "^Uid:", "/proc/"+pid+"/status")); len(uid) != 5 || uid[1] != "4711" {
		t.Errorf("the users of the daemon that root started are %v", uid)
	}
	foreign("run")

	expect(t, h, 0, "flush")
	foreign("flush")
	if rules := run(t, h, "ip", "rule", "show", "priority", "11800"); rules != "" {
		t.Errorf("after flush there is %s", rules)
	}
}

// TestCheckSeesWhatTheDaemonCannotRead checks as root, who reads everything.
func TestCheckSeesWhatTheDaemonCannotRead(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	const profile, list = "/etc/sisod/profiles/isp.toml", "/run/lists/cn.zone"
	writeProfile(t, h, "isp.toml", strings.Replace(smallProfile, "[uplink.isp2]", "to = [\"@"+list+"\"]\n\n[uplink.isp2]", 1))
	runInput(t, h, `
		mkdir -p /run/sisod /run/lists /run/draft
		echo 10.9.0.0/16 >`+list+`
		cp `+profile+` /run/draft/isp.toml; chmod 600 /run/draft/isp.toml
		chmod 600 `+profile+`
	`, "sh", "-e")
	expect(t, h, 0, "check") // it is root's daemon
	run(t, h, "chown", "4711:4712", "/run/sisod")
	unreadable := func(args []string, words ...string) {
		t.Helper()
		r := expect(t, h, 1, args...)
		contains(t, r.stderr, append(words, "the daemon's user, 4711, cannot read this: permission denied")...)
		if n := strings.Count(r.stderr, "cannot read"); n != 1 || r.stdout != "" {
			t.Errorf("%d complaints, and %q on standard output:\n%s", n, r.stdout, r.stderr)
		}
	}
	unreadable([]string{"check"}, profile, "chmod a+r "+profile, "chgrp 4712 "+profile+" && chmod g+r "+profile)
	unreadable([]string{"check", profile}, profile)
	expect(t, h, 0, "check", "/run/draft/isp.toml")
	// Both of the hints are a cure.
	run(t, h, "sh", "-c", "chgrp 4712 "+profile+" && chmod g+r "+profile)
	expect(t, h, 0, "check")
	run(t, h, "chmod", "700", "/etc/sisod/profiles")
	unreadable([]string{"check"}, "/etc/sisod/profiles: ", "chmod a+rx /etc/sisod/profiles")
	run(t, h, "chmod", "a+r", "/etc/sisod/profiles")
	unreadable([]string{"check"}, "/etc/sisod/profiles: ", "chmod a+rx /etc/sisod/profiles")
	run(t, h, "chmod", "a+rx", "/etc/sisod/profiles")
	run(t, h, "chmod", "700", "/run/lists")
	unreadable([]string{"check"}, "/run/lists: ", "chmod a+x /run/lists")
	run(t, h, "chmod", "a+x", "/run/lists")
	expect(t, h, 0, "check")
	expect(t, h, 2, "plan") // which goes on as that user
}
