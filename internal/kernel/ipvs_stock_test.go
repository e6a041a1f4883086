//go:build stock

package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

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

// hasModule reports whether the kernel that runs could load a module.
func hasModule(t testing.TB, name string) bool {
	t.Helper()
	return exec.Command("modprobe", "-n", "-q", "--", name).Run() == nil
}

// schedulers are those that every stock kernel has, and twos where there is one.
func schedulers(t testing.TB) []string {
	all := strings.Fields("rr wrr lc wlc fo ovf lblc lblcr dh sh mh sed nq")
	if hasModule(t, "ip_vs_twos") {
		all = append(all, "twos")
	}
	return all
}

// allOfIt is a state with every attribute in every value that matters.
func allOfIt(t testing.TB) state.Desired {
	var objects []state.Object
	add := func(o ...state.Object) { objects = append(objects, o...) }
	for i, scheduler := range schedulers(t) {
		add(service(tcp("203.0.113.1", uint16(100+i)), scheduler), service(tcp("2001:db8::1", uint16(100+i)), scheduler))
	}
	for i, addr := range []string{"203.0.113.2", "2001:db8::2"} {
		real := [][]string{{"10.0.0.7", "10.0.0.9", "127.0.0.1"}, {"2001:db8:1::7", "2001:db8:1::9", "::1"}}[i]
		for _, protocol := range []state.Transport{state.TCP, state.UDP, state.SCTP} {
			k := transport(protocol, addr, 80)
			add(service(k, "wrr"), destination(k, real[0], 8080, state.Masquerade, 0), destination(k, real[1], 80, state.Masquerade, 2147483647),
				destination(k, real[2], 80, state.Masquerade, 70000))
		}
		dr := tcp(addr, 81)
		limited := destination(dr, real[0], 81, state.DirectTo, 3)
		limited.Upper, limited.Lower = 2147483647, 5
		add(service(dr, "wlc"), limited, destination(dr, real[1], 81, state.DirectTo, 1))
		tun := tcp(addr, 82)
		add(service(tun, "rr"), destination(tun, real[0], 82, state.TunnelTo, 1))
		for n, d := range []state.Destination{
			{TunnelType: state.TunnelGUE, TunnelPort: 6080},
			{TunnelType: state.TunnelGUE, TunnelPort: 65535, TunnelFlags: state.TunnelChecksum},
			{TunnelType: state.TunnelGUE, TunnelPort: 1, TunnelFlags: state.TunnelRemoteChecksum},
			{TunnelType: state.TunnelGRE}, {TunnelType: state.TunnelGRE, TunnelFlags: state.TunnelChecksum},
		} {
			other := destination(tun, real[0], 82, state.TunnelTo, 1)
			other.Addr = other.Addr.Next()
			for range n {
				other.Addr = other.Addr.Next()
			}
			other.TunnelType, other.TunnelPort, other.TunnelFlags = d.TunnelType, d.TunnelPort, d.TunnelFlags
			add(other)
		}
		// Every port, with persistence; and a firewall mark.
		sticky := service(tcp(addr, 0), "wlc")
		sticky.Flags, sticky.Timeout = state.ServicePersistent, 360*time.Second
		add(sticky, destination(sticky.ServiceKey, real[0], 0, state.DirectTo, 1))
		marked := service(state.ServiceKey{Family: sticky.Family, Mark: 2147483647}, "rr")
		marked.Flags, marked.Timeout, marked.Netmask = state.ServicePersistent, time.Second, 24
		add(marked, destination(marked.ServiceKey, real[1], 0, state.Masquerade, 1))
		one := service(transport(state.UDP, addr, 53), "rr")
		one.Flags = state.ServiceOnePacket
		add(one, destination(one.ServiceKey, real[0], 53, state.Masquerade, 1))
		for n, flags := range []uint32{state.ServiceSched1, state.ServiceSched2, state.ServiceSched1 | state.ServiceSched2} {
			for m, scheduler := range []string{"sh", "mh", "rr"} {
				s := service(tcp(addr, uint16(200+10*n+m)), scheduler)
				s.Flags = flags
				add(s)
			}
		}
		all := service(tcp(addr, 83), "sh")
		all.Flags, all.Timeout, all.Netmask = state.ServicePersistent|state.ServiceSched1|state.ServiceSched2, 100*time.Second, 17
		add(all)
	}
	// A tunnel reaches the other family.
	mixed := tcp("203.0.113.3", 80)
	add(service(mixed, "rr"), destination(mixed, "2001:db8:1::7", 80, state.TunnelTo, 1), destination(mixed, "10.0.0.7", 80, state.TunnelTo, 1))
	mixed6 := tcp("2001:db8::3", 80)
	add(service(mixed6, "rr"), destination(mixed6, "10.0.0.7", 80, state.TunnelTo, 1))
	return balancing(objects...)
}

