package main

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/internal/state"
)

func TestTrafficIsToldInFewDigits(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99949: "99.9 kB", 99951: "100 kB", 999499: "999 kB", 999501: "1.00 MB",
		1234567: "1.23 MB", 45678901234: "45.7 GB", math.MaxUint64: "18.4 EB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
	var v state.Traffic
	if got := trafficText(v); got != "" {
		t.Errorf("nothing is told as %q", got)
	}
	v.Total = state.Counts{Connections: 12, PacketsIn: 36, BytesIn: 2100}
	v.PerSecond = state.Counts{Connections: 3, BytesIn: 1500}
	const direct = "  12 connections (3/s)  2.10 kB in (1.50 kB/s)"
	if got := trafficText(v); got != direct {
		t.Errorf("%q, want %q", got, direct)
	}
	v.Total.PacketsOut, v.Total.BytesOut = 7, 640
	if got := trafficText(v); got != direct+"  640 B out" {
		t.Errorf("%q", got)
	}
}

// It would be looked for in vain in the profiles.
func TestADeputySaysWhyItIsThere(t *testing.T) {
	key := state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: netip.MustParseAddr("203.0.113.1"), Port: 80}
	const why = "lblc stands in for dh: a real server is to get no new connections"
	pass := daemon.Pass{Observed: state.Observed{State: state.New()}}
	pass.Observed.Services[key] = state.Service{ServiceKey: key, Scheduler: "lblc", Netmask: 32}
	pass.Desired.Deputies = map[state.ServiceKey]string{key: why}
	dest := state.Destination{DestinationKey: state.DestinationKey{Service: key, Addr: netip.MustParseAddr("10.0.0.7"), Port: 80}}
	pass.Observed.Destinations[dest.DestinationKey] = dest
	s := service(key, []state.Destination{dest}, pass, kernel.Traffic{})
	want := []string{
		"director web, dr",
		"  -t 203.0.113.1:80 -s lblc",
		"    " + why,
		"    10.0.0.7:80  weight 0  0 active  0 inactive",
	}
	if got := roleLines(palette{}, []roleStatus{{Name: "web", Role: "director", Mode: "dr", Services: []serviceStatus{s}}}); !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}
