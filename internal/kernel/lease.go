package kernel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// leaseBytes is how much of the end of a lease file is read. dhclient appends
// to its file for as long as it runs.
const leaseBytes = 1 << 20

// lease is what a DHCPv4 client was told.
type lease struct {
	address  netip.Addr
	gateways []netip.Addr
	source   string // "lease of dhclient (/var/lib/dhcp/…)"
}

// leasePlace is where one kind of client leaves its leases, below the root folder.
type leasePlace struct {
	client string
	dir    string
	// named reports whether a file there can be about the interface.
	named func(file string, index int, link string) bool
	// read finds the interface's lease. written is when the file was.
	read func(content []byte, link string, written, now time.Time) (lease, bool)
}

// leasePlaces are looked at in this order. The first two hold the lease that
// is in use; the others are histories, and count while they have not expired.
var leasePlaces = [...]leasePlace{
	{"systemd-networkd", "run/systemd/netif/leases", namedByIndex, readNetworkdLease},
	{"NetworkManager", networkManagerDevices, namedByIndex, readNetworkManagerDevice},
	{"NetworkManager", "var/lib/NetworkManager", networkManagerName("internal-", ".lease"), readNetworkdLease},
	{"dhclient of NetworkManager", "var/lib/NetworkManager", networkManagerName("dhclient-", ".lease"), readDhclientLeases},
	{"dhclient", "var/lib/dhcp", namedForDhclient, readDhclientLeases},
	{"dhclient", "var/lib/dhclient", namedForDhclient, readDhclientLeases},
	{"dhcpcd", "var/lib/dhcpcd", namedForDhcpcd, readDhcpcdLease},
	{"dhcpcd", "var/lib/dhcpcd5", namedForDhcpcd, readDhcpcdLease},
}

