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
