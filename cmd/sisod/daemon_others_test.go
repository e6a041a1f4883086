package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/profiles"
)

// heard waits until the daemon has taken note of an event: its report is another.
func heard(t *testing.T, h *lab.Host, event func()) {
	t.Helper()
	report := func() string { return run(t, h, "stat", "-c", "%i %z", "/run/sisod/status.json") }
	before := report()
	event()
	patiently(t, func() error {
		if report() == before {
			return errors.New("the daemon has not heard of the event")
		}
		return nil
	})
}

// held checks that a flushed host stays as it is after an event.
func held(t *testing.T, h *lab.Host, event func()) {
	t.Helper()
	heard(t, h, event)
	for _, c := range []string{"rule", "-6 rule", "route show table all", "-6 route show table all"} {
		if out := ip(t, h, strings.Fields(c)...); strings.Contains(out, "proto 115") {
			t.Errorf("the daemon has undone a flush, ip %s:\n%s", c, out)
		}
	}
}

func TestDaemonHoldsStillAfterFlush(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(1)))
	before := wholeSnapshot(t, h)
	p, log := started(t, h)
	inForce(t, h, 1)

	held(t, h, func() { expect(t, h, 0, "flush") })
	same(t, "after flush", wholeSnapshot(t, h), before)
	held(t, h, func() { ip(t, h, "address", "add", "198.51.100.77/24", "dev", "em2") })
	held(t, h, func() { ip(t, h, "address", "del", "198.51.100.77/24", "dev", "em2") })
	held(t, h, func() { ip(t, h, "link", "set", "em1", "down") })
	held(t, h, func() { writeProfile(t, h, "isp2.toml", isp2With(sourceRule(2))) })
	held(t, h, func() { writeProfile(t, h, "isp2.toml", "nonsense") })
	held(t, h, func() { writeProfile(t, h, "isp2.toml", isp2With(sourceRule(3))) })
	says(t, log, "hold still after flush")
	if n := strings.Count(log.String(), "hold still"); n != 1 {
		t.Errorf("holding still is logged %d times", n)
	}
	if st := daemonStatus(t, h); !st.Held || !st.Daemon.Held {
		t.Errorf("status: held %t, the daemon %t", st.Held, st.Daemon.Held)
	}

	// Apply ends it, and the daemon follows again.
	apply(t, h, 0)
	inForce(t, h, 3)
	ip(t, h, "address", "add", "198.51.100.77/24", "dev", "em2")
	shows(t, h, "rule", "from 198.51.100.77 lookup isp2")
	settled(t, h)

	// So does a reload.
	held(t, h, func() { expect(t, h, 0, "flush") })
	reload := func() {
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	reload()
	inForce(t, h, 3)
	settled(t, h)

	// So does the end of the mark alone, with the next event.
	heard(t, h, reload)
	held(t, h, func() { expect(t, h, 0, "flush") })
	wait(t, func() error {
		if st := daemonStatus(t, h); !st.Daemon.Held {
			return errors.New("the daemon has not taken note of the flush")
		}
		return nil
	})
	sh(t, h, "rm /run/sisod/held")
	ip(t, h, "rule", "add", "pref", "11999", "lookup", "main")
	inForce(t, h, 3)
	settled(t, h)
	ip(t, h, "rule", "del", "pref", "11999")

	// So does a restart, also of a daemon that was killed.
	held(t, h, func() { expect(t, h, 0, "flush") })
	p.Kill()
	<-p.Done()
	_, log2 := started(t, h)
	inForce(t, h, 3)
	settled(t, h)
	if words := log.String() + log2.String(); strings.Contains(words, "drift=true") {
		t.Errorf("what flush took away is taken for drift:\n%s", words)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	p, log := started(t, h)
	second, words := startDaemon(t, h)
	patiently(t, func() error {
		select {
		case <-second.Done():
			return nil
		default:
			return errors.New("a second daemon runs")
		}
	})
	var exit *exec.ExitError
	if err := second.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the second sisod run: %v", err)
	}
	contains(t, words.String(), fmt.Sprintf("pid %d, sisod", p.Pid()), "another sisod run")
	// The first one has not noticed.
	ip(t, h, "rule", "del", "pref", "11800")
	says(t, log, "drift=true")
	settled(t, h)
}

func TestManyAppliersAndADaemonEndRight(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp1.toml", "[uplink.isp1]\ninterface = \"em1\"\n")
	writeProfile(t, h, "isp2.toml", isp2With(sourceRule(1)))
	_, log := started(t, h)
	t.Run("at once", func(t *testing.T) {
		var all sync.WaitGroup
		results := make([]result, 12)
		for i := range results {
			all.Go(func() { results[i] = sisod(t, h, "apply") })
		}
		for range 10 {
			ip(t, h, "rule", "flush", "protocol", "115")
			ip(t, h, "route", "flush", "table", "isp1")
		}
		all.Wait()
		for _, r := range results {
			if r.code != 0 {
				t.Errorf("sisod apply: exit code %d\n%s", r.code, r.stderr)
			}
		}
		settled(t, h)
		inForce(t, h, 1)
	})
	t.Run("one by one with new profiles", func(t *testing.T) {
		for n := 2; n < 22; n++ {
			writeProfile(t, h, "isp2.toml", isp2With(sourceRule(n)))
			apply(t, h, 0)
			inForce(t, h, n)
		}
		settled(t, h)
		undone(t, log)
	})
	if words := log.String(); strings.Contains(words, "level=ERROR") {
		t.Errorf("errors in the log:\n%s", words)
	}
}

