package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// site is a host with two uplinks, em1 and em2, and a router behind each.
type site struct {
	*bench
	lab  *lab.Lab
	host *lab.Host
}

// Gateways of the uplinks, and the host's own addresses.
const (
	gateway4 = "10.1.0.1"
	gateway6 = "2001:db8:1::1"
)

// subnets4 are those of the uplinks.
func subnets4() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16")}
}

// newSite makes a site. Its host has its default by em1 in main.
func (b *bench) newSite() (*site, error) {
	runtime.GC() // for what comes now, this process has none
	s := &site{bench: b, lab: lab.New(b.ctx)}
	hosts, err := s.lab.Hosts("host", "router")
	if err == nil {
		s.host = hosts[0]
		for i := 1; i <= 2 && err == nil; i++ {
			err = s.lab.Link(
				lab.End{Host: hosts[0], Link: fmt.Sprintf("em%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.2/16", i), fmt.Sprintf("2001:db8:%d::2/64", i)}},
				lab.End{Host: hosts[1], Link: fmt.Sprintf("host%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.1/16", i), fmt.Sprintf("2001:db8:%d::1/64", i)}})
		}
	}
	if err == nil {
		err = s.host.Routes([2]string{"default4", gateway4}, [2]string{"default6", gateway6})
	}
	if err != nil {
		return nil, errors.Join(err, s.lab.Close())
	}
	return s, nil
}

// close gives the host back. Its routes go first, so that the kernel does not
// take them away behind the next run's back.
func (s *site) close() error {
	for _, link := range []string{"em1", "em2"} {
		if err := s.host.Down(link); err != nil {
			return errors.Join(err, s.lab.Close())
		}
	}
	return s.lab.Close()
}

// onSite runs f on a site of its own.
func (b *bench) onSite(f func(*site) error) error {
	s, err := b.newSite()
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.close())
}

const configFolder = "/etc/sisod/profiles"

// configure makes text the only profile of a host.
func configure(h *lab.Host, text string) error {
	return h.Do(func() error {
		if err := os.MkdirAll(configFolder, 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(configFolder, "bench.toml"), []byte(text), 0o644)
	})
}

// two is a profile of the site's uplinks; the first has more keys.
func two(more string) string {
	return fmt.Sprintf(`[uplink.a]
interface = "em1"
gateway = ["%s", "%s"]
%s
[uplink.b]
interface = "em2"
gateway = ["10.2.0.1", "2001:db8:2::1"]
`, gateway4, gateway6, more)
}

// run runs a program on a host to its end; codes are those that it may end with.
// What it prints goes to out, or nowhere. It returns how long that took.
func (b *bench) run(h *lab.Host, out io.Writer, codes []int, name string, args ...string) (time.Duration, error) {
	var said bytes.Buffer
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, &said
	start := time.Now()
	p, err := h.Start(cmd)
	if err != nil {
		return 0, err
	}
	err = p.Wait()
	took := time.Since(start)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		return 0, fmt.Errorf("run %s: %w", name, err)
	}
	for _, c := range codes {
		if c == code {
			return took, nil
		}
	}
	return 0, fmt.Errorf("run %s %s: exit code %d: %s", filepath.Base(name), strings.Join(args, " "), code, bytes.TrimSpace(said.Bytes()))
}

// must is run of a program that has to end with 0.
func (b *bench) must(h *lab.Host, name string, args ...string) (time.Duration, error) {
	return b.run(h, nil, []int{0}, name, args...)
}

// lines counts what ip prints.
func (b *bench) lines(h *lab.Host, args ...string) (int, error) {
	var n lineCounter
	_, err := b.run(h, &n, []int{0}, "ip", args...)
	return int(n), err
}

type lineCounter int

func (n *lineCounter) Write(p []byte) (int, error) {
	*n += lineCounter(bytes.Count(p, []byte("\n")))
	return len(p), nil
}

// daemon is a sisod that runs on a host.
type daemon struct {
	*lab.Process
	log *lab.Lines
}

// startDaemon starts sisod run and waits for READY=1. It returns how long that took.
func (b *bench) startDaemon(h *lab.Host) (*daemon, time.Duration, error) {
	socket := filepath.Join(b.dir, "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, 0, fmt.Errorf("listen for READY: %w", err)
	}
	defer os.Remove(socket)
	defer ready.Close()
	d := &daemon{log: &lab.Lines{}}
	cmd := exec.Command(b.sisod, "run")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	cmd.Stdout, cmd.Stderr = io.Discard, d.log
	start := time.Now()
	if d.Process, err = h.Start(cmd); err != nil {
		return nil, 0, err
	}
	if err := ready.SetReadDeadline(start.Add(5 * time.Minute)); err != nil {
		return nil, 0, err
	}
	go func() {
		// Ended, it will never be ready.
		<-d.Done()
		_ = ready.SetReadDeadline(time.Unix(1, 0))
	}()
	buffer := make([]byte, 4096)
	for {
		n, err := ready.Read(buffer)
		if err != nil {
			d.stop()
			return nil, 0, fmt.Errorf("wait for READY: %w\n%s", err, d.log)
		}
		took := time.Since(start)
		if bytes.Contains(buffer[:n], []byte("READY=1")) {
			return d, took, nil
		}
	}
}

func (d *daemon) stop() {
	d.Kill()
	<-d.Done()
}

// used is the processor time of a process so far.
func used(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("read the times of process %d: no threads (%w)", pid, err)
	}
	var sum time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// memory is a value of /proc/PID/status, VmRSS or VmHWM, in MiB.
func memory(pid int, name string) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) > 1 && w[0] == name+":" {
			n, err := strconv.Atoi(w[1])
			return float64(n) / 1024, err
		}
	}
	return 0, fmt.Errorf("find %s of process %d", name, pid)
}

// settle waits until a process has used no time for a second.
func (b *bench) settle(pid int) error {
	last := time.Duration(-1)
	for range 180 {
		now, err := used(pid)
		if err != nil {
			return err
		}
		// A runtime's own watcher wakes up now and then.
		if last >= 0 && now-last < 2*time.Millisecond {
			return nil
		}
		last = now
		if err := b.pause(time.Second); err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d has been at work for three minutes", pid)
}

// pause lets a time pass in which nothing happens.
func (b *bench) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// linkIndex is the number of a host's link. The calling thread is on the host.
func linkIndex(name string) (uint32, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	return uint32(i.Index), nil
}

// onRaw runs f on a host with a socket of netlink there.
func onRaw(h *lab.Host, protocol int, f func(rawSocket) error) error {
	return h.Do(func() error {
		s, err := openRaw(protocol)
		if err != nil {
			return err
		}
		defer s.close()
		return f(s)
	})
}

// routeSocket is onRaw for links, routes and rules.
func routeSocket(h *lab.Host, f func(rawSocket) error) error {
	return onRaw(h, unix.NETLINK_ROUTE, f)
}
