package main

import (
	"context"
	"io"
	"log"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is a bench on this machine whose programs are not measured.
func quiet(t *testing.T) *bench {
	return &bench{ctx: t.Context(), dir: t.TempDir(), runs: 1, where: onHost, report: &report{}, log: log.New(io.Discard, "", 0)}
}

// TestFloorWritesTheRoutes: what the floor writes is what ip reads.
func TestFloorWritesTheRoutes(t *testing.T) {
	b := quiet(t)
	const n = 3*perSend + 7
	for _, program := range []string{floor, floorHop} {
		err := b.onSite(func(s *site) error {
			if _, err := s.rawList(program, list4(n)); err != nil {
				return err
			}
			var out strings.Builder
			if _, err := s.run(s.host, &out, []int{0}, "ip", "route", "show", "table", "100"); err != nil {
				return err
			}
			if got := strings.Count(out.String(), "via "+gateway4+" dev em1"); got != n {
				t.Errorf("%s: %d routes, want %d", program, got, n)
			}
			for _, p := range []netip.Prefix{list4(n)[0], list4(n)[n-1]} {
				if !strings.Contains(out.String(), p.String()+" ") {
					t.Errorf("%s: no route to %s", program, p)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFloorTellsOfARefusedRoute: a floor that lost routes would be no floor.
func TestFloorTellsOfARefusedRoute(t *testing.T) {
	list := list4(2*perSend + 9)
	// Not the last of its batch: that one is acknowledged in any case.
	list[perSend+5] = list[0]
	err := quiet(t).onSite(func(s *site) error {
		_, err := s.rawList(floor, list)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "file exists") {
		t.Errorf("a route that was there already: %v", err)
	}
}

// TestSamplingHearsOfSomePrefixesAndAllElse: the filter is written in numbers.
func TestSamplingHearsOfSomePrefixesAndAllElse(t *testing.T) {
	b := quiet(t)
	list := list4(3 * sampleEvery)
	err := b.onSite(func(s *site) error {
		w, err := listen(s.host, sampling)
		if err != nil {
			return err
		}
		defer w.close()
		if _, err := s.rawList(floor, list); err != nil {
			return err
		}
		if _, err := s.must(s.host, "ip", "-6", "route", "add", "2001:db8:99::/48", "dev", "em1"); err != nil {
			return err
		}
		if _, err := s.must(s.host, "ip", "route", "add", "default", "via", gateway4, "table", "100"); err != nil {
			return err
		}
		var heard []netip.Prefix
		_, err = w.until(10*time.Second, func(n notice) bool {
			if n.kind != unix.RTM_NEWROUTE {
				return false
			}
			a, _ := netip.AddrFromSlice(attribute(n.body, unix.SizeofRtMsg, unix.RTA_DST))
			heard = append(heard, netip.PrefixFrom(a, int(n.body[1])))
			return inTable(n) == rawTable && n.body[1] == 0
		})
		if err != nil {
			return err
		}
		var want []netip.Prefix
		for _, p := range list {
			if sampled(p) {
				want = append(want, p)
			}
		}
		if len(want) != 3 || len(heard) != 5 || heard[0] != want[0] || heard[2] != want[2] || heard[3].Bits() != 48 {
			t.Errorf("heard of %v, want %v, one of IPv6, and a default", heard, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLostPacketsAreCounted: of a flow to two places of which one is a hole, half
// is lost.
func TestLostPacketsAreCounted(t *testing.T) {
	b := quiet(t)
	s, err := b.newSegment(ipVersions[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := b.must(s.host, "ip", "route", "add", "blackhole", "198.51.100.0/24"); err != nil {
		t.Fatal(err)
	}
	f, err := startFlow(s, []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.7")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for f.arrived(0) < 100 && ctx.Err() == nil {
		if err := b.pause(time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	last, lost, err := f.stop(0)
	if err != nil {
		t.Fatal(err)
	}
	if sent := len(f.sent); lost != sent/2 || sent < 200 {
		t.Errorf("%d packets lost of %d, want half", lost, sent)
	}
	if newest := f.sent[len(f.sent)-1]; newest.Sub(last) > time.Second || last.After(newest) {
		t.Errorf("the last packet that arrived was sent at %v, the last one at %v", last, newest)
	}
}