// LeaseDirs are the folders that leases are looked for in, there or not.
func (h *Host) LeaseDirs() []string {
	var dirs []string
	for _, p := range leasePlaces {
		if dir := filepath.Join(h.root(), p.dir); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func namedByIndex(file string, index int, _ string) bool { return file == strconv.Itoa(index) }

// networkManagerName matches PREFIX, the UUID of a connection, and the interface.
func networkManagerName(prefix, suffix string) func(string, int, string) bool {
	return func(file string, _ int, link string) bool {
		return strings.HasPrefix(file, prefix) && strings.HasSuffix(file, "-"+link+suffix)
	}
}

// namedForDhclient takes dhclient.leases, which is about any interface, and
// dhclient.em1.leases, dhclient-em1.leases, dhclient-UUID-em1.lease.
func namedForDhclient(file string, _ int, link string) bool {
	rest, ok := strings.CutPrefix(file, "dhclient")
	if !ok || strings.HasPrefix(rest, "6") {
		return false
	}
	rest, found := strings.CutSuffix(rest, ".leases")
	if !found {
		if rest, found = strings.CutSuffix(rest, ".lease"); !found {
			return false
		}
	}
	return rest == "" || strings.HasSuffix(rest, "-"+link) || strings.HasSuffix(rest, "."+link)
}

// namedForDhcpcd takes em1.lease, em1-NETWORK.lease of a wireless network, and
// the dhcpcd-em1.lease of earlier versions.
func namedForDhcpcd(file string, _ int, link string) bool {
	name, ok := strings.CutSuffix(file, ".lease")
	name = strings.TrimPrefix(name, "dhcpcd-")
	return ok && (name == link || strings.HasPrefix(name, link+"-"))
}

// findLeases reads the leases of an interface that clients leave readable, the
// newest file of a place first, those without a gateway too. What cannot be read
// or understood is not there: a lease is the last resort of several.
func findLeases(root string, index int, link string) []lease {
	now := time.Now()
	var found []lease
	for _, place := range leasePlaces {
		dir := filepath.Join(root, place.dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		type file struct {
			path    string
			content []byte
			written time.Time
		}
		var files []file
		for _, e := range entries {
			if !place.named(e.Name(), index, link) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if content, written, err := readEnd(path, leaseBytes); err == nil {
				files = append(files, file{path, content, written})
			}
		}
		slices.SortStableFunc(files, func(a, b file) int { return b.written.Compare(a.written) })
		for _, f := range files {
			if l, ok := place.read(f.content, link, f.written, now); ok {
				if rel, err := filepath.Rel(root, f.path); err == nil {
					l.source = "lease of " + place.client + " (/" + rel + ")"
				}
				found = append(found, l)
			}
		}
	}
	return found
}

// readEnd reads the last bytes of a regular file. Anything else in its
// place, a pipe above all, is refused without waiting for it.
func readEnd(path string, limit int64) (content []byte, written time.Time, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !st.Mode().IsRegular() {
		return nil, time.Time{}, unix.EINVAL
	}
	if st.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return nil, time.Time{}, err
		}
	}
	content, err = io.ReadAll(io.LimitReader(f, limit))
	return content, st.ModTime(), err
}

// usable keeps the addresses that can be a router's.
func usable(routers []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(routers, func(a netip.Addr) bool {
		return !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
	})
}

// addressList reads addresses separated by spaces or commas.
func addressList(s string) []netip.Addr {
	var addrs []netip.Addr
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		if a, err := netip.ParseAddr(w); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// choose follows RFC 3442: a server that sends classless routes means them
// instead of its routers.
func choose(classless bool, byRoutes, routers []netip.Addr) []netip.Addr {
	if classless {
		return usable(byRoutes)
	}
	return usable(routers)
}

// readNetworkdLease reads the lease of systemd-networkd: NAME=value lines, or
// JSON (src/libsystemd-network/sd-dhcp-lease.c).
func readNetworkdLease(content []byte, _ string, _, _ time.Time) (lease, bool) {
	if trimmed := bytes.TrimSpace(content); len(trimmed) > 0 && trimmed[0] == '{' {
		return readNetworkdJSON(trimmed)
	}
	values := map[string]string{}
	eachLine(content, func(line string) {
		if name, value, ok := strings.Cut(line, "="); ok {
			values[name] = strings.Trim(value, `"`)
		}
	})
	var l lease
	var err error
	if l.address, err = netip.ParseAddr(values["ADDRESS"]); err != nil {
		return lease{}, false
	}
	var byRoutes []netip.Addr
	classless := values["CLASSLESS_ROUTES"]
	for _, route := range strings.Fields(classless + " " + values["ROUTES"]) {
		if dst, via, ok := strings.Cut(route, ","); ok && dst == "0.0.0.0/0" {
			byRoutes = append(byRoutes, addressList(via)...)
		}
	}
	// ROUTES, of earlier versions, also holds the routes of the older option 33,
	// which do not replace the routers.
	l.gateways = choose(classless != "" || len(byRoutes) > 0, byRoutes, addressList(values["ROUTER"]))
	return l, true
}

func readNetworkdJSON(content []byte) (lease, bool) {
	// An array of numbers, which is not what Go takes for a []byte.
	type address [4]uint8
	var j struct {
		Address         address
		Router          []address
		ClasslessRoutes []struct {
			Destination             address
			DestinationPrefixLength int
			Gateway                 address
		} `json:"Classless_Routes"`
	}
	if err := json.Unmarshal(content, &j); err != nil || j.Address == (address{}) {
		return lease{}, false
	}
	l := lease{address: netip.AddrFrom4(j.Address)}
	var routers, byRoutes []netip.Addr
	for _, r := range j.Router {
		routers = append(routers, netip.AddrFrom4(r))
	}
	for _, r := range j.ClasslessRoutes {
		if r.Destination == (address{}) && r.DestinationPrefixLength == 0 {
			byRoutes = append(byRoutes, netip.AddrFrom4(r.Gateway))
		}
	}
	l.gateways = choose(len(j.ClasslessRoutes) > 0, byRoutes, routers)
	return l, true
}

// readNetworkManagerDevice reads the options that NetworkManager notes for a
// device that is up (src/core/nm-config.c, nm_config_device_state_write).
func readNetworkManagerDevice(content []byte, _ string, _, _ time.Time) (lease, bool) {
	values := map[string]string{}
	section := ""
	eachLine(content, func(line string) {
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if name, value, ok := strings.Cut(line, "="); ok && section == "[dhcp4]" {
			values[strings.TrimPrefix(strings.TrimSpace(name), "dhcp4.")] = strings.TrimSpace(value)
		}
	})
	address, err := netip.ParseAddr(values["ip_address"])
	if err != nil {
		return lease{}, false
	}
	classless := values["rfc3442_classless_static_routes"]
	return lease{address: address, gateways: choose(classless != "", spelledRoutesDefault(classless), addressList(values["routers"]))}, true
}

// spelledRoutesDefault finds the routers of the default among classless routes,
// spelled "0.0.0.0/0 192.0.2.1 …" or, as dhclient does, "0 192 0 2 1 …" with
// spaces, commas or dots between the numbers.
func spelledRoutesDefault(s string) []netip.Addr {
	var via []netip.Addr
	if strings.Contains(s, "/") {
		words := strings.Fields(s)
		for i := 0; i+1 < len(words); i += 2 {
			if words[i] == "0.0.0.0/0" {
				via = append(via, addressList(words[i+1])...)
			}
		}
		return via
	}
	var option []byte
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == '.' }) {
		n, err := strconv.ParseUint(w, 10, 8)
		if err != nil {
			return nil
		}
		option = append(option, byte(n))
	}
	return classlessDefault(option)
}

