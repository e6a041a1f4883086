package main

import (
	"math"
	"testing"

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
