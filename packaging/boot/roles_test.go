//go:build boot

package boot

import "testing"

// otherRoles is what hostProfile has nothing of, and the sandbox could get in the
// way of: nftables, sockets, GUE, neighbour advertisements.
const otherRoles = `
[tproxy.http]
services   = ["tcp/81"]
interfaces = ["lan"]
listen     = ":3129"

[real_server.inside]
mode               = "tun"
vip                = "203.0.113.146"
encapsulation      = "gue"
encapsulation_port = 5555

[director.whole]
vip          = "198.51.100.81"
interface    = "wan2"
mode         = "fullnat"
scheduler    = "mh"
services     = ["tcp/82"]
snat         = ["10.0.0.1"]
mss_room     = 8
real_servers = [{ address = "10.0.0.9" }]

[director.six]
vip          = "2001:db8:2::81"
interface    = "wan2"
mode         = "dr"
services     = ["tcp/83"]
real_servers = [{ address = "2001:db8:2::7" }]
`

func TestSandboxIsInNoRolesWay(t *testing.T) {
	m := ready(t)
	// It is no transparent one, which is for the daemon to find out.
	m.run(t, "systemd-run -q --collect --unit=proxy busybox nc -ll -p 3129 -e cat")
	t.Cleanup(func() { m.run(t, "systemctl stop proxy") })
	m.write(t, profilePath, following(hostProfile)+otherRoles)
	m.until(t, "journalctl --no-pager -b -u sisod | grep 'tcp port 3129 is not transparent'")
	// The one module that the kernel does not load by itself, and sisod must not.
	m.until(t, "journalctl --no-pager -b -u sisod | grep 'modprobe fou, as root'")
	m.run(t, "modprobe fou; systemctl restart sisod")
	m.until(t, "sisod status | head -1 | grep -x '1 problem'")
	expect(t, "nftables", m.run(t, "nft list table inet sisod"), "tproxy", "masquerade", "ct mark", "10.0.0.1")
	expect(t, "IPVS", m.run(t, "ipvsadm -Sn"), "-A -t 198.51.100.81:82 -s mh", "-A -t [2001:db8:2::81]:83")
	expect(t, "GUE, capture", m.run(t, "ip fou show; ip rule"), "port 5555 gue", "lookup tproxy-http")
	// Neighbours are told of an address of IPv6 in packets that are no IP to the kernel.
	mac := m.run(t, "cat /sys/class/net/wan2/address")
	m.run(t, "ip -n world -6 neigh replace 2001:db8:2::81 lladdr 02:00:00:00:00:99 dev w2 nud stale; ip address del 2001:db8:2::81/128 dev wan2")
	m.until(t, "ip -n world -6 neigh show 2001:db8:2::81 | grep "+mac)
	if got := m.run(t, "journalctl --no-pager -b -u sisod | grep -v level=INFO | grep -i 'denied\\|not permitted\\|not announced' || true"); got != "" {
		t.Errorf("the daemon was refused:\n%s", got)
	}
}
