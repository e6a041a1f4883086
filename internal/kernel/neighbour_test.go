package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNetworkdSettingsAreReadInItsOrder(t *testing.T) {
	const off = "[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes = off\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing said", nil, "rules routes"},
		{"drop-in of the package", map[string]string{"usr/lib/systemd/networkd.conf.d/10-sisod.conf": off}, ""},
		{"drop-in overridden by its name", map[string]string{"usr/lib/systemd/networkd.conf.d/10-sisod.conf": off, "etc/systemd/networkd.conf.d/10-sisod.conf": ""}, "rules routes"},
		{"overridden by a later name", map[string]string{"etc/systemd/networkd.conf.d/10-sisod.conf": off, "usr/lib/systemd/networkd.conf.d/20-x.conf": "[Network]\nManageForeignRoutes=yes\n"}, "routes"},
		{"drop-ins come after the main file", map[string]string{"etc/systemd/networkd.conf": "[Network]\nManageForeignRoutes=yes\n", "run/systemd/networkd.conf.d/a.conf": off}, ""},
		{"the administrator's main file alone", map[string]string{"usr/lib/systemd/networkd.conf": off, "etc/systemd/networkd.conf": "[Network]\n#ManageForeignRoutes=no\n"}, "rules routes"},
		{"another section, nonsense, another suffix", map[string]string{
			"etc/systemd/networkd.conf":              "[DHCPv4]\nManageForeignRoutes=no\n[Network]\nManageForeignRoutingPolicyRules=perhaps\n",
			"etc/systemd/networkd.conf.d/x.dpkg-old": off,
		}, "rules routes"},
	} {
		root := t.TempDir()
		writeFiles(t, root, c.files)
		if got := strings.Join(networkdDeletes(root), " "); got != c.want {
			t.Errorf("%s: deletes %q, want %q", c.name, got, c.want)
		}
	}
}

func TestKeepalivedThatSweepsIPVSIsTold(t *testing.T) {
	for text, want := range map[string]string{
		"global_defs {\n\tlvs_flush\n}\n":                 "services",
		"global_defs { lvs_flush }":                       "services",
		"global_defs {\n  lvs_flush_on_stop ! at once\n}": "services",
		"global_defs {\n  lvs_flush_on_stop VS\n}":        "",
		"# lvs_flush\n! lvs_flush\nrouter_id lvs_flushed": "",
		"": "",
	} {
		root := t.TempDir()
		writeFiles(t, root, map[string]string{"etc/keepalived/keepalived.conf": text})
		if got := strings.Join(keepalivedDeletes(root), " "); got != want {
			t.Errorf("%q: deletes %q, want %q", text, got, want)
		}
	}
	if got := keepalivedDeletes(t.TempDir()); len(got) > 0 {
		t.Errorf("without a file: deletes %q", got)
	}
}

func TestNeighboursAreThoseThatRun(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, root, map[string]string{
		"proc/12/comm": "systemd-network\n", "proc/13/comm": "keepalived\n", "proc/14/comm": "keepalived\n", "proc/15/comm": "sshd\n",
		"proc/self/comm": "dockerd\n", "run/network/ifstate": "lo=lo\n",
	})
	names := func() []string {
		var list []string
		for _, n := range (&Host{options: Options{Root: root}}).Neighbours() {
			list = append(list, n.Name+" "+strings.Join(n.Deletes, ","))
		}
		return list
	}
	if got, want := names(), []string{"keepalived ", "systemd-networkd rules,routes"}; !slices.Equal(got, want) {
		t.Errorf("neighbours are %q, want %q", got, want)
	}
	// One in a container's network is none.
	writeFiles(t, root, map[string]string{"proc/18/comm": "NetworkManager\n", "proc/18/ns/x": "", "proc/thread-self/ns/x": ""})
	for link, to := range map[string]string{"proc/18/ns/net": "net:[2]", "proc/thread-self/ns/net": "net:[1]"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := names(), []string{"keepalived ", "systemd-networkd rules,routes"}; !slices.Equal(got, want) {
		t.Errorf("neighbours are %q, want %q", got, want)
	}
	writeFiles(t, root, map[string]string{"run/network/ifstate": "lo=lo\neth0=eth0\n", "proc/16/comm": "dockerd\n", "proc/17/comm": "NetworkManager\n"})
	if got, want := names(), []string{"NetworkManager ", "docker ", "ifupdown ", "keepalived ", "systemd-networkd rules,routes"}; !slices.Equal(got, want) {
		t.Errorf("neighbours are %q, want %q", got, want)
	}
}