func openBalanced(t testing.TB) *Host {
	t.Helper()
	enterNamespace(t)
	ip(t, "link set lo up")
	return openTestHost(t)
}

func TestEveryAttributeIsWhatIpvsadmPrints(t *testing.T) {
	h := openBalanced(t)
	want := allOfIt(t)
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
	if limits := strings.Join(ipvsadm(t, "-Ln --thresholds"), "\n"); strings.Count(limits, "2147483647 5") != 2 {
		t.Errorf("thresholds:\n%s", strings.Join(strings.Fields(limits), " "))
	}
	// And what ipvsadm restores of our spelling is the same again.
	restore := func(s state.State) string {
		var lines []string
		for _, v := range s.Services {
			lines = append(lines, "-A "+v.String())
		}
		slices.Sort(lines)
		for _, d := range s.Destinations {
			lines = append(lines, "-a "+d.String())
		}
		return strings.Join(lines, "\n") + "\n"
	}
	ipvsadm(t, "-C")
	cmd := exec.Command("ipvsadm", "-R")
	cmd.Stdin = strings.NewReader(restore(want.State))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("ipvsadm -R: %v %s", err, out)
	}
	s := readHost(t, h, balanced, PartIPVS)
	if !maps.Equal(s.Observed.Services, want.Services) || !maps.Equal(s.Observed.Destinations, want.Destinations) {
		t.Errorf("after ipvsadm -R of the same there is to do:\n%s", strings.Join(state.Diff(s.Observed, want).Commands(), "\n"))
	}
	reach(t, h, balanced, balancing())
	wantSaved(t, nil)
	if n := len(h.ledger.page.Services); n != 0 {
		t.Errorf("the ledger still has %d services", n)
	}
}

// shuffled is want with every attribute of every object changed in place.
func shuffled(want state.Desired) state.Desired {
	d := state.Desired{State: state.New()}
	for k, s := range want.Services {
		if s.Scheduler = "wlc"; s.Flags&state.ServicePersistent != 0 {
			s.Timeout += time.Second
		}
		s.Flags ^= state.ServiceSched1 | state.ServiceSched2
		d.Services[k] = s
	}
	for k, r := range want.Destinations {
		r.Weight = (r.Weight + 1) & 0xffff
		r.Upper, r.Lower = r.Upper/2+7, 6
		if r.Forward == state.TunnelTo {
			r.TunnelType = (r.TunnelType + 1) % 3
			r.TunnelPort, r.TunnelFlags = 0, 0
			if r.TunnelType == state.TunnelGUE {
				r.TunnelPort = 7000
			}
		} else if k.Port == k.Service.Port {
			r.Forward = map[state.Forward]state.Forward{state.Masquerade: state.DirectTo, state.DirectTo: state.Masquerade}[r.Forward]
		}
		d.Destinations[k] = r
	}
	return d
}

func TestChangesAreMadeInPlace(t *testing.T) {
	h := openBalanced(t)
	want := allOfIt(t)
	reach(t, h, balanced, want)
	changed := shuffled(want)
	for _, s := range reach(t, h, balanced, changed).Steps {
		if s.Op != state.Replace {
			t.Errorf("%s %s", s.Op, s.Object.Spell(nil))
		}
	}
	wantSaved(t, spelled(changed.State))
}

