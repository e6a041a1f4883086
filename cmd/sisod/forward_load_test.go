package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// leaks counts what leaves by the uplink that it does not belong to.
const leaks = `table inet witness {
	counter wrong { }
	chain out {
		type filter hook postrouting priority 300;
		oifname em1 ip daddr 203.0.113.140 counter name wrong
		oifname em1 ip6 daddr 2001:db8:c2::10 counter name wrong
		oifname em2 ip daddr 203.0.113.10 counter name wrong
		oifname em2 ip6 daddr 2001:db8:c1::10 counter name wrong
	}
}`

// TestAChangeOfTheTableLosesNoPacket has ten thousand flows forwarded while the
// table is replaced again and again.
func TestAChangeOfTheTableLosesNoPacket(t *testing.T) {
	t.Parallel()
	const first, last = 20000, 29999
	f := newForwarder(t, 2, 0)
	run(t, f.Host, "nft", leaks)
	// Flows stay known on a machine that is slow.
	if err := f.Host.Sysctl("net/netfilter/nf_conntrack_udp_timeout=600", "net/netfilter/nf_conntrack_udp_timeout_stream=600"); err != nil {
		t.Fatal(err)
	}
	writeProfile(t, f.Host, "isp.toml", followProfile)
	apply(t, f.Host, 0)
	second := f.Uplinks[1]
	many := func() {
		t.Helper()
		if err := second.Client.AskFromPorts(t.Context(), second.Address.At(false, toContainer), first, last, visitTime); err != nil {
			t.Fatal(err)
		}
	}
	many()
	if n := len(tracked(t, f.Host, 2)); n < last-first {
		t.Fatalf("the host knows %d flows of em2", n)
	}

	var flows []*lab.PingPong
	for _, u := range f.Uplinks {
		for v6 := range 2 {
			for _, port := range []uint16{toContainer, toPrivate, toNeighbour} {
				p, err := u.Client.PingPong(t.Context(), u.Address.At(v6 == 1, port), visitTime)
				if err != nil {
					t.Fatal(err)
				}
				flows = append(flows, p)
			}
		}
	}
	visits := f.establish(t)
	moved := func() (sum int64) {
		for _, p := range flows {
			sum += p.Count()
		}
		return sum
	}
	// A third uplink comes and goes, masquerading is switched, filters change.
	for i, profile := range []string{
		strings.Replace(followProfile, "forward = true\n[", "forward = true\nmasquerade = true\n[", 1),
		strings.ReplaceAll(followProfile, "forward = true", "forward = true\nmasquerade = true"),
		followProfile + "masquerade = true\nrp_filter = \"strict\"\n",
		followProfile + "[uplink.three]\ninterface = \"lan0\"\ngateway = \"" + f.lan.Address.V4.String() + "\"\nforward = true\n",
		followProfile,
	} {
		for round := range 4 {
			writeProfile(t, f.Host, "isp.toml", profile+strings.Repeat("\n", round))
			before := moved()
			if round > 0 {
				// The same wishes, and somebody has taken the table's rules away: it is a new one.
				run(t, f.Host, "nft", "add", "rule", "inet", "sisod", "delivered", "accept")
			}
			contains(t, apply(t, f.Host, 0).stdout, "~ nft table")
			patiently(t, func() error {
				if moved() < before+int64(len(flows)) {
					return errors.New("the flows have stopped")
				}
				return nil
			})
		}
		for _, v := range append(visits[0], visits[1]...) {
			if _, err := v.Fetch(t.Context(), 100_000, visitTime); err != nil {
				t.Errorf("change %d: a connection has ended: %v", i, err)
			}
		}
	}
	t.Logf("%d datagrams of %d flows were forwarded and answered meanwhile", moved(), len(flows))
	for _, p := range flows {
		if err := p.Stop(); err != nil {
			t.Errorf("lost: %v", err)
		}
	}
	known := len(tracked(t, f.Host, 2))
	many()
	if now := len(tracked(t, f.Host, 2)); now != known {
		t.Errorf("the flows are others: %d are known, were %d", now, known)
	}
	if n := counters(t, f.Host, "witness")["wrong"]; n > 0 {
		t.Errorf("%d packets left by the wrong uplink", n)
	}
	if t.Failed() {
		t.Log(fmt.Sprint(counters(t, f.Host, "witness")), run(t, f.Host, "nft", "list", "ruleset"))
	}
}
