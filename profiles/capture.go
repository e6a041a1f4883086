package profiles

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Capture is [tproxy.NAME]: packets that only pass are given to a proxy of this
// host, with the addresses that they have.
type Capture struct {
	Name       string
	Pos        Position
	Services   []Port // tcp and udp
	Interfaces []At[string]
	Listen     Listener
	Upstreams  int // servers behind the proxy, for the capacity; 0: those that it talks to
}

// Listener is where a proxy listens.
type Listener struct {
	Pos  Position
	Addr netip.Addr // zero Addr: any, of both families
	Port uint16     // 0: the captured packet's own
}

// String is the place as a profile has it.
func (l Listener) String() string {
	if !l.Addr.IsValid() {
		return fmt.Sprintf(":%d", l.Port)
	}
	return netip.AddrPortFrom(l.Addr, l.Port).String()
}

// PortFor is the port that packets to a service are given to.
func (l Listener) PortFor(s Port) uint16 {
	if l.Port == 0 {
		return s.Number
	}
	return l.Port
}

// captureTable begins the names of the routing tables of captures.
const captureTable = "tproxy-"

// Table is the name of the routing table that delivers what is captured.
func (c Capture) Table() string { return captureTable + c.Name }

// CapturesOn reports whether packets on an interface are captured.
func (c *Config) CapturesOn(name string) bool {
	return slices.ContainsFunc(c.Captures, func(p Capture) bool {
		return slices.ContainsFunc(p.Interfaces, func(i At[string]) bool { return i.Value == name })
	})
}

type rawCapture struct {
	at         *node
	Services   list[field[string]] `toml:"services"`
	Interfaces list[field[string]] `toml:"interfaces"`
	Listen     field[string]       `toml:"listen"`
	Upstreams  field[int64]        `toml:"upstreams"`
}

func (r *rawCapture) decode(n *node) { r.at = n; decodeTable(n, r) }

// capturedKey is a service on an interface, which one proxy can have.
type capturedKey struct {
	iface, protocol string
	port            uint16
}

// addCaptures takes the captures of one profile.
func (b *builder) addCaptures(raw rawProfile) {
	for _, name := range raw.TProxy.names {
		if c := raw.TProxy.items[name]; b.named("tproxy", captureTable, c.at) {
			b.captures = append(b.captures, c)
		}
	}
}

// finishCaptures judges the captures, one by one and beside the directors.
func (b *builder) finishCaptures(c *Config) {
	taken := map[capturedKey]holder{}
	for _, raw := range b.captures {
		c.Captures = append(c.Captures, b.capture(raw, c, taken))
	}
	b.captureRoom(c)
	slices.SortStableFunc(c.Captures, func(x, y Capture) int { return strings.Compare(x.Name, y.Name) })
}

// capture judges one [tproxy.NAME].
func (b *builder) capture(raw rawCapture, c *Config, taken map[capturedKey]holder) Capture {
	role := "tproxy " + raw.at.name
	known := keysOf[rawCapture]()
	p := Capture{Name: raw.at.name, Pos: raw.at.pos()}
	for _, missing := range []struct {
		key  string
		at   *node
		hint string
	}{
		{"services", raw.Services.at, `add the line services = ["tcp/80"], what to capture`},
		{"interfaces", raw.Interfaces.at, `add the line interfaces = ["eth1"], those that the clients' packets come in by`},
		{"listen", raw.Listen.at, `add the line listen = ":3129", where the proxy listens with IP_TRANSPARENT`},
	} {
		if missing.at == nil && !misspelt(raw.at, missing.key, known) {
			raw.at.badKey(fmt.Sprintf("%s has no %s", role, missing.key), missing.hint)
		}
	}
	placed, _ := services(raw.Services, `what to capture: services = ["tcp/80"]`)
	p.Listen = b.listener(raw.Listen)
	interfaces := b.capturedInterfaces(raw.Interfaces)
	for _, i := range interfaces {
		p.Interfaces = append(p.Interfaces, At[string]{i.v, i.at.pos()})
	}
	for _, s := range placed {
		switch {
		case s.Protocol == "sctp":
			s.at.bad(fmt.Sprintf("%s cannot be captured", s), "the kernel gives tcp and udp to transparent sockets")
			continue
		case s.Number == 0:
			s.at.bad(fmt.Sprintf("%s is no port", s), "name the ports to capture, 1 to 65535")
			continue
		}
		p.Services = append(p.Services, s.Port)
		for _, i := range interfaces {
			key := capturedKey{i.v, s.Protocol, s.Number}
			if o, twice := taken[key]; twice {
				s.at.bad(fmt.Sprintf("%s on %s is captured by %s already, at %s", s, i.v, o.role, o.at), "a packet goes to one proxy: remove it from one of the two")
				break
			}
			taken[key] = holder{role, s.at.pos()}
		}
		b.balanced(s, p.Listen, raw.Listen.at, c)
	}
	if v, ok := within(raw.Upstreams, 1, 1<<31-1, "how many servers lie behind the proxy, for the estimate of its capacity"); ok {
		p.Upstreams = int(v)
	}
	return p
}