func TestOneWeightIsOneMessage(t *testing.T) {
	h := openBalanced(t)
	k := tcp("203.0.113.1", 80)
	reach(t, h, balanced, balancing(service(k, "wrr"), destination(k, "10.0.0.7", 80, state.DirectTo, 1), destination(k, "10.0.0.9", 80, state.DirectTo, 1)))
	p := plan(t, h, balanced, balancing(service(k, "wrr"), destination(k, "10.0.0.7", 80, state.DirectTo, 5), destination(k, "10.0.0.9", 80, state.DirectTo, 1)))
	before, route := h.generic.seq, h.conn.seq
	applyAll(t, h, p)
	// One more asks for the family's number.
	if n := h.generic.seq - before; n != 2 || h.conn.seq != route {
		t.Errorf("%d messages, and %d of routing", n, h.conn.seq-route)
	}
}

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
		"by tunnel alone":                destination(k, "2001:db8::1", 80, state.Masquerade, 1),
		"a weight is 0 to 2147483647":    heavy,
		"is not above the upper one":     upside,
		"add destination -t 203.0.113.1": heavy,
	} {
		o := h.Apply(t.Context(), plan(t, h, balanced, balancing(service(k, "rr"), d)), nil)
		if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), text) {
			t.Errorf("%s: %+v", d, o)
		}
	}
	wantSaved(t, []string{"-A -t 203.0.113.1:80 -s rr"})
}

func kernelTimeouts(t *testing.T) string {
	t.Helper()
	_, values, _ := strings.Cut(ipvsadm(t, "-L --timeout")[0], ": ")
	return values
}

func TestTimeoutsAreGivenBack(t *testing.T) {
	h := openBalanced(t)
	ipvsadm(t, "--set 100 20 30")
	want := balancing(state.Timeouts{TCP: 900 * time.Second})
	reach(t, h, balanced, want)
	if got := kernelTimeouts(t); got != "900 20 30" {
		t.Errorf("timeouts %s", got)
	}
	reach(t, h, balanced, balancing(state.Timeouts{TCP: 901 * time.Second, UDP: 31 * time.Second}))
	if got := kernelTimeouts(t); got != "901 20 31" {
		t.Errorf("timeouts %s", got)
	}
	reach(t, h, Query{}, balancing())
	if got := kernelTimeouts(t); got != "100 20 30" || h.ledger.page.Timeouts != nil {
		t.Errorf("given back %s, in the ledger %v", got, h.ledger.page.Timeouts)
	}
	// What somebody else has set since is theirs.
	reach(t, h, balanced, want)
	ipvsadm(t, "--set 7 8 9")
	reach(t, h, balanced, balancing())
	if got := kernelTimeouts(t); got != "7 8 9" {
		t.Errorf("timeouts %s: not theirs any more", got)
	}
}

func running(t *testing.T) string {
	t.Helper()
	var words []string
	for _, l := range ipvsadm(t, "-L --daemon") {
		role, rest, _ := strings.Cut(l, " sync daemon (mcast=")
		link, rest, _ := strings.Cut(rest, ", syncid=")
		id, _, _ := strings.Cut(rest, ",")
		words = append(words, role+" "+link+" "+id)
	}
	return strings.Join(words, ", ")
}

func TestSyncDaemonsComeAndGo(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	master, backup := state.SyncDaemon{Master: true, Link: "em1", ID: 1}, state.SyncDaemon{Link: "em1", ID: 255}
	reach(t, h, balanced, balancing(master, backup))
	if got := running(t); got != "master em1 1, backup em1 255" {
		t.Errorf("running: %s", got)
	}
	master.ID, backup.Link = 7, "em2"
	reach(t, h, balanced, balancing(master, backup))
	if got := running(t); got != "master em1 7, backup em2 255" {
		t.Errorf("running: %s", got)
	}
	reach(t, h, balanced, balancing(backup))
	if got := running(t); got != "backup em2 255" {
		t.Errorf("running: %s", got)
	}
	// Somebody else's is left alone.
	ipvsadm(t, "--start-daemon master --mcast-interface em2 --syncid 9")
	if p := plan(t, h, balanced, balancing(backup)); !p.Empty() {
		t.Errorf("it would be stopped: %v", p.Commands())
	}
	o := h.Apply(t.Context(), plan(t, h, balanced, balancing(master, backup)), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "not sisod's (file exists): stop it (ipvsadm --stop-daemon master)") {
		t.Errorf("%+v", o)
	}
	reach(t, h, Query{}, balancing())
	if got := running(t); got != "master em2 9" {
		t.Errorf("running: %s", got)
	}
	ipvsadm(t, "--stop-daemon master")
	absent := state.SyncDaemon{Master: true, Link: "absent0", ID: 1}
	o = h.Apply(t.Context(), plan(t, h, balanced, balancing(absent)), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "the interface absent0 is not there") {
		t.Errorf("%+v", o)
	}
	if len(h.ledger.page.Syncs) != 0 {
		t.Errorf("the ledger has %v", h.ledger.page.Syncs)
	}
}

