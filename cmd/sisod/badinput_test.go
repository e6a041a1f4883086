package main

import (
	"strings"
	"testing"
)

// calm fails the test when a program lost its head.
func calm(t *testing.T, r result) {
	t.Helper()
	if strings.Contains(r.stdout+r.stderr, "goroutine ") || strings.Contains(r.stdout+r.stderr, "%!") {
		t.Errorf("not a message for people:\n%s%s", r.stdout, r.stderr)
	}
}

// TestInvalidProfilesTakeNothingAway has a host whose profiles are in force
// meet wishes that are invalid.
func TestInvalidProfilesTakeNothingAway(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	expect(t, h, 0, "apply")
	before := wholeSnapshot(t, h)
	for name, c := range map[string]struct {
		bad  string // a shell command in /etc/sisod
		want []string
	}{
		"two uplinks on one interface": {
			`printf '[uplink.twin]\ninterface = "em1"\n' > profiles/twin.toml`,
			[]string{"/etc/sisod/profiles/twin.toml:2:13", "em1 is the interface of uplink isp1 already, at /etc/sisod/profiles/isp.toml:2:1"}},
		"rule in sisod's window": {
			`printf '[[rule]]\npriority = 11600\nlookup = "isp1"\n' > profiles/rule.toml`,
			[]string{"/etc/sisod/profiles/rule.toml:2:12", "11600", "11500", "12499"}},
		"rule in the place of local's": {
			`printf '[[rule]]\npriority = 0\nlookup = "isp1"\n' > profiles/rule.toml`,
			[]string{"/etc/sisod/profiles/rule.toml:2:12"}},
		"rule behind main's": {
			`printf '[[rule]]\npriority = 32766\nlookup = "isp1"\n' > profiles/rule.toml`,
			[]string{"/etc/sisod/profiles/rule.toml:2:12", "32766"}},
		"window over main's rule": {
			`printf 'priority = 32000\n' > sisod.toml`,
			[]string{"/etc/sisod/sisod.toml:1:12", "32766"}},
		"window from local's rule": {
			`printf 'priority = 0\n' > sisod.toml`,
			[]string{"/etc/sisod/sisod.toml:1:12"}},
		"main as an uplink's table": {
			`printf '[uplink.a]\ninterface = "em9"\ntable = 254\n' > profiles/a.toml`,
			[]string{"/etc/sisod/profiles/a.toml:3:9", "254"}},
		"main as an uplink's name": {
			`printf '[uplink.main]\ninterface = "em9"\n' > profiles/a.toml`,
			[]string{"/etc/sisod/profiles/a.toml:1:9", "main"}},
		"two uplinks in one table": {
			`printf '[uplink.a]\ninterface = "em8"\ntable = 101\n[uplink.b]\ninterface = "em9"\ntable = 101\n' > profiles/a.toml`,
			[]string{"/etc/sisod/profiles/a.toml:6:9", "101"}},
		"garbage for a profile": {
			`head -c 100000 /dev/urandom > profiles/noise.toml`,
			[]string{"/etc/sisod/profiles/noise.toml"}},
		"garbage for settings": {
			`head -c 100000 /dev/urandom > sisod.toml`,
			[]string{"/etc/sisod/sisod.toml"}},
		"far too much": {
			`head -c 20000000 /dev/zero > profiles/noise.toml`,
			[]string{"/etc/sisod/profiles/noise.toml", "MB"}},
		"folder for settings": {
			`mkdir sisod.toml`,
			[]string{"/etc/sisod/sisod.toml", "this is a folder, not a file"}},
		"file for the folder of profiles": {
			`rm -r profiles && echo > profiles`,
			[]string{"/etc/sisod/profiles", "this is not a folder"}},
		"pipe for a profile": {
			`mkfifo profiles/pipe.toml`,
			[]string{"/etc/sisod/profiles/pipe.toml", "not a regular file"}},
		"no folder at all": {
			`rm -r /etc/sisod/profiles && umount /etc/sisod 2>/dev/null; rmdir /etc/sisod`,
			[]string{"/etc/sisod", "no such file or folder"}},
	} {
		run(t, h, "sh", "-c", "cp -r /etc/sisod /run/kept; cd /etc/sisod; "+c.bad)
		for _, command := range []string{"check", "plan", "apply", "show"} {
			r := expect(t, h, 1, command)
			calm(t, r)
			contains(t, r.stderr, c.want...)
			if r.stdout != "" {
				t.Errorf("%s: %s said on standard output: %s", name, command, r.stdout)
			}
		}
		// What was applied last stands in, and status says so.
		r := expect(t, h, 1, "status")
		calm(t, r)
		contains(t, r.stdout, append(c.want, "profiles do not load", "the last good configuration stands in", "isp1", "192.0.2.2")...)
		same(t, name+": the host", wholeSnapshot(t, h), before)
		run(t, h, "sh", "-c", "rm -rf /etc/sisod/* ; mkdir -p /etc/sisod; cp -r /run/kept/* /etc/sisod; rm -r /run/kept")
		if t.Failed() {
			t.Fatalf("that was: %s", name)
		}
	}
	contains(t, expect(t, h, 0, "apply").stdout, "nothing to do")
}

