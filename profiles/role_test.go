package profiles

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// profile loads one profile as the daemon does.
func profile(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return Load("", files(t, map[string]string{"profiles/a.toml": text}))
}

// good loads a profile that has nothing to complain about.
func good(t *testing.T, text string) *Config {
	t.Helper()
	c, err := profile(t, text)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return c
}

func TestSmallestRoles(t *testing.T) {
	c := good(t, `[real_server.web]
mode = "tun"
vip = "203.0.113.145"
[real_server.mail]
mode = "nat"
director = "10.0.0.1"
[director.shop]
mode = "dr"
vip = "203.0.113.150"
services = ["tcp/80"]
real_servers = [{ address = "10.0.0.7" }]
`)
	file := c.Files[0]
	at := func(line, col int) Position { return Position{file, line, col} }
	servers := []RealServer{
		{Name: "mail", Pos: at(4, 14), Mode: NAT, Directors: []At[netip.Addr]{{netip.MustParseAddr("10.0.0.1"), at(6, 1)}}},
		{Name: "web", Pos: at(1, 14), Mode: Tun, VIPs: []At[netip.Addr]{{netip.MustParseAddr("203.0.113.145"), at(3, 1)}}, Tunnel: Tunnel{Kind: "ipip"}},
	}
	if !reflect.DeepEqual(c.RealServers, servers) {
		t.Errorf("got  %+v\nwant %+v", c.RealServers, servers)
	}
	directors := []Director{{
		Name: "shop", Pos: at(7, 11), Mode: DR, VIPs: []At[netip.Addr]{{netip.MustParseAddr("203.0.113.150"), at(9, 1)}},
		Scheduler: "wlc", Services: []Port{{at(10, 13), "tcp", 80}}, Drain: time.Minute,
		RealServers: []Backend{{Pos: at(11, 17), Address: netip.MustParseAddr("10.0.0.7"), Weight: 1}},
	}}
	if !reflect.DeepEqual(c.Directors, directors) {
		t.Errorf("got  %+v\nwant %+v", c.Directors, directors)
	}
	if c.IPVS != nil {
		t.Errorf("nothing was asked of IPVS: %+v", c.IPVS)
	}
}

