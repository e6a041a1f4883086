package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// haproxyConfig is what profiles/examples/transparent-proxy.toml tells of
// haproxy, for one family.
func haproxyConfig(bind, source string) string {
	return `defaults
    mode tcp
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend http
    bind ` + bind + ` transparent
    default_backend servers
backend servers
    source ` + source + ` usesrc clientip
    server asked *
`
}

// haproxy starts Debian's haproxy, which packaging/tools.sh unpacks, on a host.
func haproxy(t *testing.T, h *lab.Host, configs ...string) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(cache, "sisod", "haproxy")
	libraries, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-*"))
	if err != nil || len(libraries) == 0 {
		t.Fatalf("haproxy is not in %s: run packaging/tools.sh", root)
	}
	for _, config := range configs {
		file := filepath.Join(t.TempDir(), "haproxy.cfg")
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		log := &lab.Lines{}
		cmd := exec.Command(filepath.Join(root, "usr/sbin/haproxy"), "-db", "-f", file)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
		cmd.Stdout, cmd.Stderr = log, log
		p, err := h.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.Kill()
			<-p.Done()
			if t.Failed() {
				t.Logf("haproxy said\n%s", log)
			}
		})
	}
}

func TestHaproxyAsksWithTheClientsAddress(t *testing.T) {
	t.Parallel()
	p := newProxied(t, 1, 1)
	writeProfile(t, p.Host, "proxy.toml", strings.Replace(proxyProfile, `, "udp/80"`, "", 1))
	haproxy(t, p.Host, haproxyConfig(":3129", "0.0.0.0"))
	listens := func(what string) {
		wait(t, func() error {
			_, err := p.Host.Run(t.Context(), "sh", "-c", "ss -tlnH | grep -qF '"+what+"'")
			return err
		})
	}
	listens("0.0.0.0:3129")
	apply(t, p.Host, 2)
	st, _ := statusOf(t, p.Host)
	if text := problemsOf(st); !strings.Contains(text, "nobody listens on tcp port 3129 for IPv6") {
		t.Errorf("a proxy for IPv4 alone: %s", text)
	}
	haproxy(t, p.Host, haproxyConfig("[::]:3129 v6only", "[::]"))
	listens("[::]:3129")
	if st, _ := statusOf(t, p.Host); !st.InOrder {
		t.Errorf("with both families: %s", problemsOf(st))
	}
	for i := range 2 {
		for _, e := range []errand{
			{"the LAN to the world", p.lan.Host, 0, p.Uplinks[0].Remote.All()[i], lab.Port, true},
			{"the second provider's client to the LAN", p.Uplinks[1].Client, 0, p.lan.Address.All()[i], lab.Port, true},
			{"the LAN to the world, not captured", p.lan.Host, 0, p.Uplinks[0].Remote.All()[i], uncaptured, false},
		} {
			r := ask(t, e.client, lab.Request{Protocol: lab.TCP, To: netip.AddrPortFrom(e.to, e.port)})
			if r.Peer.Addr() != r.Local.Addr() || (r.Peer != r.Local) != e.captured {
				t.Errorf("%s: the server saw %s, the client is %s", e.what, r.Peer, r.Local)
			}
		}
	}
}