// TestImpossibleWishesAreProblems has what can come true done, and the rest told.
func TestImpossibleWishesAreProblems(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	const good = "[uplink.isp1]\ninterface = \"em1\"\n"
	writeProfile(t, h, "isp.toml", good)
	expect(t, h, 0, "apply")
	before := wholeSnapshot(t, h)
	for name, c := range map[string]struct {
		prepare, profile string
		want             string // on standard error
		wins, loses      string // parts of rules and routes that are there, and are not
	}{
		"interface that never appears": {
			profile: "[uplink.x]\ninterface = \"em9\"\ngateway = \"203.0.113.1\"\n",
			want:    "problem  uplink x: interface em9 is not there; as long as that is so, replies go as main decides  x.toml:1", loses: "em9"},
		"gateway outside every prefix": {
			profile: "[uplink.x]\ninterface = \"em2\"\ngateway = \"203.0.113.1\"\n",
			want:    "problem  uplink x: gateway 203.0.113.1 is outside every network of em2 (198.51.100.0/24); correct it, or add a route to it: ip route add 203.0.113.1 dev em2; as long as that is so, replies go as main decides  x.toml:1", loses: "198.51.100.2 lookup"},
		"number with another name": {
			prepare: "echo '300 theirs' > /etc/iproute2/rt_tables.d/other.conf",
			profile: "[uplink.x]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\ntable = 300\n",
			want:    "problem  table x: table 300 is called theirs in rt_tables and may be in use by somebody else; choose another number, or leave the key table out  x.toml:1", wins: "lookup theirs"},
		"name with another number": {
			prepare: "echo '300 x' > /etc/iproute2/rt_tables.d/other.conf",
			profile: "[uplink.x]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\ntable = 301\n",
			want:    "problem  table x: rt_tables already gives the name x to table 300; table 301 is used and stays without a name; remove the line there, or the key table  x.toml:1", wins: "lookup 301"},
		"number taken by somebody's routes": {
			prepare: "ip route add default via 198.51.100.77 table 300 proto static; ip route add 203.0.113.0/24 via 198.51.100.77 table 300",
			profile: "[uplink.x]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\ntable = 300\n",
			want:    "problem  table x: a route of somebody else takes the place of sisod's: default via 198.51.100.77 dev em2 table x; delete it, or give the uplink another table  x.toml:1", wins: "default via 198.51.100.77 dev em2 table x proto static"},
		"window with somebody's rules": {
			prepare: "ip rule add from 10.0.0.0/8 lookup main priority 11650",
			profile: "[uplink.x]\ninterface = \"em2\"\ngateway = \"198.51.100.1\"\n",
			want:    "problem  rule 11650: somebody else's rule stands in sisod's window of priorities and is left alone: 11650: from 10.0.0.0/8 lookup main; move it, or move the window with priority in sisod.toml", wins: "11650:\tfrom 10.0.0.0/8 lookup main"},
	} {
		run(t, h, "sh", "-c", c.prepare)
		writeProfile(t, h, "x.toml", c.profile)
		for range 2 {
			r := expect(t, h, 2, "apply")
			calm(t, r)
			contains(t, r.stderr, c.want)
			contains(t, ip(t, h, "rule"), "from 192.0.2.2 lookup isp1")
			now := ip(t, h, "rule") + ip(t, h, "route", "show", "table", "all")
			contains(t, now, c.wins)
			if c.loses != "" && strings.Contains(now, c.loses) {
				t.Errorf("%s: %q in\n%s", name, c.loses, now)
			}
		}
		calm(t, expect(t, h, 2, "status"))
		// The wish goes, and with it all that came of it.
		run(t, h, "sh", "-c", "rm /etc/sisod/profiles/x.toml; rm -f /etc/iproute2/rt_tables.d/other.conf; ip route flush table 300 proto static; ip route flush table 300 proto boot; ip rule del priority 11650 2>/dev/null; true")
		expect(t, h, 0, "apply")
		same(t, name+": the host", wholeSnapshot(t, h), before)
		if t.Failed() {
			t.Fatalf("that was: %s", name)
		}
	}
}

