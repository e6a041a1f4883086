//go:build stock

package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sisod/sisod/internal/lab"
)

// stay is a visit that goes on after its first page.
type stay struct {
	*lab.Visit
	server string
}

// lodge opens a connection from an address of a host's and asks for a page.
func lodge(t *testing.T, from *lab.Host, own netip.Addr, to netip.AddrPort) (stay, error) {
	t.Helper()
	visit, err := from.VisitFrom(t.Context(), own, to, patient)
	if err != nil {
		return stay{}, err
	}
	t.Cleanup(func() { visit.Close() })
	v := stay{Visit: visit}
	return v, v.ask(t)
}

// ask asks for a page on the same connection.
func (v *stay) ask(t *testing.T) error {
	page, err := v.Fetch(t.Context(), 0, patient)
	if err == nil {
		v.server = page.Server
	}
	return err
}

// servers visits ports of a VIP in turn, and says who served each.
func servers(t *testing.T, from *lab.Host, own, vip netip.Addr, ports ...uint16) []string {
	t.Helper()
	var order []string
	for _, port := range ports {
		v, err := lodge(t, from, own, netip.AddrPortFrom(vip, port))
		if err != nil {
			t.Fatalf("%s port %d: %v", vip, port, err)
		}
		order = append(order, v.server)
	}
	return order
}

// datagrams sends n of them from one socket, each when the last was answered.
func datagrams(t *testing.T, from *lab.Host, to netip.AddrPort, n int) (net.Conn, error) {
	t.Helper()
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for range n {
		if err := another(conn, patient); err != nil {
			return conn, err
		}
	}
	return conn, nil
}

// another sends a datagram and waits for the answer.
func another(conn net.Conn, timeout time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "who am I\n"); err != nil {
		return err
	}
	answer := make([]byte, 64)
	n, err := conn.Read(answer)
	if err == nil && string(answer[:n]) != conn.LocalAddr().String()+"\n" {
		err = fmt.Errorf("the server saw %q, not the client %s", answer[:n], conn.LocalAddr())
	}
	return err
}

// kinds are services of every kind, on one director in two modes.
const kinds = `
	[director.udp]
	mode = "dr"
	vip = ["VIP4", "VIP6"]
	interface = "eth0"
	services = ["udp/5353", "sctp/2905"]
	scheduler = "rr"
	real_servers = [ { address = "RS14" }, { address = "RS24" }, { address = "RS16" }, { address = "RS26" } ]
	[director.one]
	mode = "dr"
	vip = ["VIP4", "VIP6"]
	interface = "eth0"
	services = ["udp/5354"]
	scheduler = "rr"
	one_packet = true
	real_servers = [ { address = "RS14" }, { address = "RS24" }, { address = "RS16" }, { address = "RS26" } ]
	[director.mapped]
	mode = "nat"
	vip = ["VIP4", "VIP6"]
	interface = "eth0"
	services = ["udp/5300", "sctp/5300"]
	scheduler = "rr"
	real_servers = [ { address = "RS14", port = 5355 }, { address = "RS24", port = 5355 }, { address = "RS16", port = 5355 }, { address = "RS26", port = 5355 } ]
	[director.marked]
	mode = "dr"
	vip = ["VIP4", "VIP6"]
	interface = "eth0"
	fwmark = 7
	scheduler = "rr"
	real_servers = [ { address = "RS14" }, { address = "RS24" }, { address = "RS16" }, { address = "RS26" } ]
	[director.every]
	mode = "dr"
	vip = ["VIP4", "VIP6"]
	interface = "eth0"
	services = ["tcp/0"]
	scheduler = "rr"
	persistence = "300s"
	real_servers = [ { address = "RS14" }, { address = "RS24" }, { address = "RS16" }, { address = "RS26" } ]
	[director.group4]
	mode = "dr"
	vip = "VIP4"
	interface = "eth0"
	services = ["tcp/8005"]
	scheduler = "rr"
	persistence = "300s"
	persistence_netmask = "255.255.255.0"
	real_servers = [ { address = "RS14" }, { address = "RS24" } ]
	[director.group6]
	mode = "dr"
	vip = "VIP6"
	interface = "eth0"
	services = ["tcp/8005"]
	scheduler = "rr"
	persistence = "300s"
	persistence_netmask = 64
	real_servers = [ { address = "RS16" }, { address = "RS26" } ]`