// classlessDefault finds the routers of the default in option 121 (RFC 3442):
// a prefix length, as many bytes of the prefix as it covers, a router.
func classlessDefault(option []byte) []netip.Addr {
	var via []netip.Addr
	for len(option) > 0 {
		bits := int(option[0])
		n := 1 + (bits+7)/8
		if bits > 32 || len(option) < n+4 {
			return via
		}
		if bits == 0 {
			via = append(via, netip.AddrFrom4([4]byte(option[n:n+4])))
		}
		option = option[n+4:]
	}
	return via
}

func eachLine(content []byte, do func(line string)) {
	lines := bufio.NewScanner(bytes.NewReader(content))
	lines.Buffer(nil, leaseBytes)
	for lines.Scan() {
		do(strings.TrimSpace(lines.Text()))
	}
}

// readDhcpcdLease reads dhcpcd's: the server's message as it came, its times
// counting from when the file was written.
func readDhcpcdLease(content []byte, _ string, written, now time.Time) (lease, bool) {
	// The layout of RFC 2131: yiaddr at 16, sname at 44, file at 108, the cookie at
	// 236, options behind it.
	const cookie = 236
	if len(content) < cookie+4 || binary.BigEndian.Uint32(content[cookie:]) != 0x63825363 {
		return lease{}, false
	}
	options := map[byte][]byte{}
	dhcpOptions(options, content[cookie+4:])
	if overload := options[52]; len(overload) == 1 {
		if overload[0]&1 != 0 {
			dhcpOptions(options, content[108:cookie])
		}
		if overload[0]&2 != 0 {
			dhcpOptions(options, content[44:108])
		}
	}
	if seconds := options[51]; len(seconds) == 4 {
		if n := binary.BigEndian.Uint32(seconds); n != 0xffffffff && now.After(written.Add(time.Duration(n)*time.Second)) {
			return lease{}, false
		}
	}
	var routers []netip.Addr
	for r := options[3]; len(r) >= 4; r = r[4:] {
		routers = append(routers, netip.AddrFrom4([4]byte(r[:4])))
	}
	return lease{
		address:  netip.AddrFrom4([4]byte(content[16:20])),
		gateways: choose(len(options[121]) > 0, classlessDefault(options[121]), routers),
	}, true
}

// dhcpOptions gathers options; one that comes in pieces is joined (RFC 3396).
func dhcpOptions(into map[byte][]byte, b []byte) {
	const padding, end = 0, 255
	for len(b) > 0 && b[0] != end {
		if b[0] == padding {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return
		}
		into[b[0]] = append(into[b[0]], b[2:2+int(b[1])]...)
		b = b[2+int(b[1]):]
	}
}
