//go:build stock

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/internal/state"
)

// connected are connections that a host keeps open, or closes.
func connected(t *testing.T, h *lab.Host, to netip.AddrPort, n int) []net.Conn {
	t.Helper()
	var list []net.Conn
	err := h.Do(func() error {
		d := net.Dialer{Timeout: patient}
		d.SetMultipathTCP(false)
		for range n {
			c, err := d.Dial("tcp", to.String())
			if err != nil {
				return err
			}
			list = append(list, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range list {
			c.Close()
		}
	})
	return list
}

// counted is what ipvsadm -Ln counts at the real servers: address, weight,
// active, inactive.
func counted(t *testing.T, h *lab.Host) (list [][4]string) {
	t.Helper()
	for l := range strings.Lines(run(t, h, "ipvsadm", "-Ln")) {
		if f := strings.Fields(l); len(f) == 6 && f[0] == "->" && f[1] != "RemoteAddress:Port" {
			list = append(list, [4]string{f[1], f[3], f[4], f[5]})
		}
	}
	return list
}

// countedTraffic is what ipvsadm counts at the real servers, by address, as status
// tells it.
func countedTraffic(t *testing.T, h *lab.Host) map[string]state.Counts {
	t.Helper()
	list := map[string]state.Counts{}
	for l := range strings.Lines(run(t, h, "ipvsadm", "-Ln", "--stats", "--exact")) {
		if f := strings.Fields(l); len(f) == 7 && f[0] == "->" && f[1] != "RemoteAddress:Port" {
			var c state.Counts
			if _, err := fmt.Sscan(strings.Join(f[2:], " "), &c.Connections, &c.PacketsIn, &c.PacketsOut, &c.BytesIn, &c.BytesOut); err != nil {
				t.Fatal(l, err)
			}
			list[f[1]] = c
		}
	}
	return list
}

// rates are what status tells of a second, which is over when one looks again.
var rates = regexp.MustCompile(` \([^)]*/s\)`)

// rolesText is the section of status about roles.
func rolesText(t *testing.T, text string) string {
	t.Helper()
	_, text, found := strings.Cut(text, "\nroles\n")
	if !found {
		t.Fatalf("no roles in\n%s", text)
	}
	var b strings.Builder
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, " ") {
			break
		}
		b.WriteString(l)
	}
	return b.String()
}