// balanced complains about a service that a director of this host has as well:
// the kernel's balancer takes it before any socket does.
func (b *builder) balanced(s placedPort, l Listener, listen *node, c *Config) {
	for _, d := range c.Directors {
		for _, port := range d.Services {
			if port.Protocol != s.Protocol {
				continue
			}
			switch port.Number {
			case s.Number, 0:
				s.at.bad(fmt.Sprintf("%s is a service of director %s, at %s", s, d.Name, port.Pos), "a host spreads the connections to a port or captures them: take one of the two to another host")
				return
			case l.Port:
				listen.bad(fmt.Sprintf("port %d is a service of director %s, at %s", l.Port, d.Name, port.Pos), "the proxy needs a port that the balancer does not take")
				return
			}
		}
	}
}

func (b *builder) capturedInterfaces(l list[field[string]]) []field[string] {
	if l.at != nil && l.at.shape == array && len(l.at.elements) == 0 {
		l.at.bad("interfaces is an empty list", `those that the clients' packets come in by: interfaces = ["eth1"]`)
	}
	var out []field[string]
	for _, f := range l.items {
		name, ok := link(f)
		switch {
		case !ok:
		case name == "lo":
			f.at.bad("nothing comes in by lo that is not this host's own", "a capture takes what other hosts send through this one; the interface towards them stands here")
		case slices.ContainsFunc(out, func(o field[string]) bool { return o.v == name }):
			f.at.bad(fmt.Sprintf("interface %s stands twice", name), "remove one of the two")
		default:
			out = append(out, f)
		}
	}
	return out
}

// listener reads where a proxy listens.
func (b *builder) listener(f field[string]) Listener {
	const form = `":3129" (any address), "127.0.0.1:3129", "[::1]:3129", or ":0" for the captured packet's own port`
	if !f.ok {
		return Listener{}
	}
	l := Listener{Pos: f.at.valuePos()}
	i := strings.LastIndex(f.v, ":")
	host, port := "", f.v
	if i >= 0 {
		host, port = f.v[:i], f.v[i+1:]
	}
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	_, whole := netip.ParseAddr(f.v)
	switch {
	case digits(f.v):
		f.at.bad(fmt.Sprintf("%q is not a place to listen at", f.v), fmt.Sprintf("with a colon before the port: %q", ":"+f.v))
		return l
	case whole == nil:
		text := f.v
		if strings.Contains(text, ":") {
			text = "[" + text + "]"
		}
		f.at.bad(fmt.Sprintf("%q has no port", f.v), fmt.Sprintf("with the port of the proxy: %q", text+":3129"))
		return l
	case i < 0 || !digits(port) || strings.Contains(host, ":") && !bracketed:
		f.at.bad(fmt.Sprintf("%q is not a place to listen at", f.v), form)
		return l
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		f.at.bad(fmt.Sprintf("port %s is not 0 to 65535", port), form)
		return l
	}
	l.Port = uint16(n)
	if host == "" {
		return l
	}
	if bracketed {
		host = host[1 : len(host)-1]
	}
	if any := host == "0.0.0.0" || host == "::" || host == "*"; any {
		f.at.bad(fmt.Sprintf("%q is every address", f.v), fmt.Sprintf("without an address, it is that of both families: %q", ":"+port))
		return l
	}
	a, bad := parseAddr(host)
	if inside := a.IsLoopback() && !a.Is4In6(); bad != nil && !inside {
		f.at.bad(bad.text, cmp.Or(bad.hint, form))
		return l
	}
	l.Addr = a
	return l
}

// captureRoom complains when captures find no mark left: they need one, and one
// more for each uplink with forward that they capture on.
func (b *builder) captureRoom(c *Config) {
	if len(c.Captures) == 0 {
		return
	}
	uplinks, need := 0, 1
	for _, u := range c.Uplinks {
		if u.Forward || u.Masquerade {
			uplinks++
		}
		if u.Forward && c.CapturesOn(u.Interface) {
			need++
		}
	}
	marks := b.marks()
	if uplinks <= marks && uplinks+need > marks {
		b.captures[0].at.badKey(fmt.Sprintf("mark_mask %#08x has %s; %s with forward or masquerade and what is captured need %d",
			b.settings.MarkMask, plural(marks, "mark", "marks"), plural(uplinks, "uplink", "uplinks"), uplinks+need), "set more bits in mark_mask of sisod.toml")
	}
}