func TestEverythingOfRoles(t *testing.T) {
	c := loaded(t, "reference.toml", "reference.toml")
	mail, peer, web := c.RealServers[0], c.RealServers[1], c.RealServers[2]
	files, shop, voice := c.Directors[0], c.Directors[1], c.Directors[2]
	for _, v := range []struct{ got, want any }{
		{[]string{mail.Name, peer.Name, web.Name, files.Name, shop.Name, voice.Name}, []string{"mail", "shop", "web", "files", "shop", "voice"}},
		{[]Forwarding{mail.Mode, peer.Mode, web.Mode, files.Mode, shop.Mode, voice.Mode}, []Forwarding{NAT, FullNAT, Tun, FullNAT, Tun, NAT}},
		{[]netip.Addr{peer.Directors[1].Value, files.SNAT[0].Value, files.SNAT[1].Value}, []netip.Addr{netip.MustParseAddr("10.0.0.6"), netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.6")}},
		{[]int{web.MSSRoom, peer.MSSRoom, files.MSSRoom, shop.MSSRoom}, []int{0, 16, 8, 0}},
		{web.VIPs[1].Value, netip.MustParseAddr("203.0.113.146")},
		{web.Uplink.Value, "china"},
		{web.Directors[1].Value, netip.MustParseAddr("10.0.0.2")},
		{web.Interface, "tun-web"},
		{[]Tunnel{web.Tunnel, shop.Tunnel, mail.Tunnel, voice.Tunnel}, []Tunnel{{"gue", 6080}, {"gue", 6080}, {}, {}}},
		{fmt.Sprint(mail.Services[0], " ", mail.Services[1]), "tcp/25 tcp/587"},
		{[]string{mail.Table(), peer.Table(), web.Table()}, []string{"rs-mail", "", "rs-web"}},
		{shop.Scheduler, "mh"},
		{shop.Flags, []string{"fallback", "port"}},
		{shop.Services[1].String(), "tcp/443"},
		{shop.Interface, "em1"},
		{shop.Uplink.Value, "china"},
		{[]time.Duration{shop.Persistence, shop.Drain, voice.Persistence, voice.Drain}, []time.Duration{5 * time.Minute, 10 * time.Minute, 0, DefaultDrain}},
		{[]int{shop.Netmask, voice.Netmask}, []int{24, 0}},
		{[]bool{shop.OnePacket, voice.OnePacket}, []bool{false, true}},
		{[]uint32{shop.FWMark, voice.FWMark}, []uint32{0, 7}},
		{[]Families{shop.Family, voice.Family}, []Families{{}, {IPv4: true}}},
		{voice.Scheduler, DefaultScheduler},
		{voice.RealServers[0].Port, uint16(5060)},
		{shop.RealServers[0].Weight, 2},
		{[]uint32{shop.RealServers[0].Upper, shop.RealServers[0].Lower}, []uint32{5000, 4000}},
		{shop.RealServers[1].Weight, 1},
		{[]time.Duration{c.IPVS.TCP, c.IPVS.TCPFin, c.IPVS.UDP}, []time.Duration{15 * time.Minute, 2 * time.Minute, 5 * time.Minute}},
		{[]bool{c.IPVS.Sync.Master, c.IPVS.Sync.Backup}, []bool{true, false}},
		{c.IPVS.Sync.Interface, "eth0"},
		{c.IPVS.Sync.ID, 1},
	} {
		if !reflect.DeepEqual(v.got, v.want) {
			t.Errorf("got %v, want %v", v.got, v.want)
		}
	}
}

// directorOf is a director with more lines, in the first of which the mode stands.
func directorOf(name, lines string) string {
	return "[director." + name + "]\n" + lines + "\n"
}

func TestGoodRoles(t *testing.T) {
	const server, services = `real_servers = [{ address = "10.0.0.7" }]`, `services = ["tcp/80"]`
	for _, text := range []string{
		// Directors share a VIP, with services of their own, and one of them has it put there.
		directorOf("a", `mode = "dr"`+"\nvip = \"203.0.113.1\"\ninterface = \"em1\"\n"+services+"\n"+server) +
			directorOf("b", `mode = "nat"`+"\nvip = \"203.0.113.1\"\nservices = [\"udp/80\", \"tcp/443\", \"sctp/80\"]\n"+server),
		// The same service of another VIP, and the same mark in another family.
		directorOf("a", `mode = "dr"`+"\nvip = \"203.0.113.1\"\n"+services+"\n"+server) +
			directorOf("b", `mode = "dr"`+"\nvip = \"203.0.113.2\"\n"+services+"\n"+server) +
			directorOf("c", `mode = "dr"`+"\nfwmark = 1\n"+server) +
			directorOf("d", `mode = "dr"`+"\nfwmark = 1\nreal_servers = [{ address = \"2001:db8::7\" }]"),
		// In tun and dr a port may be said that is the service's anyway.
		directorOf("a", `mode = "tun"`+"\nvip = \"203.0.113.1\"\nservices = [\"tcp/80\", \"udp/80\"]\nreal_servers = [{ address = \"10.0.0.7\", port = 80 }]"),
		// nat maps several services to one port, and one service to two ports.
		directorOf("a", `mode = "nat"`+"\nvip = \"203.0.113.1\"\nservices = [\"tcp/80\", \"tcp/443\"]\n"+
			`real_servers = [{ address = "10.0.0.7", port = 8080 }, { address = "10.0.0.7", port = 8081, weight = 65535 }]`),
		// Every port, with persistence; families mixed in a tunnel; a drain of nothing.
		directorOf("a", `mode = "tun"`+"\nvip = [\"203.0.113.1\", \"2001:db8::1\"]\nservices = [\"tcp/0\"]\npersistence = \"1m30s\"\ndrain = \"0\"\n"+server),
		directorOf("a", `mode = "dr"`+"\nvip = \"2001:db8::1\"\n"+services+"\npersistence = \"1h\"\npersistence_netmask = 64\nreal_servers = [{ address = \"2001:db8::7\", weight = 0 }]"),
		directorOf("a", `mode = "nat"`+"\nvip = \"203.0.113.1\"\nservices = [\"udp/53\"]\none_packet = true\nscheduler_flags = []\n"+server),
		// Sources of both families, a source that is the VIP, a mark, every port.
		directorOf("a", `mode = "fullnat"`+"\nvip = [\"203.0.113.1\", \"2001:db8::1\"]\n"+services+"\nsnat = [\"203.0.113.1\", \"2001:db8::5\"]\n"+
			`real_servers = [{ address = "10.0.0.7", port = 8080 }, { address = "2001:db8::7" }]`) +
			directorOf("b", `mode = "fullnat"`+"\nfwmark = 1\nsnat = \"10.0.0.5\"\n"+server) +
			directorOf("c", `mode = "fullnat"`+"\nvip = \"203.0.113.1\"\nservices = [\"udp/0\"]\npersistence = \"5m\"\nsnat = \"10.0.0.5\"\nmss_room = 40\n"+server),
		"[real_server.a]\nmode = \"fullnat\"\ndirector = \"10.0.0.5\"\n[real_server.b]\nmode = \"fullnat\"\ndirector = [\"10.0.0.6\", \"2001:db8::5\"]\nmss_room = 4\n",
		// A director that reaches the service on this host itself.
		directorOf("a", `mode = "nat"`+"\nvip = \"203.0.113.1\"\n"+services+"\n"+server) + china + "addresses = [\"10.0.0.7\"]\n",
		// Tables as headers, and names with quotes.
		"[director.\"shop.1\"]\nmode = \"dr\"\nvip = \"203.0.113.1\"\n" + services + "\n[[director.\"shop.1\".real_servers]]\naddress = \"10.0.0.7\"\n[[director.\"shop.1\".real_servers]]\naddress = \"10.0.0.8\"\n",
		"[real_server." + strings.Repeat("a", 60) + "]\nmode = \"dr\"\nvip = \"203.0.113.1\"\n",
		"[ipvs]\n", "[ipvs.timeouts]\nudp = \"576h\"\n", "[ipvs.sync]\nrole = \"both\"\ninterface = \"em1\"\n",
		// Two ways back that their ports tell apart, and one for the other family.
		"[real_server.a]\nmode = \"nat\"\ndirector = \"10.0.0.1\"\nservices = [\"tcp/80\"]\n[real_server.b]\nmode = \"nat\"\ndirector = [\"10.0.0.2\", \"2001:db8::2\"]\nservices = [\"udp/80\"]\n" +
			"[real_server.c]\nmode = \"nat\"\ndirector = [\"2001:db8::3\"]\nservices = [\"tcp/80\"]\n",
		"[real_server.a]\nmode = \"dr\"\nvip = \"203.0.113.1\"\ninterface = \"dummy0\"\n[director.a]\nmode = \"dr\"\nvip = \"203.0.113.2\"\n" + services + "\n" + server,
		"[real_server.a]\nmode = \"tun\"\nvip = [\"203.0.113.1\", \"2001:db8::1\"]\nencapsulation = \"gre\"\ninterface = \"gre0\"\n",
	} {
		good(t, text)
	}
}

func TestMarksFamiliesAreThoseOfTheVIPsOrElseOfTheRealServers(t *testing.T) {
	both := `real_servers = [{ address = "10.0.0.7" }, { address = "2001:db8::7" }]`
	for lines, want := range map[string]Families{
		"mode = \"dr\"\nfwmark = 1\n" + both:                                                 {IPv4: true, IPv6: true},
		"mode = \"tun\"\nfwmark = 1\nvip = \"203.0.113.1\"\n" + both:                         {IPv4: true},
		"mode = \"tun\"\nfwmark = 1\nvip = \"2001:db8::1\"\n" + both:                         {IPv6: true},
		"mode = \"nat\"\nfwmark = 1\n" + strings.Replace(both, "10.0.0.7", "2001:db8::8", 1): {IPv6: true},
	} {
		if got := good(t, directorOf("a", lines)).Directors[0].Family; got != want {
			t.Errorf("%s: %v, want %v", lines, got, want)
		}
	}
}

func TestNetmaskSpellings(t *testing.T) {
	for text, want := range map[string]int{`"255.255.255.0"`: 24, `"255.255.255.255"`: 32, `"128.0.0.0"`: 1, "17": 17} {
		c := good(t, directorOf("a", `mode = "dr"`+"\nvip = \"203.0.113.1\"\nservices = [\"tcp/80\"]\npersistence = \"1s\"\npersistence_netmask = "+text+"\nreal_servers = [{ address = \"10.0.0.7\" }]"))
		if got := c.Directors[0].Netmask; got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestEverySchedulerOfTheKernelIsKnown(t *testing.T) {
	for _, s := range strings.Fields("rr wrr lc wlc fo ovf lblc lblcr dh sh mh sed nq twos") {
		c := good(t, directorOf("a", `mode = "dr"`+"\nvip = \"203.0.113.1\"\nservices = [\"tcp/80\"]\nscheduler = \""+s+"\"\nreal_servers = [{ address = \"10.0.0.7\" }]"))
		if c.Directors[0].Scheduler != s {
			t.Errorf("%s became %s", s, c.Directors[0].Scheduler)
		}
	}
}

func TestAFileCheckedAloneMayNameUplinksOfOthers(t *testing.T) {
	dir := files(t, map[string]string{"profiles/web.toml": "[real_server.web]\nmode = \"tun\"\nvip = \"203.0.113.1\"\nuplink = \"china\"\n"})
	c, err := LoadFile(dir + "/profiles/web.toml")
	if err != nil || c.RealServers[0].Uplink.Value != "china" {
		t.Errorf("%+v, %v", c, err)
	}
	if got := refused(t, dir); !strings.Contains(got, `profiles/web.toml:4:10: there is no uplink "china"`) {
		t.Error(got)
	}
}

func TestServicesThatClashAreNamedWhereverTheyStand(t *testing.T) {
	role := func(name string) string {
		return directorOf(name, `mode = "nat"`+"\nvip = \"203.0.113.1\"\nservices = [\"tcp/80\"]\nreal_servers = [{ address = \"10.0.0.7\" }]")
	}
	got := refused(t, files(t, map[string]string{"profiles/1.toml": role("a"), "profiles/2.toml": role("b")}))
	want := "profiles/2.toml:4:13: service tcp/80 of VIP 203.0.113.1 is that of director a already, at "
	if !strings.HasPrefix(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