// TestStockStatusCountsWhatIpvsadmCounts: under traffic, and while a real server
// and then a whole director drain.
func TestStockStatusCountsWhatIpvsadmCounts(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	for _, h := range l.RealServers {
		writeProfile(t, h, "lvs.toml", spell(l, modes()[0].real))
		apply(t, h, 0)
		same(t, h.Name, rolesText(t, expect(t, h, 0, "status").stdout),
			spell(l, "  real server web, nat, director DIR4 DIR6\n"))
	}
	const head = `
		[director.web]
		mode = "nat"
		vip = "VIP4"
		interface = "eth0"
		services = ["tcp/8000"]
		scheduler = "wrr"
		persistence = "300s"
		persistence_netmask = 24
		drain = "600s"
		`
	const first, second = `{ address = "RS14", port = 80, weight = 3 }`, `{ address = "RS24", port = 80 }`
	h := l.Director
	writeProfile(t, h, "lvs.toml", spell(l, strings.Replace(head, "persistence = \"300s\"\n\t\tpersistence_netmask = 24\n", "", 1)+"real_servers = ["+first+", "+second+"]"))
	apply(t, h, 0)
	same(t, "in order", expect(t, h, 0, "status").stdout, `in order
uplinks
  none
roles
  director web, nat, 203.0.113.145 on eth0
    -t 203.0.113.145:8000 -s wrr
      203.0.113.147:80  weight 3  0 active  0 inactive
      203.0.113.148:80  weight 1  0 active  0 inactive
daemon
  not running: nothing follows changes (sisod run)
`)
	connections := connected(t, l.Client, l.VIP.At(false, 8000), 6)
	agree := func(want [2]int, code int, lines ...string) {
		t.Helper()
		patiently(t, func() error {
			list, traffic := counted(t, h), countedTraffic(t, h)
			sum := [2]int{}
			var text []string
			for i, d := range list {
				var active, inactive int
				fmt.Sscan(d[2], &active)
				fmt.Sscan(d[3], &inactive)
				sum[0], sum[1] = sum[0]+active, sum[1]+inactive
				text = append(text, fmt.Sprintf("      %s  weight %s  %s active  %s inactive%s%s\n", d[0], d[1], d[2], d[3],
					trafficText(state.Traffic{Total: traffic[d[0]]}), append(lines, "", "")[i]))
			}
			if sum != want {
				return fmt.Errorf("%v active and inactive connections, want %v", sum, want)
			}
			slices.Sort(text)
			if got := rates.ReplaceAllString(rolesText(t, expect(t, h, code, "status").stdout), ""); !strings.HasSuffix(got, strings.Join(text, "")) {
				return fmt.Errorf("status says\n%swant\n%s", got, strings.Join(text, ""))
			}
			var told [][4]string
			for _, r := range daemonStatus(t, h).Roles {
				for _, s := range r.Services {
					for _, d := range s.Destinations {
						told = append(told, [4]string{d.Address.String(), fmt.Sprint(d.Weight), fmt.Sprint(d.Active), fmt.Sprint(d.Inactive)})
						if got := traffic[d.Address.String()]; d.Traffic.Total != got || got.PacketsIn < got.Connections {
							// The kernel brings these up to date every two seconds.
							return fmt.Errorf("%s: %+v, ipvsadm %+v", d.Address, d.Traffic.Total, got)
						}
						if d.Draining != (d.Weight == 0) || !d.Present {
							t.Errorf("%+v", d)
						}
					}
				}
			}
			slices.SortFunc(list, func(a, b [4]string) int { return strings.Compare(a[0], b[0]) })
			if !slices.Equal(told, list) {
				return fmt.Errorf("-o json says %v, ipvsadm %v", told, list)
			}
			return nil
		})
	}
	agree([2]int{6, 0}, 0)
	for _, c := range connections[:2] {
		c.Close()
	}
	agree([2]int{4, 2}, 0)

	// A real server that is removed drains, and so does a director.
	writeProfile(t, h, "lvs.toml", spell(l, head+"real_servers = ["+second+"]"))
	apply(t, h, 0)
	agree([2]int{4, 2}, 2, "  draining")
	text := expect(t, h, 2, "status").stdout
	contains(t, rates.ReplaceAllString(rolesText(t, text), ""), "    -t 203.0.113.145:8000 -s wrr -p 300 -M 255.255.255.0\n      in all  6 connections  ", "203.0.113.147:80  weight 0")
	contains(t, text, "real server 203.0.113.147:80 was removed and drains")
	writeProfile(t, h, "lvs.toml", "")
	apply(t, h, 2) // the first one drains still
	agree([2]int{4, 2}, 2, "  draining", "  draining")
	contains(t, rolesText(t, expect(t, h, 2, "status").stdout), "  removed from the profiles\n    -t 203.0.113.145:8000 -s wrr")
}

// bar has the kernel load no module until the end of the test, or until lift is
// called, and takes a module away with those that stand on it.
func bar(t *testing.T, module string) (lift func()) {
	t.Helper()
	const path = "/proc/sys/kernel/modprobe"
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("/bin/false"), 0o644); err != nil {
		t.Fatal(err)
	}
	lift = func() { _ = os.WriteFile(path, program, 0o644) }
	t.Cleanup(lift)
	patiently(t, func() error {
		loaded, err := os.ReadFile("/proc/modules")
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(loaded)) {
			if m, _, _ := strings.Cut(l, " "); m != module && (strings.HasPrefix(m, module+"_") || module == "nf_tables" && strings.HasPrefix(m, "nft_")) {
				// What still uses it is told by the last one.
				_ = exec.Command("rmmod", m).Run()
			}
		}
		if _, err := os.Stat("/sys/module/" + module); err != nil {
			return nil
		}
		if out, err := exec.Command("rmmod", module).CombinedOutput(); err != nil {
			return fmt.Errorf("rmmod %s: %w %s", module, err, out)
		}
		return nil
	})
	return lift
}

