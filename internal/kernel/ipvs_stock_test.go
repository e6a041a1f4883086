//go:build stock

package kernel

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

var balanced = Query{IPVS: true}

// ipvsadm runs the program in the namespace of the calling thread and returns
// its lines.
func ipvsadm(t testing.TB, line string) []string {
	t.Helper()
	out, err := exec.Command("ipvsadm", strings.Fields(line)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ipvsadm %s: %v\n%s(install ipvsadm)", line, err, out)
	}
	var lines []string
	for l := range strings.Lines(string(out)) {
		lines = append(lines, strings.TrimSpace(l))
	}
	return lines
}

// saved is what ipvsadm would restore, sorted.
func saved(t testing.TB) []string { return slices.Sorted(slices.Values(ipvsadm(t, "-Sn"))) }

// thresholds are what ipvsadm restores and does not save.
var thresholds = regexp.MustCompile(` -[xy] \d+`)

// spelled is a state as ipvsadm saves it, sorted.
func spelled(s state.State) []string {
	var lines []string
	for _, v := range s.Services {
		lines = append(lines, "-A "+v.String())
	}
	for _, d := range s.Destinations {
		lines = append(lines, "-a "+thresholds.ReplaceAllString(d.String(), ""))
	}
	slices.Sort(lines)
	return lines
}

func wantSaved(t testing.TB, want []string) {
	t.Helper()
	got := saved(t)
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("ipvsadm -Sn prints and should not: %s", l)
		}
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("ipvsadm -Sn should print: %s", l)
		}
	}
	if len(got) != len(want) {
		t.Errorf("ipvsadm -Sn prints %d lines, want %d", len(got), len(want))
	}
}

func tcp(addr string, port uint16) state.ServiceKey {
	return transport(state.TCP, addr, port)
}

func transport(protocol state.Transport, addr string, port uint16) state.ServiceKey {
	a := netip.MustParseAddr(addr)
	f := state.IPv4
	if a.Is6() {
		f = state.IPv6
	}
	return state.ServiceKey{Family: f, Protocol: protocol, Addr: a, Port: port}
}

func service(k state.ServiceKey, scheduler string) state.Service {
	return state.Service{ServiceKey: k, Scheduler: scheduler, Netmask: k.Family.Bits()}
}

func destination(k state.ServiceKey, addr string, port uint16, forward state.Forward, weight int) state.Destination {
	return state.Destination{DestinationKey: state.DestinationKey{Service: k, Addr: netip.MustParseAddr(addr), Port: port}, Forward: forward, Weight: weight}
}

func balancing(objects ...state.Object) state.Desired {
	d := state.Desired{State: state.New()}
	for _, o := range objects {
		switch o := o.(type) {
		case state.Service:
			d.Services[o.ServiceKey] = o
		case state.Destination:
			d.Destinations[o.DestinationKey] = o
		case state.SyncDaemon:
			d.Syncs[o.Master] = o
		case state.Timeouts:
			d.Timeouts = o
		}
	}
	return d
}

func openBalanced(t testing.TB) *Host {
	t.Helper()
	enterNamespace(t)
	ip(t, "link set lo up")
	return openTestHost(t)
}
