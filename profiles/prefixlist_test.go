package profiles

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/prefix"
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
	got := list.Prefixes.String()
	want := "[1.2.3.4/32 9.0.0.0/8 198.51.100.0/24 198.51.100.0/25 203.0.113.0/24 2001:db8::/32 2001:db8::/128]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzPlainIPv4(f *testing.F) {
	for _, seed := range []string{"1.2.3.0/24", "0.0.0.0/0", "10.0.0.0/8", "1.2.3.4/32", "01.2.3.0/24", "1.2.3.0/024", "256.0.0.0/8", "1..2.0/8", "127.0.0.0/8", "239.0.0.0/8", "255.255.255.255/32"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		address, length, ok := plainIPv4([]byte(text))
		if !ok {
			return
		}
		p, err := netip.ParsePrefix(text)
		var b prefix.Builder
		b.AddIPv4(address, length)
		if got := b.Set().At(0); err != nil || p != p.Masked() || unicast(p) != nil || got != p {
			t.Errorf("%q is read as %s (%v)", text, got, err)
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
	if n := c.Uplinks[0].To[0].Prefixes.Len(); n < 900000 {
		t.Fatalf("%d prefixes", n)
	}
}

func TestAListThatIsAsItWasIsNotReadAgain(t *testing.T) {
	dir := files(t, map[string]string{
		"profiles/isp.toml": china + "to = [\"@cn.zone\", \"@far.zone\", \"192.0.2.0/24\"]\n",
		"profiles/cn.zone":  "10.1.0.0/16\n", "profiles/far.zone": "10.2.0.0/16\n",
	})
	before, err := Load("", dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"cn.zone": "10.3.0.0/16\n", "far.zone": "10.4.0.0/16\n", "isp.toml": china + "to = [\"@far.zone\", \"@cn.zone\"]\n"} {
		if err := os.WriteFile(filepath.Join(dir, "profiles", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// One of the files is called unchanged; what comes of it shows that it was not read.
	after, err := LoadAgain("", dir, before, func(was Reading, is fs.FileInfo) bool {
		if !os.SameFile(was.Stat, is) || was.At.IsZero() {
			t.Errorf("%s and %s are compared", was.Stat.Name(), is.Name())
		}
		return is.Name() == "cn.zone"
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Uplinks[0].Listed.String(); got != "[10.1.0.0/16 10.4.0.0/16]" {
		t.Errorf("the lists are %s", got)
	}
}