// TestStockStatusNamesWhatTheKernelLacks: what can be applied is, and the rest as
// soon as the module is there.
func TestStockStatusNamesWhatTheKernelLacks(t *testing.T) {
	l := newLVS(t, false)
	h := l.Director
	const missing, present = `
		[director.one]
		mode = "dr"
		vip = "VIP4"
		interface = "eth0"
		services = ["tcp/80"]
		scheduler = "mh"
		real_servers = [{ address = "RS14" }]
		`, `
		[director.two]
		mode = "dr"
		vip = "VIP6"
		interface = "eth0"
		services = ["tcp/80"]
		scheduler = "rr"
		real_servers = [{ address = "RS16" }]
		`
	t.Run("a scheduler", func(t *testing.T) {
		lift := bar(t, "ip_vs_mh")
		writeProfile(t, h, "lvs.toml", spell(l, missing+present))
		started(t, h)
		patiently(t, func() error {
			if !strings.Contains(run(t, h, "ipvsadm", "-Sn"), "-a -t [2001:db8:1::145]:80 -r [2001:db8:1::147]:80 -g -w 1") {
				return errors.New("the other director is not applied")
			}
			return nil
		})
		text := expect(t, h, 2, "status").stdout
		contains(t, text, "no scheduler mh in this kernel: install or allow its module ip_vs_mh",
			"    -t 203.0.113.145:80 -s mh  not in the kernel\n", "      203.0.113.147:80  weight 1  0 active  0 inactive  not in the kernel\n",
			"    -t [2001:db8:1::145]:80 -s rr\n", "      [2001:db8:1::147]:80  weight 1  0 active  0 inactive\n",
			"to add service -t 203.0.113.145:80 -s mh")
		lift()
		settled(t, h)
		patiently(t, func() error {
			if r := sisod(t, h, "status"); r.code != 0 {
				return errors.New(r.stdout)
			}
			return nil
		})
		contains(t, run(t, h, "ipvsadm", "-Sn"), "-a -t 203.0.113.145:80 -r 203.0.113.147:80 -g -w 1")
		expect(t, h, 0, "flush")
	})
	t.Run("all of IPVS", func(t *testing.T) {
		lift := bar(t, "ip_vs")
		started(t, h)
		text := expect(t, h, 2, "status").stdout
		contains(t, text, "no IPVS in this kernel", "director one, dr, 203.0.113.145 not on this host", "2 problems")
		if strings.Contains(text, "failed") {
			t.Errorf("nothing was tried:\n%s", text)
		}
		lift()
		patiently(t, func() error {
			if r := sisod(t, h, "status"); r.code != 0 {
				return errors.New(r.stdout)
			}
			return nil
		})
		contains(t, run(t, h, "ipvsadm", "-Sn"), "-a -t 203.0.113.145:80 -r 203.0.113.147:80 -g -w 1", "-s mh", "-s rr")
	})
}

