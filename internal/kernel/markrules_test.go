package kernel

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const sisodBits = 0x3f000000

// nft runs the program in the namespace of the calling thread.
func nftInput(t testing.TB, input string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%.2000s", err, out, input)
	}
}

// markUsesOf is what is found, without places.
func markUsesOf(t testing.TB, h *Host) string {
	t.Helper()
	facts := readHost(t, h, Query{NFT: true, Marks: true, MarkMask: sisodBits}, PartMarks).Facts.NFT
	if facts.MarksUnknown != "" {
		t.Fatal(facts.MarksUnknown)
	}
	var list []string
	for _, u := range facts.MarkUses {
		_, what, _ := strings.Cut(u.String(), "of chain "+u.Chain+" ")
		list = append(list, what)
	}
	return strings.Join(list, ", ")
}

func TestRulesOfOthersThatUseSisodsMarksAreFound(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	const (
		writesAll, writesAllCT = "writes bits 0x3f000000 of meta mark", "writes bits 0x3f000000 of ct mark"
		looksAll, looksAllCT   = "looks at bits 0x3f000000 of meta mark", "looks at bits 0x3f000000 of ct mark"
	)
	for _, c := range []struct{ rule, want string }{
		{"meta mark set 0x1", writesAll},
		{"meta mark set 0x01000000", writesAll},
		{"ct mark set 0x1", writesAllCT},
		{"meta mark set meta mark | 0x4000", ""},
		{"meta mark set meta mark & 0xffff00ff | 0x4000", ""},
		{"meta mark set meta mark | 0x41000000", "writes bits 0x01000000 of meta mark"},
		{"meta mark set meta mark & 0xfeffffff", "writes bits 0x01000000 of meta mark"},
		{"meta mark set meta mark ^ 0x02000000", "writes bits 0x02000000 of meta mark"},
		{"meta mark set ct mark", writesAll},
		{"meta mark set ct mark & 0xff", writesAll},
		{"ct mark set meta mark", writesAllCT},
		{"ct mark set ct mark & 0xff00ffff | 0x00040000", ""},
		{"meta mark set meta mark & 0x3f000000 | 0x80014080", ""},
		{"meta mark set numgen inc mod 3", writesAll},
		{"meta mark set ip saddr map { 10.0.0.1 : 1, 10.0.0.2 : 2 }", writesAll},
		{"meta mark & 0x4000 == 0x4000 accept", ""},
		{"meta mark & 0x3f000000 == 0x01000000 accept", looksAll},
		{"ct mark & 0x01000001 != 0 accept", "looks at bits 0x01000000 of ct mark"},
		{"meta mark 0x1 accept", ""},
		{"meta mark 0x01000001 accept", "looks at bits 0x01000000 of meta mark"},
		{"meta mark 0x0 meta mark set meta mark | 0x10", looksAll},
		{"ct mark != 0 accept", looksAllCT},
		{"meta mark > 5 accept", looksAll},
		{"meta mark 5-7 accept", looksAll},
		{"meta mark set meta mark << 8", writesAll},
		{"meta mark { 1, 2 } accept", ""},
		{"meta mark { 1, 0x02000000 } accept", "looks at bits 0x02000000 of meta mark"},
		{"meta mark & 0xff { 1, 2 } accept", ""},
		{"meta mark & 0xff000000 vmap { 0x40000000 : accept }", looksAll},
		{"ip saddr . meta mark { 10.0.0.1 . 1, 10.0.0.2 . 0x04000000 } accept", "looks at bits 0x04000000 of meta mark"},
		{"meta mark . ip saddr { 1 . 10.0.0.1 } accept", ""},
		// What a register had before is no mark any more.
		{"meta mark & 0x4000 == 0 ip saddr 57.0.0.1 tcp dport 80 ct state new accept", ""},
		{"meta mark & 0x4000 == 0 ip saddr { 57.0.0.1 } accept", ""},
		{"fib saddr . mark . iif oif missing drop", ""},
		{"ip ttl 64 counter limit rate 1/second log prefix \"x\" accept", ""},
	} {
		nftInput(t, "table ip other { chain one { type filter hook prerouting priority 0; "+c.rule+"\n}\n}")
		if got := markUsesOf(t, h); got != c.want {
			t.Errorf("%s: %q, want %q", c.rule, got, c.want)
		}
		nftInput(t, "delete table ip other")
	}
	for _, c := range []struct{ rule, want string }{
		{"-j MARK --set-mark 0x1", writesAll},
		{"-j MARK --or-mark 0x4000", ""},
		{"-j MARK --set-xmark 0x0/0xf0000", ""},
		{"-j MARK --set-xmark 0x01000000/0x01000000", "writes bits 0x01000000 of meta mark"},
		{"-j CONNMARK --set-xmark 0x40000/0xff0000", ""},
		{"-j CONNMARK --set-mark 0x1", writesAllCT},
		{"-j CONNMARK --save-mark", writesAllCT},
		{"-j CONNMARK --save-mark --nfmask 0x3f00 --ctmask 0x3f00", ""},
		{"-j CONNMARK --restore-mark", writesAll},
		{"-j CONNMARK --restore-mark --nfmask 0x3f00 --ctmask 0x3f00", ""},
		{"-j CONNMARK --left-shift-mark 8 --restore-mark --nfmask 0x00ff0000 --ctmask 0x0001ff00", "writes bits 0x01000000 of meta mark"},
		{"-m mark --mark 0x4000/0x4000 -j ACCEPT", ""},
		{"-m mark ! --mark 0x4000/0x4000 -j ACCEPT", ""},
		{"-m mark --mark 0x1/0x1f000000 -j ACCEPT", "looks at bits 0x1f000000 of meta mark"},
		{"-m mark --mark 0x64 -j ACCEPT", ""},
		{"-m mark ! --mark 0 -j ACCEPT", looksAll},
		{"-m connmark --mark 0x10000000 -j ACCEPT", "looks at bits 0x10000000 of ct mark"},
		{"-p tcp -j TPROXY --on-port 3129 --tproxy-mark 100", writesAll},
		{"-p tcp -j TPROXY --on-port 3129 --tproxy-mark 0x64/0xff", ""},
		{"-m socket --restore-skmark -j ACCEPT", writesAll},
		{"-m socket --transparent -j ACCEPT", ""},
		{"-p tcp --dport 80 -m conntrack --ctstate NEW -m comment --comment mark -j ACCEPT", ""},
	} {
		for _, program := range []string{"iptables-nft", "ip6tables-nft"} {
			for _, op := range []string{"-A", "-D"} {
				args := append([]string{"-t", "mangle", op, "PREROUTING"}, strings.Fields(c.rule)...)
				if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
					t.Fatalf("%s %v: %v\n%s(install iptables)", program, args, err, out)
				}
				want := c.want
				if op == "-D" {
					want = ""
				}
				if got := markUsesOf(t, h); got != want {
					t.Errorf("%s %s %s: %q, want %q", program, op, c.rule, got, want)
				}
			}
		}
	}
}

