//go:build stock

package main

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// TestStockHostsAreGivenBackAsFound: when the role goes from the profile, and by
// flush, through daemons that are killed and stopped in between. The hosts are
// such that not every value is a default.
func TestStockHostsAreGivenBackAsFound(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	for _, c := range []struct {
		host            *lab.Host
		profile, before string
	}{
		// One interface forwards by itself, and what is to come would.
		{l.Director, modes()[0].director + "\n[ipvs]\ntimeouts = { tcp = \"700s\" }\n",
			"ipvsadm --set 600 70 80; cd /proc/sys/net; echo 1 > ipv4/conf/eth0/forwarding; echo 1 > ipv6/conf/eth0/forwarding; echo 1 > ipv4/conf/default/forwarding; echo 1 > ipv4/conf/all/send_redirects; echo 1 > ipv4/conf/eth0/send_redirects"},
		{l.RealServers[0], modes()[3].real + "\n[real_server.gre]\nmode = \"tun\"\nencapsulation = \"gre\"\nvip = \"203.0.113.99\"\n",
			"cd /proc/sys/net/ipv4/conf; echo 1 > all/rp_filter; echo 1 > gre0/rp_filter; echo 1 > all/arp_announce"},
		{l.RealServers[1], modes()[1].real, "cd /proc/sys/net/ipv4/conf; echo 1 > all/arp_announce; echo 8 > eth0/arp_ignore; echo 0 > eth0/arp_ignore"},
	} {
		t.Run(c.host.Name, func(t *testing.T) {
			h := c.host
			shell(t, h, c.before)
			// IPv6 routers join groups, and their routes come anew: not in their place.
			now := func() string { return sortedLines(lvsSnapshot(t, h) + run(t, h, "ipvsadm", "-L", "--timeout")) }
			found := now()
			wanted := spell(l, c.profile)
			writeProfile(t, h, "lvs.toml", wanted)
			for _, end := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
				p, _ := started(t, h)
				settled(t, h)
				if now() == found {
					t.Fatal("the profile changes nothing")
				}
				send(t, p, end)
				<-p.Done()
			}
			p, _ := started(t, h)
			givenBack := func() error {
				if got := now(); got != found {
					return errors.New(difference(t, found, got))
				}
				return nil
			}
			writeProfile(t, h, "lvs.toml", "")
			patiently(t, givenBack)
			writeProfile(t, h, "lvs.toml", wanted)
			settled(t, h)
			send(t, p, unix.SIGKILL)
			<-p.Done()
			started(t, h)
			expect(t, h, 0, "flush")
			patiently(t, givenBack)
			for _, module := range []string{"ip_vs", "ipip", "ip_gre"} {
				if _, err := os.Stat("/sys/module/" + module); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
