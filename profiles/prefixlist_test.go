package profiles

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestAPrefixMayStandTwiceInOneUplink(t *testing.T) {
	_, err := Load("", files(t, map[string]string{
		"profiles/a.toml": china + "to = [\"@a.zone\", \"@b.zone\", \"198.51.100.0/24\"]\n",
		"profiles/a.zone": "198.51.100.0/24\n", "profiles/b.zone": "198.51.100.0/24\n",
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestBadLineFarDownAList(t *testing.T) {
	var b strings.Builder
	for i := range 600000 {
		if i == 499999 {
			b.WriteString("10.0.0.256/32\n")
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.0/24\n", 1+i>>16, i>>8&255, i&255)
	}
	dir := files(t, map[string]string{"profiles/isp.toml": china + "to = [\"@cn.zone\"]\n", "profiles/cn.zone": b.String()})
	want := "profiles/cn.zone:500000:1: \"10.0.0.256/32\" is not a prefix\n  500000 | 10.0.0.256/32\n" +
		"         | ^^^^^^^^^^^^^\n  each of the four numbers is 0 to 255"
	if got := refused(t, dir); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestListsAreSortedMaskedAndUnique(t *testing.T) {
	c, err := Load("", files(t, map[string]string{
		"profiles/isp.toml": china + "to = [\"@cn.zone\"]\n",
		"profiles/cn.zone": "\xef\xbb\xbf203.0.113.0/24\r\n198.51.100.0/24 # x\n\n;y\n  198.51.100.0/25\t\n2001:db8::/32\n198.51.100.0/24\n" +
			"1.2.3.4\n2001:db8::\n2001:db8::/32\n#" + strings.Repeat("long comment ", 1000) + "\n9.0.0.0/8",
	}))
	if err != nil {
		t.Fatal(err)
	}
	list := c.Uplinks[0].To[0]
	got := fmt.Sprint(list.IPv4, list.IPv6)
	want := "[1.2.3.4/32 9.0.0.0/8 198.51.100.0/24 198.51.100.0/25 203.0.113.0/24] [2001:db8::/32 2001:db8::/128]"
	if got != want || !slices.IsSortedFunc(list.IPv4, netip.Prefix.Compare) || !slices.IsSortedFunc(list.IPv6, netip.Prefix.Compare) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzPackIPv4(f *testing.F) {
	for _, seed := range []string{"1.2.3.0/24", "0.0.0.0/0", "10.0.0.0/8", "1.2.3.4/32", "01.2.3.0/24", "1.2.3.0/024", "256.0.0.0/8", "1..2.0/8", "127.0.0.0/8", "239.0.0.0/8", "255.255.255.255/32"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		packed, ok := packIPv4([]byte(text))
		if !ok {
			return
		}
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() || unicast(p) != nil || unpack(packed) != p || pack(p) != packed {
			t.Errorf("%q is read as %s (%v)", text, unpack(packed), err)
		}
	})
}

func TestAMillionPrefixesLoad(t *testing.T) {
	var b strings.Builder
	for i := range 1000000 {
		v := uint32(i*2654435761) >> 12
		fmt.Fprintf(&b, "%d.%d.%d.%d/28\n", 1+v>>16&63, v>>8&255, v&255, i&15<<4)
	}
	dir := files(t, map[string]string{"profiles/isp.toml": china + "to = [\"@cn.zone\"]\n", "profiles/cn.zone": b.String()})
	c, err := Load("", dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.Uplinks[0].To[0].IPv4); n < 900000 {
		t.Fatalf("%d prefixes", n)
	}
}

func TestLongAndShortListsShareTheSamePrefixes(t *testing.T) {
	var long, short []netip.Prefix
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		long = append(long, p)
		if i%400 == 3 {
			short = append(short, p)
		}
	}
	for _, c := range []struct {
		a, b []netip.Prefix
		want int
	}{{long, short, 3}, {short, long, 3}, {long, long[500:], 500}, {long[:500], long[500:], 0}, {nil, long, 0}} {
		if n, first := common(c.a, c.b); n != c.want || n > 0 && first != slices.MaxFunc([]netip.Prefix{c.a[0], c.b[0]}, netip.Prefix.Compare) {
			t.Errorf("%d in common, first %s; want %d", n, first, c.want)
		}
	}
}
