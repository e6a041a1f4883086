package kernel

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func gatewaysOf(leases []lease) (gateways, sources []string) {
	for _, l := range leases {
		for _, g := range l.gateways {
			gateways = append(gateways, g.String())
		}
		sources = append(sources, l.source)
	}
	return gateways, sources
}

func TestLeasesOfEveryClientAreRead(t *testing.T) {
	for _, c := range []struct {
		index    int
		link     string
		address  string
		gateways string
		source   string
	}{
		{2, "em2", "192.0.2.17", "192.0.2.1 192.0.2.254", "lease of systemd-networkd (/run/systemd/netif/leases/2)"},
		{3, "em3", "198.51.100.9", "198.51.100.1", "lease of systemd-networkd (/run/systemd/netif/leases/3)"},
		{4, "em4", "203.0.113.20", "", "lease of systemd-networkd (/run/systemd/netif/leases/4)"}, // classless routes without a default, by which the router does not count
		{5, "em5", "10.1.0.7", "10.1.0.1", "lease of systemd-networkd (/run/systemd/netif/leases/5)"},
		{6, "em6", "10.2.0.7", "10.2.0.1", "lease of systemd-networkd (/run/systemd/netif/leases/6)"},
		{7, "em7", "10.3.0.7", "10.3.0.1", "lease of NetworkManager (/run/NetworkManager/devices/7)"},
		{8, "em8", "10.4.0.7", "10.4.0.1", "lease of NetworkManager (/run/NetworkManager/devices/8)"},
		{9, "em9", "10.5.0.7", "10.5.0.1", "lease of NetworkManager (/var/lib/NetworkManager/internal-3d9c6bf2-8f2c-4a5e-9d4f-0c1d2e3f4a5b-em9.lease)"},
		{10, "em10", "10.6.0.7", "10.6.0.1", "lease of dhclient of NetworkManager (/var/lib/NetworkManager/dhclient-3d9c6bf2-8f2c-4a5e-9d4f-0c1d2e3f4a5b-em10.lease)"},
		{11, "em11", "10.7.0.7", "10.7.0.1 10.7.0.2", "lease of dhclient (/var/lib/dhcp/dhclient.em11.leases)"},
		{12, "em12", "10.8.0.7", "10.8.0.1", "lease of dhclient (/var/lib/dhcp/dhclient.leases)"},
		{13, "em13", "", "", ""}, // expired
		{14, "em14", "10.10.0.7", "10.10.0.1", "lease of dhclient (/var/lib/dhclient/dhclient-3d9c6bf2-8f2c-4a5e-9d4f-0c1d2e3f4a5b-em14.lease)"},
		{15, "em15", "10.11.0.7", "10.11.0.1 10.11.0.2", "lease of dhcpcd (/var/lib/dhcpcd/em15.lease)"},
		{16, "em16", "10.12.0.7", "10.12.0.1", "lease of dhcpcd (/var/lib/dhcpcd/em16-cafe.lease)"},
		{17, "em17", "10.13.0.7", "10.13.0.1", "lease of dhcpcd (/var/lib/dhcpcd/em17.lease)"},
		{99, "em1", "", "", ""}, // nobody's, although other names begin so
	} {
		leases := findLeases("testdata/leases", c.index, c.link)
		gateways, sources := gatewaysOf(leases)
		if strings.Join(gateways, " ") != c.gateways || strings.Join(sources, "\n") != c.source {
			t.Errorf("%s: %q from %q, want %q from %q", c.link, gateways, sources, c.gateways, c.source)
		}
		if len(leases) > 0 && leases[0].address.String() != c.address {
			t.Errorf("%s: address %s, want %s", c.link, leases[0].address, c.address)
		}
	}
}

func TestDhcpcdLeaseEndsAfterItsTime(t *testing.T) {
	content, err := os.ReadFile("testdata/leases/var/lib/dhcpcd/em18.lease")
	if err != nil {
		t.Fatal(err)
	}
	written := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if l, ok := readDhcpcdLease(content, "em18", written, written.Add(59*time.Minute)); !ok || len(l.gateways) != 1 {
		t.Errorf("after 59 of 60 minutes: %v %t", l, ok)
	}
	if l, ok := readDhcpcdLease(content, "em18", written, written.Add(61*time.Minute)); ok {
		t.Errorf("after 61 of 60 minutes: %v", l)
	}
	// All ones is a lease without an end (RFC 2131, section 3.3).
	forever, err := os.ReadFile("testdata/leases/var/lib/dhcpcd/em15.lease")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := readDhcpcdLease(forever, "em15", written, written.AddDate(200, 0, 0)); !ok {
		t.Error("a lease without an end has ended")
	}
}

