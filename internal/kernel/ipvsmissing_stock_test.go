//go:build stock

package kernel

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

func TestAMissingSchedulerIsNamed(t *testing.T) {
	h := openBalanced(t)
	bad, good := tcp("203.0.113.1", 80), tcp("203.0.113.1", 81)
	want := balancing(service(bad, "nosuch"), destination(bad, "10.0.0.7", 80, state.DirectTo, 1),
		service(good, "rr"), destination(good, "10.0.0.7", 81, state.DirectTo, 1))
	for _, o := range h.Apply(t.Context(), plan(t, h, balanced, want), nil) {
		switch text := o.Step.Object.Spell(nil); {
		case strings.HasPrefix(text, "-t 203.0.113.1:81"):
			if !o.Done() {
				t.Errorf("%s: %v %s", text, o.Err, o.Held)
			}
		case o.Step.Object.Kind() == state.KindService:
			if o.Err == nil || !strings.Contains(o.Err.Error(), "no scheduler nosuch in this kernel: install or allow its module ip_vs_nosuch") {
				t.Errorf("%s: %v", text, o.Err)
			}
		case o.Held != "waits for the service -t 203.0.113.1:80":
			t.Errorf("%s: %v %s", text, o.Err, o.Held)
		}
	}
	wantSaved(t, []string{"-A -t 203.0.113.1:81 -s rr", "-a -t 203.0.113.1:81 -r 10.0.0.7:81 -g -w 1"})
	if h.ledger.ownsService(bad) {
		t.Error("a service that never was is in the ledger")
	}
	// In place as well.
	o := h.Apply(t.Context(), state.Plan{Steps: []state.Step{{Op: state.Replace, Object: service(good, "nosuch")}}}, nil)
	if o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "no scheduler nosuch") {
		t.Errorf("%v", o[0].Err)
	}
	wantSaved(t, []string{"-A -t 203.0.113.1:81 -s rr", "-a -t 203.0.113.1:81 -r 10.0.0.7:81 -g -w 1"})
}

func TestImpossibleDestinationsSayWhy(t *testing.T) {
	h := openBalanced(t)
	k := tcp("203.0.113.1", 80)
	reach(t, h, balanced, balancing(service(k, "rr")))
	heavy := destination(k, "10.0.0.1", 80, state.DirectTo, 1<<31)
	high := destination(k, "10.0.0.3", 80, state.DirectTo, 1)
	high.Upper = 1 << 31
	upside := destination(k, "10.0.0.2", 80, state.DirectTo, 1)
	upside.Upper, upside.Lower = 3, 5
	for text, d := range map[string]state.Destination{
		"a threshold is at most 2147483647": high,
		"by tunnel alone":                   destination(k, "2001:db8::1", 80, state.Masquerade, 1),
		"a weight is 0 to 2147483647":       heavy,
		"is not above the upper one":        upside,
		"add destination -t 203.0.113.1":    heavy,
	} {
		o := h.Apply(t.Context(), plan(t, h, balanced, balancing(service(k, "rr"), d)), nil)
		if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), text) {
			t.Errorf("%s: %+v", d, o)
		}
	}
	wantSaved(t, []string{"-A -t 203.0.113.1:80 -s rr"})
}

// unload takes IPVS out of the kernel, and lets nobody load a module until the
// end of the test when barred.
func unload(t *testing.T, barred bool) {
	t.Helper()
	modprobe, err := os.ReadFile("/proc/sys/kernel/modprobe")
	if err != nil {
		t.Fatal(err)
	}
	program := strings.TrimSpace(string(modprobe))
	if barred { // for the kernel, not for us
		if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/bin/false"), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.WriteFile("/proc/sys/kernel/modprobe", modprobe, 0o644) })
	}
	// The namespaces of earlier tests end when the kernel comes to it, and hold
	// the modules until then.
	deadline := time.After(patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for names := loadedModules(t); len(names) > 0; names = loadedModules(t) {
		var said []byte
		for _, name := range names {
			out, _ := exec.Command(program, "-r", name).CombinedOutput()
			said = append(said, out...)
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("IPVS stays in the kernel: %s", said)
		}
	}
}

// loadedModules are those of IPVS, schedulers before what they stand on.
func loadedModules(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for l := range strings.Lines(string(content)) {
		if name, _, _ := strings.Cut(l, " "); name == "ip_vs" || strings.HasPrefix(name, "ip_vs_") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	return names
}

func TestAKernelWithoutIPVSSaysSo(t *testing.T) {
	h := openBalanced(t)
	unload(t, true)
	// Nobody asks: nothing is missing.
	if s := readHost(t, h, Query{}, AllParts); s.Facts.IPVS.Missing != "" {
		t.Errorf("missing %q", s.Facts.IPVS.Missing)
	}
	s := readHost(t, h, balanced, AllParts)
	want := "no IPVS in this kernel: generic netlink family IPVS: no such file or directory: " + moduleCure("ip_vs")
	if s.Facts.IPVS.Missing != want {
		t.Errorf("missing %q\nwant    %q", s.Facts.IPVS.Missing, want)
	}
	k := tcp("203.0.113.1", 80)
	d := balancing(service(k, "rr"), destination(k, "10.0.0.7", 80, state.DirectTo, 1), state.Timeouts{TCP: time.Second}, state.SyncDaemon{Link: "lo"})
	o := h.Apply(t.Context(), state.Diff(s.Observed, d), nil)
	for _, x := range o {
		if x.Step.Object.Kind() != state.KindDestination && (x.Err == nil || !strings.Contains(x.Err.Error(), want)) {
			t.Errorf("%s: %v", x.Step.Object.Spell(nil), x.Err)
		}
	}
	if len(o) != 4 || o[3].Held == "" {
		t.Errorf("%+v", o)
	}
	if h.ledger.balances() {
		t.Errorf("the ledger has %+v", h.ledger.page.roles)
	}
}

func TestIPVSIsLoadedOnlyWhenAsked(t *testing.T) {
	h := openBalanced(t)
	loaded := func() bool { return len(loadedModules(t)) > 0 }
	unload(t, false)
	readHost(t, h, Query{}, AllParts)
	if loaded() {
		t.Error("loaded for nobody")
	}
	want := balancing(service(tcp("203.0.113.1", 80), "rr"))
	reach(t, h, balanced, want)
	// The services go with the module, and the family's number changes.
	h.ledger.reload()
	unloadServices(t)
	if loaded() {
		t.Fatal("still loaded")
	}
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
	reach(t, h, balanced, balancing())
}

// unloadServices takes IPVS away below its services.
func unloadServices(t *testing.T) {
	t.Helper()
	ipvsadm(t, "-C")
	unload(t, false)
}
