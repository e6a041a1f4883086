package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// forwardProfile follows connections on both uplinks.
const forwardProfile = `[uplink.one]
interface = "em1"
forward = true
[uplink.two]
interface = "em2"
gateway = ["198.51.100.1", "2001:db8:2::1"]
forward = true
`

func TestPublishedPortsAnswerByTheUplinkOfTheRequest(t *testing.T) {
	t.Parallel()
	for filter := range 3 {
		t.Run(fmt.Sprintf("rp_filter %d", filter), func(t *testing.T) {
			two := twoUplinks(t, lab.TwoUplinksOptions{RPFilter: filter})
			if _, err := two.AddContainer(); err != nil {
				t.Fatal(err)
			}
			run(t, two.Host, "nft", docker)
			published := func(ways [2]int) []conversation {
				var list []conversation
				for i, u := range two.Uplinks {
					for k, to := range u.Address.All() {
						list = append(list, conversation{client: u.Client, remote: u.Remote.All()[k], protocol: lab.TCP, to: netip.AddrPortFrom(to, 8080), at: to,
							in: u.Link, out: two.Uplinks[ways[i]].Link, answered: ways[i] == i && !(filter == 1 && i == 1 && ways[1] == 0)})
					}
				}
				return list
			}
			writeProfile(t, two.Host, "isp.toml", forwardProfile)
			apply(t, two.Host, 0)
			t.Log(run(t, two.Host, "nft", "list", "ruleset"), ip(t, two.Host, "rule"))
			if r := apply(t, two.Host, 0); r.stdout != "nothing to do\n" {
				t.Errorf("the second apply said %s%s", r.stdout, r.stderr)
			}
			converse(t, two.Host, "after", published([2]int{0, 1}), everyWay(two, true, false))
			expect(t, two.Host, 0, "flush")
			t.Log(run(t, two.Host, "nft", "list", "tables"))
		})
	}
}
