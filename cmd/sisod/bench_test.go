package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/profiles"
)

// benchUplinks is how many uplinks the host of the benchmarks has.
const benchUplinks = 10

// benchHost is a host with ten uplinks em0 to em9, each with addresses and
// gateways of both families that its profile names, and the profile.
func benchHost(b *testing.B) *lab.Host {
	b.Helper()
	l := lab.New(b.Context())
	closeLab(b, l)
	hosts, err := l.Hosts("host", "router")
	if err != nil {
		b.Fatal(err)
	}
	var profile strings.Builder
	for i := range benchUplinks {
		err := l.Link(
			lab.End{Host: hosts[0], Link: fmt.Sprintf("em%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.2/16", i), fmt.Sprintf("2001:db8:%d::2/64", i)}},
			lab.End{Host: hosts[1], Link: fmt.Sprintf("host%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.1/16", i), fmt.Sprintf("2001:db8:%d::1/64", i)}})
		if err != nil {
			b.Fatal(err)
		}
		if err := hosts[0].Sysctl(fmt.Sprintf("net/ipv6/conf/em%d/keep_addr_on_down=1", i)); err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&profile, "[uplink.isp%d]\ninterface = \"em%d\"\ngateway = [\"10.%d.0.1\", \"2001:db8:%d::1\"]\n", i, i, i, i)
	}
	if err := hosts[0].Routes([2]string{"default4", "10.0.0.1"}, [2]string{"default6", "2001:db8::1"}); err != nil {
		b.Fatal(err)
	}
	writeProfile(b, hosts[0], "isp.toml", profile.String())
	return hosts[0]
}

// notice is one message of the kernel, and when it was received.
type notice struct {
	at   time.Time
	kind uint16
	body []byte
}

// listen hands out what the kernel tells of links, addresses, routes and rules
// of a host.
func listen(b *testing.B, h *lab.Host) <-chan notice {
	b.Helper()
	var file *os.File
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "witness")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		groups := uint32(0)
		for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE} {
			groups |= 1 << (g - 1)
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })
	notices := make(chan notice, 1<<16)
	go func() {
		defer close(notices)
		buffer := make([]byte, 1<<16)
		for {
			n, err := file.Read(buffer)
			now := time.Now()
			if err != nil {
				return
			}
			messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buffer[:n]))
			if err != nil {
				return
			}
			for _, m := range messages {
				notices <- notice{now, m.Header.Type, m.Data}
			}
		}
	}()
	return notices
}

// stretch makes a change and returns the time from the first notice of it to
// the notice of what has to follow.
func stretch(b *testing.B, notices <-chan notice, change func(), begins func(notice) bool, follows func(first, n notice) bool) time.Duration {
	b.Helper()
	for len(notices) > 0 {
		<-notices
	}
	change()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	var first notice
	for {
		select {
		case n := <-notices:
			switch {
			case first.body == nil && begins(n):
				first = n
			case first.body != nil && follows(first, n):
				return n.at.Sub(first.at)
			}
		case <-deadline.C:
			b.Fatal("the daemon did not react")
		}
	}
}

// attribute finds an attribute of a message behind a header of the given length.
func attribute(body []byte, header int, kind uint16) []byte {
	for rest := body[header:]; len(rest) >= 4; {
		length := int(rest[0]) | int(rest[1])<<8
		if length < 4 || length > len(rest) {
			return nil
		}
		if uint16(rest[2])|uint16(rest[3])<<8 == kind {
			return rest[4:length]
		}
		rest = rest[min((length+3)&^3, len(rest)):]
	}
	return nil
}

// reactions makes events on a host and measures what the daemon makes of them.
type reactions struct {
	*testing.B
	host    *lab.Host
	notices <-chan notice
	random  *rand.Rand
	// added are addresses of newAddress that are still there.
	added []addedAddress
	// serial, rules and routes count what was made and undone.
	serial, rules, routes int
}

type addedAddress struct {
	netip.Prefix
	link string
}