// The last block of an interface is the last word, even when it says that
// there is nothing.
func TestLastDhclientBlockCounts(t *testing.T) {
	block := func(address, router, expire string) string {
		return "lease {\n interface \"em1\";\n fixed-address " + address + ";\n option routers " + router + ";\n expire " + expire + ";\n}\n"
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	good := block("192.0.2.7", "192.0.2.1", "4 2026/01/01 00:00:01")
	expired := block("192.0.2.8", "192.0.2.2", "3 2025/12/31 23:59:59")
	for _, c := range []struct{ content, want string }{
		{good, "192.0.2.1"},
		{expired + good, "192.0.2.1"},
		{good + expired, ""},
		{good + strings.ReplaceAll(expired, "em1", "em2"), "192.0.2.1"},
		{good[20:] + good, "192.0.2.1"}, // begins in the middle of a block
		{good + expired[:len(expired)-3], "192.0.2.1"},
		{strings.ReplaceAll(good, "\n", " "), "192.0.2.1"},
		{"server-name \"never closed;\n}\n" + good, "192.0.2.1"},
		{strings.ReplaceAll(good, "192.0.2.1;", "0.0.0.0, 224.0.0.1, 192.0.2.3;"), "192.0.2.3"},
		{strings.ReplaceAll(good, "lease {", "lease6 {"), ""},
	} {
		l, ok := readDhclientLeases([]byte(c.content), "em1", now, now)
		got := ""
		if ok {
			g, _ := gatewaysOf([]lease{l})
			got = strings.Join(g, " ")
		}
		if got != c.want {
			t.Errorf("%q from\n%s", got, c.content)
		}
	}
}

func TestOnlyRegularFilesAreLeases(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "run/systemd/netif/leases")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Nobody writes into the pipe: reading it would wait forever.
	if err := unix.Mkfifo(filepath.Join(dir, "2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "3"), 0o755); err != nil {
		t.Fatal(err)
	}
	for index := 2; index < 5; index++ {
		if l := findLeases(root, index, "em1"); len(l) != 0 {
			t.Errorf("%d: %v", index, l)
		}
	}
	// Of a file that has grown for years the end counts.
	long := filepath.Join(root, "var/lib/dhcp/dhclient.em1.leases")
	writeFiles(t, root, map[string]string{"var/lib/dhcp/dhclient.em1.leases": strings.Repeat("# padding\n", leaseBytes/5) +
		"lease { interface \"em1\"; fixed-address 192.0.2.7; option routers 192.0.2.1; expire never; }\n"})
	if g, _ := gatewaysOf(findLeases(root, 9, "em1")); !slices.Equal(g, []string{"192.0.2.1"}) {
		t.Errorf("%s: %v", long, g)
	}
}

// FuzzLeases: a lease file is a stranger's, and whatever is in it, what comes
// out is addresses that a router can have.
func FuzzLeases(f *testing.F) {
	err := filepath.WalkDir("testdata/leases", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		f.Add(content)
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	cookie := append(bytes.Repeat([]byte{0}, 236), 0x63, 0x82, 0x53, 0x63)
	f.Add(append(slices.Clone(cookie), 121, 3, 32, 1, 1))
	f.Add(append(slices.Clone(cookie), 52, 1, 3, 3, 200))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, place := range leasePlaces {
			l, _ := place.read(content, "em11", now, now)
			for _, g := range l.gateways {
				if !g.Is4() || g.IsUnspecified() || g.IsMulticast() {
					t.Errorf("%s: gateway %s", place.client, g)
				}
			}
		}
	})
}

func TestSpelledClasslessRoutes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"0.0.0.0/0 192.0.2.1", "192.0.2.1"},
		{"10.0.0.0/8 192.0.2.9 0.0.0.0/0 192.0.2.1", "192.0.2.1"},
		{"0 192 0 2 1", "192.0.2.1"},
		{"24,10,1,2,192,0,2,9,0,192,0,2,1", "192.0.2.1"},
		{"24.10.1.2 192.0.2.9 0 192.0.2.1", "192.0.2.1"},
		{"33 1 2 3 4 5 6 7 8 9", ""},
		{"0 192 0 2", ""},
		{"0.0.0.0/0", ""},
		{"999", ""},
		{"", ""},
	} {
		var got []string
		for _, a := range spelledRoutesDefault(c.in) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %v, want %q", c.in, got, c.want)
		}
	}
	if a := addressList("192.0.2.1, nonsense 2001:db8::1"); len(usable(a)) != 1 || usable(addressList("192.0.2.1"))[0] != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("usable addresses of %v: %v", a, usable(a))
	}
}
