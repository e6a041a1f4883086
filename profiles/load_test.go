package profiles

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// files writes files below a new folder, which it returns.
func files(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for d := path; d != dir; d = filepath.Dir(d) {
			mode := os.FileMode(0o755)
			if d == path {
				mode = 0o644
			}
			if err := os.Chmod(d, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

const china = "[uplink.china]\ninterface = \"em1\"\n"

// refused loads dir and returns the complaints, with dir cut from their paths.
func refused(t *testing.T, dir string) string {
	t.Helper()
	c, err := Load("", dir)
	var all Errors
	if !errors.As(err, &all) || c != nil {
		t.Fatalf("no complaint: %v, %v", c, err)
	}
	return strings.ReplaceAll(all.Error(), dir+"/", "")
}

func TestSmallestProfile(t *testing.T) {
	dir := files(t, map[string]string{"profiles/isp.toml": china})
	c, err := Load("", dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "profiles/isp.toml")
	pos := Position{path, 1, 9}
	want := &Config{
		Settings: DefaultSettings,
		Uplinks:  []Uplink{{Name: "china", Pos: pos, Interface: "em1", Gateway: Gateway{Pos: pos, Auto: true}, Guard: true}},
		Files:    []string{path}, Readings: c.Readings,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestEverythingOfAnUplink(t *testing.T) {
	c := loaded(t, "reference.toml", "reference.toml")
	u := c.Uplinks[0]
	for _, v := range []struct{ got, want any }{
		{u.Gateway.IPv4, netip.MustParseAddr("192.168.1.253")},
		{u.Gateway.IPv6, netip.Addr{}},
		{u.Gateway.Auto, true},
		{u.Table, uint32(101)},
		{u.Addresses, []netip.Addr{netip.MustParseAddr("192.168.1.254"), netip.MustParseAddr("2001:db8::2")}},
		{u.Sources[0].Value, netip.MustParsePrefix("10.20.0.0/16")},
		{u.Sources[0].Pos.Line, 49},
		{u.Routes[0].Dev, "em1"},
		{u.Routes[0].Table, Table{Name: "china"}},
		{u.Routes[1].Type + u.Routes[1].Dev, "unreachable"},
		{u.To[0].Prefixes.String(), "[198.51.100.0/24]"},
		{u.To[1].File, "reference.zone"},
		{[]bool{u.Forward, u.Masquerade, u.Guard}, []bool{true, true, true}},
		{u.RPFilter, "strict"},
		{[]uint32{u.AdvMSS, u.MTU}, []uint32{1400, 1440}},
		{[]int{int(u.Default.Metric), u.Default.Weight}, []int{100, 1}},
		{c.Rules[0].Mark, uint32(0x10)},
		{c.Rules[0].Mask, uint32(0xff)},
		{c.Rules[0].Families, Families{IPv4: true}},
		{c.Rules[0].SPort, [2]uint16{8000, 8099}},
		{c.Rules[0].DPort, [2]uint16{443, 443}},
		{*c.Rules[0].UIDs, [2]uint32{1000, 1999}},
		{c.Rules[0].TOS, uint8(0x10)},
		{c.Rules[0].Lookup, Table{Name: "china"}},
		{*c.Rules[0].SuppressPrefixLength, 0},
		{*c.Rules[0].SuppressIfgroup, 115},
		{c.Rules[1].Action, "prohibit"},
		{*c.Routes[0].Metric, uint32(50)},
		{c.Routes[0].Type, "unicast"},
		{c.Routes[1].Table, Table{Name: "lab"}},
		{c.Routes[2].Nexthops[0], Nexthop{Via: netip.MustParseAddr("2001:db8::1"), Weight: 2}},
		{c.Routes[2].Nexthops[1], Nexthop{Via: netip.MustParseAddr("fe80::1"), Dev: "em2", OnLink: true, Weight: 1}},
		{c.Files, []string{"reference.toml", "reference.zone"}},
	} {
		if !reflect.DeepEqual(v.got, v.want) {
			t.Errorf("got %v, want %v", v.got, v.want)
		}
	}
}

func TestUplinksComeByNameAndRulesAsWritten(t *testing.T) {
	rule := "[[rule]]\npriority = %d\nlookup = 9\n"
	c, err := Load("", files(t, map[string]string{
		"profiles/1.toml": "[uplink.z]\ninterface = \"em1\"\n[uplink.b]\ninterface = \"em2\"\n" + fmt.Sprintf(rule, 9),
		"profiles/2.toml": "[uplink.a]\ninterface = \"em3\"\n" + fmt.Sprintf(rule, 5),
	}))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{c.Uplinks[0].Name, c.Uplinks[1].Name, c.Uplinks[2].Name}
	if !slices.Equal(names, []string{"a", "b", "z"}) || c.Rules[0].Priority != 9 || c.Rules[1].Priority != 5 {
		t.Errorf("%v, rules %d and %d", names, c.Rules[0].Priority, c.Rules[1].Priority)
	}
}

func TestGatewaySpellings(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::1")
	for text, want := range map[string]Gateway{
		`"auto"`:                  {Auto: true},
		`["auto"]`:                {Auto: true},
		`"none"`:                  {None: true},
		`"192.0.2.1"`:             {IPv4: v4},
		`["fe80::1"]`:             {IPv6: v6},
		`["192.0.2.1","fe80::1"]`: {IPv4: v4, IPv6: v6},
		`["auto", "fe80::1"]`:     {IPv6: v6, Auto: true},
	} {
		c, err := Load("", files(t, map[string]string{"profiles/a.toml": china + "gateway = " + text + "\n"}))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := c.Uplinks[0].Gateway
		got.Pos = Position{}
		if got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

func TestGoodSpellings(t *testing.T) {
	for _, text := range []string{
		"\xef\xbb\xbf" + china,
		strings.ReplaceAll(china, "\n", "\r\n"),
		"[uplink.\"em1.100\"]\ninterface = \"em1.100\"\n",
		"[uplink.\"中国\"]\ninterface = \"中国\"\n",
		"uplink.china.interface = \"em1\"\n",
		"uplink = { china = { interface = \"em1\" } }\n",
		china + "sources = []\nto = []\nroutes = []\n",
		china + "gateway = \"none\"\naddresses = [\"192.0.2.1\", \"2001:db8::1\"]\n",
		china + "sources = [\"192.0.2.1\"]\nto = [\"2001:db8::1\"]\n",
		china + "default = {}\n",
		"[[rule]]\npriority = 1\nlookup = 254\n[[rule]]\npriority = 32765\nlookup = \"main\"\n",
		"[[rule]]\npriority = 1\nfamily = \"ipv4\"\nlookup = 9\n[[rule]]\npriority = 1\nfamily = \"ipv6\"\nlookup = 9\n",
		"[[rule]]\npriority = 1\nnot = true\nfwmark = 0\nlookup = \"4294967294\"\n",
		"[[rule]]\npriority = 1\nipproto = 58\nfamily = \"ipv6\"\ntos = \"0xfc\"\nuidrange = 0\nlookup = 9\n",
		"[[route]]\ntable = 9\nto = \"default\"\nvia = \"192.0.2.1\"\n[[route]]\ntable = 9\nto = \"default\"\nvia = \"fe80::1\"\ndev = \"em1\"\n",
		"[[route]]\ntable = \"x\"\nto = \"::/0\"\ntype = \"unreachable\"\nmetric = 4278198271\n",
		"[[route]]\ntable = \"x\"\nto = \"192.0.2.1\"\ntype = \"local\"\ndev = \"lo\"\n",
		china + "table = 7\nroutes = [{ to = \"default\", via = \"192.0.2.9\", metric = 9 }]\n",
		china + "routes = [{ to = \"192.0.2.0/24\" }, { to = \"192.0.2.0/24\", metric = 5, dev = \"em2\" }]\n",
		"\n", "# nothing\n",
	} {
		if _, err := Load("", files(t, map[string]string{"profiles/a.toml": text})); err != nil {
			t.Errorf("%q:\n%v", text, err)
		}
	}
}

func TestFromEverythingIsNoSelector(t *testing.T) {
	c, err := Load("", files(t, map[string]string{"profiles/a.toml": "[[rule]]\npriority = 1\nfrom = \"::/0\"\nlookup = 9\n"}))
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Rules[0]; r.From.IsValid() || r.Families != (Families{IPv6: true}) {
		t.Errorf("%+v", r)
	}
}

func TestOnlyFollowingUplinksNeedMarks(t *testing.T) {
	for forward, want := range map[string]bool{"": true, "forward = true\n": false} {
		_, err := Load("", files(t, map[string]string{
			SettingsFile:      "mark_mask = 0x300\n",
			"profiles/a.toml": china + "forward = true\n[uplink.b]\ninterface = \"em2\"\n" + forward,
		}))
		if (err == nil) != want {
			t.Errorf("%q: %v", forward, err)
		}
	}
}

func TestLeftoversAreIgnored(t *testing.T) {
	texts := map[string]string{"profiles/isp.toml": china}
	for _, name := range []string{
		".isp.toml", ".#isp.toml", "#isp.toml#", "#isp.toml", "isp.toml~", ".isp.toml.swp", "isp.toml.swp", "isp.toml.dpkg-old",
		"isp.toml.dpkg-new", "isp.toml.dpkg-dist", "isp.toml.rpmsave", "isp.toml.rpmnew", "isp.toml.rpmorig", "isp.toml.bak",
		"isp.toml.orig", "README", "cn.zone", ".toml", "folder/isp.toml",
	} {
		texts["profiles/"+name] = "not = = toml"
	}
	c, err := Load("", files(t, texts))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Uplinks) != 1 || len(c.Files) != 1 {
		t.Errorf("%d uplinks from %v", len(c.Uplinks), c.Files)
	}
}

func TestNoProfilesAreAnEmptyConfiguration(t *testing.T) {
	for _, texts := range []map[string]string{{}, {"profiles/README": ""}, {SettingsFile: ""}} {
		c, err := Load("", files(t, texts))
		if err != nil {
			t.Fatal(err)
		}
		if c.Settings != DefaultSettings || len(c.Uplinks) != 0 {
			t.Errorf("%+v", c)
		}
	}
}

func TestMissingConfigurationIsNotAnEmptyOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sisod")
	if got := refused(t, dir); !strings.Contains(got, "no such file or folder") {
		t.Error(got)
	}
	file := filepath.Join(files(t, map[string]string{"sisod": ""}), "sisod")
	if got := refused(t, file); !strings.Contains(got, "this is not a folder") {
		t.Error(got)
	}
	dir = files(t, map[string]string{"profiles": ""})
	if got := refused(t, dir); !strings.HasPrefix(got, "profiles: this is not a folder") {
		t.Error(got)
	}
}

func TestRootIsPutBeforeEveryPathAndShownInNone(t *testing.T) {
	good := map[string]string{
		"etc/sisod/sisod.toml": "group = 7\n", "etc/sisod/profiles/isp.toml": china + "to = [\"@cn.zone\", \"@/srv/lists/other.zone\"]\n",
		"etc/sisod/profiles/cn.zone": "198.51.100.0/24\n", "srv/lists/other.zone": "192.0.2.0/24\n",
	}
	c, err := Load(files(t, good), "/etc/sisod")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc/sisod/profiles/cn.zone", "/etc/sisod/profiles/isp.toml", "/etc/sisod/sisod.toml", "/srv/lists/other.zone"}
	if !slices.Equal(c.Files, want) || c.Settings.Group != 7 || c.Uplinks[0].Pos.File != want[1] {
		t.Errorf("%v, %+v", c.Files, c.Uplinks[0].Pos)
	}
	good["srv/lists/other.zone"] = "192.0.2.0\nx\n"
	_, err = Load(files(t, good), "/etc/sisod")
	if err == nil || !strings.HasPrefix(err.Error(), "/srv/lists/other.zone:2:1: ") {
		t.Error(err)
	}
}

func TestWritableByOthersIsRefused(t *testing.T) {
	for _, c := range []struct {
		path string
		mode os.FileMode
		want string
	}{
		{"profiles/isp.toml", 0o666, "profiles/isp.toml: others than the owner can write this (mode 0666)\n"},
		{"profiles/isp.toml", 0o664, "profiles/isp.toml: others than the owner can write this (mode 0664)\n"},
		{SettingsFile, 0o602, "sisod.toml: others than the owner can write this (mode 0602)\n"},
		{"profiles", 0o777 | os.ModeSticky, "profiles: others than the owner can write this (mode 0777)\n"},
		{"profiles/cn.zone", 0o622, "profiles/isp.toml:3:7: profiles/cn.zone: others than the owner can write this (mode 0622)\n"},
		{"lists", 0o775, "profiles/isp.toml:3:19: lists/other.zone: lists: others than the owner can write this (mode 0775)\n"},
	} {
		dir := files(t, map[string]string{
			SettingsFile: "", "profiles/isp.toml": china + "to = [\"@cn.zone\", \"@../lists/other.zone\"]\n",
			"profiles/cn.zone": "198.51.100.0/24\n", "lists/other.zone": "192.0.2.0/24\n",
		})
		if _, err := Load("", dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, c.path), c.mode); err != nil {
			t.Fatal(err)
		}
		got := refused(t, dir)
		got = strings.ReplaceAll(got, dir+": ", "")
		if !strings.HasPrefix(got, c.want) || !strings.Contains(got, "chmod go-w ") {
			t.Errorf("%s %v:\n%s", c.path, c.mode, got)
		}
	}
}

func TestUnreadableFiles(t *testing.T) {
	dir := files(t, map[string]string{"profiles/folder.toml/x": "", "profiles/good.toml": china + "guard = 1\n"})
	if err := os.Symlink("/nowhere/isp.toml", filepath.Join(dir, "profiles/link.toml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "profiles/zero.toml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop.toml", filepath.Join(dir, "profiles/loop.toml")); err != nil {
		t.Fatal(err)
	}
	want := `profiles/folder.toml: this is a folder, not a file
  move it away, or give it another name
profiles/good.toml:3:9: guard must be true or false, not a number
  3 | guard = 1
    |         ^
  write guard = true or guard = false
profiles/link.toml: this is a symbolic link to /nowhere/isp.toml, which does not exist
  mend the link or remove it
profiles/loop.toml: stat: too many levels of symbolic links
profiles/zero.toml: this is not a regular file
  pipes, sockets and devices are not read`
	if got := refused(t, dir); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestNotUTF8(t *testing.T) {
	for text, want := range map[string]string{
		"# r\xe9seau\n":    "profiles/a.toml:1:4: byte 0xe9 is not UTF-8\n  1 | # r\uFFFDseau\n    |    ^\n  save the file as UTF-8",
		china + "# 中国\xff": "profiles/a.toml:3:5: byte 0xff is not UTF-8\n  3 | # 中国\uFFFD\n    |       ^\n  save the file as UTF-8",
		"\xff\xfe[\x00u\x00": "profiles/a.toml:1:1: byte 0xff is not UTF-8\n  1 | \uFFFD\uFFFD[\uFFFDu\uFFFD\n    | ^\n" +
			"  the file looks like UTF-16, as some Windows editors write it: save it as UTF-8",
	} {
		if got := refused(t, files(t, map[string]string{"profiles/a.toml": text})); got != want {
			t.Errorf("%q: got:\n%s\nwant:\n%s", text, got, want)
		}
	}
}

func TestHugeProfileIsRefused(t *testing.T) {
	dir := files(t, map[string]string{
		"profiles/big.toml": strings.Repeat("# prefixes\n", 10<<20/11+1), "profiles/fits.toml": strings.Repeat("#", 1<<20),
	})
	want := "profiles/big.toml: the file has 10.0 MB; a profile has at most 1 MB\n" +
		"  a long list of prefixes stands in a file of its own, named in the uplink's key:\n  to = [\"@cn.zone\"]"
	if got := refused(t, dir); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// The quick reader of lists must agree with the careful one on every text
// that it takes.
func TestManyComplaintsOnOneLineAreQuickAndCut(t *testing.T) {
	dir := files(t, map[string]string{"profiles/isp.toml": china + "to = [" + strings.Repeat(`"198.51.100.1/24", `, 50000) + "]\n"})
	_, err := Load("", dir)
	var all Errors
	if !errors.As(err, &all) || len(all) != maxFileErrors+1 {
		t.Fatalf("%d complaints", len(all))
	}
	if got, want := all[maxFileErrors].Error(), "profiles/isp.toml:3:1907: and 49900 more complaints about this file"; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestCheckOfOneFile(t *testing.T) {
	dir := files(t, map[string]string{"draft.toml": china, SettingsFile: "group = 9\n"})
	// A draft may lie where others can write.
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	c, err := LoadFile(filepath.Join(dir, "draft.toml"))
	if err != nil || c.Settings != DefaultSettings || len(c.Uplinks) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = LoadFile(filepath.Join(dir, SettingsFile))
	if err != nil || c.Settings.Group != 9 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err = LoadFile(filepath.Join(dir, "absent.toml")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

func TestRulePrioritiesFollowTheSettings(t *testing.T) {
	rule := "[[rule]]\npriority = 11500\nlookup = 9\n"
	if _, err := Load("", files(t, map[string]string{SettingsFile: "priority = 20000\n", "profiles/a.toml": rule})); err != nil {
		t.Error(err)
	}
	// Broken settings are judged as the defaults, so that profiles are checked all the same.
	got := refused(t, files(t, map[string]string{SettingsFile: "priority = 0\n", "profiles/a.toml": rule}))
	if strings.Count(got, "priority") < 2 || !strings.Contains(got, "profiles/a.toml:2:12: priority 11500 is inside") {
		t.Error(got)
	}
}

// Nothing that a file can hold ends the program.
func FuzzLoad(f *testing.F) {
	texts, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(texts) == 0 {
		f.Fatal("no corpus: ", err)
	}
	for _, path := range append(texts, "reference.toml", "reference-settings.toml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), false)
	}
	f.Add("priority = 1\nmark_mask = -1\n", true)
	f.Fuzz(func(t *testing.T, text string, settings bool) {
		l := &loader{root: "/a/root/that/is/not/there"}
		b := newBuilder(l)
		if root := parse("a.toml", []byte(text), settings, &l.errs); root != nil && settings {
			var raw rawSettings
			decodeTable(root, &raw)
			b.settings = raw.check()
		} else if root != nil {
			var raw rawProfile
			decodeTable(root, &raw)
			b.add(raw)
		}
		if _, err := b.finish(); err != nil && strings.Contains(err.Error(), errLost.Error()) {
			t.Errorf("%q: %v", text, err)
		} else if err != nil && err.Error() == "" {
			t.Errorf("%q: a complaint without words", text)
		}
	})
}