// idle lets a time pass in which nothing happens: events that follow each
// other closely are gathered, and that is another measurement.
func (r *reactions) idle(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// ruleMessage matches a message about the rule for an address.
func ruleMessage(kind uint16, a netip.Addr) func(_, n notice) bool {
	return func(_, n notice) bool {
		return n.kind == kind && bytes.Equal(attribute(n.body, unix.SizeofRtMsg, unix.FRA_SRC), a.AsSlice())
	}
}

// addressMessage matches a message about an address.
func addressMessage(kind uint16, a netip.Addr) func(notice) bool {
	return func(n notice) bool {
		return n.kind == kind && bytes.Equal(attribute(n.body, unix.SizeofIfAddrmsg, unix.IFA_ADDRESS), a.AsSlice())
	}
}

// newAddress: from RTM_NEWADDR to the source rule, which is written after the routes.
func (r *reactions) newAddress() time.Duration {
	r.serial++
	i := r.random.IntN(benchUplinks)
	a := addedAddress{link: fmt.Sprintf("em%d", i), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(100 + r.serial>>8), byte(r.serial)}), 16)}
	if r.random.IntN(2) == 0 {
		a.Prefix = netip.MustParsePrefix(fmt.Sprintf("2001:db8:%d::1:%x/64", i, r.serial))
	}
	r.added = append(r.added, a)
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "address", "add", a.String(), "dev", a.link) },
		addressMessage(unix.RTM_NEWADDR, a.Addr()), ruleMessage(unix.RTM_NEWRULE, a.Addr()))
}

// oldAddress: from RTM_DELADDR to the end of the source rule. Many addresses
// would become one rule.
func (r *reactions) oldAddress() time.Duration {
	if len(r.added) == 0 {
		return r.newAddress()
	}
	a := r.added[0]
	r.added = r.added[1:]
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "address", "del", a.String(), "dev", a.link) },
		addressMessage(unix.RTM_DELADDR, a.Addr()), ruleMessage(unix.RTM_DELRULE, a.Addr()))
}

// linkUp: from RTM_NEWLINK with the carrier to the last route of IPv4, which
// went with the link.
func (r *reactions) linkUp() time.Duration {
	i := r.random.IntN(benchUplinks)
	link, table := fmt.Sprintf("em%d", i), uint32(profiles.DefaultSettings.Table)+uint32(i)
	ip(r, r.host, "link", "set", link, "down")
	wait(r, func() error {
		if strings.Contains(ip(r, r.host, "route", "show", "table", strconv.Itoa(int(table))), "default via") {
			return errors.New("the default is there without its link")
		}
		return nil
	})
	r.idle(100 * time.Millisecond)
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "link", "set", link, "up") },
		func(n notice) bool {
			return n.kind == unix.RTM_NEWLINK && string(bytes.TrimRight(attribute(n.body, unix.SizeofIfInfomsg, unix.IFLA_IFNAME), "\x00")) == link &&
				n.body[8]&unix.IFF_UP != 0 && n.body[10]&(unix.IFF_LOWER_UP>>16) != 0
		},
		func(_, n notice) bool {
			return n.kind == unix.RTM_NEWROUTE && n.body[0] == unix.AF_INET && n.body[1] == 0 &&
				bytes.Equal(attribute(n.body, unix.SizeofRtMsg, unix.RTA_TABLE), []byte{byte(table), byte(table >> 8), 0, 0})
		})
}

// ruleDeleted: from RTM_DELRULE to the same rule.
func (r *reactions) ruleDeleted() time.Duration {
	r.rules++
	rules := strings.Split(strings.TrimSpace(ownRules(r, r.host, "-4")), "\n")
	// One after the other: what is undone too often is repaired more slowly.
	priority, selector, _ := strings.Cut(rules[r.rules%len(rules)], ":")
	return stretch(r.B, r.notices,
		func() {
			ip(r, r.host, append([]string{"rule", "del", "priority", priority}, strings.Fields(strings.Replace(selector, " proto ", " protocol ", 1))...)...)
		},
		func(n notice) bool { return n.kind == unix.RTM_DELRULE },
		func(first, n notice) bool { return n.kind == unix.RTM_NEWRULE && bytes.Equal(n.body, first.body) })
}

