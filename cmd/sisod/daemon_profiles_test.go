package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// sh runs a script on a host; it must end with code 0.
func sh(t testing.TB, h *lab.Host, script string) {
	t.Helper()
	run(t, h, "sh", "-ec", script)
}

// isp2With is a profile of em2 with its own key, so that ip shows which version
// of it is in force.
func isp2With(extra string) string {
	return "[uplink.isp2]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\n" + extra + "\n"
}

// sourceRule asks for a rule that ip rule shows.
func sourceRule(n int) string { return fmt.Sprintf("sources = [\"10.20.%d.0/24\"]", n) }

// inForce waits for the rule of sourceRule, and for that of no other.
func inForce(t testing.TB, h *lab.Host, n int) {
	t.Helper()
	patiently(t, func() error {
		var found []string
		for line := range strings.Lines(ip(t, h, "rule")) {
			if i := strings.Index(line, "10.20."); i >= 0 {
				found = append(found, strings.Fields(line[i:])[0])
			}
		}
		if want := fmt.Sprintf("10.20.%d.0/24", n); len(found) != 1 || found[0] != want {
			return fmt.Errorf("rules of sources are %q, want %s", found, want)
		}
		return nil
	})
}

func TestDaemonFollowsProfiles(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp1.toml", "[uplink.isp1]\ninterface = \"em1\"\n")
	_, log := started(t, h)
	const file = "/etc/sisod/profiles/isp2.toml"
	n := 0
	// version writes the next version of the profile to a file.
	version := func(path string) {
		n++
		sh(t, h, fmt.Sprintf("cat > %s <<'END'\n%sEND\n", path, isp2With(sourceRule(n))))
	}
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"new file", func() { version(file) }},
		{"written in place", func() { version(file) }},
		{"renamed over", func() {
			version("/etc/sisod/profiles/.isp2.toml.tmp")
			sh(t, h, "mv /etc/sisod/profiles/.isp2.toml.tmp "+file)
		}},
		{"saved as vim does", func() {
			sh(t, h, "echo swap > /etc/sisod/profiles/.isp2.toml.swp; mv "+file+" "+file+"~")
			version(file)
			sh(t, h, "rm "+file+"~ /etc/sisod/profiles/.isp2.toml.swp")
		}},
		{"another name", func() {
			version("/etc/sisod/profiles/other.toml.new")
			sh(t, h, "rm "+file+"; mv /etc/sisod/profiles/other.toml.new /etc/sisod/profiles/other.toml")
		}},
		{"made a symbolic link", func() {
			sh(t, h, "mkdir -p /run/store/v1")
			version("/run/store/v1/isp2.toml")
			sh(t, h, "ln -s v1 /run/store/current; rm /etc/sisod/profiles/other.toml; ln -s /run/store/current/isp2.toml "+file)
		}},
		{"target of the link written", func() { version("/run/store/v1/isp2.toml") }},
		{"target of the link renamed over", func() {
			version("/run/store/v1/new")
			sh(t, h, "mv /run/store/v1/new /run/store/v1/isp2.toml")
		}},
		{"folder on the way to the target exchanged", func() {
			sh(t, h, "mkdir /run/store/v2")
			version("/run/store/v2/isp2.toml")
			sh(t, h, "ln -s v2 /run/store/next; mv -T /run/store/next /run/store/current")
		}},
		{"target written after the exchange", func() { version("/run/store/v2/isp2.toml") }},
		{"folder moved away and another put in its place", func() {
			sh(t, h, "cp -r /etc/sisod/profiles /etc/sisod/fresh; rm /etc/sisod/fresh/isp2.toml")
			version("/etc/sisod/fresh/isp2.toml")
			sh(t, h, "mv /etc/sisod/profiles /etc/sisod/stale; mv /etc/sisod/fresh /etc/sisod/profiles")
		}},
		{"written in the new folder", func() { version(file) }},
		{"folder removed and made again", func() {
			sh(t, h, "rm -r /etc/sisod/profiles")
			lacks(t, h, "rule", "proto 115")
			sh(t, h, "mkdir /etc/sisod/profiles")
			writeProfile(t, h, "isp1.toml", "[uplink.isp1]\ninterface = \"em1\"\n")
			version(file)
		}},
		{"written in that folder", func() { version(file) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			inForce(t, h, n)
			settled(t, h)
			shows(t, h, "rule", "from 192.0.2.2 lookup isp1")
		})
	}
	t.Run("list of prefixes", func(t *testing.T) {
		sh(t, h, "mkdir -p /run/store/lists; echo 203.0.113.0/25 > /run/store/lists/cn.zone")
		writeProfile(t, h, "isp2.toml", isp2With(`to = ["@/run/store/lists/cn.zone"]`))
		shows(t, h, "route show table all", "203.0.113.0/25 via 198.51.100.1")
		sh(t, h, "printf '203.0.113.0/26\\n203.0.113.128/26\\n' > /run/store/lists/new; mv /run/store/lists/new /run/store/lists/cn.zone")
		shows(t, h, "route show table all", "203.0.113.128/26 via 198.51.100.1")
		lacks(t, h, "route show table all", "203.0.113.0/25")
		settled(t, h)
	})
	t.Run("deleted", func(t *testing.T) {
		sh(t, h, "rm "+file)
		lacks(t, h, "rule", "isp2")
		settled(t, h)
		if out := ip(t, h, "route", "show", "table", "all"); strings.Contains(out, "198.51.100.1 ") {
			t.Errorf("routes of an uplink that is no more:\n%s", out)
		}
		if out := ip(t, h, "-d", "link", "show", "em2"); strings.Contains(out, "group 115") {
			t.Errorf("group of an uplink that is no more: %s", out)
		}
	})
	if words := log.String(); strings.Contains(words, "drift=true") || strings.Contains(words, "level=ERROR") {
		t.Errorf("a changed profile is neither drift nor trouble:\n%s", words)
	}
}

