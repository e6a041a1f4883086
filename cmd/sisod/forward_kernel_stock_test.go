//go:build stock

package main

import (
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/lab"
)

// What needs a module that the kernel does not have is a problem, and everything
// else is in force.
func TestStockWithoutNFTablesTheRestIsInForce(t *testing.T) {
	two := twoUplinks(t, lab.TwoUplinksOptions{})
	h := two.Host
	writeProfile(t, h, "isp.toml", followProfile+`[tproxy.web]
services = ["tcp/8080"]
interfaces = ["em2"]
listen = ":3129"
`)
	if _, err := h.Proxy(3129); err != nil {
		t.Fatal(err)
	}
	// All that is needed is loaded.
	apply(t, h, 0)
	expect(t, h, 0, "flush")
	for _, c := range []struct {
		module   string
		problems []string
		table    bool
	}{
		{"nft_tproxy", []string{"tproxy web: a transparent proxy needs nf_tables with tproxy and socket, which this kernel does not give: "}, true},
		{"nf_tables", []string{
			"uplink one: forward and masquerade need nf_tables, which this kernel does not give: the module nf_tables is not there",
			"uplink two: forward and masquerade need nf_tables, which this kernel does not give: the module nf_tables is not there",
			"tproxy web: a transparent proxy needs nf_tables with tproxy and socket, which this kernel does not give: the module nf_tables is not there",
		}, false},
	} {
		lift := bar(t, c.module)
		r := apply(t, h, 2)
		contains(t, r.stderr, c.problems...)
		if n := strings.Count(r.stderr, "problem  "); n != len(c.problems) {
			t.Errorf("without %s, %d problems, want %d:\n%s", c.module, n, len(c.problems), r.stderr)
		}
		converse(t, h, "without "+c.module, everyWay(two, true, false))
		if rules := run(t, h, "ip", "rule"); strings.Contains(rules, "fwmark") != c.table {
			t.Errorf("without %s, there are rules for marks that nothing sets:\n%s", c.module, rules)
		}
		contains(t, expect(t, h, 2, "status").stdout, c.problems...)
		lift()
		apply(t, h, 0)
		expect(t, h, 0, "flush")
	}
}
