//go:build boot

package boot

import (
	"slices"
	"strings"
	"testing"
)

// keepalivedConfig has an address on an uplink, and a service of its own there.
const keepalivedConfig = `global_defs {
}
vrrp_instance shared {
	state MASTER
	interface wan2
	virtual_router_id 51
	priority 100
	advert_int 1
	virtual_ipaddress {
		198.51.100.90/32 dev wan2
	}
}
virtual_server 198.51.100.90 80 {
	lb_algo rr
	lb_kind NAT
	protocol TCP
	real_server 10.0.0.7 80 {
		weight 3
	}
}
`

// sharedDirector has a service at keepalived's address.
const sharedDirector = `
[director.shared]
vip          = "198.51.100.90"
mode         = "nat"
services     = ["tcp/81"]
real_servers = [{ address = "10.0.0.7" }]
`

func TestKeepalivedHasItsOwnBesideSisod(t *testing.T) {
	m := ready(t)
	m.serve(t)
	m.write(t, "/etc/sisod/profiles/shared.toml", sharedDirector)
	m.until(t, "ipvsadm -Sn | grep -e '-A -t 198.51.100.90:81 '")
	before := m.owned(t)
	m.write(t, "/etc/keepalived/keepalived.conf", keepalivedConfig)
	m.run(t, "systemctl start keepalived")
	t.Cleanup(func() { m.run(t, "systemctl stop keepalived; rm /etc/keepalived/keepalived.conf") })
	const theirs = "ipvsadm -Sn | grep -e '198.51.100.90:80 '"
	up := "ip -o address show dev wan2 to 198.51.100.90 | grep . && " + theirs + " && ip rule | grep 'from 198.51.100.90 lookup two' && sisod status"
	m.until(t, up)
	if got := m.neighbours(t); !slices.Equal(got, []string{"keepalived", "systemd-networkd"}) {
		t.Errorf("status names %q", got)
	}
	service := m.run(t, theirs)
	expect(t, "keepalived's service", service, "-A -t 198.51.100.90:80 -s rr", "-r 10.0.0.7:80 -m -w 3")
	// Replies of its address leave by the uplink.
	if got := m.run(t, "ip netns exec world curl -s --max-time 20 --interface 192.0.2.10 http://198.51.100.90:8080/"); got != "hello" {
		t.Errorf("the client got %q from keepalived's address", got)
	}
	both := m.owned(t)
	for _, line := range []string{"systemctl restart sisod", "sisod flush; systemctl reload sisod"} {
		m.run(t, line)
		m.again(t, both, line)
		if got := m.run(t, theirs); got != service {
			t.Errorf("%s: keepalived's service was\n%s\nand is\n%s", line, service, got)
		}
	}

	m.events(t)
	m.run(t, "systemctl stop keepalived")
	m.until(t, "! ip rule | grep 198.51.100.90")
	m.again(t, before, "keepalived's end")
	m.undisturbedBut(t, "keepalived's end", "198.51.100.90")

	// It may be told to sweep IPVS clean when it starts.
	m.write(t, "/etc/keepalived/keepalived.conf", strings.Replace(keepalivedConfig, "{\n", "{\n\tlvs_flush\n", 1))
	m.run(t, "systemctl start keepalived")
	m.until(t, up)
	m.again(t, both, "lvs_flush")
	expect(t, "status with lvs_flush", m.run(t, "sisod status"), "keepalived deletes others' services")
}
