package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/profiles"
)

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

// quantile is the value below which the share q of the times lies.
func quantile(times []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
