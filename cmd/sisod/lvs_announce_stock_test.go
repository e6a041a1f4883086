//go:build stock

package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// capturedARP listens on a host with tcpdump, for ARP and what IPv6 has for it. The
// result is what it has printed so far.
func capturedARP(t *testing.T, h *lab.Host, link string) func() string {
	t.Helper()
	out, said := &lab.Lines{}, &lab.Lines{}
	cmd := exec.Command("tcpdump", "-n", "-l", "-t", "--immediate-mode", "-i", link, "arp or (icmp6 and ip6[40] == 136)")
	cmd.Stdout, cmd.Stderr = out, said
	p, err := h.Start(cmd)
	if err != nil {
		t.Fatalf("%v: make tools installs it", err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
		if t.Failed() {
			t.Logf("tcpdump on %s: %s\n%s", h.Name, said, out)
		}
	})
	patiently(t, func() error {
		if !strings.Contains(said.String(), "listening on") {
			return fmt.Errorf("tcpdump says %q", said)
		}
		return nil
	})
	return out.String
}

// TestStockVIPsAreAnnouncedAgain: three times at once, and again later, when a VIP
// appears and when its link has its carrier again.
func TestStockVIPsAreAnnouncedAgain(t *testing.T) {
	t.Parallel()
	loadLVS(t)
	h, router := smallHost(t)
	// The link goes down below tcpdump.
	heard := capturedARP(t, router, "any")
	const burst = 3 // frames at once, which are sent when it appears, and twice later
	announced := 0
	more := func(what string, frames int) {
		t.Helper()
		announced += frames
		for _, words := range []string{"who-has 203.0.113.145 tell 203.0.113.145", "2001:db8:9::145 > ff02::1: ICMP6, neighbor advertisement, tgt is 2001:db8:9::145"} {
			patiently(t, func() error {
				if n := strings.Count(heard(), words); n < announced {
					return fmt.Errorf("%s: heard %d times %q, want %d", what, n, words, announced)
				}
				return nil
			})
			if n := strings.Count(heard(), words); n > announced {
				t.Fatalf("%s: heard %d times %q, want %d:\n%s", what, n, words, announced, heard())
			}
		}
	}
	writeProfile(t, h, "lvs.toml", "[director.web]\nmode = \"dr\"\nvip = [\"203.0.113.145\", \"2001:db8:9::145\"]\ninterface = \"em1\"\nservices = [\"tcp/80\"]\nreal_servers = [{ address = \"192.0.2.77\" }, { address = \"2001:db8:1::77\" }]\n")
	_, log := started(t, h)
	more("a VIP that appears", 3*burst)

	ip(t, router, "link", "set", "host1", "down")
	shows(t, h, "link show dev em1", "NO-CARRIER")
	ip(t, router, "link", "set", "host1", "up")
	more("carrier again", 3*burst)

	ip(t, h, "address", "del", "203.0.113.145/32", "dev", "em1")
	ip(t, h, "address", "del", "2001:db8:9::145/128", "dev", "em1")
	more("a VIP that was taken away", 3*burst)

	// What was given back is nobody's to announce. The next VIP comes after it.
	expect(t, h, 0, "flush")
	says(t, log, "hold still after flush")
	expect(t, h, 0, "apply")
	more("applied by another process", 3*burst)
	expect(t, h, 0, "flush")
}
