package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// ups brings em1 of a smallHost up and gives it back what the kernel takes away
// with a link: its IPv6 address and main's defaults.
func ups(t *testing.T, h *lab.Host) {
	t.Helper()
	batch(t, h, `link set em1 up
address replace 192.0.2.2/24 dev em1
address replace 2001:db8:1::2/64 dev em1
route replace default via 192.0.2.1 proto dhcp
route replace default via 2001:db8:1::1 proto static
`)
}

// batch runs ip commands, one a line.
func batch(t testing.TB, h *lab.Host, commands string) {
	t.Helper()
	run(t, h, "sh", "-c", "printf %s \"$1\" | ip -batch -", "sh", commands)
}

// whole waits until em1 is a whole uplink again, in the eyes of ip.
func whole(t *testing.T, h *lab.Host) {
	t.Helper()
	settled(t, h)
	shows(t, h, "route show table isp1", "default via 192.0.2.1 dev em1")
	shows(t, h, "route show table isp1", "unreachable default")
	shows(t, h, "-6 route show table isp1", "default via 2001:db8:1::1 dev em1")
	shows(t, h, "rule", "from 192.0.2.2 lookup isp1 proto 115")
	shows(t, h, "-6 rule", "from 2001:db8:1::2 lookup isp1 proto 115")
	shows(t, h, "-d link show em1", "group 115")
	settled(t, h)
}

func TestDaemonFollowsLinks(t *testing.T) {
	t.Parallel()
	h, router := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	_, log := started(t, h)
	isp2 := func() string { return ip(t, h, "route", "show", "table", "isp2") }
	other := isp2()

	t.Run("down and up", func(t *testing.T) {
		ip(t, h, "link", "set", "em1", "down")
		lacks(t, h, "route show table isp1", "via")
		settled(t, h)
		shows(t, h, "route show table isp1", "unreachable default")
		shows(t, h, "rule", "from 192.0.2.2 lookup isp1")
		ups(t, h)
		whole(t, h)
	})
	t.Run("carrier", func(t *testing.T) {
		state := func(want string) {
			t.Helper()
			patiently(t, func() error {
				for _, u := range daemonStatus(t, h).Uplinks {
					if u.Name == "isp1" && u.Family == "IPv4" && u.State != want {
						return fmt.Errorf("isp1 is %s, not %s", u.State, want)
					}
				}
				return nil
			})
		}
		ip(t, router, "link", "set", "host1", "down")
		state("no-carrier")
		says(t, log, "problem", "interface em1 has no carrier")
		settled(t, h)
		shows(t, h, "route show table isp1", "default via 192.0.2.1 dev em1")
		ip(t, router, "link", "set", "host1", "up")
		state("up")
		says(t, log, "problem solved", "no carrier")
		whole(t, h)
	})
	t.Run("rename", func(t *testing.T) {
		batch(t, h, "link set em1 down\nlink set em1 name wan0\nlink set wan0 up\n")
		says(t, log, "interface em1 is not there")
		settled(t, h)
		shows(t, h, "rule", "12000:\tfrom all oif em1 [detached] lookup isp1")
		batch(t, h, "link set wan0 down\nlink set wan0 name em1\n")
		ups(t, h)
		whole(t, h)
	})
	t.Run("deleted and recreated", func(t *testing.T) {
		index := func() string {
			before, _, _ := strings.Cut(ip(t, h, "-o", "link", "show", "em1"), ":")
			return before
		}
		old := index()
		ip(t, h, "link", "del", "em1")
		lacks(t, h, "route show table isp1", "em1")
		settled(t, h)
		// Others take the number first.
		ip(t, h, "link", "add", "spare", "type", "veth", "peer", "name", "spare2")
		batch(t, h, "link add em1 type veth peer name peer1\nlink set peer1 up\n")
		ups(t, h)
		whole(t, h)
		if index() == old {
			t.Errorf("em1 has index %s as before", old)
		}
		if out := run(t, h, "cat", "/proc/sys/net/ipv4/conf/em1/rp_filter"); out != "2\n" {
			t.Errorf("rp_filter of the new em1 is %s", out)
		}
	})
	t.Run("flapping", func(t *testing.T) {
		for range 15 {
			ip(t, h, "link", "set", "em1", "down")
			ups(t, h)
		}
		whole(t, h)
		if words := log.String(); strings.Contains(words, "keeps undoing") {
			t.Errorf("a flapping link is taken for a fight:\n%s", words)
		}
	})
	t.Run("flapping too quickly to be seen down", func(t *testing.T) {
		for range 15 {
			batch(t, h, "link set em2 down\nlink set em2 up\naddress add 2001:db8:2::2/64 dev em2\n")
			shows(t, h, "route show table isp2", "default via 198.51.100.1 dev em2")
		}
		settled(t, h)
		if words := log.String(); strings.Contains(words, "keeps undoing") {
			t.Errorf("a flapping link is taken for a fight:\n%s", words)
		}
	})
	if now := isp2(); now != other {
		t.Errorf("table isp2 has changed from\n%sto\n%s", other, now)
	}
}

