//go:build stock

package kernel

import (
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

func TestForeignServicesSurvive(t *testing.T) {
	h := openBalanced(t)
	for _, line := range []string{
		"-A -t 203.0.113.9:80 -s wrr", "-a -t 203.0.113.9:80 -r 10.0.0.7:80 -g -w 3",
		"-A -f 7 -6 -s rr -p 100 -M 64", "-A -u 203.0.113.9:53 -s lc -o",
	} {
		ipvsadm(t, line)
	}
	foreign := saved(t)
	want := allOfIt(t)
	for range 3 {
		reach(t, h, balanced, want)
		wantSaved(t, slices.Sorted(slices.Values(slices.Concat(foreign, spelled(want.State)))))
		s := readHost(t, h, balanced, PartIPVS)
		if n := len(s.Facts.IPVS.Foreign); n != 3 {
			t.Errorf("%d foreign services, want 3", n)
		}
		if len(s.Observed.Destinations) != len(want.Destinations) {
			t.Errorf("%d destinations, want %d", len(s.Observed.Destinations), len(want.Destinations))
		}
		reach(t, h, Query{}, balancing())
		wantSaved(t, foreign)
	}
	// One that we want too is theirs: an error that says so, and its destinations wait.
	k := tcp("203.0.113.9", 80)
	p := plan(t, h, balanced, balancing(service(k, "rr"), destination(k, "10.0.0.9", 80, state.DirectTo, 1)))
	o := h.Apply(t.Context(), p, nil)
	if len(o) != 2 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "not sisod's (file exists): delete it (ipvsadm -D -t 203.0.113.9:80)") ||
		o[1].Held != "waits for the service -t 203.0.113.9:80" {
		t.Errorf("%+v", o)
	}
	wantSaved(t, foreign)
	if p := plan(t, h, balanced, balancing()); !p.Empty() {
		t.Errorf("it would be deleted: %v", p.Commands())
	}
	// Whatever was planned before.
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Delete, Object: destination(k, "10.0.0.7", 80, state.DirectTo, 3)}, {Op: state.Delete, Object: service(k, "wrr")}}})
	wantSaved(t, foreign)
}

func TestWhatSomebodyUndoesIsSeen(t *testing.T) {
	h := openBalanced(t)
	want := allOfIt(t)
	reach(t, h, balanced, want)
	ipvsadm(t, "-C")
	if s := readHost(t, h, balanced, PartIPVS); len(s.Observed.Services)+len(s.Observed.Destinations) != 0 {
		t.Errorf("seen: %v", spelled(s.Observed.State))
	}
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
	ipvsadm(t, "-E -t 203.0.113.1:100 -s lc")
	ipvsadm(t, "-D -t 203.0.113.2:81")
	ipvsadm(t, "-A -t 203.0.113.2:81 -s dh")
	ipvsadm(t, "-e -t 203.0.113.2:82 -r 10.0.0.7:82 -i -w 9")
	ipvsadm(t, "-a -t 203.0.113.2:82 -r 10.9.9.9:82 -i")
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
}

// What sisod made, somebody deleted and somebody made again is theirs, once its
// absence was seen.
func TestAServiceThatWasAbsentIsNotOurs(t *testing.T) {
	h := openBalanced(t)
	want := balancing(service(tcp("203.0.113.1", 80), "rr"))
	reach(t, h, balanced, want)
	ipvsadm(t, "-C")
	readHost(t, h, balanced, PartIPVS)
	ipvsadm(t, "-A -t 203.0.113.1:80 -s lc")
	if s := readHost(t, h, balanced, PartIPVS); len(s.Observed.Services) != 0 || len(s.Facts.IPVS.Foreign) != 1 {
		t.Errorf("own %v, foreign %v", s.Observed.Services, s.Facts.IPVS.Foreign)
	}
	// Replaced while nobody looked, it keeps its key and is ours.
	ipvsadm(t, "-C")
	reach(t, h, balanced, want)
	ipvsadm(t, "-C")
	ipvsadm(t, "-A -t 203.0.113.1:80 -s lc")
	reach(t, h, balanced, balancing())
	wantSaved(t, nil)
}

func TestServicesAreRecordedBeforeTheyAreAdded(t *testing.T) {
	h := openBalanced(t)
	k := tcp("203.0.113.1", 80)
	want := balancing(service(k, "rr"), destination(k, "10.0.0.7", 80, state.DirectTo, 1))
	p := plan(t, h, balanced, want)
	path := h.ledger.path
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.ledger.path = filepath.Join(blocked, "ledger.json")
	if o := h.Apply(t.Context(), p, nil); o[0].Err == nil || o[1].Held == "" {
		t.Errorf("without a ledger: %+v", o)
	}
	wantSaved(t, nil)
	h.ledger.path, h.ledger.dirty = path, false
	// Killed between the ledger and the service: it is ours when it is there, and
	// nothing else is.
	h.ledger.noteService(k)
	if err := h.ledger.save(); err != nil {
		t.Fatal(err)
	}
	ipvsadm(t, "-A -t 203.0.113.1:80 -s rr")
	reach(t, h, balanced, want)
	reach(t, h, balanced, balancing())
	wantSaved(t, nil)
}

