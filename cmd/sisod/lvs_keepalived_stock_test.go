//go:build stock

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// keepalived is one at work on a director.
type keepalived struct {
	*lab.Process
	config string
	log    *lab.Lines
}

// startKeepalived runs keepalived with a configuration, in files of its own.
func startKeepalived(t *testing.T, h *lab.Host, config string) *keepalived {
	t.Helper()
	dir := t.TempDir()
	k := &keepalived{config: filepath.Join(dir, "keepalived.conf"), log: &lab.Lines{}}
	k.configure(t, config)
	cmd := exec.Command("keepalived", "--dont-fork", "--log-console", "--log-detail", "--use-file", k.config,
		"--pid", dir+"/pid", "--checkers_pid", dir+"/checkers", "--vrrp_pid", dir+"/vrrp")
	cmd.Stdout, cmd.Stderr = k.log, k.log
	var err error
	if k.Process, err = h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Kill()
		<-k.Done()
		if t.Failed() {
			t.Logf("keepalived:\n%s", k.log)
		}
	})
	return k
}

func (k *keepalived) configure(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(k.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
}

// stop ends it as an administrator does.
func (k *keepalived) stop(t *testing.T) {
	t.Helper()
	if err := k.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := k.Wait(); err != nil {
		t.Errorf("keepalived: %v", err)
	}
}

// virtualServer is keepalived's words for a service on the lab's VIP, whose real
// servers are asked every quarter of a second whether they are there.
func virtualServer(l *lab.LVS, port uint16, weight int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "virtual_server %s %d {\n delay_loop 0.25\n warmup 0\n lb_algo wrr\n lb_kind NAT\n protocol TCP\n", l.VIP.V4, port)
	for _, r := range l.RealAddresses {
		fmt.Fprintf(&b, " real_server %s %d {\n  weight %d\n  TCP_CHECK {\n   connect_timeout 5\n   retry 0\n  }\n }\n", r.V4, lab.Port, weight)
	}
	return b.String() + "}\n"
}

// servicesOf are the lines of ipvsadm about services on a port of the VIP.
func servicesOf(t *testing.T, l *lab.LVS, port uint16) string {
	t.Helper()
	service := " -t " + l.VIP.At(false, port).String() + " "
	var own []string
	for line := range strings.Lines(services(t, l.Director)) {
		if strings.Contains(line, service) {
			own = append(own, line)
		}
	}
	return strings.Join(own, "")
}

// lines are what ipvsadm should have of a service by nat to real servers with
// these weights; 0: not there.
func lines(l *lab.LVS, port uint16, scheduler string, weights ...int) string {
	vip := l.VIP.At(false, port)
	text := []string{fmt.Sprintf("-A -t %s -s %s\n", vip, scheduler)}
	for i, w := range weights {
		if w > 0 {
			text = append(text, fmt.Sprintf("-a -t %s -r %s -m -w %d\n", vip, l.RealAddresses[i].At(false, lab.Port), w))
		}
	}
	return strings.Join(slices.Sorted(slices.Values(text)), "")
}