const kindsServed = `
	[real_server.web]
	mode = "dr"
	vip = ["VIP4", "VIP6"]
	[real_server.mapped]
	mode = "nat"
	director = ["DIR4", "DIR6"]
	services = ["udp/5355", "sctp/5355"]`

// marks are those that an administrator's firewall gives.
const marks = `table inet marks {
	chain prerouting {
		type filter hook prerouting priority mangle
		ip daddr VIP4 tcp dport { 8001, 8002 } meta mark set 7
		ip6 daddr VIP6 tcp dport { 8001, 8002 } meta mark set 7
	}
}`

func TestStockServicesOfEveryKind(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	run(t, l.Director, "nft", spell(l, marks))
	second := lab.Addresses{V4: l.ClientAddress.V4.Next(), V6: l.ClientAddress.V6.Next()}
	if err := l.Client.Addr("eth0", second.V4.String()+"/24", second.V6.String()+"/64"); err != nil {
		t.Fatal(err)
	}
	hosts := []*lab.Host{l.Director, l.RealServers[0], l.RealServers[1]}
	found := snapshots(t, hosts...)
	var witnesses []*lab.Capture
	for i, h := range hosts {
		writeProfile(t, h, "lvs.toml", spell(l, kinds))
		if i > 0 {
			writeProfile(t, h, "lvs.toml", spell(l, kindsServed))
			for _, port := range []uint16{8001, 8002, 8003, 8004, 8005} {
				if _, err := h.ServeWeb(port); err != nil {
					t.Fatal(err)
				}
			}
			for _, port := range []uint16{5353, 5354, 5355} {
				if _, err := h.Serve(port); err != nil {
					t.Fatal(err)
				}
			}
		}
		apply(t, h, 0)
		w, err := h.Capture()
		if err != nil {
			t.Fatal(err)
		}
		witnesses = append(witnesses, w)
	}
	contains(t, run(t, l.Director, "ipvsadm", "-Sn"), "-A -f 7 -s rr\n", "-A -f 7 -6 -s rr\n", "-A -u "+l.VIP.At(false, 5354).String()+" -s rr -o\n",
		"-A -t "+l.VIP.At(false, 8005).String()+" -s rr -p 300 -M 255.255.255.0\n", "-A -t "+l.VIP.At(true, 8005).String()+" -s rr -p 300 -M 64\n")
	// came waits until so many datagrams have come to a port of each real server.
	came := func(what string, port uint16, want [2]int) {
		t.Helper()
		wait(t, func() error {
			var n [2]int
			for i := range n {
				n[i] = witnesses[1+i].Count(func(p lab.Packet) bool { return !p.Out && p.Protocol == lab.UDP && p.Dst.Port() == port })
			}
			if n != want {
				return fmt.Errorf("%s: %v datagrams came, want %v", what, n, want)
			}
			return nil
		})
		for _, w := range witnesses {
			w.Reset()
		}
	}
	for _, v6 := range []bool{false, true} {
		vip, client := l.VIP.At(v6, 0).Addr(), l.ClientAddress.At(v6, 0).Addr()
		neighbour, another := l.NeighbourAddress.At(v6, 0).Addr(), second.At(v6, 0).Addr()

		// One service, whatever the port: it is the mark that takes turns.
		if got := servers(t, l.Client, client, vip, 8001, 8002, 8001, 8002); got[0] == got[1] || got[1] == got[2] || got[2] == got[3] {
			t.Errorf("%s by mark: %v", vip, got)
		}
		// Every port of a client's goes to the server that the first one went to.
		first := servers(t, l.Client, client, vip, 8003, 8004, 8003, 8004)
		other := servers(t, l.Client, another, vip, 8004, 8003, 8004)
		if len(slices.Compact(slices.Clone(first))) != 1 || len(slices.Compact(slices.Clone(other))) != 1 || first[0] == other[0] {
			t.Errorf("%s, every port, from two clients: %v and %v", vip, first, other)
		}
		// Clients of one network are one client.
		group := append(servers(t, l.Client, client, vip, 8005, 8005), servers(t, l.Client, another, vip, 8005)...)
		group = append(group, servers(t, l.Neighbour, neighbour, vip, 8005)...)
		if group[0] != group[1] || group[0] != group[2] || group[0] == group[3] {
			t.Errorf("%s, by network: %v", vip, group)
		}

		for _, c := range []struct {
			what       string
			port, real uint16
			sockets, n int
			want       [2]int
		}{
			{"udp by dr", 5353, 5353, 2, 3, [2]int{3, 3}},
			{"udp by nat", 5300, 5355, 2, 3, [2]int{3, 3}},
			{"one packet", 5354, 5354, 1, 6, [2]int{3, 3}},
		} {
			for range c.sockets {
				if _, err := datagrams(t, l.Client, netip.AddrPortFrom(vip, c.port), c.n); err != nil {
					t.Errorf("%s, %s: %v", vip, c.what, err)
				}
			}
			came(fmt.Sprintf("%s, %s", vip, c.what), c.real, c.want)
		}
	}
	associations(t, l)
	if t.Failed() {
		explain(t, l)
	}
	asFound(t, found, hosts...)
}

