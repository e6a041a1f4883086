package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

func TestDaemonRepairsWhatOthersUndo(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	// Rules and routes of somebody else stay as they are through it all.
	batch(t, h, "rule add from 10.0.0.0/8 lookup 77 pref 300\nroute add 10.9.0.0/16 via 192.0.2.1 table 77\n")
	_, log := started(t, h)
	settled(t, h)
	// Rules of one priority that exclude each other may change places.
	lines := func() string {
		return strings.Join(slices.Sorted(strings.Lines(wholeSnapshot(t, h))), "")
	}
	before := lines()
	for _, c := range []struct {
		name    string
		damage  string // for sh
		repairs int    // at least
	}{
		{"one rule", "ip rule del pref 11800", 1},
		{"one rule of IPv6", "ip -6 rule del pref 11800", 1},
		{"rule before all others", "ip rule del pref 11600", 1},
		{"one route", "ip route del default table isp1 metric 0", 1},
		{"one route of IPv6", "ip -6 route del default via 2001:db8:2::1 table isp2", 1},
		{"guard", "ip route del unreachable default table isp2", 1},
		{"route replaced", "ip route replace default via 192.0.2.250 dev em1 table isp1 proto 115", 1},
		{"table", "ip route flush table isp2", 3},
		{"table of IPv6", "ip -6 route flush table isp1", 4},
		{"all rules of sisod", "ip rule flush protocol 115; ip -6 rule flush protocol 115", 10},
		{"route of sisod's that nobody asked for", "ip route add 203.0.113.0/24 via 192.0.2.1 table isp1 proto 115", 0},
		{"rule of sisod's that nobody asked for", "ip rule add from 203.0.113.7 pref 11800 lookup isp1 proto 115", 0},
		{"link group", "ip link set em2 group 0", 1},
		{"reverse-path filter", "sysctl -qw net.ipv4.conf.em2.rp_filter=0", 1},
		{"names removed", "rm /etc/iproute2/rt_tables.d/sisod.conf", 2},
		{"names edited", "sed -i '/isp2/d' /etc/iproute2/rt_tables.d/sisod.conf", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			done := daemonStatus(t, h).Daemon.Repairs
			said := strings.Count(log.String(), "drift=true")
			run(t, h, "sh", "-c", c.damage)
			patiently(t, func() error {
				if now := lines(); now != before {
					return errors.New(difference(t, before, now))
				}
				return nil
			})
			patiently(t, func() error {
				st := daemonStatus(t, h)
				if n := st.Daemon.Repairs - done; n < c.repairs || c.repairs == 0 && n > 0 {
					return fmt.Errorf("%d repairs are counted, want %d", n, c.repairs)
				}
				if n := strings.Count(log.String(), "drift=true") - said; n < c.repairs {
					return fmt.Errorf("%d repairs are logged, want %d", n, c.repairs)
				}
				return nil
			})
		})
	}
	// This takes main's own rules away, which are not sisod's to bring back.
	t.Run("ip rule flush", func(t *testing.T) {
		run(t, h, "sh", "-c", "ip rule flush; ip -6 rule flush")
		settled(t, h)
		shows(t, h, "rule", "from 192.0.2.2 lookup isp1 proto 115")
		lacks(t, h, "rule", "32766")
		batch(t, h, "rule add pref 300 from 10.0.0.0/8 lookup 77\nrule add pref 32766 lookup main\nrule add pref 32767 lookup default\n")
		ip(t, h, "-6", "rule", "add", "pref", "32766", "lookup", "main")
		shows(t, h, "-6 rule", "from 2001:db8:2::2 lookup isp2 proto 115")
	})
	if r := sisod(t, h, "status"); r.code != 0 || !strings.Contains(r.stdout, "drift") {
		t.Errorf("sisod status does not tell of drift, exit code %d:\n%s", r.code, r.stdout)
	}
	if words := log.String(); strings.Contains(words, "level=ERROR") || strings.Contains(words, "level=WARN") {
		t.Errorf("repairing is no trouble:\n%s", words)
	}
}

// vandal deletes one rule whenever it is there, until stop is called, and counts.
func vandal(t *testing.T, h *lab.Host, r *netlink.Rule) (deleted *atomic.Int64, stop func()) {
	t.Helper()
	deleted = &atomic.Int64{}
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- h.Do(func() error {
			handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer handle.Close()
			often := time.NewTicker(time.Millisecond)
			defer often.Stop()
			for {
				select {
				case <-done:
					return nil
				case <-often.C:
				}
				switch err := handle.RuleDel(r); {
				case err == nil:
					deleted.Add(1)
				case !errors.Is(err, unix.ENOENT):
					return err
				}
			}
		})
	}()
	return deleted, func() {
		close(done)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// cpuTime is what a process has used of the processors, in ticks (proc(5)).
func cpuTime(t *testing.T, pid int) (ticks int) {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), ") ")
	var user, system int
	f := strings.Fields(rest)
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return user + system
}

