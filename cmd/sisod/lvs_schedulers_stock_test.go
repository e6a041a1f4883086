//go:build stock

package main

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// schedules are the kernel's schedulers, with the weights of two real servers,
// and how many of four connections that stay open each real server gets.
var schedules = []struct {
	name    string
	weights [2]int
	want    [2]int // {4, 4}: all to one of the two
}{
	{"rr", [2]int{30, 10}, [2]int{2, 2}},
	{"wrr", [2]int{30, 10}, [2]int{3, 1}},
	{"lc", [2]int{30, 10}, [2]int{2, 2}},
	{"wlc", [2]int{30, 10}, [2]int{3, 1}},
	{"sed", [2]int{30, 10}, [2]int{3, 1}},
	{"nq", [2]int{30, 10}, [2]int{3, 1}},
	{"fo", [2]int{10, 30}, [2]int{0, 4}},
	// The heavier one, until it has more connections than weight.
	{"ovf", [2]int{2, 1}, [2]int{3, 1}},
	{"lblc", [2]int{30, 10}, [2]int{4, 4}},
	{"lblcr", [2]int{30, 10}, [2]int{4, 4}},
	{"dh", [2]int{30, 10}, [2]int{4, 4}},
	{"sh", [2]int{30, 10}, [2]int{4, 4}},
	{"mh", [2]int{30, 10}, [2]int{4, 4}},
}

// firstSchedule is the port of the first of schedules.
const firstSchedule = 8100

// TestStockSchedulersSpreadAsTheySay: every scheduler of the kernel has a
// service, and one that this kernel lacks is told and keeps nothing from the rest.
func TestStockSchedulersSpreadAsTheySay(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	// These two bring sysctls with them, which stay with the modules.
	run(t, l.Director, "modprobe", "-a", "ip_vs_lblc", "ip_vs_lblcr")
	found := snapshots(t, l.Director)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
	}
	const director = `
	[director.%s]
	mode = "nat"
	vip = "VIP4"
	interface = "eth0"
	services = ["tcp/%d"]
	scheduler = %q
	real_servers = [ { address = "RS14", port = 80, weight = %d }, { address = "RS24", port = 80, weight = %d } ]`
	all := fmt.Sprintf(director, "missing", firstSchedule-1, "twos", 1, 1)
	for i, s := range schedules {
		all += fmt.Sprintf(director, s.name, firstSchedule+i, s.name, s.weights[0], s.weights[1])
	}
	writeProfile(t, l.Director, "lvs.toml", spell(l, all))
	r := apply(t, l.Director, 1)
	missing := l.VIP.At(false, firstSchedule-1).String()
	contains(t, r.stderr, "-t "+missing+" -s twos", "no scheduler twos in this kernel: install or allow its module ip_vs_twos", "1 failed, 2 stay to do")
	kernel := run(t, l.Director, "ipvsadm", "-Sn")
	if strings.Contains(kernel, missing) {
		t.Errorf("the service of the missing scheduler is there:\n%s", kernel)
	}
	for i, s := range schedules {
		vip := l.VIP.At(false, firstSchedule+uint16(i))
		contains(t, kernel, fmt.Sprintf("-A -t %s -s %s\n", vip, s.name))
		got := map[string]int{}
		var order []string
		for range 4 {
			v, err := lodge(t, l.Client, l.ClientAddress.V4, vip)
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			got[v.server]++
			order = append(order, v.server)
		}
		one := s.want == [2]int{4, 4} && len(got) == 1
		if !one && s.want != [2]int{got["rs1"], got["rs2"]} {
			t.Errorf("%s with weights %v: %v, want %v", s.name, s.weights, order, s.want)
		}
	}
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, l.Director)
}

// TestStockThresholdsAndTimeoutsAreInForce: above `upper` no new connections
// come, until there are fewer than `lower`, for which they must end: UDP's do
// by a timeout.
func TestStockThresholdsAndTimeoutsAreInForce(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, `
			[real_server.web]
			mode = "dr"
			vip = "VIP4"`))
		apply(t, h, 0)
		if _, err := h.Serve(5353); err != nil {
			t.Fatal(err)
		}
	}
	found := snapshots(t, l.Director)
	before := run(t, l.Director, "ipvsadm", "-L", "--timeout")
	limits := func(tcp, udp, upper int) {
		t.Helper()
		writeProfile(t, l.Director, "lvs.toml", spell(l, fmt.Sprintf(`
			[ipvs]
			timeouts = { tcp = "%ds", udp = "%ds" }
			[director.web]
			mode = "dr"
			vip = "VIP4"
			interface = "eth0"
			services = ["tcp/80"]
			scheduler = "rr"
			real_servers = [ { address = "RS14", upper = %d }, { address = "RS24", upper = %d } ]
			[director.dns]
			mode = "dr"
			vip = "VIP4"
			interface = "eth0"
			services = ["udp/5353"]
			scheduler = "rr"
			real_servers = [ { address = "RS14", upper = 2, lower = 1 } ]`, tcp, udp, upper, upper)))
		apply(t, l.Director, 0)
		same(t, "timeouts", run(t, l.Director, "ipvsadm", "-L", "--timeout"), fmt.Sprintf("Timeout (tcp tcpfin udp): %d 120 %d\n", tcp, udp))
	}
	limits(600, 3600, 1)
	vip, dns := l.VIP.At(false, lab.Port), l.VIP.At(false, 5353)
	var open []stay
	more := func() error {
		v, err := lodge(t, l.Client, l.ClientAddress.V4, vip)
		if err == nil {
			open = append(open, v)
		}
		return err
	}
	for range 2 {
		if err := more(); err != nil {
			t.Fatal(err)
		}
	}
	if open[0].server == open[1].server {
		t.Errorf("%s got two connections, and takes one", open[0].server)
	}
	if err := more(); err == nil {
		t.Errorf("a third connection came to %s, beyond upper", open[2].server)
	}
	first, err := datagrams(t, l.Client, dns, 1)
	if err != nil {
		t.Fatal(err)
	}
	second, err := datagrams(t, l.Client, dns, 1)
	if err != nil {
		t.Fatal(err)
	}
	third, err := datagrams(t, l.Client, dns, 1)
	if err == nil {
		t.Error("a third client was answered, beyond upper")
	}

	limits(601, 1, 2)
	if err := more(); err != nil {
		t.Errorf("upper was raised: %v", err)
	}
	for i := range open {
		if err := open[i].ask(t); err != nil {
			t.Errorf("connection %d after the change: %v", i, err)
		}
	}
	// The next packet of a connection takes the new timeout to it.
	for _, conn := range []net.Conn{first, second} {
		if err := another(conn, patient); err != nil {
			t.Error(err)
		}
	}
	wait(t, func() error { return another(third, brief) })
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, l.Director)
	same(t, "timeouts after flush", run(t, l.Director, "ipvsadm", "-L", "--timeout"), before)
}