func TestSyncDoesNotGoWithMixedFamilies(t *testing.T) {
	h := openBalanced(t)
	quietUplinks(t)
	k := tcp("203.0.113.1", 80)
	mixed := balancing(service(k, "rr"), destination(k, "2001:db8::1", 80, state.TunnelTo, 1))
	reach(t, h, balanced, mixed)
	master := state.SyncDaemon{Master: true, Link: "em1", ID: 1}
	mixed.Syncs[true] = master
	o := h.Apply(t.Context(), plan(t, h, balanced, mixed), nil)
	if len(o) != 1 || o[0].Err == nil || !strings.Contains(o[0].Err.Error(), "of another family than their service") {
		t.Errorf("%+v", o)
	}
	reach(t, h, balanced, balancing())
	reach(t, h, balanced, balancing(master))
	for _, x := range h.Apply(t.Context(), plan(t, h, balanced, mixed), nil) {
		if x.Step.Object.Kind() == state.KindDestination && (x.Err == nil || !strings.Contains(x.Err.Error(), "while a sync daemon runs")) {
			t.Errorf("%+v", x)
		}
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

func TestConnectionsAreCounted(t *testing.T) {
	h := openBalanced(t)
	ip(t, "addr add 203.0.113.1/32 dev lo")
	k := tcp("203.0.113.1", 80)
	reach(t, h, balanced, balancing(service(k, "rr"), destination(k, "127.0.0.1", 8080, state.Masquerade, 1)))
	// Nobody listens there: the connection ends at once and is remembered inactive.
	_ = exec.Command("bash", "-c", "exec 3<>/dev/tcp/203.0.113.1/80").Run()
	s := readHost(t, h, balanced, PartIPVS)
	got := s.Facts.IPVS.Connections[state.DestinationKey{Service: k, Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}]
	if got.Active+got.Inactive != 1 {
		t.Errorf("%+v:\n%s", got, strings.Join(ipvsadm(t, "-Ln"), "\n"))
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
	want := "no IPVS in this kernel: generic netlink family IPVS: no such file or directory: install or allow its module ip_vs"
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

// thousand is a state of n services with four real servers each.
func thousand(n int) state.Desired {
	var objects []state.Object
	for i := range n {
		a := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		k := state.ServiceKey{Family: state.IPv4, Protocol: state.TCP, Addr: a, Port: 80}
		objects = append(objects, service(k, "wlc"))
		for r := range 4 {
			objects = append(objects, destination(k, fmt.Sprintf("10.0.0.%d", r+1), 80, state.DirectTo, 1))
		}
	}
	return balancing(objects...)
}

func TestManyServicesAreReadWhole(t *testing.T) {
	h := openBalanced(t)
	want := thousand(500)
	reach(t, h, balanced, want)
	wantSaved(t, spelled(want.State))
}

func BenchmarkServices(b *testing.B) {
	h := openBalanced(b)
	want, none := thousand(1000), balancing()
	b.Run("add", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			applyAll(b, h, state.Diff(readHost(b, h, balanced, PartIPVS).Observed, none))
			p := state.Diff(readHost(b, h, balanced, PartIPVS).Observed, want)
			b.StartTimer()
			applyAll(b, h, p)
		}
	})
	b.Run("restore", func(b *testing.B) {
		input := strings.Join(spelled(want.State), "\n") + "\n"
		for b.Loop() {
			b.StopTimer()
			ipvsadm(b, "-C")
			b.StartTimer()
			cmd := exec.Command("ipvsadm", "-R")
			cmd.Stdin = strings.NewReader(input)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatal(err, string(out))
			}
		}
	})
	ipvsadm(b, "-C")
	applyAll(b, h, state.Diff(readHost(b, h, balanced, PartIPVS).Observed, want))
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			readHost(b, h, balanced, PartIPVS)
		}
	})
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			if moved, err := h.IPVSMoved(); moved || err != nil {
				b.Fatal(moved, err)
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			ipvsadm(b, "-Sn")
		}
	})
	b.Run("diff", func(b *testing.B) {
		s := readHost(b, h, balanced, PartIPVS)
		for b.Loop() {
			if p := state.Diff(s.Observed, want); !p.Empty() {
				b.Fatal(p.Commands()[0])
			}
		}
	})
}
