//go:build boot

// Package boot installs sisod's packages into a whole Debian with systemd, in a
// virtual machine on the stock kernel, and looks from outside of the program at
// what becomes of the host: at boot, reload, upgrade, trouble and removal.
//
// The host has two providers, a network of real servers, and a client behind the
// providers, which drop what has another one's source (testdata/disk). Every
// test begins with ready or bare, and leaves whatever it likes.
package boot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The versions that are built of this tree, and the packages' names in the guest.
const (
	oldVersion = "0.90"
	newVersion = "0.91"
	oldDeb     = "/root/old.deb"
	newDeb     = "/root/new.deb"
	oldRPM     = "/root/old.rpm"
	newRPM     = "/root/new.rpm"
)

// shared is the machine of all tests.
var shared *machine

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "boot test:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if err := needed(); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "sisod-boot-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	built := make(chan error, 1)
	go func() { built <- buildPackages(ctx, dir) }()
	start := time.Now()
	shared, err = startMachine(ctx, dir)
	if err != nil {
		return 1, err
	}
	defer shared.end(cancel)
	fmt.Printf("the guest's first word after %.1fs\n", time.Since(start).Seconds())
	if err := <-built; err != nil {
		return 1, err
	}
	for name, pattern := range map[string]string{
		oldDeb: oldVersion + "/*_amd64.deb", newDeb: newVersion + "/*_amd64.deb",
		oldRPM: oldVersion + "/*.x86_64.rpm", newRPM: newVersion + "/*.x86_64.rpm",
	} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			return 1, fmt.Errorf("find package %s: %d files", pattern, len(found))
		}
		content, err := os.ReadFile(found[0])
		if err != nil {
			return 1, err
		}
		if err := shared.put(name, content); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

// buildPackages builds the packages of this tree in two versions.
func buildPackages(ctx context.Context, dir string) error {
	for _, version := range []string{oldVersion, newVersion} {
		cmd := exec.CommandContext(ctx, "../package.sh", filepath.Join(dir, version))
		cmd.Env = append(os.Environ(), "VERSION="+version)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build packages: %w: %s", err, out)
		}
	}
	return nil
}

// profilePath is the only profile of a host that is ready.
const profilePath = "/etc/sisod/profiles/host.toml"

// hostProfile has two uplinks, one of them by DHCP, a real server and a director.
const hostProfile = `[uplink.one]
interface = "wan1"

[uplink.two]
interface = "wan2"
rp_filter = "strict"

[real_server.tunnelled]
mode = "tun"
vip  = "203.0.113.145"

[director.web]
vip          = "198.51.100.80"
interface    = "wan2"
mode         = "nat"
scheduler    = "wrr"
services     = ["tcp/80"]
real_servers = [{ address = "10.0.0.7", weight = 2 }]
`

// ready returns a host with the old package installed as it came, hostProfile in
// force and all in order.
func ready(t *testing.T) *machine {
	t.Helper()
	m := shared
	m.settle(t)
	m.manage(t, networkd)
	if have := m.try(t, "dpkg-query -W -f '${Status} ${Version}' sisod").stdout; !strings.HasPrefix(have, "install ok installed "+oldVersion) {
		m.run(t, "dpkg -i --force-confnew,downgrade "+oldDeb)
	}
	m.run(t, "rm -rf /etc/systemd/system/sisod.service.d /etc/systemd/networkd.conf.d; cd /etc/sisod/profiles; ls | grep -v '^host.toml$' | xargs -r rm; systemctl daemon-reload")
	m.write(t, profilePath, hostProfile)
	m.run(t, "systemctl reset-failed sisod; systemctl restart sisod")
	m.until(t, "sisod status")
	return m
}

// bare returns a host that has never seen sisod, as far as packages can tell.
func bare(t *testing.T) *machine {
	t.Helper()
	m := shared
	m.settle(t)
	m.manage(t, networkd)
	m.run(t, "dpkg --purge sisod; rm -rf /etc/sisod")
	return m
}

// owned is all that sisod has in the kernel of a host that is ready, as other
// programs see it.
func (m *machine) owned(t *testing.T) string {
	t.Helper()
	return m.run(t, `{ ip rule; ip -6 rule; } | grep 'proto sisod' | sort
ip route show table all proto 115 | sort; ip -6 route show table all proto 115 | sort
ip -o link show group 115 | cut -d: -f2
ip -o address show dev tunl0 | cut -d' ' -f2-7; ip -o address show dev wan2 to 198.51.100.80 | cut -d' ' -f2-7
ipvsadm -Sn
sysctl net.ipv4.conf.tunl0.rp_filter net.ipv4.conf.wan2.rp_filter net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.ip_forward net.ipv4.vs.conntrack`)
}

// events is the log of rules and routes that came and went since the last call.
func (m *machine) events(t *testing.T) string {
	t.Helper()
	return m.run(t, "cat /run/rules.log; : >/run/rules.log")
}

// ours tells a rule or route of sisod's, by the mark that its package names, in
// the words of a program that started before that or after.
func ours(line string) bool {
	return strings.Contains(line, "proto sisod") || strings.Contains(line, "proto 115")
}

// undisturbed fails when a rule or route of sisod's came or went since the last
// call of events.
func (m *machine) undisturbed(t *testing.T, by string) {
	t.Helper()
	m.undisturbedBut(t, by, "")
}

// undisturbedBut is undisturbed that lets pass what has a word in it: the networks
// of an interface come and go with it, in tables too.
func (m *machine) undisturbedBut(t *testing.T, by, word string) {
	t.Helper()
	for line := range strings.Lines(m.events(t)) {
		if ours(line) && (word == "" || !strings.Contains(line, word)) {
			t.Errorf("%s: %s", by, line)
		}
	}
}

// expect fails unless text has all the words.
func expect(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s: no %q in\n%s", what, w, text)
		}
	}
}