// routeDeleted: from RTM_DELROUTE to the same route.
func (r *reactions) routeDeleted() time.Duration {
	r.routes++
	i := r.routes % benchUplinks
	table := strconv.Itoa(int(profiles.DefaultSettings.Table) + i)
	dst := []string{"default", fmt.Sprintf("10.%d.0.0/16", i)}[r.routes/benchUplinks%2]
	return stretch(r.B, r.notices,
		func() { ip(r, r.host, "route", "del", dst, "table", table, "metric", "0") },
		func(n notice) bool { return n.kind == unix.RTM_DELROUTE },
		func(first, n notice) bool { return n.kind == unix.RTM_NEWROUTE && bytes.Equal(n.body, first.body) })
}

// BenchmarkReaction is the time from the kernel's message about a change to
// the message about the last object that makes sisod's state whole again.
func BenchmarkReaction(b *testing.B) {
	h := benchHost(b)
	startDaemon(b, h)
	upToDate(b, h)
	r := &reactions{B: b, host: h, notices: listen(b, h), random: rand.New(rand.NewPCG(1, 2))}
	const each = 40
	for b.Loop() {
		for _, kind := range []struct {
			name string
			one  func() time.Duration
		}{{"newaddr", r.newAddress}, {"oldaddr", r.oldAddress}, {"linkup", r.linkUp}, {"rule", r.ruleDeleted}} {
			var times []time.Duration
			for range each {
				r.idle(50 * time.Millisecond)
				times = append(times, kind.one())
			}
			b.ReportMetric(milliseconds(quantile(times, 0.5)), kind.name+"-p50-ms")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRandomEvents is the same for a thousand events of all kinds, at
// random intervals: some wait for the gathering of those before.
func BenchmarkRandomEvents(b *testing.B) {
	h := benchHost(b)
	startDaemon(b, h)
	upToDate(b, h)
	r := &reactions{B: b, host: h, notices: listen(b, h), random: rand.New(rand.NewPCG(3, 4))}
	const events = 1000
	var times []time.Duration
	for b.Loop() {
		for range events {
			r.idle(time.Duration(r.random.ExpFloat64() * float64(40*time.Millisecond)))
			kinds := []func() time.Duration{r.newAddress, r.newAddress, r.linkUp, r.linkUp, r.ruleDeleted, r.routeDeleted}
			kind := kinds[r.random.IntN(len(kinds))]
			if len(r.added) > benchUplinks/2 {
				kind = r.oldAddress
			}
			times = append(times, kind())
		}
	}
	b.ReportMetric(milliseconds(quantile(times, 0.5)), "p50-ms")
	b.ReportMetric(milliseconds(quantile(times, 0.99)), "p99-ms")
	b.ReportMetric(milliseconds(quantile(times, 1)), "max-ms")
	b.ReportMetric(0, "ns/op")
}

// upToDate waits until the daemon has nothing more to do.
func upToDate(b *testing.B, h *lab.Host) {
	b.Helper()
	wait(b, func() error {
		if r := sisod(b, h, "status"); r.code != 0 {
			return errors.New(r.stdout + r.stderr)
		}
		return nil
	})
}

// BenchmarkNothingToDo is a pass that finds nothing to do, beside 100,000 routes
// of others: after an event about a rule, and about an address; the daemon's full
// pass of every five minutes; and the whole of sisod apply.
func BenchmarkNothingToDo(b *testing.B) {
	const routes = 100000
	for name, way := range map[string]string{
		"main-elsewhere": "dev bulk proto static",
		"main-uplink":    "via 10.0.0.1 dev em0 proto bird",
	} {
		b.Run(name, func(b *testing.B) {
			h := benchHost(b)
			ip(b, h, "link", "add", "bulk", "type", "veth", "peer", "name", "bulk-peer")
			ip(b, h, "link", "set", "bulk", "up")
			ip(b, h, "link", "set", "bulk-peer", "up")
			var batch strings.Builder
			for i := range routes {
				fmt.Fprintf(&batch, "route add %d.%d.%d.0/24 %s\n", 100+i>>16, i>>8&0xff, i&0xff, way)
			}
			file := filepath.Join(b.TempDir(), "routes")
			if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
				b.Fatal(err)
			}
			ip(b, h, "-batch", file)
			expect(b, h, 0, "apply")
			writes := 0
			r := traced(b, h, func(c change) verdict {
				if strings.HasPrefix(c.what, "netlink") || strings.HasPrefix(c.what, "write /proc") {
					writes++
				}
				return proceed
			}, "apply")
			if r.stdout != "nothing to do\n" {
				b.Fatalf("apply found something to do:\n%s", r.stdout)
			}
			for b.Loop() {
				for _, p := range []struct {
					name  string
					parts kernel.Parts
					sweep bool
				}{
					{"rule", kernel.PartRules, false},
					{"address", kernel.PartLinks | kernel.PartExpired | kernel.PartRoutes, false},
					{"full", kernel.AllParts, true},
				} {
					var times, work []time.Duration
					err := h.Do(func() (err error) {
						times, work, err = passes(b.Context(), p.parts, p.sweep)
						return err
					})
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(milliseconds(quantile(times, 0.5)), p.name+"-p50-ms")
					b.ReportMetric(milliseconds(quantile(work, 0.5)), p.name+"-cpu-ms")
				}
				var times []time.Duration
				for range 21 {
					start := time.Now()
					expect(b, h, 0, "apply")
					times = append(times, time.Since(start))
				}
				b.ReportMetric(milliseconds(quantile(times, 0.5)), "apply-p50-ms")
			}
			b.ReportMetric(float64(writes), "writes")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// passes does what the daemon does in a pass after an event that names these
// parts and the interface em3. Beside the time that passed it returns that which
// the processor worked for it, which a busy machine does not lengthen. The calling
// thread is on the host.
func passes(ctx context.Context, parts kernel.Parts, sweep bool) (times, work []time.Duration, err error) {
	config, err := profiles.Load("", profiles.DefaultDir)
	if err != nil {
		return nil, nil, err
	}
	host, err := kernel.Open(kernel.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	defer host.Close()
	for i := range 52 {
		host.Expire("em3")
		before, start := threadTime(), time.Now()
		p, err := daemon.Look(ctx, host, config, parts, sweep, nil)
		if err != nil {
			return nil, nil, err
		}
		outcomes, err := p.Apply(ctx, host, nil)
		if err != nil {
			return nil, nil, err
		}
		// The first knows nothing yet, and reads everything.
		if i > 0 {
			times, work = append(times, time.Since(start)), append(work, threadTime()-before)
		}
		if len(outcomes) > 0 || len(p.Desired.Problems) > 0 {
			return nil, nil, fmt.Errorf("pass did %v, and has problems %v", outcomes, p.Desired.Problems)
		}
	}
	return times, work, nil
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var used unix.Rusage
	// It cannot fail with these arguments (getrusage(2)).
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkIdleDaemon is what a daemon with ten uplinks costs while nothing happens.
func BenchmarkIdleDaemon(b *testing.B) {
	h := benchHost(b)
	p, _ := startDaemon(b, h)
	upToDate(b, h)
	const span = 20 * time.Second
	var resident float64
	ticks := 0
	for b.Loop() {
		// The wake-ups of its start are over when a second brings none.
		for last := -1; last != cpuTicks(b, p.Pid()); {
			last = cpuTicks(b, p.Pid())
			(&reactions{}).idle(time.Second)
		}
		before := cpuTicks(b, p.Pid())
		(&reactions{}).idle(span)
		ticks = cpuTicks(b, p.Pid()) - before
		resident = float64(procValue(b, p.Pid(), "VmRSS:")) / 1024
	}
	b.ReportMetric(resident, "resident-MiB")
	b.ReportMetric(float64(ticks), "ticks")
	b.ReportMetric(0, "ns/op")
}

// cpuTicks is the time that a process has used, in ticks of a hundredth of a
// second (proc(5), /proc/PID/stat, utime and stime).
func cpuTicks(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, err := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err := errors.Join(err, err2); err != nil {
		b.Fatal(err)
	}
	return user + system
}

// procValue is a number of /proc/PID/status.
func procValue(b *testing.B, pid int, key string) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s in\n%s", key, text)
	return 0
}

// quantile is the value below which the share q of the times lies.
func quantile(times []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
