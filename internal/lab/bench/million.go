package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about a daemon with a million prefixes.
const (
	firstRun   = "daemon with prefixes, start to READY"
	peakFirst  = "peak memory, first apply"
	idleMemory = "memory, idle after"
	oneLine    = "one prefix added, rename to kernel"
	oneMessage = "one prefix removed, write messages"
	linkAll    = "link up to all prefixes"
	linkFirst  = "link up to defaults and source rules"
	peakAll    = "peak memory, with a changed list and the link back"
)

const million = 1_000_000

// idleAfter is how long after READY idle memory is looked at.
const idleAfter = 10 * time.Second

func (b *bench) million() error {
	list := list4(million)
	for run := range b.runs {
		b.log.Printf("a daemon with %d prefixes, run %d of %d", million, run+1, b.runs)
		if err := b.onSite(func(s *site) error { return s.millionOnce(list) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) of(work string) key { return key{work, million, s.where, ours} }

func (s *site) millionOnce(list []netip.Prefix) error {
	// Addresses of IPv6 go with a link, and it is not sisod that brings them back.
	if err := s.host.Sysctl("net/ipv6/conf/em1/keep_addr_on_down=1", "net/ipv6/conf/em2/keep_addr_on_down=1"); err != nil {
		return err
	}
	if err := giveList(s.host, list); err != nil {
		return err
	}
	if err := configure(s.host, listed()); err != nil {
		return err
	}
	d, took, err := s.startDaemon(s.host)
	if err != nil {
		return err
	}
	defer d.stop()
	s.took(s.of(firstRun), took)
	if err := s.whole("destinations", million); err != nil {
		return err
	}
	if err := s.memory(d, peakFirst, "VmHWM"); err != nil {
		return err
	}
	if err := s.pause(idleAfter); err != nil {
		return err
	}
	if err := s.memory(d, idleMemory, "VmRSS"); err != nil {
		return err
	}
	if err := s.changeLine(d, list); err != nil {
		return fmt.Errorf("%w\n%s", err, d.log)
	}
	if err := s.flapMillion(d, list); err != nil {
		return fmt.Errorf("%w\n%s", err, d.log)
	}
	return s.memory(d, peakAll, "VmHWM")
}

func (s *site) memory(d *daemon, work, name string) error {
	m, err := memory(d.Pid(), name)
	s.report.add(s.of(work), mebi, m)
	return err
}

// changeLine adds a line to the list and takes it out again, both as careful
// people do, by renaming a finished file. The first is timed, of the second
// strace tells what the daemon wrote.
func (s *site) changeLine(d *daemon, list []netip.Prefix) error {
	next, current := "/etc/sisod/next.zone", filepath.Join(configFolder, "list.zone")
	rename := func(list []netip.Prefix) (at time.Time, err error) {
		err = s.host.Do(func() error {
			if err := writeLines(next, list, "%s"); err != nil {
				return err
			}
			at = time.Now()
			return os.Rename(next, current)
		})
		return at, err
	}
	w, err := listen(s.host, nil)
	if err != nil {
		return err
	}
	defer w.close()
	start, err := rename(append(list[:len(list):len(list)], spare))
	if err != nil {
		return err
	}
	at, err := w.until(time.Minute, routeTo(unix.RTM_NEWROUTE, spare))
	if err != nil {
		return fmt.Errorf("add one line: %w", err)
	}
	s.took(s.of(oneLine), at.Sub(start))
	if err := s.settle(d.Pid()); err != nil {
		return err
	}
	w.forget()
	messages, err := s.traced(d, func() error {
		if _, err := rename(list); err != nil {
			return err
		}
		if _, err := w.until(2*time.Minute, routeTo(unix.RTM_DELROUTE, spare)); err != nil {
			return fmt.Errorf("remove one line: %w", err)
		}
		return s.settle(d.Pid())
	})
	if err != nil {
		return err
	}
	s.report.add(s.of(oneMessage), count, float64(messages))
	return nil
}

// traced counts the requests for a change that the daemon sends to the kernel's
// routing while f runs, as strace reads them.
func (s *site) traced(d *daemon, f func() error) (int, error) {
	trace := filepath.Join(s.dir, "trace")
	said := &lab.Lines{}
	cmd := exec.Command("strace", "-f", "-p", fmt.Sprint(d.Pid()), "-e", "trace=sendto,sendmsg", "-e", "abbrev=none", "-s", "0", "-o", trace)
	cmd.Stderr = said
	p, err := s.host.Start(cmd)
	if err != nil {
		return 0, err
	}
	defer p.Kill()
	err = lab.Wait(s.ctx, func() error {
		if !strings.Contains(said.String(), "attached") {
			return errors.New("strace is not attached: " + said.String())
		}
		return nil
	})
	if err == nil {
		err = f()
	}
	if err := errors.Join(err, p.Signal(os.Interrupt)); err != nil {
		return 0, err
	}
	<-p.Done()
	text, err := os.ReadFile(trace)
	if err != nil {
		return 0, fmt.Errorf("read what strace saw: %w", err)
	}
	messages := 0
	for _, kind := range []string{"ROUTE", "RULE", "NEXTHOP", "ADDR", "LINK"} {
		messages += bytes.Count(text, []byte("RTM_NEW"+kind)) + bytes.Count(text, []byte("RTM_DEL"+kind))
	}
	return messages, os.Remove(trace)
}

// flapMillion sets the link with all the prefixes down, and up.
func (s *site) flapMillion(d *daemon, list []netip.Prefix) error {
	if err := s.host.Down("em1"); err != nil {
		return err
	}
	if err := s.settle(d.Pid()); err != nil {
		return err
	}
	if n, err := s.lines(s.host, "route", "show", "table", "destinations"); err != nil || n > 10 {
		return fmt.Errorf("set the link down: %d routes are still there (%w)", n, err)
	}
	w, err := listen(s.host, sampling)
	if err != nil {
		return err
	}
	defer w.close()
	missing := map[netip.Addr]bool{}
	for _, p := range list {
		if sampled(p) {
			missing[p.Addr()] = true
		}
	}
	defaults := map[byte]bool{unix.AF_INET: true, unix.AF_INET6: true}
	var first, prefix time.Time
	start := time.Now()
	if err := s.host.Up("em1"); err != nil {
		return err
	}
	_, err = w.until(2*time.Minute, func(n notice) bool {
		if n.kind == unix.RTM_NEWRULE {
			first = n.at
		}
		if n.kind != unix.RTM_NEWROUTE || n.body[7] != unix.RTN_UNICAST {
			return false
		}
		if n.body[1] == 0 && defaults[n.body[0]] {
			delete(defaults, n.body[0])
			first = n.at
		}
		a, _ := netip.AddrFromSlice(attribute(n.body, unix.SizeofRtMsg, unix.RTA_DST))
		if missing[a] {
			delete(missing, a)
			prefix = n.at
		}
		return len(missing) == 0 && len(defaults) == 0
	})
	if err != nil {
		return fmt.Errorf("set the link up: %w: %d of the sampled prefixes and %d defaults are missing", err, len(missing), len(defaults))
	}
	if err := s.settle(d.Pid()); err != nil {
		return err
	}
	for len(w.notices) > 0 {
		if n := <-w.notices; n.kind == unix.RTM_NEWRULE {
			first = n.at
		}
	}
	s.took(s.of(linkAll), prefix.Sub(start))
	s.took(s.of(linkFirst), first.Sub(start))
	return s.whole("destinations", million)
}
