//go:build stock

package kernel

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

func wantDevices(devices ...state.Device) state.Desired {
	d := state.Desired{State: state.New()}
	for _, x := range devices {
		d.Devices[x] = true
	}
	return d
}

// linkWords are the words of a link as ip prints it, with what is particular to
// its type; nil when it is not there.
func linkWords(t *testing.T, link string) []string {
	t.Helper()
	out, err := exec.Command("ip", "-d", "-o", "link", "show", "dev", link).Output()
	if err != nil {
		return nil
	}
	return strings.Fields(string(out))
}

// linkNames are the links of the namespace.
func linkNames(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, l := range ip(t, "-o link") {
		_, rest, _ := strings.Cut(l, ": ")
		name, _, _ := strings.Cut(rest, ":")
		name, _, _ = strings.Cut(name, "@")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// loadTunnels has the kernel load the modules of tunnels, so that their fallback
// devices do not come in the middle of a test.
func loadTunnels(t *testing.T) {
	t.Helper()
	for _, m := range []string{"ipip", "ip_gre", "ip6_tunnel", "ip6_gre", "sit", "dummy"} {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			t.Fatalf("modprobe %s: %v %s", m, err, out)
		}
	}
}

func TestDevicesComeAndGo(t *testing.T) {
	loadTunnels(t)
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	before := linkNames(t)
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8:1::7")
	devices := []state.Device{
		{Name: "lvs-dummy", Type: "dummy"},
		{Name: "lvs-ipip", Type: "ipip", Remote: v4},
		{Name: "lvs-gre", Type: "gre", Remote: v4},
		{Name: "lvs-sit", Type: "sit", Remote: v4},
		{Name: "lvs-ip6tnl", Type: "ip6tnl", Remote: v6},
		{Name: "lvs-ip6gre", Type: "ip6gre", Remote: v6},
	}
	reach(t, h, Query{}, wantDevices(devices...))
	for _, d := range devices {
		words := linkWords(t, d.Name)
		if !slices.Contains(words, d.Type) {
			t.Errorf("%s: %v", d, words)
		}
		if i := slices.Index(words, "remote"); d.Remote.IsValid() && (i < 0 || words[i+1] != d.Remote.String()) {
			t.Errorf("%s: %v", d, words)
		}
	}
	// A tunnel over IPv6 takes both families in.
	if words := linkWords(t, "lvs-ip6tnl"); !slices.Contains(words, "any") {
		t.Errorf("%v", words)
	}
	// Deleted, renamed and turned elsewhere by somebody else.
	ip(t, "link del lvs-dummy")
	ip(t, "link set lvs-gre name other")
	ip(t, "link change lvs-ipip type ipip remote 192.0.2.99")
	reach(t, h, Query{}, wantDevices(devices...))
	if names := linkNames(t); slices.Contains(names, "other") || !slices.Contains(names, "lvs-gre") {
		t.Errorf("links %v", names)
	}
	// Wanted elsewhere.
	devices[1].Remote = netip.MustParseAddr("192.0.2.8")
	reach(t, h, Query{}, wantDevices(devices...))
	if words := linkWords(t, "lvs-ipip"); !slices.Contains(words, "192.0.2.8") {
		t.Errorf("%v", words)
	}
	reach(t, h, Query{}, wantDevices())
	if after := linkNames(t); !slices.Equal(after, before) {
		t.Errorf("links %v, were %v", after, before)
	}
	if len(h.ledger.page.Devices) != 0 {
		t.Errorf("the ledger still has %v", h.ledger.page.Devices)
	}
}

func TestForeignDevicesSurvive(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	ip(t, "link add lvs0 type dummy")
	d := state.Device{Name: "lvs0", Type: "dummy"}
	o := h.Apply(t.Context(), plan(t, h, Query{}, wantDevices(d)), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "not sisod's (file exists): delete it (ip link del lvs0)") {
		t.Errorf("%+v", o)
	}
	if p := plan(t, h, Query{}, wantDevices()); !p.Empty() {
		t.Errorf("it would be deleted: %v", p.Commands())
	}
	applyAll(t, h, state.Plan{Steps: []state.Step{{Op: state.Delete, Object: d}}})
	// One of ours that somebody replaced is theirs: it has another index.
	d.Name = "lvs1"
	reach(t, h, Query{}, wantDevices(d))
	ip(t, "link del lvs1")
	ip(t, "link add lvs1 type dummy")
	if p := plan(t, h, Query{}, wantDevices()); !p.Empty() {
		t.Errorf("it would be deleted: %v", p.Commands())
	}
	if names := linkNames(t); !slices.Contains(names, "lvs0") || !slices.Contains(names, "lvs1") {
		t.Errorf("links %v", names)
	}
	// A second tunnel between the same ends is impossible, and said to be.
	loadTunnels(t)
	o = h.Apply(t.Context(), plan(t, h, Query{}, wantDevices(state.Device{Name: "lvs2", Type: "ipip"})), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "another link of type ipip has the same ends") {
		t.Errorf("%+v", o)
	}
	o = h.Apply(t.Context(), plan(t, h, Query{}, wantDevices(state.Device{Name: "lvs3", Type: "nosuch"})), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "no links of type nosuch in this kernel") {
		t.Errorf("%+v", o)
	}
	if len(h.ledger.ownDevices()) != 0 {
		t.Errorf("in the ledger: %v", h.ledger.ownDevices())
	}
}

// A process killed between the ledger, the device and its index leaves a ledger
// that is right in each case.
func TestDevicesAreRecordedBeforeTheyAreMade(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	d := state.Device{Name: "lvs0", Type: "dummy"}
	for _, made := range []bool{false, true} {
		h.ledger.noteDevice(entryOf(d))
		if err := h.ledger.save(); err != nil {
			t.Fatal(err)
		}
		if made {
			ip(t, "link add lvs0 type dummy")
		}
		if p := plan(t, h, Query{}, wantDevices(d)); p.Empty() != made {
			t.Errorf("made %v: to do %v", made, p.Commands())
		}
		reach(t, h, Query{}, wantDevices(d))
		reach(t, h, Query{}, wantDevices())
		if slices.Contains(linkNames(t), "lvs0") {
			t.Errorf("made %v: it is left", made)
		}
	}
}

// tunl0 comes with its module, is never deleted, and is given back down.
func TestFallbackDevices(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	// The first look may load nothing, and what is not wanted is not ours.
	if p := plan(t, h, Query{}, wantDevices()); !p.Empty() {
		t.Errorf("to do: %v", p.Commands())
	}
	want := wantDevices()
	for name, kind := range map[string]string{"tunl0": "ipip", "gre0": "gre", "ip6tnl0": "ip6tnl", "sit0": "sit", "ip6gre0": "ip6gre"} {
		want.Devices[state.Device{Name: name, Type: kind}] = true
		want.Up[name] = true
	}
	want.VIPs[vip("tunl0", "203.0.113.1")] = true
	reach(t, h, Query{}, want)
	if !isUp(t, "tunl0") || !isUp(t, "ip6tnl0") {
		t.Error("not up")
	}
	e := listen(t, h)
	// The module goes, in all namespaces.
	unloadTunnel(t)
	got := eventsUntil(t, e, "link tunl0 removed")
	s := readHost(t, h, Query{}, got[len(got)-1].Parts)
	if p := state.Diff(s.Observed, want); len(p.Steps) != 3 {
		t.Errorf("tunl0 is gone, and to do is\n%s", strings.Join(p.Commands(), "\n"))
	}
	reach(t, h, Query{}, want)
	if !isUp(t, "tunl0") || !strings.Contains(strings.Join(addressLines(t, "tunl0"), " "), "203.0.113.1/32") {
		t.Errorf("tunl0: %v", addressLines(t, "tunl0"))
	}
	// And comes back by somebody else.
	unloadTunnel(t)
	eventsUntil(t, e, "link tunl0 removed")
	if out, err := exec.Command("modprobe", "ipip").CombinedOutput(); err != nil {
		t.Fatalf("modprobe ipip: %v %s", err, out)
	}
	eventsUntil(t, e, "link tunl0 added")
	reach(t, h, Query{}, want)
	reach(t, h, Query{}, wantDevices())
	if isUp(t, "tunl0") || isUp(t, "ip6tnl0") || len(addressLines(t, "tunl0")) != 0 {
		t.Errorf("left up: %v", ip(t, "-o link"))
	}
	if p := h.ledger.page; len(p.Devices)+len(p.Ups)+len(p.VIPs) != 0 {
		t.Errorf("the ledger still has %+v", p.roles)
	}
}

func unloadTunnel(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("modprobe", "-r", "ipip").CombinedOutput(); err != nil {
		t.Fatalf("modprobe -r ipip: %v %s", err, out)
	}
}

// fouPorts are the receivers as ip prints them.
func fouPorts(t *testing.T) []string {
	t.Helper()
	var ports []string
	for _, l := range ip(t, "fou show") {
		ports = append(ports, strings.TrimSpace(l))
	}
	slices.Sort(ports)
	return ports
}

// receivers are those of GUE on a port.
func receivers(port uint16) []state.Device {
	var all []state.Device
	for _, f := range state.Families {
		all = append(all, state.Device{Type: "gue", EncapPort: port, EncapFamily: f})
	}
	return all
}

func TestReceiversOfGUE(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	want := wantDevices(receivers(6080)...)
	reach(t, h, Query{}, want)
	if got := fouPorts(t); !slices.Equal(got, []string{"port 6080 gue", "port 6080 gue -6"}) {
		t.Errorf("receives on %q", got)
	}
	ip(t, "fou add port 6081 gue")
	for _, line := range []string{"fou del port 6080", "-6 fou del port 6080"} {
		ip(t, line)
		// Half of it: the rest is added.
		reach(t, h, Query{}, want)
		ip(t, line)
	}
	reach(t, h, Query{}, want)
	reach(t, h, Query{}, wantDevices())
	if got := fouPorts(t); !slices.Equal(got, []string{"port 6081 gue"}) {
		t.Errorf("receives on %q", got)
	}
	// Somebody else's port.
	o := h.Apply(t.Context(), plan(t, h, Query{}, wantDevices(receivers(6081)[0])), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "somebody else receives on this UDP port") {
		t.Errorf("%+v", o)
	}
	if p := plan(t, h, Query{}, wantDevices()); !p.Empty() {
		t.Errorf("it would be closed: %v", p.Commands())
	}
	if got := fouPorts(t); !slices.Equal(got, []string{"port 6081 gue"}) {
		t.Errorf("receives on %q", got)
	}
}

// A process killed between the ledger and a receiver, or between two of them,
// leaves a ledger that is right in each case; a receiver that was there already
// is never in it.
func TestReceiversAreRecordedBeforeTheyAreOpened(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	both := wantDevices(receivers(6080)...)
	for _, made := range []string{"", "fou add port 6080 gue", "fou add port 6080 gue -6"} {
		for _, d := range receivers(6080) {
			h.ledger.noteDevice(entryOf(d))
		}
		if err := h.ledger.save(); err != nil {
			t.Fatal(err)
		}
		if made != "" {
			ip(t, made)
		}
		next, err := Open(h.options)
		if err != nil {
			t.Fatal(err)
		}
		reach(t, next, Query{}, wantDevices())
		next.Close()
		if got := fouPorts(t); len(got) != 0 {
			t.Errorf("after %q, left are %q", made, got)
		}
	}
	ip(t, "fou add port 6080 gue")
	o := h.Apply(t.Context(), plan(t, h, Query{}, both), nil)
	if len(o) != 2 || o[0].Err == nil || o[1].Err != nil {
		t.Errorf("%+v", o)
	}
	reach(t, h, Query{}, wantDevices())
	if got := fouPorts(t); !slices.Equal(got, []string{"port 6080 gue"}) {
		t.Errorf("receives on %q", got)
	}
}

// A tun real server's objects in one plan, in the order of a plan, on a kernel
// that has not heard of tunnels; and given back byte for byte.
func TestARealServerComesAndGoes(t *testing.T) {
	enterNamespace(t)
	ip(t, "link set lo up")
	loadTunnels(t)
	h := openTestHost(t)
	const filter = "net/ipv4/conf/tunl0/rp_filter"
	q := Query{Sysctls: []string{filter, "net/ipv4/conf/all/arp_ignore"}}
	found := func() string {
		// Having been up once shows in the queueing discipline for ever.
		links := ip(t, "-o link")
		for i, l := range links {
			links[i] = strings.Replace(l, " qdisc noop ", " qdisc noqueue ", 1)
		}
		return strings.Join(slices.Concat(links, ip(t, "-o addr"), []string{getSysctl(t, filter), getSysctl(t, "net/ipv4/conf/all/arp_ignore")}), "\n")
	}
	before := found()
	want := wantDevices(state.Device{Name: "tunl0", Type: "ipip"})
	want.Up["tunl0"] = true
	want.VIPs[vip("tunl0", "203.0.113.1")] = true
	want.Sysctls[filter], want.Sysctls["net/ipv4/conf/all/arp_ignore"] = "2", "1"
	reach(t, h, q, want)
	if !isUp(t, "tunl0") || getSysctl(t, filter) != "2" {
		t.Errorf("%s", found())
	}
	reach(t, h, Query{Sweep: true}, state.Desired{State: state.New()})
	if after := found(); after != before {
		t.Errorf("found\n%s\nleft\n%s", before, after)
	}
}

// The kernel allows one link between two ends: a name that moves to other ends
// takes them from the link that had them.
func TestNamesChangeTheirEnds(t *testing.T) {
	loadTunnels(t)
	enterNamespace(t)
	quietUplinks(t)
	h := openTestHost(t)
	before := linkNames(t)
	tunnel := func(name, remote string) state.Device {
		return state.Device{Name: name, Type: "ipip", Remote: netip.MustParseAddr(remote)}
	}
	for _, devices := range [][]state.Device{
		{tunnel("rs0", "192.0.2.7"), tunnel("rs1", "192.0.2.8")},
		{tunnel("rs0", "192.0.2.8"), tunnel("rs1", "192.0.2.7")},
		{tunnel("rs0", "192.0.2.7")},
		{tunnel("other", "192.0.2.7")},
		{tunnel("rs0", "192.0.2.8"), tunnel("other", "192.0.2.7")},
		{tunnel("other", "192.0.2.8")},
	} {
		reach(t, h, Query{}, wantDevices(devices...))
		for _, d := range devices {
			if words := linkWords(t, d.Name); !slices.Contains(words, d.Remote.String()) {
				t.Errorf("%s: %v", d, words)
			}
		}
	}
	// Somebody else's is not taken.
	ip(t, "link add theirs type ipip remote 192.0.2.9")
	wantOutcomes(t, h.Apply(t.Context(), plan(t, h, Query{}, wantDevices(tunnel("other", "192.0.2.8"), tunnel("rs0", "192.0.2.9"))), nil), map[string]string{
		"rs0 type ipip remote 192.0.2.9": "another link of type ipip has the same ends",
	})
	reach(t, h, Query{}, wantDevices())
	ip(t, "link del theirs")
	if after := linkNames(t); !slices.Equal(after, before) {
		t.Errorf("links %v, found %v", after, before)
	}
}