// TestStockShowIsWhatIpvsadmRestores: its lines, fed to ipvsadm on another host,
// make the same services there.
func TestStockShowIsWhatIpvsadmRestores(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	from, to := l.Director, l.Neighbour
	var b strings.Builder
	director := func(mode, more, servers string) {
		fmt.Fprintf(&b, "[director.d%d]\nmode = %q\n%s\nreal_servers = [%s]\n", b.Len(), mode, more, servers)
	}
	const both, v4 = `{ address = "RS14", weight = 7 }, { address = "RS16" }, { address = "RS24", weight = 0 }`, `{ address = "RS14" }`
	port := 100
	vips := func(service string) string {
		port++
		return fmt.Sprintf("vip = [\"VIP4\", \"VIP6\"]\nservices = [\"%s/%d\"]\n", service, port)
	}
	schedulers := strings.Fields("rr wrr lc wlc fo ovf lblc lblcr dh sh mh sed nq") // twos is not in Debian's kernel
	for _, s := range schedulers {
		director("dr", vips("tcp")+`scheduler = "`+s+`"`, both)
	}
	for _, s := range []string{"sh", "mh"} {
		for _, flags := range []string{`"fallback"`, `"port"`, `"fallback", "port"`} {
			director("dr", vips("udp")+fmt.Sprintf("scheduler = %q\nscheduler_flags = [%s]", s, flags), both)
		}
	}
	director("nat", vips("sctp"), `{ address = "RS14", port = 8080, weight = 65535, upper = 900, lower = 700 }, { address = "RS16", port = 1 }`)
	director("dr", vips("tcp")+"persistence = \"300s\"", both)
	for vip, server := range map[string]string{"VIP4": v4, "VIP6": `{ address = "RS16" }`} {
		director("dr", "vip = \""+vip+"\"\nservices = [\"tcp/99\"]\npersistence = \"1s\"\npersistence_netmask = 17", server)
	}
	director("dr", "vip = \"VIP4\"\nservices = [\"tcp/0\"]\npersistence = \"360s\"", v4)
	director("dr", vips("udp")+"one_packet = true", both)
	director("tun", vips("tcp"), both)
	director("tun", vips("tcp")+"encapsulation = \"gre\"", both)
	director("tun", vips("tcp")+"encapsulation = \"gue\"\nencapsulation_port = 6080", both)
	director("dr", "fwmark = 7", both)
	director("dr", "fwmark = 8\npersistence = \"60s\"\npersistence_netmask = 24", v4)
	director("nat", "fwmark = 9", `{ address = "RS16" }`)
	director("tun", "vip = \"VIP4\"\nservices = [\"udp/90\"]", `{ address = "RS16" }, { address = "RS24" }`)
	writeProfile(t, from, "lvs.toml", spell(l, b.String()))
	apply(t, from, 0)

	text := expect(t, from, 0, "show", "--ipvsadm").stdout
	runInput(t, to, text, "ipvsadm", "-R")
	// The same lines stand in the whole, with their origin.
	var lines []string
	for line := range strings.Lines(expect(t, from, 0, "show").stdout) {
		if line, origin, ok := strings.Cut(line, "# lvs.toml:"); ok && origin != "\n" && strings.HasPrefix(strings.ToLower(line), "-a ") {
			lines = append(lines, strings.TrimRight(line, " ")+"\n")
		}
	}
	same(t, "services in show", strings.Join(lines, ""), text)
	saved := func(h *lab.Host) string {
		return sortedLines(run(t, h, "ipvsadm", "-Sn")) + sortedLines(run(t, h, "ipvsadm", "-Ln", "--thresholds"))
	}
	same(t, "restored from show", saved(to), saved(from))
	if n := strings.Count(run(t, to, "ipvsadm", "-Sn"), "\n"); n != len(lines) || n < 100 {
		t.Errorf("%d lines of show, %d objects", len(lines), n)
	}
	for _, s := range schedulers {
		contains(t, run(t, to, "ipvsadm", "-Sn"), "-s "+s+"\n")
	}
	contains(t, saved(to), "-b sh-fallback,sh-port", "-b mh-port", "-p 1 -M 255.255.128.0", "-p 1 -M 17", " -o\n", "--tun-type gue --tun-port 6080", "--tun-type gre", "-f 7 -6", "700", "900")
}
