package lvs_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/lvs"
	"github.com/sisod/sisod/profiles"
)

// drained is what is wanted of a service that the profiles schedule so, while
// two of its three real servers are removed: since when, and with how many
// active connections left each.
func drained(scheduler string, flags []string, passed time.Duration, begun bool, active ...uint32) state.Desired {
	vip := netip.MustParseAddr("203.0.113.1")
	director := profiles.Director{
		Name: "web", Mode: profiles.DR, VIPs: []profiles.At[netip.Addr]{{Value: vip}}, Services: []profiles.Port{{Protocol: "tcp", Number: 80}},
		Scheduler: scheduler, Flags: flags, Drain: time.Minute,
		RealServers: []profiles.Backend{{Address: netip.MustParseAddr("10.0.0.1"), Weight: 1}},
	}
	begin := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	observed := state.Observed{State: state.New()}
	facts := state.Facts{Now: begin.Add(passed), IPVS: state.IPVSFacts{Connections: map[state.DestinationKey]state.Connections{}, Draining: map[state.DestinationKey]time.Time{}}}
	service := state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: vip, Port: 80}
	for i, n := range append([]uint32{0}, active...) {
		key := state.DestinationKey{Service: service, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), Port: 80}
		observed.Destinations[key] = state.Destination{DestinationKey: key, Forward: state.DirectTo, Weight: 1}
		facts.IPVS.Connections[key] = state.Connections{Active: n}
		if begun && i > 0 {
			facts.IPVS.Draining[key] = begin
		}
	}
	d := state.Desired{State: state.New(), Origins: map[any]string{}}
	lvs.Add(&d, &profiles.Config{Directors: []profiles.Director{director}}, nil, facts, observed)
	return d
}

// lines are the service and its destinations.
func lines(d state.Desired) string {
	var list []string
	for _, s := range d.Services {
		list = append(list, "-A "+s.String())
	}
	for _, r := range d.Destinations {
		list = append(list, "-a "+r.String())
	}
	slices.Sort(list)
	return strings.ReplaceAll(strings.Join(list, "\n"), "-t 203.0.113.1:80 ", "")
}

func TestSchedulersPassOverWhatDrains(t *testing.T) {
	for _, c := range []struct {
		scheduler     string
		flags         []string
		wish, deputed string
	}{
		{"wlc", nil, "wlc", "wlc"},
		{"mh", []string{"port"}, "mh -b mh-port", "mh -b mh-port"},
		{"sh", nil, "sh", "sh -b sh-fallback"},
		{"sh", []string{"port"}, "sh -b sh-port", "sh -b sh-fallback,sh-port"},
		{"sh", []string{"fallback"}, "sh -b sh-fallback", "sh -b sh-fallback"},
		{"dh", nil, "dh", "lblc"},
	} {
		for _, m := range []struct {
			name    string
			got     state.Desired
			want    string
			recheck bool
		}{
			{"removed", drained(c.scheduler, c.flags, 0, false, 2, 0),
				"-A -s " + c.deputed + "\n-a -r 10.0.0.1:80 -g -w 1\n-a -r 10.0.0.2:80 -g -w 0\n-a -r 10.0.0.3:80 -g -w 0", true},
			{"one is idle", drained(c.scheduler, c.flags, time.Second, true, 2, 0),
				"-A -s " + c.deputed + "\n-a -r 10.0.0.1:80 -g -w 1\n-a -r 10.0.0.2:80 -g -w 0", true},
			// The flag must not go before the last real server of weight 0.
			{"the last goes", drained(c.scheduler, c.flags, time.Second, true, 0),
				"-A -s " + c.deputed + "\n-a -r 10.0.0.1:80 -g -w 1", c.wish != c.deputed},
			{"past the limit", drained(c.scheduler, c.flags, time.Minute, true, 2, 2),
				"-A -s " + c.deputed + "\n-a -r 10.0.0.1:80 -g -w 1", c.wish != c.deputed},
			{"gone", drained(c.scheduler, c.flags, time.Hour, false), "-A -s " + c.wish + "\n-a -r 10.0.0.1:80 -g -w 1", false},
		} {
			if got := lines(m.got); got != m.want {
				t.Errorf("%s %v, %s:\n%s\nwant\n%s", c.scheduler, c.flags, m.name, got, m.want)
			}
			if (m.got.Recheck > 0) != m.recheck {
				t.Errorf("%s %v, %s: another pass after %v", c.scheduler, c.flags, m.name, m.got.Recheck)
			}
		}
	}
}

// A problem that changed with every connection would be told every second.
func TestDrainingIsToldOnce(t *testing.T) {
	var told [2]string
	for i := range told {
		for _, p := range drained("dh", nil, time.Duration(i+1)*time.Second, true, uint32(3-i), 1).Problems {
			told[i] += p.Subject + ": " + p.Text + "\n"
		}
		told[i] = strings.Join(slices.Sorted(strings.Lines(told[i])), "")
	}
	want := ""
	for _, server := range []string{"10.0.0.2:80", "10.0.0.3:80"} {
		want += "service -t 203.0.113.1:80: real server " + server + " was removed and drains: it goes with its last connection, or at 2024-02-29T12:01:00Z; until then lblc stands in for dh, which would go on choosing it\n"
	}
	for i := range told {
		if told[i] != want {
			t.Errorf("after %d s:\n%s\nwant\n%s", i+1, told[i], want)
		}
	}
}

// A scheduler is changed before weights: without a deputy a hash would refuse,
// in between, whoever it gives to the real server that comes back.
func TestSchedulersPassOverWhatComesBackUntilItHas(t *testing.T) {
	vip := netip.MustParseAddr("203.0.113.1")
	for _, c := range []struct{ scheduler, wish, deputed string }{{"wlc", "wlc", "wlc"}, {"sh", "sh", "sh -b sh-fallback"}, {"dh", "dh", "lblc"}} {
		observed := state.Observed{State: state.New()}
		for i, m := range []struct {
			weight    int
			scheduler string
			recheck   bool
		}{
			{0, c.deputed, false},
			{1, c.deputed, c.wish != c.deputed},
			{1, c.wish, false},
		} {
			director := profiles.Director{
				Name: "web", Mode: profiles.DR, VIPs: []profiles.At[netip.Addr]{{Value: vip}}, Services: []profiles.Port{{Protocol: "tcp", Number: 80}},
				Scheduler:   c.scheduler,
				RealServers: []profiles.Backend{{Address: netip.MustParseAddr("10.0.0.1"), Weight: 1}, {Address: netip.MustParseAddr("10.0.0.2"), Weight: m.weight}},
			}
			d := state.Desired{State: state.New(), Origins: map[any]string{}}
			lvs.Add(&d, &profiles.Config{Directors: []profiles.Director{director}}, nil, state.Facts{}, observed)
			want := fmt.Sprintf("-A -s %s\n-a -r 10.0.0.1:80 -g -w 1\n-a -r 10.0.0.2:80 -g -w %d", m.scheduler, m.weight)
			if got := lines(d); got != want {
				t.Errorf("%s, pass %d:\n%s\nwant\n%s", c.scheduler, i+1, got, want)
			}
			if told := len(d.Deputies) > 0; told != (m.scheduler != c.wish) {
				t.Errorf("%s, pass %d: told %v", c.scheduler, i+1, d.Deputies)
			}
			if (d.Recheck > 0) != m.recheck {
				t.Errorf("%s, pass %d: another one after %v", c.scheduler, i+1, d.Recheck)
			}
			observed.State = d.State
		}
	}
}
