//go:build stock

package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/state"
)

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
		voice := service(transport(state.UDP, addr, 5060), "sh")
		voice.Flags, voice.Timeout, voice.Netmask, voice.Engine = state.ServicePersistent|state.ServiceOnePacket|state.ServiceSched2, 60*time.Second, 20, "sip"
		add(voice, destination(voice.ServiceKey, real[0], 5060, state.Masquerade, 1))
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
	// A thousand services, four real servers each, and one weight of them all.
	thousand := func(weight int) state.Desired {
		var objects []state.Object
		for i := range 1000 {
			k := tcp("203.0.113.1", uint16(1000+i))
			objects = append(objects, service(k, "wrr"))
			for n := range 4 {
				d := destination(k, fmt.Sprintf("10.0.%d.%d", i%200, 7+n), 80, state.DirectTo, 1)
				if i == 500 && n == 2 {
					d.Weight = weight
				}
				objects = append(objects, d)
			}
		}
		return balancing(objects...)
	}
	reach(t, h, balanced, thousand(1))
	p := plan(t, h, balanced, thousand(5))
	before, route := h.generic.seq, h.conn.seq
	applyAll(t, h, p)
	// One more asks for the family's number.
	if n := h.generic.seq - before; n != 2 || h.conn.seq != route {
		t.Errorf("%d messages, and %d of routing", n, h.conn.seq-route)
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	h := openBalanced(t)
	ip(t, "addr add 203.0.113.1/32 dev lo")
	k := tcp("203.0.113.1", 80)
	sticky := service(k, "rr")
	sticky.Flags, sticky.Timeout = state.ServicePersistent, time.Minute
	reach(t, h, balanced, balancing(sticky, destination(k, "127.0.0.1", 8080, state.Masquerade, 1)))
	// Nobody listens there: the connection ends at once and is remembered inactive.
	_ = exec.Command("bash", "-c", "exec 3<>/dev/tcp/203.0.113.1/80").Run()
	s := readHost(t, h, balanced, PartIPVS)
	got := s.Facts.IPVS.Connections[state.DestinationKey{Service: k, Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}]
	if got.Active+got.Inactive != 1 || got.Persistent != 1 {
		t.Errorf("%+v:\n%s", got, strings.Join(ipvsadm(t, "-Ln"), "\n"))
	}
}

// counters are what ipvsadm lists of every service and real server.
func counters(t *testing.T, option string) map[string][5]uint64 {
	t.Helper()
	list, service := map[string][5]uint64{}, ""
	for _, l := range ipvsadm(t, "-Ln --exact "+option) {
		f := strings.Fields(l)
		if len(f) != 7 || f[1] == "LocalAddress:Port" || f[1] == "RemoteAddress:Port" {
			continue
		}
		name := f[1]
		if f[0] == "->" {
			name = service + " " + name
		} else {
			service = f[0] + " " + name
			name = service
		}
		var n [5]uint64
		for i := range n {
			if _, err := fmt.Sscan(f[2+i], &n[i]); err != nil {
				t.Fatal(l, err)
			}
		}
		list[name] = n
	}
	return list
}

func TestTrafficIsWhatIpvsadmCounts(t *testing.T) {
	h := openBalanced(t)
	ip(t, "addr add 203.0.113.1/32 dev lo")
	web, dns := tcp("203.0.113.1", 80), transport(state.UDP, "203.0.113.1", 53)
	reach(t, h, balanced, balancing(service(web, "rr"), destination(web, "127.0.0.1", 8080, state.Masquerade, 1), destination(web, "127.0.0.2", 8080, state.Masquerade, 1),
		service(dns, "rr"), destination(dns, "127.0.0.1", 8053, state.Masquerade, 1)))
	readHost(t, h, balanced, PartIPVS)
	// Nobody listens there.
	_ = exec.Command("bash", "-c", "for i in {1..41}; do (: 3<>/dev/tcp/203.0.113.1/80; echo -n 1234567 > /dev/udp/203.0.113.1/53) 2>/dev/null; done").Run()
	spelled := func(pick func(state.Traffic) state.Counts) map[string][5]uint64 {
		traffic, err := h.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		list := map[string][5]uint64{}
		add := func(name string, v state.Traffic) {
			c := pick(v)
			list[name] = [5]uint64{c.Connections, c.PacketsIn, c.PacketsOut, c.BytesIn, c.BytesOut}
		}
		name := map[state.ServiceKey]string{web: "TCP 203.0.113.1:80", dns: "UDP 203.0.113.1:53"}
		for k, v := range traffic.Services {
			add(name[k], v)
		}
		for k, v := range traffic.Destinations {
			add(name[k.Service]+" "+netip.AddrPortFrom(k.Addr, k.Port).String(), v)
		}
		return list
	}
	total := func(v state.Traffic) state.Counts { return v.Total }
	// The kernel sums up, and estimates, every two seconds.
	for counters(t, "--stats")["TCP 203.0.113.1:80"][0] != 41 {
	}
	got, want := spelled(total), counters(t, "--stats")
	if !maps.Equal(got, want) || len(want) != 5 || want["TCP 203.0.113.1:80"][3] == want["TCP 203.0.113.1:80"][4] {
		t.Errorf("%v\nwant %v", got, want)
	}
	rate := func(v state.Traffic) state.Counts { return v.PerSecond }
	for {
		before, want, after := spelled(rate), counters(t, "--rate"), spelled(rate)
		if seen := want["TCP 203.0.113.1:80"]; !maps.Equal(before, after) || seen[0] == 0 || seen[4] == 0 {
			continue
		}
		if !maps.Equal(before, want) {
			t.Errorf("in a second %v\nwant %v", before, want)
		}
		return
	}
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
