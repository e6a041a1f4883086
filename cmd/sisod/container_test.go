package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// docker is what Docker puts on a host beside the bridge: source NAT for what
// containers send elsewhere, and port 8080 published.
const docker = `table ip docker {
	chain prerouting {
		type nat hook prerouting priority -100;
		fib daddr type local tcp dport 8080 dnat to 172.17.0.2:80
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		ip saddr 172.17.0.0/16 oifname != docker0 masquerade
	}
}
table ip6 docker {
	chain prerouting {
		type nat hook prerouting priority -100;
		fib daddr type local tcp dport 8080 dnat to [fd00:17::2]:80
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		ip6 saddr fd00:17::/64 oifname != docker0 masquerade
	}
}`

func TestContainersReachUplinkAddressesAndTheInternet(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		t.Run(fmt.Sprintf("rp_filter %d", filter), func(t *testing.T) { containers(t, filter) })
	}
}

func containers(t *testing.T, filter int) {
	two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter})
	container, err := two.AddContainer()
	if err != nil {
		t.Fatal(err)
	}
	run(t, two.Host, "nft", docker)
	for _, u := range two.Uplinks {
		if _, err := u.Client.Serve(lab.Port); err != nil {
			t.Fatal(err)
		}
	}

	// inside is the container asking the host's addresses: by the bridge, in and out.
	var inside []conversation
	for i, own := range container.Address.All() {
		for _, u := range two.Uplinks {
			inside = append(inside, conversations(container.Host, own, u.Address.All()[i], container.Link, container.Link, true)...)
		}
	}
	// outside is the container asking the Internet, by main's default.
	outside := func(what string, way int) {
		t.Helper()
		for i := range 2 { // families
			for _, u := range two.Uplinks {
				for _, p := range protocols {
					reply := ask(t, container.Host, lab.Request{Protocol: p, To: netip.AddrPortFrom(u.Remote.All()[i], lab.Port)})
					if want := two.Uplinks[way].Address.All()[i]; p != lab.ICMP && reply.Peer.Addr() != want {
						t.Errorf("%s: %s from the container comes from %s, want %s", what, p, reply.Peer, want)
					}
				}
			}
		}
	}
	// published is a client asking for the container's port.
	published := func(way int) []conversation {
		var list []conversation
		u := two.Uplinks[way]
		for i, to := range u.Address.All() {
			list = append(list, conversation{client: u.Client, remote: u.Remote.All()[i], protocol: lab.TCP, to: netip.AddrPortFrom(to, 8080), at: to, in: u.Link, out: u.Link, answered: true})
		}
		return list
	}

	converse(t, two.Host, "before", inside, published(0))
	outside("before", 0)
	writeProfile(t, two.Host, "isp.toml", twoProfile)
	apply(t, two.Host, 0)
	converse(t, two.Host, "after", inside, published(0), everyWay(two, true, false))
	outside("after", 0)

	// The container's own network can be told to leave by the other uplink.
	writeProfile(t, two.Host, "isp.toml", twoProfile+"sources = [\"172.17.0.0/16\", \"fd00:17::/64\"]\n")
	apply(t, two.Host, 0)
	converse(t, two.Host, "with sources", inside, published(1), everyWay(two, true, false))
	outside("with sources", 1)
}