// TestDamagedFilesTakeNothingAway damages what sisod itself writes.
func TestDamagedFilesTakeNothingAway(t *testing.T) {
	t.Parallel()
	const garbage, huge = "head -c 4096 /dev/urandom > ", "yes '{' | head -c 16000000 > "
	for name, c := range map[string]struct {
		damage string
		code   int // of apply
		stderr string
		undone bool // flush cannot give values back: nobody knows them any more
	}{
		"garbage ledger":   {garbage + "/run/sisod/ledger.json", 0, "ledger is damaged: values that sisod changed before cannot be given back by flush", true},
		"huge ledger":      {huge + "/run/sisod/ledger.json", 0, "ledger is damaged", true},
		"empty ledger":     {": > /run/sisod/ledger.json", 0, "ledger is damaged", true},
		"folder ledger":    {"rm /run/sisod/ledger.json; mkdir /run/sisod/ledger.json", 1, "read ledger: read /run/sisod/ledger.json: is a directory", true},
		"no run folder":    {"rm -r /run/sisod", 0, "", true},
		"run folder file":  {"rm -r /run/sisod; echo > /run/sisod", 1, "/run/sisod/ledger.json: not a directory", true},
		"run read-only":    {"mount -t tmpfs -o ro none /run/sisod", 1, "open lock: open /run/sisod/lock: read-only file system", true},
		"garbage report":   {garbage + "/run/sisod/status.json", 0, "", false},
		"folder report":    {"mkdir /run/sisod/status.json", 0, "", false},
		"garbage names":    {garbage + "/etc/iproute2/rt_tables.d/sisod.conf", 0, "", false},
		"impossible names": {`printf '7 a#b\n300 \001x\n301 \377\376\n4294967295 z\n254 isp1\n' > /etc/iproute2/rt_tables.d/sisod.conf`, 0, "", false},
		"huge names":       {huge + "/etc/iproute2/rt_tables.d/sisod.conf", 0, "", false},
		"folder names":     {"rm /etc/iproute2/rt_tables.d/sisod.conf; mkdir /etc/iproute2/rt_tables.d/sisod.conf", 1, "add table name 11500 isp1: read /etc/iproute2/rt_tables.d/sisod.conf: is a directory", false},
		"names read-only":  {"rm /etc/iproute2/rt_tables.d/sisod.conf; mount --bind /etc/iproute2 /etc/iproute2; mount -o remount,bind,ro /etc/iproute2", 1, "add table name 11500 isp1: open /etc/iproute2/rt_tables.d/.sisod.conf", false},
		"no iproute2":      {"rm -r /etc/iproute2", 0, "", false},
		"state read-only":  {"rm -r /var/lib/sisod/*; mount -t tmpfs -o ro none /var/lib/sisod", 0, "last good configuration", false},
		"garbage state":    {"rm -r /var/lib/sisod/*; " + garbage + "/var/lib/sisod/last-good", 0, "", false},
		"state is a file":  {"rm -r /var/lib/sisod/*; mount --bind /etc/hostname /var/lib/sisod 2>/dev/null || true; " + garbage + "/var/lib/sisod/last-good.new", 0, "", false},
		"garbage hold":     {"mkdir /run/sisod/held", 0, "", false},
		"folder for lock":  {"rm /run/sisod/lock; mkdir /run/sisod/lock", 1, "open lock: open /run/sisod/lock: is a directory", false},
		"link for a lock":  {"rm /run/sisod/lock; ln -s /etc/hostname /run/sisod/lock", 1, "open lock: open /run/sisod/lock: too many levels of symbolic links", false},
		"garbage rt_table": {garbage + "/etc/iproute2/rt_tables", 0, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, _ := smallHost(t)
			writeProfile(t, h, "isp.toml", smallProfile)
			kernel := func() string {
				// Not ip's names: they are what is damaged.
				return ownRules(t, h, "-4") + ownRules(t, h, "-6") + ip(t, h, "-N", "route", "show", "table", "all") + value(t, h, "em2", "rp_filter") + group(t, h, "em1")
			}
			found := kernel()
			expect(t, h, 0, "apply")
			before := kernel()
			run(t, h, "sh", "-c", c.damage)
			told := false
			// Twice: the first may have mended it. The last is after a change of ours.
			for _, wish := range []string{"", "", "[[rule]]\npriority = 900\nfrom = \"10.0.0.0/8\"\nlookup = \"isp1\"\n"} {
				writeProfile(t, h, "more.toml", wish)
				r := sisod(t, h, "apply")
				calm(t, r)
				if r.code != c.code {
					t.Fatalf("apply: exit code %d, want %d\n%s%s", r.code, c.code, r.stdout, r.stderr)
				}
				for _, looker := range []string{"plan", "status", "show"} {
					calm(t, sisod(t, h, looker))
				}
				if wish == "" {
					same(t, "the host", kernel(), before)
				}
				if !told {
					contains(t, r.stderr, c.stderr)
				}
				// A damaged ledger is put aside, and told of once.
				told = c.code == 0
			}
			if c.code == 1 {
				return
			}
			// What carries sisod's mark goes, and values go back where they are known.
			r := expect(t, h, 0, "flush")
			calm(t, r)
			if c.undone {
				if rules := ownRules(t, h, "-4") + ownRules(t, h, "-6"); rules != "" {
					t.Errorf("after flush:\n%s", rules)
				}
			} else {
				same(t, "the host after flush", kernel(), found)
			}
		})
	}
}

func TestStatusTellsWhatIsWrongThoughTheLastGoodCopyIsWrongToo(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	expect(t, h, 0, "apply")
	runInput(t, h, "for d in '' /var/lib/sisod/last-good; do echo 'junk' >$d/etc/sisod/profiles/isp.toml; done", "sh", "-e")
	contains(t, expect(t, h, 1, "status").stdout, "profiles do not load", "/etc/sisod/profiles/isp.toml:1:", "last good configuration: /etc/sisod/profiles/isp.toml:1:")
}
