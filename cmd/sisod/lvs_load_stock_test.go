//go:build stock

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// balanced is a service of a director, as a profile is to give it.
type balanced struct {
	name, mode string
	method     string // ipvsadm's option for mode
	vip        netip.AddrPort
	port       uint16 // of the real servers
	scheduler  scheduler
	servers    []backend // in the order of the file
	drain      string
	list       []string // of the real servers that the file had, as the kernel lists them
}

type scheduler struct{ name, flags string }

type backend struct {
	address  netip.Addr
	listed   bool // in the file
	weight   int
	draining bool // not in the file, and may be in the kernel still
}

// line is what ipvsadm -Sn says of a service with the scheduler.
func (s scheduler) line(option string) string {
	line := fmt.Sprintf("-A %s -s %s", option, s.name)
	if s.flags != "" {
		line += " -b " + s.name + "-" + strings.ReplaceAll(s.flags, ",", ","+s.name+"-")
	}
	return line
}

// deputy schedules while a real server drains.
func (s scheduler) deputy() scheduler {
	switch {
	case s.name == "dh":
		return scheduler{"lblc", ""}
	case s.name == "sh" && !strings.Contains(s.flags, "fallback"):
		return scheduler{"sh", strings.Trim("fallback,"+s.flags, ",")}
	}
	return s
}

var schedulers = []scheduler{
	{"rr", ""}, {"wrr", ""}, {"lc", ""}, {"wlc", ""}, {"sed", ""}, {"nq", ""}, {"dh", ""}, {"sh", ""}, {"sh", "port"}, {"sh", "fallback"}, {"mh", ""}, {"mh", "fallback,port"},
}

// String is the service in a profile.
func (b *balanced) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "[director.%s]\nmode = %q\nvip = %q\ninterface = \"eth0\"\nservices = [\"tcp/%d\"]\nscheduler = %q\ndrain = %q\n",
		b.name, b.mode, b.vip.Addr(), b.vip.Port(), b.scheduler.name, b.drain)
	if b.scheduler.flags != "" {
		fmt.Fprintf(&s, "scheduler_flags = [\"%s\"]\n", strings.ReplaceAll(b.scheduler.flags, ",", `", "`))
	}
	s.WriteString("real_servers = [\n")
	for _, r := range b.servers {
		if r.listed {
			fmt.Fprintf(&s, "  { address = %q, weight = %d, port = %d },\n", r.address, r.weight, b.port)
		}
	}
	s.WriteString("]\n")
	return s.String()
}

// listed are the real servers that are in the file, or those that are not.
func (b *balanced) listed(yes bool) []*backend {
	var list []*backend
	for i := range b.servers {
		if b.servers[i].listed == yes {
			list = append(list, &b.servers[i])
		}
	}
	return list
}

// change changes the service at random, and says how.
func (b *balanced) change(r *rand.Rand) string {
	in, out := b.listed(true), b.listed(false)
	pick := func(list []*backend) *backend { return list[r.IntN(len(list))] }
	add := func() string {
		s := pick(out)
		s.listed, s.weight = true, 1+r.IntN(5)
		return fmt.Sprintf("add %s with weight %d", s.address, s.weight)
	}
	remove := func() string {
		s := pick(in)
		s.listed, s.weight, s.draining = false, 0, true
		b.stayOpen()
		return fmt.Sprintf("remove %s", s.address)
	}
	for {
		switch r.IntN(5) {
		case 0:
			s := pick(in)
			if s.weight > 0 && r.IntN(2) == 0 {
				s.weight = 0 // in reserve
			} else {
				s.weight = 1 + (s.weight+r.IntN(4))%5
			}
			b.stayOpen()
			return fmt.Sprintf("%s: give %s the weight %d", b.name, s.address, s.weight)
		case 1:
			old := b.scheduler
			if b.scheduler = schedulers[r.IntN(len(schedulers))]; b.scheduler != old {
				return fmt.Sprintf("%s: schedule by %s %s, not %s %s", b.name, b.scheduler.name, b.scheduler.flags, old.name, old.flags)
			}
		case 2:
			if len(out) > 0 {
				return b.name + ": " + add()
			}
		case 3:
			if len(in) > 1 {
				return b.name + ": " + remove()
			}
		case 4:
			if len(out) > 0 {
				return b.name + ": " + remove() + ", " + add()
			}
		}
	}
}

// stayOpen has a real server take new connections, when all that are in the file
// take none.
func (b *balanced) stayOpen() {
	in := b.listed(true)
	if len(in) > 0 && !slices.ContainsFunc(in, func(s *backend) bool { return s.weight > 0 }) {
		in[0].weight = 1
	}
}