func TestDaemonFollowsAddresses(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	_, log := started(t, h)

	t.Run("added and deleted", func(t *testing.T) {
		for _, a := range []string{"192.0.2.77/24", "203.0.113.5/32", "2001:db8:1::77/64"} {
			family, _, _ := strings.Cut(a, "/")
			version := "-4"
			if strings.Contains(a, "::") {
				version = "-6"
			}
			ip(t, h, "address", "add", a, "dev", "em1")
			shows(t, h, version+" rule", "from "+family+" lookup isp1 proto 115")
			ip(t, h, "address", "del", a, "dev", "em1")
			lacks(t, h, version+" rule", family)
		}
		whole(t, h)
	})
	t.Run("secondary becomes primary", func(t *testing.T) {
		run(t, h, "sysctl", "-qw", "net.ipv4.conf.em1.promote_secondaries=1")
		ip(t, h, "address", "add", "192.0.2.77/24", "dev", "em1")
		shows(t, h, "rule", "from 192.0.2.77 lookup isp1")
		ip(t, h, "address", "del", "192.0.2.2/24", "dev", "em1")
		shows(t, h, "route show table isp1", "default via 192.0.2.1 dev em1 proto 115 src 192.0.2.77")
		lacks(t, h, "rule", "from 192.0.2.2 ")
		settled(t, h)
		ip(t, h, "address", "add", "192.0.2.2/24", "dev", "em1")
		ip(t, h, "address", "del", "192.0.2.77/24", "dev", "em1")
		shows(t, h, "route show table isp1", "default via 192.0.2.1 dev em1 proto 115 src 192.0.2.2")
		whole(t, h)
	})
	t.Run("deprecated and temporary", func(t *testing.T) {
		run(t, h, "sysctl", "-qw", "net.ipv6.conf.em1.use_tempaddr=2")
		ip(t, h, "address", "add", "2001:db8:1::88/64", "dev", "em1", "valid_lft", "600", "preferred_lft", "0")
		ip(t, h, "address", "add", "2001:db8:1:5::1/64", "dev", "em1", "mngtmpaddr", "valid_lft", "6000", "preferred_lft", "6000")
		shows(t, h, "-6 rule", "from 2001:db8:1::88 lookup isp1")
		shows(t, h, "-6 rule", "from 2001:db8:1:5::1 lookup isp1")
		shows(t, h, "-6 address show dev em1", "temporary")
		var temporary string
		for line := range strings.Lines(ip(t, h, "-6", "-o", "address", "show", "dev", "em1", "temporary")) {
			temporary, _, _ = strings.Cut(strings.Fields(line)[3], "/")
		}
		shows(t, h, "-6 rule", "from "+temporary+" lookup isp1")
		settled(t, h)
		// They are answered for, and nothing begins from them.
		for line := range strings.Lines(ip(t, h, "-6", "route", "show", "table", "isp1")) {
			if strings.Contains(line, "src "+temporary) || strings.Contains(line, "src 2001:db8:1::88") {
				t.Errorf("a source that does not last: %s", line)
			}
		}
		// The last choice for a source goes, and the way stays.
		ip(t, h, "address", "del", "2001:db8:1:5::1/64", "dev", "em1")
		lacks(t, h, "-6 rule", temporary)
		ip(t, h, "address", "del", "2001:db8:1::88/64", "dev", "em1")
		whole(t, h)
	})
	t.Run("flapping", func(t *testing.T) {
		batch(t, h, strings.Repeat("address del 192.0.2.2/24 dev em1\naddress add 192.0.2.2/24 dev em1\n", 100)+
			strings.Repeat("address add 192.0.2.99/24 dev em1\naddress del 192.0.2.99/24 dev em1\n", 100)+
			strings.Repeat("address del 2001:db8:1::2/64 dev em1\naddress add 2001:db8:1::2/64 dev em1\n", 100)+
			"route replace default via 192.0.2.1 proto dhcp\nroute replace default via 2001:db8:1::1\n")
		whole(t, h)
		lacks(t, h, "rule", "192.0.2.99")
	})
	t.Run("flapping slowly", func(t *testing.T) {
		for range 30 {
			ip(t, h, "address", "add", "192.0.2.99/24", "dev", "em1")
			shows(t, h, "rule", "from 192.0.2.99 lookup isp1")
			ip(t, h, "address", "del", "192.0.2.99/24", "dev", "em1")
			lacks(t, h, "rule", "192.0.2.99")
		}
		whole(t, h)
	})
	if words := log.String(); strings.Contains(words, "keeps undoing") {
		t.Errorf("a flapping address is taken for a fight:\n%s", words)
	}
}