func TestDaemonKeepsWhatIsInForceWhenAProfileBreaks(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp1.toml", "[uplink.isp1]\ninterface = \"em1\"\n")
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(1)))
	p, log := started(t, h)
	before := wholeSnapshot(t, h)
	broken := func() {
		t.Helper()
		patiently(t, func() error {
			if st := daemonStatus(t, h); !strings.Contains(st.Daemon.ConfigError, "isp2.toml:5:1") {
				return fmt.Errorf("the daemon's complaint is %q", st.Daemon.ConfigError)
			}
			return nil
		})
	}
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(2)+"\ninterfaec = \"em2\""))
	broken()
	same(t, "after a profile broke", wholeSnapshot(t, h), before)
	if st := daemonStatus(t, h); st.Daemon.LastGood {
		t.Error("a copy stands in for what is in force")
	}
	r := sisod(t, h, "status")
	contains(t, r.stdout, "isp2.toml:5:1", "last good configuration")
	if r.code == 0 {
		t.Error("sisod status: exit code 0 with a broken profile")
	}
	// The same complaint is logged once, whatever happens.
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ip(t, h, "rule", "del", "from", "192.0.2.2")
	shows(t, h, "rule", "from 192.0.2.2 lookup isp1")
	ip(t, h, "address", "add", "192.0.2.77/24", "dev", "em1")
	shows(t, h, "rule", "from 192.0.2.77 lookup isp1")
	inForce(t, h, 1)
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log, want 1:\n%s", n, log)
	}
	// A folder that is not there wishes for nothing, not even for nothing at all.
	sh(t, h, "mv /etc/sisod /etc/sisod.away")
	says(t, log, "level=ERROR", "/etc/sisod: no such file or folder")
	inForce(t, h, 1)
	sh(t, h, "mv /etc/sisod.away /etc/sisod")
	broken()
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(3)))
	inForce(t, h, 3)
	says(t, log, "load profiles", "good again")
	settled(t, h)

	// At the start of the next daemon nothing is left in the kernel, and the
	// profiles are broken: the copy stands in.
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	expect(t, h, 0, "flush")
	ip(t, h, "route", "add", "203.0.113.0/24", "via", "192.0.2.1", "table", "7777", "protocol", "115")
	writeProfile(t, h, "isp2.toml", "nonsense")
	n := newNotifySocket(t)
	p, log = startDaemon(t, h, "NOTIFY_SOCKET="+n.path)
	contains(t, strings.Join(n.until(t, "READY=1"), "\n"), "last good configuration in force")
	inForce(t, h, 3)
	says(t, log, "level=WARN", "last good configuration stands in")
	shows(t, h, "rule", "from 192.0.2.77 lookup isp1")
	lacks(t, h, "route show table all", "table 7777")
	st := daemonStatus(t, h)
	if !st.Daemon.LastGood || st.ConfigError == "" || len(st.Drift) > 0 {
		t.Errorf("status: last good %t, complaint %q, drift %v", st.Daemon.LastGood, st.ConfigError, st.Drift)
	}
	// It follows the host, and the copy is as good the next time.
	ip(t, h, "address", "del", "192.0.2.77/24", "dev", "em1")
	lacks(t, h, "rule", "192.0.2.77")
	p.Kill()
	<-p.Done()
	_, log = started(t, h)
	says(t, log, "last good configuration stands in")
	inForce(t, h, 3)
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(4)))
	inForce(t, h, 4)
	settled(t, h)
}