// Sisod's own rules are its own, and every other family's are others'.
func TestUsesOfMarksHaveTheirPlace(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	nftInput(t, `
		table inet sisod { chain incoming { type filter hook prerouting priority 0; meta mark set 7; }
		}
		table ip sisod { chain c { meta mark set 7; }
		}
		table inet other { chain c { meta mark set 7; ct mark 0x01000000; }
		}
		table bridge other { chain d { meta mark set 7; }
		}`)
	var got []string
	for _, u := range readHost(t, h, Query{NFT: true, Marks: true, MarkMask: sisodBits}, PartMarks).Facts.NFT.MarkUses {
		u.Bits = 0
		got = append(got, fmt.Sprintf("%s %s %s", u.Family, u.Table, u))
	}
	want := []string{
		"ip sisod the rule with handle 2 of chain c writes bits 0x00000000 of meta mark",
		"inet other the rule with handle 2 of chain c writes bits 0x00000000 of meta mark",
		"inet other the rule with handle 3 of chain c looks at bits 0x00000000 of ct mark",
		"bridge other the rule with handle 2 of chain d writes bits 0x00000000 of meta mark",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Nobody asks where sisod has no marks.
	if facts := readHost(t, h, Query{}, PartMarks).Facts.NFT; len(facts.MarkUses) > 0 {
		t.Errorf("without marks, %v", facts.MarkUses)
	}
}

// kubeProxy is a ruleset such as kube-proxy's in a cluster with many services.
func kubeProxy(rules int) string {
	var b strings.Builder
	b.WriteString("table ip kube {\n chain masq { meta mark set meta mark | 0x4000; }\n")
	for i := range rules / 5 {
		fmt.Fprintf(&b, ` chain svc%[1]d {
		ip saddr != 10.244.0.0/16 ip daddr 10.96.%[2]d.%[3]d tcp dport 80 jump masq
		meta l4proto tcp numgen random mod 2 0 ip saddr 10.244.%[2]d.%[3]d jump masq
		meta l4proto tcp counter comment "to 10.244.%[2]d.%[3]d:8080"
		meta mark & 0x4000 == 0x4000 counter comment "service %[1]d"
		ct state established,related counter accept
	}
`, i, i/250%250, i%250)
	}
	b.WriteString("}\n")
	return b.String()
}

// markEvents reports whether an event has come about marks. The kernel keeps the
// order: a change of sisod's table ends what is waited for.
func markEvents(t *testing.T, e *Events) bool {
	t.Helper()
	marks := false
	for _, end := range []string{"add table inet sisod", "delete table inet sisod"} {
		nftInput(t, end)
		for _, event := range eventsUntil(t, e, "nft table inet sisod changed") {
			marks = marks || event.Marks
		}
	}
	return marks
}

func TestChangesOfOthersThatAreNotAboutMarksAreNoEvents(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	e := listen(t, h)
	readHost(t, h, Query{NFT: true, Marks: true, MarkMask: sisodBits}, AllParts)
	for _, c := range []struct {
		change string
		event  bool
	}{
		{kubeProxy(1000), false},
		{"add rule ip kube svc1 meta mark set meta mark | 0x4000", false},
		{"delete table ip kube", false},
		{"table ip mwan { set s { type mark; }\n chain c { type filter hook prerouting priority 0; meta mark & 0xff000000 == 0x01000000 accept; }\n }", true},
		{"add rule ip mwan c tcp dport 80 accept", false},
		{"flush chain ip mwan c", true},
		{"add rule ip mwan c meta mark set 1", true},
		{"delete table ip mwan", true},
		{"table ip mwan { set s { type mark; }\n chain c { type filter hook prerouting priority 0; }\n }", false},
		{"add rule ip mwan c meta mark @s accept", true},
		{"add element ip mwan s { 0x01000000 }", true},
	} {
		nftInput(t, c.change)
		if got := markEvents(t, e); got != c.event {
			t.Errorf("%.60s: event %v, want %v", c.change, got, c.event)
		}
		readHost(t, h, Query{NFT: true, Marks: true, MarkMask: sisodBits}, PartMarks)
	}
}

func BenchmarkLookAtRulesOfOthers(b *testing.B) {
	enterNamespace(b)
	nftInput(b, kubeProxy(50_000))
	for b.Loop() {
		if uses, _, err := listMarkUses(sisodBits); err != nil || len(uses) > 0 {
			b.Fatal(uses, err)
		}
	}
}

// FuzzMarkUses: whatever the kernel says, a rule is read to its end, and what is
// found are bits that are looked for.
func FuzzMarkUses(f *testing.F) {
	be := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	element := func(name string, attributes ...[]byte) []byte {
		e := appendAttribute(appendString(nil, nftaExprName, name), nftaExprData, slices.Concat(attributes...)...)
		return appendAttribute(nil, 1, e...)
	}
	number := func(kind uint16, v uint32) []byte { return appendAttribute(nil, kind, be(v)...) }
	data := func(kind uint16, v uint32) []byte {
		return appendAttribute(nil, kind, appendUint32(nil, nftaDataValue, v)...)
	}
	f.Add(slices.Concat(
		element("meta", number(nftaMetaDreg, 1), number(nftaMetaKey, nftMark)),
		element("bitwise", number(nftaBitwiseSreg, 1), number(nftaBitwiseDreg, 1), data(nftaBitwiseMask, sisodBits), data(nftaBitwiseXor, 0)),
		element("cmp", number(nftaCmpSreg, 1), number(nftaCmpOp, compareEqual), data(nftaCmpData, 0x01000000))))
	f.Add(slices.Concat(
		element("ct", number(nftaCTDreg, 1), number(nftaCTKey, nftMark)),
		element("bitwise", number(nftaBitwiseSreg, 1), number(nftaBitwiseDreg, 9), number(nftaBitwiseOp, bitwiseShiftRight), data(nftaBitwiseData, 24)),
		element("lookup", appendString(nil, nftaLookupSet, "s"), number(nftaLookupSreg, 9)),
		element("ct", number(nftaCTSreg, 9), number(nftaCTKey, nftMark))))
	f.Add(element("target", appendString(nil, nftaXtName, "CONNMARK"), number(nftaXtRev, 2), appendAttribute(nil, nftaXtInfo, make([]byte, 16)...)))
	f.Fuzz(func(t *testing.T, list []byte) {
		found := markFinder{mask: sisodBits}
		body := appendString([]byte{unix.NFPROTO_INET, 0, 0, 0}, nftaRuleTable, "other")
		if len(list) > 1<<15 {
			return
		}
		if found.rule(appendAttribute(body, nftaRuleExpressions, list...)) != nil {
			return
		}
		for _, u := range found.uses {
			if u.Bits == 0 || u.Bits&^sisodBits != 0 {
				t.Fatalf("%+v", u)
			}
		}
	})
}
