//go:build boot

package boot

import (
	"slices"
	"strings"
	"testing"
)

func TestContainersOfDockerAreReachedAndReachAll(t *testing.T) {
	m := ready(t)
	m.serve(t)
	// What docker publishes is forwarded, and no address of the host's.
	m.write(t, profilePath, following(hostProfile))
	m.until(t, "nft list table inet sisod")
	m.run(t, "systemctl start docker")
	t.Cleanup(func() {
		m.run(t, "docker rm -f web; systemctl stop docker.socket docker containerd; iptables -P FORWARD ACCEPT; ip link del docker0; systemctl stop outside; true")
	})
	m.run(t, `mkdir -p /srv/box/bin /srv/box/www; cp /bin/busybox /srv/box/bin; echo container >/srv/box/www/index.html; tar -C /srv/box -c . | docker import - box`)
	m.run(t, "docker run -d --name web -p 8081:80 box /bin/busybox httpd -f -p 80 -h /www")
	m.until(t, "sisod status")
	m.run(t, "mkdir -p /srv/outside; echo outside >/srv/outside/index.html; systemd-run -q --collect --unit=outside -p NetworkNamespacePath=/run/netns/world busybox httpd -f -p 192.0.2.10:8090 -h /srv/outside")
	if got := m.neighbours(t); !slices.Equal(got, []string{"docker", "systemd-networkd"}) {
		t.Errorf("status names %q", got)
	}

	const client, inside = "ip netns exec world curl -s --max-time 20 --interface 192.0.2.10 ", "docker exec web /bin/busybox timeout 20 /bin/busybox wget -qO- "
	container := m.run(t, "docker inspect -f '{{.NetworkSettings.IPAddress}}' web")
	works := func(when string) {
		t.Helper()
		for _, c := range []struct{ line, want string }{
			{client + "http://203.0.113.20:8081/", "container"},
			{client + "http://198.51.100.2:8081/", "container"},
			{inside + "http://203.0.113.20:8080/", "hello"},
			{inside + "http://198.51.100.2:8080/", "hello"},
			{inside + "http://192.0.2.10:8090/", "outside"},
			{"curl -s --max-time 20 http://" + container + "/", "container"},
			{"curl -s --max-time 20 --interface 198.51.100.2 http://" + container + "/", "container"},
		} {
			if a := m.try(t, c.line); strings.TrimSpace(a.stdout) != c.want {
				t.Errorf("%s: %s: got %q, want %q; exit code %d: %s", when, c.line, a.stdout, c.want, a.code, a.stderr)
			}
		}
	}
	works("docker beside sisod")

	before, theirs := m.owned(t), m.run(t, "iptables-save | grep -v '^[#:]'")
	m.run(t, "systemctl restart sisod")
	m.again(t, before, "restart of sisod")
	if now := m.run(t, "iptables-save | grep -v '^[#:]'"); now != theirs {
		t.Errorf("docker's rules were\n%s\nand are\n%s", theirs, now)
	}
	m.events(t)
	m.run(t, "systemctl restart docker && docker start web")
	m.again(t, before, "restart of docker")
	m.undisturbed(t, "restart of docker")
	works("after docker's restart")
}

// following has uplinks follow connections as well.
func following(profile string) string {
	return strings.NewReplacer(
		`interface = "wan1"`, "interface = \"wan1\"\nforward = true\nmasquerade = true",
		`interface = "wan2"`+"\nrp", "interface = \"wan2\"\nforward = true\nrp",
	).Replace(profile)
}
