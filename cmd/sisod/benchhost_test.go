package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
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