// A socket with hardly any room loses events in every storm.
func TestDaemonReadsEverythingAfterLostEvents(t *testing.T) {
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	// The first one who asks for signals starts a goroutine that stays.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	goroutines := runtime.NumGoroutine()
	log := &lab.Lines{}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- h.Do(func() error {
			logger := slog.New(slog.NewTextHandler(log, nil))
			host, err := kernel.Open(kernel.Options{EventBuffer: 1, Log: logger})
			if err != nil {
				return err
			}
			defer host.Close()
			return daemon.Run(ctx, daemon.Options{
				ConfigDir: profiles.DefaultDir, StateDir: "/var/lib/sisod", RunDir: "/run/sisod", Host: host, Log: logger,
			})
		})
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		patiently(t, func() error {
			if n := runtime.NumGoroutine(); n > goroutines {
				return fmt.Errorf("%d goroutines are left of a daemon that has ended", n-goroutines)
			}
			return nil
		})
		if t.Failed() {
			t.Log(log)
		}
	}()
	ready(t, h)
	before := snapshot(t, h)
	var storm strings.Builder
	for i := range 300 {
		fmt.Fprintf(&storm, "rule add pref %d lookup main\n", 1000+i)
		if i == 150 {
			storm.WriteString("rule del pref 11800\nroute flush table isp1\nlink set em2 group 0\n" +
				"address add 192.0.2.99/24 dev em1\naddress del 192.0.2.99/24 dev em1\n")
		}
	}
	for i := range 300 {
		fmt.Fprintf(&storm, "rule del pref %d\n", 1000+i)
	}
	storms := 0
	patiently(t, func() error {
		batch(t, h, storm.String())
		settled(t, h)
		if storms++; storms < 5 {
			return errors.New("one storm is none")
		}
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, "lost events") && strings.Contains(line, "msg=\"add") {
				return nil
			}
		}
		return errors.New("no storm has made the daemon lose events")
	})
	for _, c := range []string{"rule", "route show table all", "-d link"} {
		shows(t, h, c, "115")
	}
	if now := snapshot(t, h); strings.Count(now, "\n") != strings.Count(before, "\n") {
		t.Error(difference(t, before, now))
	}
}

// descriptors counts the open files of a process, and what it watches.
func descriptors(t *testing.T, pid int) (open, watched int) {
	t.Helper()
	entries, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil || len(entries) == 0 {
		t.Fatalf("no open files of process %d: %v", pid, err)
	}
	for _, e := range entries {
		// One may have been closed meanwhile.
		if content, err := os.ReadFile(e); err == nil {
			open++
			watched += strings.Count(string(content), "inotify wd:")
		}
	}
	return open, watched
}

// resident is the memory of a process, in kB (proc(5), VmRSS).
func resident(t *testing.T, pid int) (kB int) {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kB); err != nil {
		t.Fatal(err)
	}
	return kB
}

func TestDaemonLeaksNothing(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	n := newNotifySocket(t)
	p, _ := startDaemon(t, h, "NOTIFY_SOCKET="+n.path)
	n.until(t, "READY=1")
	reload := func(times int) {
		for range times {
			if err := p.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			n.until(t, "RELOADING=1")
			n.until(t, "READY=1")
		}
	}
	reload(5)
	open, watched := descriptors(t, p.Pid())
	memory := resident(t, p.Pid())
	reload(200)
	for range 8 {
		sh(t, h, "cp -r /etc/sisod/profiles /etc/sisod/fresh; mv /etc/sisod/profiles /etc/sisod/stale; mv /etc/sisod/fresh /etc/sisod/profiles; rm -r /etc/sisod/stale")
		ip(t, h, "address", "add", "192.0.2.99/24", "dev", "em1")
		ip(t, h, "rule", "add", "pref", "300", "lookup", "main")
		ip(t, h, "rule", "del", "pref", "300")
		ip(t, h, "address", "del", "192.0.2.99/24", "dev", "em1")
		settled(t, h)
	}
	patiently(t, func() error {
		if o, w := descriptors(t, p.Pid()); o > open || w > watched {
			return fmt.Errorf("%d open files and %d watches, were %d and %d", o, w, open, watched)
		}
		return nil
	})
	now := resident(t, p.Pid())
	t.Logf("resident memory %d kB after 205 reloads, %d kB after 5", now, memory)
	if now > 20<<10 {
		t.Errorf("resident memory is %d kB, want less than 20 MB", now)
	}
	// Idle means idle: not one wake-up of any thread.
	wakes := func() (sum int) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			content, err := os.ReadFile(thread)
			if err != nil {
				continue
			}
			for _, word := range []string{"\nvoluntary_ctxt_switches:", "\nnonvoluntary_ctxt_switches:"} {
				var count int
				_, rest, _ := strings.Cut(string(content), word)
				if _, err := fmt.Sscan(rest, &count); err != nil {
					t.Fatal(err)
				}
				sum += count
			}
		}
		return sum
	}
	patiently(t, func() error {
		before, ticks := wakes(), cpuTime(t, p.Pid())
		for range 30 {
			sisod(t, h, "version")
		}
		if w, c := wakes()-before, cpuTime(t, p.Pid())-ticks; w != 0 || c != 0 {
			return fmt.Errorf("an idle daemon was woken up %d times and used %d ticks", w, c)
		}
		return nil
	})
}