func TestDaemonSlowsDownInAFight(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	p, log := started(t, h)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = unix.AF_INET, 12000, 115
	r.OifName, r.Table = "em1", 11500
	deleted, stop := vandal(t, h, r)
	me, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	says(t, log, "level=WARN", "keeps undoing", "12000: from all oif em1", "likely="+strings.TrimSpace(string(me)))
	if n := deleted.Load(); n < 10 || n > 12 {
		t.Errorf("the rule was deleted %d times before the limit, want about 10", n)
	}
	// Everything else is repaired as ever, many times over.
	for range 3 {
		for _, object := range []string{"from 192.0.2.2", "from 198.51.100.2", "from all oif em2"} {
			ip(t, h, append(strings.Fields("rule del "+object), "protocol", "115")...)
			shows(t, h, "rule", object+" lookup isp")
		}
		ip(t, h, "route", "flush", "table", "isp1")
		shows(t, h, "route show table isp1", "default via 192.0.2.1")
	}
	st := daemonStatus(t, h)
	if len(st.Daemon.Fights) != 1 || st.InOrder {
		t.Errorf("status tells of fights %q, in order %t", st.Daemon.Fights, st.InOrder)
	}
	if n := deleted.Load(); n > 14 {
		t.Errorf("the rule was repaired %d times, and no end", n)
	}
	if n := strings.Count(log.String(), "keeps undoing"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
	// Nothing is done while there is nothing to do but to wait.
	patiently(t, func() error {
		ticks := cpuTime(t, p.Pid())
		for range 20 {
			sisod(t, h, "version")
		}
		if now := cpuTime(t, p.Pid()); now != ticks {
			return fmt.Errorf("the daemon used %d ticks of the processor", now-ticks)
		}
		return nil
	})
	stop()
	patiently(t, func() error {
		if out := ip(t, h, "rule"); !strings.Contains(out, "from all oif em1 lookup isp1") {
			return errors.New("the rule has not come back")
		}
		return nil
	})
	settled(t, h)
}

func TestDaemonBacksOffFromWhatTheKernelRefuses(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	// Nobody can be reached at that next hop.
	writeProfile(t, h, "isp.toml", smallProfile+`
[[route]]
table = "extra"
to = "10.9.0.0/16"
via = "203.0.113.1"
dev = "em1"
`)
	p, log := started(t, h)
	const step = "10.9.0.0/16 via 203.0.113.1 dev em1"
	says(t, log, "level=ERROR", step, "Nexthop has invalid gateway")
	st := daemonStatus(t, h)
	if len(st.Daemon.Failures) != 1 || !strings.Contains(st.Daemon.Failures[0].Error, "Nexthop has invalid gateway") || st.InOrder {
		t.Errorf("failures in status: %+v", st.Daemon.Failures)
	}
	contains(t, sisod(t, h, "status").stdout, "failed", "Nexthop has invalid gateway")
	// Both uplinks are whole, and stay so.
	for range 20 {
		ip(t, h, "rule", "del", "pref", "11800")
		shows(t, h, "rule", "from 192.0.2.2 lookup isp1")
		shows(t, h, "rule", "from 198.51.100.2 lookup isp2")
		ip(t, h, "address", "add", "198.51.100.77/24", "dev", "em2")
		shows(t, h, "rule", "from 198.51.100.77 lookup isp2")
		ip(t, h, "address", "del", "198.51.100.77/24", "dev", "em2")
		lacks(t, h, "rule", "198.51.100.77")
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("the refusal is logged %d times, want once", n)
	}
	// What cures it is an event: no waiting for the next try.
	ip(t, h, "address", "add", "203.0.113.2/24", "dev", "em1")
	says(t, log, "add route", step, "address 203.0.113.2/24 added on em1")
	shows(t, h, "route show table extra", "10.9.0.0/16 via 203.0.113.1")
	settled(t, h)
	patiently(t, func() error {
		if st := daemonStatus(t, h); len(st.Daemon.Failures) > 0 {
			return fmt.Errorf("status still tells of %v", st.Daemon.Failures)
		}
		return nil
	})
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// A table name that cannot be written is tried again without an event.
func TestDaemonTriesAgainWithoutAnEvent(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	run(t, h, "sh", "-c", "mkdir -p /etc/iproute2/rt_tables.d && mount -t tmpfs -o ro none /etc/iproute2/rt_tables.d")
	writeProfile(t, h, "isp.toml", smallProfile)
	_, log := started(t, h)
	says(t, log, "level=ERROR", "table name", "read-only file system")
	shows(t, h, "rule", "from 192.0.2.2 lookup 11500")
	// A mount is nothing that is watched for.
	run(t, h, "umount", "/etc/iproute2/rt_tables.d")
	patiently(t, func() error {
		if r := sisod(t, h, "plan"); r.code != 0 {
			return errors.New(r.stdout)
		}
		return nil
	})
	says(t, log, "add table name", "isp1", "reason=retry")
}
