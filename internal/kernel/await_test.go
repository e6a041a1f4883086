package kernel

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The files are what NetworkManager 1.42 wrote on a Debian 12 from boot on.
func TestLinksThatNetworkManagerIsStillToConfigure(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	for _, line := range []string{
		"link add em1 type veth peer name far", "link set em1 up", "link set far up",
		"link add other up type veth", "link add quiet up type veth", "link set quiet arp off", "link add off type veth", "link set lo up",
	} {
		ip(t, line)
	}
	const device = "run/NetworkManager/devices"
	q := Query{Placing: []string{"em1", "quiet", "off", "lo", "absent"}}
	waiting := func() []string {
		return slices.Sorted(maps.Keys(readHost(t, h, q, PartLinks).Facts.Awaited))
	}
	check := func(what string, want bool) {
		t.Helper()
		var list []string
		if want {
			list = []string{"em1"}
		}
		if got := waiting(); !slices.Equal(got, list) {
			t.Errorf("%s: NetworkManager is waited for on %q, want %q", what, got, list)
		}
	}
	write := func(path, text string) { writeFiles(t, h.options.Root, map[string]string{path: text}) }
	remove := func(path string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(h.options.Root, path)); err != nil {
			t.Fatal(err)
		}
	}
	check("a host without it", false)
	write("run/NetworkManager/x", "")
	check("it runs", true)
	remove("run/NetworkManager")
	unit := filepath.Join(h.options.Root, "etc/systemd/system/multi-user.target.wants/NetworkManager.service")
	if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/system/NetworkManager.service", unit); err != nil {
		t.Fatal(err)
	}
	check("it is going to run", true)
	write(device+"/1", "[device]\nmanaged=true\n")
	check("it knows of another device", true)

	em1 := fmt.Sprintf("%s/%d", device, h.links.index("em1"))
	for _, c := range []struct {
		what, text string
		want       bool
	}{
		{"found", "managed=true\nperm-hw-addr-fake=F2:9B:5B:97:F2:75\nnm-owned=false\nroute-metric-default-effective=100\n", true},
		{"activated", "managed=true\nperm-hw-addr-fake=F2:9B:5B:97:F2:75\nconnection-uuid=959d976a-8f62-37aa-b28a-7974198154fe\nnm-owned=false\n", false},
		{"disconnected", "managed=true\nperm-hw-addr-fake=F2:9B:5B:97:F2:75\nnm-owned=false\n", true},
		{"unmanaged", "managed=false\nperm-hw-addr-fake=F2:9B:5B:97:F2:75\nnm-owned=false\n", false},
		{"another section", "managed=true\n[dhcp4]\nconnection-uuid=x\n", true},
	} {
		write(em1, "[device]\n"+c.text)
		check(c.what, c.want)
	}
	for address, of := range map[string]bool{"198.51.100.2/24": false, "198.51.100.80/32": false, "2001:db8:2::2/64": false, "fe80::7/64": true, "169.254.0.7/16 scope link": true} {
		ip(t, "address add "+address+" dev em1")
		check("with "+address, of)
		ip(t, "address flush dev em1")
	}
	ip(t, "link set em1 down")
	check("down", false)
	ip(t, "link set em1 up")
	check("up", true)
	remove(em1)
	if err := os.Mkdir(filepath.Join(h.options.Root, em1), 0o755); err != nil {
		t.Fatal(err)
	}
	check("a file that tells nothing", false)
}

func TestWaitingForNetworkManagerIsRememberedAcrossProcesses(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	ip(t, "link add em1 up type veth peer name far")
	writeFiles(t, h.options.Root, map[string]string{"run/NetworkManager/x": ""})
	q := Query{Placing: []string{"em1"}}
	first := readHost(t, h, q, AllParts).Facts
	if since, waits := first.Awaited["em1"]; !waits || !since.IsZero() {
		t.Fatalf("waited for since %s, %v: want the zero time", since, waits)
	}
	want := map[string]time.Time{"em1": first.Now}
	if err := h.RememberAwaited(want); err != nil {
		t.Fatal(err)
	}
	fresh, err := Open(h.options)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	for _, host := range []*Host{h, fresh} {
		if got := readHost(t, host, q, AllParts).Facts.Awaited; !maps.EqualFunc(got, want, time.Time.Equal) {
			t.Errorf("waited for since %v, want %v", got, want)
		}
	}
	if err := h.RememberAwaited(nil); err != nil {
		t.Fatal(err)
	}
	if since := readHost(t, fresh, q, AllParts).Facts.Awaited["em1"]; !since.IsZero() {
		t.Errorf("the next wait began at %s", since)
	}
}