func TestDaemonFollowsGateways(t *testing.T) {
	t.Parallel()
	h, _ := smallHost(t)
	writeProfile(t, h, "isp.toml", smallProfile)
	_, log := started(t, h)

	// A DHCP client is told another router.
	ip(t, h, "route", "replace", "default", "via", "192.0.2.3", "proto", "dhcp")
	shows(t, h, "route show table isp1", "default via 192.0.2.3 dev em1")
	lacks(t, h, "route show table isp1", "192.0.2.1 ")
	settled(t, h)

	ip(t, h, "route", "del", "default")
	lacks(t, h, "route show table isp1", "via")
	says(t, log, "msg=problem", "IPv4 gateway of em1 is gone", "the last was 192.0.2.3", "unreachable until it is back")
	settled(t, h)
	shows(t, h, "route show table isp1", "unreachable default")
	shows(t, h, "rule", "from 192.0.2.2 lookup isp1")
	shows(t, h, "-6 route show table isp1", "default via 2001:db8:1::1")

	ip(t, h, "route", "add", "default", "via", "192.0.2.1", "dev", "em1", "proto", "dhcp", "metric", "100")
	whole(t, h)
	says(t, log, "problem solved", "IPv4 gateway of em1 is gone")

	// Main's other routes on the interface are taken over, and given up.
	ip(t, h, "route", "add", "10.77.0.0/16", "via", "192.0.2.50")
	shows(t, h, "route show table isp1", "10.77.0.0/16 via 192.0.2.50 dev em1 proto 115")
	ip(t, h, "route", "replace", "10.77.0.0/16", "via", "198.51.100.50")
	shows(t, h, "route show table isp2", "10.77.0.0/16 via 198.51.100.50 dev em2 proto 115")
	lacks(t, h, "route show table isp1", "10.77.0.0/16")
	ip(t, h, "route", "del", "10.77.0.0/16")
	lacks(t, h, "route show table isp2", "10.77.0.0/16")

	// A second client cannot put its default beside the first one's: its lease alone
	// knows the router.
	ip(t, h, "route", "del", "default", "dev", "em1")
	lacks(t, h, "route show table isp1", "via")
	lease := `lease {
  interface "em1";
  fixed-address 192.0.2.2;
  option subnet-mask 255.255.255.0;
  option routers 192.0.2.9;
  renew 2 2096/01/01 00:00:00;
  rebind 2 2096/01/01 00:00:00;
  expire 2 2096/01/01 00:00:00;
}
`
	err := h.Do(func() error { return writeLease(lease) })
	if err != nil {
		t.Fatal(err)
	}
	shows(t, h, "route show table isp1", "default via 192.0.2.9 dev em1")
	settled(t, h)
	if err := h.Do(func() error { return writeLease(strings.Replace(lease, "192.0.2.9", "192.0.2.8", 1)) }); err != nil {
		t.Fatal(err)
	}
	shows(t, h, "route show table isp1", "default via 192.0.2.8 dev em1")
	settled(t, h)
}

// writeLease is a DHCP client that takes note of its lease.
func writeLease(text string) error {
	const dir = "/var/lib/dhclient"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "dhclient.em1.leases"), []byte(text), 0o644)
}