// A director is a real server too, and another one has its VIP on a dummy device.
// An address that is nobody's is left out.
func TestStockADirectorServesToo(t *testing.T) {
	t.Parallel()
	l := newLVS(t, false)
	hosts := []*lab.Host{l.Director, l.RealServers[0]}
	if _, err := l.Director.ServeWeb(lab.Port); err != nil {
		t.Fatal(err)
	}
	ip(t, l.RealServers[0], "link", "add", "vips", "type", "dummy")
	ip(t, l.RealServers[0], "link", "set", "vips", "up")
	found := snapshots(t, hosts...)
	for mode, device := range map[string]string{"dr": "interface = \"vips\"\n", "tun": ""} {
		writeProfile(t, l.RealServers[0], "lvs.toml", spell(l, fmt.Sprintf("[real_server.web]\nmode = %q\nvip = [\"VIP4\", \"VIP6\"]\n%s", mode, device)))
		apply(t, l.RealServers[0], 0)
		profile := spell(l, strings.NewReplacer("RS24", "DIR4", "RS26", "DIR6").Replace(tunOrDR(mode, "", true)))
		writeProfile(t, l.Director, "lvs.toml", profile)
		apply(t, l.Director, 0)
		for _, h := range hosts {
			if r := apply(t, h, 0); r.stdout != "nothing to do\n" {
				t.Errorf("%s: the second apply said %s%s", h.Name, r.stdout, r.stderr)
			}
		}
		for _, v6 := range []bool{false, true} {
			spread(t, l.Client, l.ClientAddress.At(v6, 0).Addr(), l.VIP.At(v6, lab.Port), 4)
		}
		if mode == "dr" {
			contains(t, ip(t, l.RealServers[0], "address", "show", "dev", "vips"), l.VIP.V4.String()+"/32", l.VIP.V6.String()+"/128")
		}
		// Its weight changes in place, and it drains. Nobody has the broadcast address
		// of a network; the rest is applied.
		method := map[string]string{"dr": "-g", "tun": "-i"}[mode]
		own, brd := l.DirectorAddress.V4.String(), "203.0.113.255"
		writeProfile(t, l.Director, "lvs.toml", strings.Replace(profile, own+`"`, own+`", weight = 3`, 1))
		if r := apply(t, l.Director, 0); strings.Count(r.stdout, "\n") != 1 || !strings.Contains(r.stdout, "~ destination -t 203.0.113.145:80 -r 203.0.113.20:80 "+method+" -w 3 ") {
			t.Errorf("%s: another weight is no single change:\n%s", mode, r.stdout)
		}
		writeProfile(t, l.Director, "lvs.toml", strings.Replace(profile, own, brd, 1))
		r := apply(t, l.Director, 2)
		contains(t, r.stdout+r.stderr, "the real server 203.0.113.255 is left out: it is the broadcast address of 203.0.113.0/24 on eth0")
		contains(t, run(t, l.Director, "ipvsadm", "-Sn"), "-r 203.0.113.20:80 "+method+" -w 0", "-r 203.0.113.147:80 "+method+" -w 1")
		if r := apply(t, l.Director, 2); strings.Contains(r.stdout, "failed") {
			t.Errorf("%s: %s", mode, r.stdout)
		}
		writeProfile(t, l.Director, "lvs.toml", profile)
		apply(t, l.Director, 0)
		if t.Failed() {
			explain(t, l)
		}
	}
	asFound(t, found, hosts...)
}