// ends waits until a service is as it should be: what keepalived looks at, and
// the daemon, takes seconds on an emulated machine.
func ends(t *testing.T, l *lab.LVS, port uint16, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := lab.Wait(ctx, func() error {
		if got := servicesOf(t, l, port); got != want {
			return fmt.Errorf("port %d has\n%swant\n%s", port, got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shopProfile is a director for the lab's VIP and these services.
func shopProfile(l *lab.LVS, scheduler, services, realServers string) string {
	return spell(l, fmt.Sprintf(`
		[director.shop]
		mode = "nat"
		vip = "VIP4"
		interface = "eth0"
		drain = "0s"
		scheduler = %q
		services = [%s]
		real_servers = [%s]
		`, scheduler, services, realServers))
}

// TestStockKeepalivedAndSisodKeepToTheirOwn: two masters of one director, on one
// VIP, each with services of its own.
func TestStockKeepalivedAndSisodKeepToTheirOwn(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	ours, theirs, contested := uint16(8000), uint16(9000), uint16(9001)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
	}
	found := lvsSnapshot(t, l.Director)
	k := startKeepalived(t, l.Director, virtualServer(l, theirs, 3))
	ends(t, l, theirs, lines(l, theirs, "wrr", 3, 3))

	// Ours comes, beside theirs, and both serve.
	const both = `{ address = "RS14", port = 80, weight = 1 }, { address = "RS24", port = 80, weight = 2 }`
	writeProfile(t, l.Director, "lvs.toml", shopProfile(l, "wrr", `"tcp/8000"`, both))
	apply(t, l.Director, 0)
	_, log := startDaemon(t, l.Director)
	unchanged := func(what string) {
		t.Helper()
		same(t, what+": keepalived's service", servicesOf(t, l, theirs), lines(l, theirs, "wrr", 3, 3))
	}
	serves := func(port uint16) {
		t.Helper()
		if page, err := l.Client.Fetch(t.Context(), l.VIP.At(false, port), 0, patient); err != nil {
			t.Error(err)
		} else if page.Peer.Addr() != l.ClientAddress.V4 {
			t.Errorf("port %d: the server saw %s", port, page.Peer)
		}
	}
	ends(t, l, ours, lines(l, ours, "wrr", 1, 2))
	unchanged("apply")
	serves(ours)
	serves(theirs)

	// Keepalived finds a real server ill, and well again.
	wait(t, func() error {
		if !strings.Contains(log.String(), "ready") && sisod(t, l.Director, "status").code != 0 {
			return fmt.Errorf("not ready: %s", log)
		}
		return nil
	})
	before := log.String()
	if err := l.Webs[0].Close(); err != nil {
		t.Fatal(err)
	}
	ends(t, l, theirs, lines(l, theirs, "wrr", 0, 3))
	same(t, "a real server is ill: sisod's service", servicesOf(t, l, ours), lines(l, ours, "wrr", 1, 2))
	var err error
	if l.Webs[0], err = l.RealServers[0].ServeWeb(lab.Port); err != nil {
		t.Fatal(err)
	}
	ends(t, l, theirs, lines(l, theirs, "wrr", 3, 3))
	same(t, "the real server is well: sisod's service", servicesOf(t, l, ours), lines(l, ours, "wrr", 1, 2))

	// Keepalived is told of another service.
	k.configure(t, virtualServer(l, theirs, 3)+virtualServer(l, contested, 4))
	if err := k.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ends(t, l, contested, lines(l, contested, "wrr", 4, 4))
	same(t, "keepalived's reload: sisod's service", servicesOf(t, l, ours), lines(l, ours, "wrr", 1, 2))
	expect(t, l.Director, 0, "status")
	same(t, "what the daemon did about keepalived's doings", log.String(), before)

	// Ours is changed, and drained.
	writeProfile(t, l.Director, "lvs.toml", shopProfile(l, "rr", `"tcp/8000"`, strings.Replace(both, "weight = 1", "weight = 7", 1)))
	ends(t, l, ours, lines(l, ours, "rr", 7, 2))
	unchanged("edit")
	writeProfile(t, l.Director, "lvs.toml", shopProfile(l, "rr", `"tcp/8000"`, `{ address = "RS24", port = 80, weight = 2 }`))
	ends(t, l, ours, lines(l, ours, "rr", 0, 2))
	unchanged("drain")

	// What keepalived has already stays keepalived's, until it gives it up.
	writeProfile(t, l.Director, "lvs.toml", shopProfile(l, "wrr", `"tcp/8000", "tcp/9001"`, both))
	ends(t, l, ours, lines(l, ours, "wrr", 1, 2))
	r := apply(t, l.Director, 2)
	contains(t, r.stdout+r.stderr, "the service -t "+l.VIP.At(false, contested).String()+" is there already and somebody else's")
	contains(t, expect(t, l.Director, 2, "status").stdout, "somebody else's")
	same(t, "the service that both want", servicesOf(t, l, contested), lines(l, contested, "wrr", 4, 4))
	expect(t, l.Director, 0, "flush")
	same(t, "flush: keepalived's second service", servicesOf(t, l, contested), lines(l, contested, "wrr", 4, 4))
	same(t, "flush: sisod's service", servicesOf(t, l, ours), "")
	unchanged("flush")
	apply(t, l.Director, 2)
	k.configure(t, virtualServer(l, theirs, 3))
	if err := k.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	ends(t, l, contested, lines(l, contested, "wrr", 1, 2))
	unchanged("after keepalived gave up the other")

	// Keepalived ends.
	k.stop(t)
	same(t, "keepalived's service after its end", servicesOf(t, l, theirs), "")
	same(t, "sisod's service after keepalived's end", servicesOf(t, l, ours), lines(l, ours, "wrr", 1, 2))
	serves(ours)

	// And comes back, told to take away whatever it finds: the daemon puts its own back.
	k = startKeepalived(t, l.Director, "global_defs {\n lvs_flush\n}\n"+virtualServer(l, theirs, 3))
	ends(t, l, theirs, lines(l, theirs, "wrr", 3, 3))
	ends(t, l, ours, lines(l, ours, "wrr", 1, 2))
	contains(t, log.String(), `msg="add service" service="-t 203.0.113.145:8000 -s wrr" profile=lvs.toml:8 reason="IPVS changed" drift=true`)
	unchanged("repair")
	expect(t, l.Director, 0, "flush")
	unchanged("flush")
	k.stop(t)
	same(t, "the director in the end", lvsSnapshot(t, l.Director), found)
}

// TestStockDirectorServesAVIPOfKeepaliveds: the VIP comes and goes with VRRP,
// the services are sisod's.
func TestStockDirectorServesAVIPOfKeepaliveds(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
	}
	profile := strings.Replace(shopProfile(l, "rr", `"tcp/8000"`, `{ address = "RS14", port = 80 }, { address = "RS24", port = 80 }`), "interface = \"eth0\"\n", "", 1)
	writeProfile(t, l.Director, "lvs.toml", profile)
	found := lvsSnapshot(t, l.Director)
	apply(t, l.Director, 0)
	vip := l.VIP.At(false, 8000)
	unanswered(t, l.Client, vip)
	k := startKeepalived(t, l.Director, fmt.Sprintf("vrrp_instance web {\n state MASTER\n interface eth0\n virtual_router_id 51\n priority 200\n advert_int 1\n virtual_ipaddress {\n  %s/32\n }\n}\n", l.VIP.V4))
	owns := func(want bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := lab.Wait(ctx, func() error {
			if out := ip(t, l.Director, "-o", "address", "show", "dev", "eth0"); strings.Contains(out, netip.PrefixFrom(l.VIP.V4, 32).String()) != want {
				return fmt.Errorf("VIP there: want %v\n%s", want, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	owns(true)
	spread(t, l.Client, l.ClientAddress.V4, vip, 4)
	if r := apply(t, l.Director, 0); r.stdout != "nothing to do\n" {
		t.Errorf("apply: %s", r.stdout)
	}
	expect(t, l.Director, 0, "flush")
	owns(true)
	apply(t, l.Director, 0)
	k.stop(t)
	owns(false)
	if r := apply(t, l.Director, 0); r.stdout != "nothing to do\n" {
		t.Errorf("apply after keepalived's end: %s", r.stdout)
	}
	expect(t, l.Director, 0, "flush")
	same(t, "the director in the end", lvsSnapshot(t, l.Director), found)
}
