//go:build stock

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/lab"
)

// rounds is how often a figure is measured; the median is told.
const rounds = 5

// thousand is a profile of 1,000 services with four real servers each, of which
// the first has a weight of its own.
func thousand(weight int) string {
	var b strings.Builder
	for d := range 10 {
		fmt.Fprintf(&b, "[director.d%d]\nmode = \"dr\"\nvip = \"203.0.113.%d\"\nscheduler = \"rr\"\nservices = [", d, d+1)
		for s := range 100 {
			if d == 0 && s == 0 {
				continue
			}
			fmt.Fprintf(&b, "\"tcp/%d\", ", 8000+s)
		}
		fmt.Fprintf(&b, "]\n%s\n", fourServers(1))
	}
	fmt.Fprintf(&b, "[director.one]\nmode = \"dr\"\nvip = \"203.0.113.1\"\nscheduler = \"rr\"\nservices = [\"tcp/8000\"]\n%s\n", fourServers(weight))
	return b.String()
}

func fourServers(weight int) string {
	return fmt.Sprintf(`real_servers = [{ address = "192.0.2.1", weight = %d }, { address = "192.0.2.2" }, { address = "192.0.2.3" }, { address = "192.0.2.4" }]`, weight)
}

// bareDirector is a host of its own network that has the profile of a thousand
// services, and nothing in IPVS: after a flush the kernel is slower.
func bareDirector(b *testing.B) *lab.Host {
	b.Helper()
	l := lab.New(b.Context())
	closeLab(b, l)
	h, err := l.Host("director")
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range []string{"ip_vs", "ip_vs_rr"} {
		run(b, h, "modprobe", m)
	}
	writeProfile(b, h, "lvs.toml", thousand(1))
	return h
}

// took is how long f takes.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func report(b *testing.B, name string, times []time.Duration) float64 {
	p50 := milliseconds(quantile(times, 0.5))
	b.ReportMetric(p50, name+"-p50-ms")
	return p50
}

// BenchmarkThousandServices makes 1,000 services with 4,000 real servers from
// nothing: by sisod apply, and by ipvsadm, which is told what that made. They
// take turns. What a change of one weight takes follows, and what it takes to
// find that nothing is to do.
func BenchmarkThousandServices(b *testing.B) {
	for b.Loop() {
		var h *lab.Host
		var ours, theirs []time.Duration
		for range rounds {
			h = bareDirector(b)
			ours = append(ours, took(func() { expect(b, h, 0, "apply") }))
			saved := run(b, h, "ipvsadm", "-Sn")
			if n := strings.Count(saved, "\n"); n != 5000 {
				b.Fatalf("%d services and real servers, want 5000", n)
			}
			file := filepath.Join(b.TempDir(), "saved")
			if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
				b.Fatal(err)
			}
			other := bareDirector(b)
			theirs = append(theirs, took(func() { run(b, other, "sh", "-c", "ipvsadm -R < "+file) }))
			if n := strings.Count(run(b, other, "ipvsadm", "-Sn"), "\n"); n != 5000 {
				b.Fatalf("ipvsadm made %d services and real servers, want 5000", n)
			}
		}
		b.ReportMetric(report(b, "restore", theirs)/report(b, "apply", ours), "times-faster")

		var idle, edits []time.Duration
		for i := range rounds {
			idle = append(idle, took(func() { expect(b, h, 0, "apply") }))
			writeProfile(b, h, "lvs.toml", thousand(i+2))
			edits = append(edits, took(func() { expect(b, h, 0, "apply") }))
		}
		report(b, "nothing", idle)
		report(b, "weight", edits)

		writeProfile(b, h, "lvs.toml", thousand(99))
		messages := 0
		traced(b, h, func(c change) verdict { messages += c.messages; return proceed }, "apply")
		b.ReportMetric(float64(messages), "weight-messages")
		if out := run(b, h, "ipvsadm", "-Sn"); strings.Count(out, "-w 99\n") != 1 {
			b.Fatal("the weight is not there")
		}
		for _, p := range []struct {
			name  string
			parts kernel.Parts
		}{{"ipvs-pass", kernel.PartIPVS}, {"full-pass", kernel.AllParts}} {
			var times, work []time.Duration
			err := h.Do(func() (err error) {
				times, work, err = passes(b.Context(), p.parts, p.parts == kernel.AllParts)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
			report(b, p.name, times)
			b.ReportMetric(milliseconds(quantile(work, 0.5)), p.name+"-cpu-ms")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleDirector is what a daemon with 1,000 services and 4,000 real
// servers costs while nothing happens, and what it holds in memory.
func BenchmarkIdleDirector(b *testing.B) {
	h := bareDirector(b)
	expect(b, h, 0, "apply")
	p, _ := startDaemon(b, h)
	upToDate(b, h)
	const span = 20 * time.Second
	var resident, ticks float64
	for b.Loop() {
		for last := -1; last != cpuTicks(b, p.Pid()); {
			last = cpuTicks(b, p.Pid())
			(&reactions{}).idle(time.Second)
		}
		before := cpuTicks(b, p.Pid())
		(&reactions{}).idle(span)
		ticks = float64(cpuTicks(b, p.Pid()) - before)
		resident = float64(procValue(b, p.Pid(), "VmRSS:")) / 1024
	}
	b.ReportMetric(resident, "resident-MiB")
	b.ReportMetric(ticks, "ticks")
	b.ReportMetric(0, "ns/op")
}