func TestDaemonWithoutAnyGoodProfileChangesNothing(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	// What an earlier daemon, of which no copy is left, had applied.
	writeProfile(t, h, "isp.toml", smallProfile)
	apply(t, h, 0)
	sh(t, h, "rm -r /var/lib/sisod/*")
	before := wholeSnapshot(t, h)
	writeProfile(t, h, "isp.toml", "nonsense")
	n := newNotifySocket(t)
	p, log := startDaemon(t, h, "NOTIFY_SOCKET="+n.path)
	contains(t, strings.Join(n.until(t, "READY=1"), "\n"), "nothing is changed")
	says(t, log, "level=WARN", "no last good configuration is kept")
	ip(t, h, "rule", "add", "pref", "300", "lookup", "main")
	ip(t, h, "rule", "del", "pref", "300")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.until(t, "RELOADING=1")
	n.until(t, "READY=1")
	same(t, "without any good profile", wholeSnapshot(t, h), before)
	// One that is mended is followed.
	writeProfile(t, h, "isp.toml", smallProfile+sourceRule(1)+"\n")
	inForce(t, h, 1)
}

func TestDaemonReadsProfilesWhenToldTo(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeFile(t, h, "sisod.toml", "watch = false\n")
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(1)))
	p, log := started(t, h)
	inForce(t, h, 1)
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(2)))
	// Events come and go, and neither the profile nor the kept copy follows.
	for range 5 {
		ip(t, h, "rule", "del", "from", "198.51.100.2")
		shows(t, h, "rule", "from 198.51.100.2 lookup isp2")
	}
	elsewhere(t)
	inForce(t, h, 1)
	contains(t, run(t, h, "cat", "/var/lib/sisod/last-good/etc/sisod/profiles/isp2.toml"), "10.20.1.0/24")
	if err := p.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	inForce(t, h, 2)
	settled(t, h)
	// What a command applies is in force, too: the daemon does not undo it.
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(3)))
	apply(t, h, 0)
	for range 5 {
		ip(t, h, "rule", "del", "from", "198.51.100.2")
		shows(t, h, "rule", "from 198.51.100.2 lookup isp2")
		inForce(t, h, 3)
	}
	settled(t, h)
	undone(t, log)
}

// undone fails the test when the daemon went back from what another process
// had applied to an earlier version.
func undone(t *testing.T, log *lab.Lines) {
	t.Helper()
	added := 0
	for line := range strings.Lines(log.String()) {
		_, rest, found := strings.Cut(line, "from 10.20.")
		if !found {
			continue
		}
		var n int
		if _, err := fmt.Sscanf(rest, "%d.", &n); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(line, "add rule"):
			added = n
		case n > added:
			t.Errorf("the daemon went back to version %d: %s", added, line)
		}
	}
}

// elsewhere waits for the daemon to have had the time that it takes to
// read changed profiles: those of another daemon, which started later, are.
func elsewhere(t *testing.T) {
	t.Helper()
	other, _ := smallHost(t)
	writeProfile(t, other, "isp2.toml", isp2With(sourceRule(1)))
	started(t, other)
	writeProfile(t, other, "isp2.toml", isp2With(sourceRule(2)))
	inForce(t, other, 2)
}
