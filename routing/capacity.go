package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// A connection that has ended keeps its addresses and ports for so long on the
// side that ended it (include/net/tcp.h, TCP_TIMEWAIT_LEN), in seconds.
const timeWait = 60

// Shares of a capacity in use, in percent: the first is a problem, the second an error.
const (
	FillProblem = 60
	FillError   = 85
)

const portRange = "net/ipv4/ip_local_port_range"

// defaultPorts is how many ports the kernel's own range has.
const defaultPorts = 60999 - 32768 + 1

// Capacity is how many connections a proxy can have with its clients' addresses,
// and how many there are: a client's address, a server's address and port, and one
// of the host's local ports are one connection.
type Capacity struct {
	Clients   int // addresses seen now
	Upstreams int // servers' addresses and ports
	Ports     int // for one client and one server
	Tuples    int // all three multiplied
	Used      int // TIME_WAIT included
	// Rate is how many new connections a second can be had in the long run.
	Rate int
	// Busiest is how many the client has that has most to one server.
	Busiest int
	// Client and Server are those.
	Client netip.Addr
	Server netip.AddrPort
}

// Percent is the share in use: of all, or of the busiest client and server when
// that is more, because these find no port left however many others have.
func (c Capacity) Percent() int {
	return max(100*c.Used/max(c.Tuples, 1), 100*c.Busiest/max(c.Ports, 1))
}

// CapacityOf works out the capacity of a capture. It is false for one without
// TCP, which alone keeps what has ended.
func CapacityOf(p *profiles.Capture, f state.Facts) (Capacity, bool) {
	ports := askingPorts(p)
	if len(ports) == 0 || f.Sockets.Unknown != "" {
		return Capacity{}, false
	}
	c := Capacity{Ports: localPorts(f)}
	clients, servers := map[netip.Addr]bool{}, map[netip.AddrPort]bool{}
	for a, n := range f.Sockets.Asking {
		if !slices.ContainsFunc(ports, func(p state.Port) bool { return p.Number == a.Server.Port() }) {
			continue
		}
		clients[a.Client], servers[a.Server] = true, true
		c.Used += n
		if n > c.Busiest || n == c.Busiest && cmp.Or(a.Client.Compare(c.Client), a.Server.Compare(c.Server)) < 0 {
			c.Busiest, c.Client, c.Server = n, a.Client, a.Server
		}
	}
	c.Clients = len(clients)
	c.Upstreams = cmp.Or(p.Upstreams, len(servers), 1)
	c.Tuples = max(c.Clients, 1) * c.Upstreams * c.Ports
	c.Rate = c.Tuples / timeWait
	return c, true
}

// localPorts is how many local ports the kernel chooses from.
func localPorts(f state.Facts) int {
	words := strings.Fields(f.Sysctls[portRange])
	if len(words) != 2 {
		return defaultPorts
	}
	first, err1 := strconv.Atoi(words[0])
	last, err2 := strconv.Atoi(words[1])
	if err1 != nil || err2 != nil || last < first {
		return defaultPorts
	}
	return last - first + 1
}

// askingPorts are the ports of servers that a proxy speaks TCP to.
func askingPorts(p *profiles.Capture) []state.Port {
	var ports []state.Port
	for _, s := range p.Services {
		if capturable[s.Protocol] == protocolTCP {
			ports = append(ports, state.Port{Protocol: protocolTCP, Number: s.Number})
		}
	}
	return ports
}

// Asking are the ports of others whose connections Desired wants to see among the
// facts, and Listening those of the host.
func Asking(c *profiles.Config) []state.Port {
	var ports []state.Port
	for i := range c.Captures {
		ports = append(ports, askingPorts(&c.Captures[i])...)
	}
	return sortedPorts(ports)
}

// Listening are the ports of the host whose sockets Desired wants to see.
func Listening(c *profiles.Config) []state.Port {
	var ports []state.Port
	for _, p := range c.Captures {
		for _, s := range p.Services {
			ports = append(ports, state.Port{Protocol: capturable[s.Protocol], Number: p.Listen.PortFor(s)})
		}
	}
	return sortedPorts(ports)
}

func sortedPorts(ports []state.Port) []state.Port {
	slices.SortFunc(ports, func(a, b state.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	})
	return slices.Compact(ports)
}

// listeners reports captures that nobody takes, and those that are nearly full.
// What is said holds no number that is another one with every look.
func (b *builder) listeners(c *profiles.Capture) {
	subject := "tproxy " + c.Name
	said := map[string]bool{}
	say := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !said[text] && b.facts.Sockets.Unknown == "" {
			said[text] = true
			b.problem(subject, c.Listen.Pos, "%s", text)
		}
	}
	for _, s := range c.Services {
		port := state.Port{Protocol: capturable[s.Protocol], Number: c.Listen.PortFor(s)}
		name := fmt.Sprintf("%s port %d", s.Protocol, port.Number)
		served, deaf := map[state.Family]bool{}, false
		for _, l := range b.facts.Sockets.Listening {
			if l.Port != port || c.Listen.Addr.IsValid() && l.Addr != c.Listen.Addr && !l.Addr.IsUnspecified() {
				continue
			}
			deaf = deaf || !l.Transparent
			for _, f := range state.Families {
				served[f] = served[f] || l.Transparent && l.Serves(f)
			}
		}
		switch {
		case served[state.IPv4] || served[state.IPv6]:
			for _, f := range state.Families {
				if capturesFamily(c, f) && !served[f] && b.uses(c, f) {
					say("nobody listens on %s for %s, so %s passes by the proxy; have the proxy listen for it, or name the address that it listens at", name, f, f)
				}
			}
		case deaf:
			say("the socket on %s is not transparent, and the kernel gives it nothing that is for others; set IP_TRANSPARENT there (haproxy and nginx: \"transparent\", squid: \"tproxy\")", name)
		default:
			say("nobody listens on %s, so nothing is captured: connections pass as if there were no proxy; start it", name)
		}
	}
	capacity, known := CapacityOf(c, b.facts)
	if percent := capacity.Percent(); known && percent >= FillProblem {
		level, what := FillProblem, "it will run out"
		if percent >= FillError {
			level, what = FillError, "connections are about to fail"
		}
		say("over %d %% of the connections that it can have with its clients' addresses are in use, those in TIME_WAIT included: %s; widen %s, spread its clients over more addresses or proxies, or have it keep connections open (`sisod status` has the numbers)",
			level, what, portRange)
		b.Problems[len(b.Problems)-1].Error = level == FillError
	}
}

// uses reports whether a family is in use where a capture takes packets.
func (b *builder) uses(c *profiles.Capture, f state.Family) bool {
	return slices.ContainsFunc(b.facts.Addresses, func(a state.Address) bool {
		return family(a.Prefix.Addr()) == f && !a.LinkLocal &&
			slices.ContainsFunc(c.Interfaces, func(i profiles.At[string]) bool { return i.Value == a.Link })
	})
}