func TestAnEngineThatSomebodyGaveIsTakenBack(t *testing.T) {
	h := openBalanced(t)
	voice := service(transport(state.UDP, "203.0.113.1", 5060), "rr")
	voice.Flags, voice.Timeout = state.ServicePersistent, time.Minute
	want := balancing(voice)
	reach(t, h, balanced, want)
	readHost(t, h, balanced, AllParts)
	ipvsadm(t, "-E "+voice.String()+" --pe sip")
	if moved, err := h.IPVSMoved(); !moved || err != nil {
		t.Errorf("moved %v, %v", moved, err)
	}
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
	// One of somebody else's is told as ipvsadm spells it.
	const theirs = "-u 203.0.113.9:5060 -s sh -p 60 -M 255.255.240.0 --pe sip -o -b sh-port"
	ipvsadm(t, "-A "+theirs)
	if got := readHost(t, h, balanced, PartIPVS).Facts.IPVS.Foreign[transport(state.UDP, "203.0.113.9", 5060)].String(); got != theirs {
		t.Errorf("%s\nwant %s", got, theirs)
	}
}

func TestDrainsAreRemembered(t *testing.T) {
	h := openBalanced(t)
	k := state.DestinationKey{Service: tcp("203.0.113.1", 80), Addr: netip.MustParseAddr("10.0.0.7"), Port: 80}
	since := readHost(t, h, balanced, AllParts).Facts.Now
	if age := time.Since(since); age < 0 || age > time.Minute {
		t.Errorf("read %s ago", age)
	}
	drains := map[state.DestinationKey]time.Time{k: since}
	for range 2 {
		if err := h.RememberDrains(drains); err != nil {
			t.Fatal(err)
		}
	}
	fresh, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	for _, host := range []*Host{h, fresh} {
		if got := readHost(t, host, Query{}, 0).Facts.IPVS.Draining; !maps.EqualFunc(got, drains, time.Time.Equal) {
			t.Errorf("draining %v, want %v", got, drains)
		}
	}
	st, err := os.Stat(h.ledger.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.RememberDrains(drains); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(h.ledger.path); err != nil || !os.SameFile(st, now) {
		t.Errorf("written again with the same content: %v", err)
	}
	if err := h.RememberDrains(nil); err != nil || len(readHost(t, h, Query{}, 0).Facts.IPVS.Draining) != 0 {
		t.Errorf("still draining: %v", err)
	}
}

func TestALookFindsWhatOthersDo(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	look := func(want bool, why string) {
		t.Helper()
		if moved, err := h.IPVSMoved(); moved != want || err != nil {
			t.Errorf("%s: moved %v, %v", why, moved, err)
		}
		readHost(t, h, h.query, PartIPVS)
	}
	readHost(t, h, Query{}, AllParts)
	ipvsadm(t, "-A -t 203.0.113.9:80 -s wrr")
	look(false, "nobody asks")
	readHost(t, h, balanced, AllParts)
	look(false, "nothing happened")
	for _, line := range []string{
		"-E -t 203.0.113.9:80 -s wlc", "-E -t 203.0.113.9:80 -s wlc -p 9", "-a -t 203.0.113.9:80 -r 10.0.0.7:80 -g",
		"-e -t 203.0.113.9:80 -r 10.0.0.7:80 -g -w 7", "-e -t 203.0.113.9:80 -r 10.0.0.7:80 -i -w 7",
		"-d -t 203.0.113.9:80 -r 10.0.0.7:80", "-C", "--set 7 0 0",
		"--start-daemon master --mcast-interface em1 --syncid 9", "--stop-daemon master",
	} {
		ipvsadm(t, line)
		look(true, line)
		look(false, "after "+line)
	}
	k := tcp("203.0.113.1", 80)
	ip(t, "addr add 203.0.113.1/32 dev lo")
	d := balancing(service(k, "rr"), destination(k, "127.0.0.1", 8080, state.Masquerade, 1))
	applyAll(t, h, plan(t, h, balanced, d))
	look(true, "what was applied is looked at")
	_ = exec.Command("bash", "-c", "exec 3<>/dev/tcp/203.0.113.1/80").Run()
	look(false, "connections are no change")
	k = tcp("203.0.113.1", 81)
	d = balancing(service(k, "sh"), destination(k, "10.0.0.7", 81, state.TunnelTo, 1))
	applyAll(t, h, plan(t, h, balanced, d))
	look(true, "what was applied is looked at")
	// The kernel's list tells nothing of these.
	for _, line := range []string{
		"-E -t 203.0.113.1:81 -s sh -b sh-port", "-e -t 203.0.113.1:81 -r 10.0.0.7:81 -i -w 1 -x 100 -y 50",
		"-e -t 203.0.113.1:81 -r 10.0.0.7:81 -i -w 1 -x 100 -y 50 --tun-type gre",
	} {
		ipvsadm(t, line)
		look(true, line)
		look(false, "after "+line)
	}
}