// mayHave judges what ipvsadm -Sn says of the service: what the file says, and
// what drains at weight 0, or not at all any more where nobody holds it.
func (b *balanced) mayHave(lines []string, held func(netip.AddrPort) bool) error {
	option := "-t " + b.vip.String()
	must, may := []string{}, []string{}
	for _, r := range b.servers {
		to := netip.AddrPortFrom(r.address, b.port)
		line := fmt.Sprintf("-a %s -r %s %s -w %d", option, to, b.method, r.weight)
		switch {
		case r.listed || r.draining && held(to):
			must = append(must, line)
		case r.draining:
			may = append(may, line)
		}
	}
	// The deputy of a scheduler that does not heed weights is there as long as
	// anything drains or is in reserve, and goes after it.
	first, deputy := b.scheduler.line(option), b.scheduler.deputy().line(option)
	switch {
	case slices.ContainsFunc(must, func(line string) bool { return strings.HasSuffix(line, " -w 0") }):
		must = append(must, deputy)
	case deputy != first && slices.Contains(lines, deputy) && slices.ContainsFunc(b.servers, func(r backend) bool { return r.draining }):
		may = append(may, deputy)
	default:
		must = append(must, first)
	}
	have := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l[3:], option+" ") || slices.Contains(may, l) })
	slices.Sort(must)
	slices.Sort(have)
	if !slices.Equal(must, have) {
		return fmt.Errorf("ipvsadm -Sn has\n%s\nwant\n%s\nand perhaps\n%s", strings.Join(have, "\n"), strings.Join(must, "\n"), strings.Join(may, "\n"))
	}
	return nil
}

// loadedLVS is a director with services by nat and by dr, of six real servers
// each, which are addresses of two hosts.
func loadedLVS(t *testing.T, drain string) (*lab.LVS, []*balanced) {
	t.Helper()
	l := newLVS(t, false)
	web := &balanced{name: "web", mode: "nat", method: "-m", vip: l.VIP.At(false, 8000), port: lab.Port, scheduler: scheduler{name: "rr"}, drain: drain}
	direct := &balanced{name: "direct", mode: "dr", method: "-g", vip: l.VIP.At(true, lab.Port), port: lab.Port, scheduler: scheduler{name: "rr"}, drain: drain}
	for i, h := range l.RealServers {
		for k := range 3 {
			last := 151 + 3*i + k
			v4, v6 := fmt.Sprintf("203.0.113.%d", last), fmt.Sprintf("2001:db8:1::%d", last)
			ip(t, h, "address", "add", v4+"/24", "dev", "eth0")
			ip(t, h, "address", "add", v6+"/64", "dev", "eth0", "nodad")
			web.servers = append(web.servers, backend{address: netip.MustParseAddr(v4), listed: true, weight: 1})
			direct.servers = append(direct.servers, backend{address: netip.MustParseAddr(v6), listed: true, weight: 1})
		}
		writeProfile(t, h, "lvs.toml", spell(l, `
			[real_server.web]
			mode = "nat"
			director = "DIR4"
			services = ["tcp/80"]
			[real_server.direct]
			mode = "dr"
			vip = "VIP6"`))
		apply(t, h, 0)
	}
	// Whoever loses an entry is to notice.
	if err := l.Director.Sysctl("net/ipv4/vs/expire_nodest_conn=1"); err != nil {
		t.Fatal(err)
	}
	return l, []*balanced{web, direct}
}

// writeServices writes services into the director's profile, in this order.
func writeServices(t *testing.T, l *lab.LVS, services []*balanced) {
	t.Helper()
	var text strings.Builder
	// A client that leaves is half closed for dr, until the kernel has forgotten it.
	text.WriteString("[ipvs]\ntimeouts = { tcp_fin = \"2s\" }\n")
	for _, s := range services {
		text.WriteString(s.String())
	}
	writeProfile(t, l.Director, "lvs.toml", text.String())
}

// inKernel waits until the kernel has what the services are to be. Whatever
// stayed in the file must have stayed where it was: the kernel puts first what is
// added, also what was there a moment ago.
func inKernel(t *testing.T, l *lab.LVS, services []*balanced, d *load) {
	t.Helper()
	patiently(t, func() error {
		lines := strings.Split(strings.TrimSpace(run(t, l.Director, "ipvsadm", "-Sn")), "\n")
		var errs []error
		for _, s := range services {
			errs = append(errs, s.mayHave(lines, func(server netip.AddrPort) bool { return d != nil && len(d.of(s).with(server)) > 0 }))
		}
		return errors.Join(errs...)
	})
	words := strings.Fields(run(t, l.Director, "ipvsadm", "-Ln", "--nosort"))
	for _, s := range services {
		was := s.list
		s.list = nil
		for i, w := range words[:len(words)-1] {
			if r := s.server(words[i+1]); w == "->" && r != nil && r.listed {
				s.list = append(s.list, r.address.String())
			}
		}
		both := func(list, other []string) []string {
			return slices.DeleteFunc(slices.Clone(list), func(r string) bool { return !slices.Contains(other, r) })
		}
		if was, is := both(was, s.list), both(s.list, was); !slices.Equal(was, is) {
			t.Errorf("not in place: the kernel's list was %v and is %v", was, is)
		}
		if len(s.list) != len(s.listed(true)) {
			t.Errorf("ipvsadm -Ln of %s has %v", s.vip, s.list)
		}
	}
}

// server is the one that ipvsadm calls so; nil: none of this service.
func (b *balanced) server(name string) *backend {
	for i, r := range b.servers {
		if netip.AddrPortFrom(r.address, b.port).String() == name {
			return &b.servers[i]
		}
	}
	return nil
}

// of are the guests of a service.
func (d *load) of(s *balanced) *guests {
	return d.services[slices.IndexFunc(d.services, func(g *guests) bool { return g.service == s.vip })]
}

const icmpLimits = "cd /proc/sys/net && cat ipv4/icmp_ratelimit ipv6/icmp/ratelimit"

func TestStockAHundredChangesLoseNoConnection(t *testing.T) {
	t.Parallel()
	const changes, seed = 100, 8
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	l, services := loadedLVS(t, "10m")
	limits := shell(t, l.Director, icmpLimits)
	writeServices(t, l, services)
	started(t, l.Director)
	inKernel(t, l, services, nil)
	d := newLoad(t, l, 10, services[0].vip, services[1].vip)
	for _, s := range services {
		for _, b := range s.servers {
			if to := netip.AddrPortFrom(b.address, s.port); len(d.of(s).with(to)) == 0 {
				t.Fatalf("nobody visits %s", to)
			}
		}
	}
	for n := range changes {
		change := services[r.IntN(len(services))].change(r)
		if r.IntN(2) == 0 {
			slices.Reverse(services)
			for _, s := range services {
				r.Shuffle(len(s.servers), func(i, j int) { s.servers[i], s.servers[j] = s.servers[j], s.servers[i] })
			}
			change += ", in another order"
		}
		d.during(fmt.Sprintf("change %d, %s", n+1, change))
		writeServices(t, l, services)
		inKernel(t, l, services, d)
		d.served(t)
		// Now and then the guests of what drains are asked to go.
		moved := false
		for _, s := range services {
			for _, b := range s.listed(false) {
				if b.draining && r.IntN(4) == 0 {
					moved = d.of(s).leave(t, netip.AddrPortFrom(b.address, s.port)) || moved
				}
			}
		}
		if moved || n%10 == 0 {
			d.kept(t)
		}
	}
	d.during("after the last change")
	for _, s := range services {
		for _, b := range s.listed(false) {
			d.of(s).leave(t, netip.AddrPortFrom(b.address, s.port))
			b.draining = false
		}
	}
	inKernel(t, l, services, d)
	d.served(t)
	d.kept(t)
	d.stop()
	same(t, "limits of ICMP", shell(t, l.Director, icmpLimits), limits)
	for _, loss := range d.lost() {
		t.Error(loss)
	}
	for _, g := range d.services {
		t.Logf("%s: %d rounds of %d visits, %d short connections", g.service, g.rounds.Load(), len(g.visits), g.shorts.Load())
	}
}

func TestStockARemovedServerLosesItsConnectionsAfterItsDrainAndNobodyElseDoes(t *testing.T) {
	t.Parallel()
	const drain = 5 * time.Second
	l, services := loadedLVS(t, drain.String())
	writeServices(t, l, services)
	started(t, l.Director)
	inKernel(t, l, services, nil)
	d := newLoad(t, l, 6, services[0].vip, services[1].vip)
	d.during("removal")
	var removed []string
	for _, s := range services {
		b := &s.servers[0]
		b.listed, b.weight, b.draining = false, 0, true
		for range d.of(s).with(netip.AddrPortFrom(b.address, s.port)) {
			removed = append(removed, netip.AddrPortFrom(b.address, s.port).String())
		}
	}
	if len(removed) < len(services) {
		t.Fatalf("too few visits of what is to be removed: %v", removed)
	}
	begun := time.Now()
	writeServices(t, l, services)
	inKernel(t, l, services, d)
	for _, s := range services {
		b := &s.servers[0]
		patiently(t, func() error {
			if n := len(d.of(s).with(netip.AddrPortFrom(b.address, s.port))); n > 0 {
				return fmt.Errorf("%d visits of %s go on", n, b.address)
			}
			return nil
		})
		b.draining = false
	}
	if took := time.Since(begun); took < drain {
		t.Errorf("visits were cut after %v, before the limit of %v", took, drain)
	}
	inKernel(t, l, services, d)
	d.served(t)
	d.kept(t)
	d.stop()
	for _, loss := range d.lost() {
		i := slices.IndexFunc(removed, func(server string) bool { return strings.Contains(loss, "a visit of "+server+":") })
		if i < 0 {
			t.Error(loss)
			continue
		}
		removed = slices.Delete(removed, i, i+1)
	}
	if len(removed) > 0 {
		t.Errorf("visits that were not lost: %v", removed)
	}
}
