package lvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

// Capacity is how many connections a role can have at once: to tell them apart,
// each takes one source port of one address towards one port of one real server.
type Capacity struct {
	Sources int    // addresses
	Sockets int    // ports of real servers
	Tuples  uint64 // all that can be had at once
	InUse   uint64
	// Fullest is the share in use of the socket that has the least left, 0 to 1. A
	// scheduler fills all alike, unless weights say otherwise.
	Fullest float64
	// Rate is how many new connections a second can be had for good, when each keeps
	// its port for as long after its end as the kernel remembers it.
	Rate float64
}

// portsOfTuple are the ports that the kernel chooses from: those from 1024
// (net/netfilter/nf_nat_core.c, nf_nat_l4proto_unique_tuple).
const portsOfTuple = 65536 - 1024

// Shares in use that are told: the first is a problem, the second an error.
const (
	CapacityShort = 0.60
	CapacityOut   = 0.85
)

// capacityInterval is how often the ports in use are looked at.
const capacityInterval = time.Minute

const timeWait = "net/netfilter/nf_conntrack_tcp_timeout_time_wait"

// defaultTimeWait is that of a kernel that tracks no connection yet, in seconds.
const defaultTimeWait = 120

// socket is a port of a real server.
type socket struct {
	protocol state.Transport
	addr     netip.AddrPort
}

// CapacityOf is how much a fullnat director can hold and does. Families do not
// share. Sources and sockets that directors have in common are in use by all.
func CapacityOf(d *profiles.Director, c *profiles.Config, s state.State, f state.Facts) Capacity {
	var all Capacity
	mine := map[state.ServiceKey]bool{}
	for _, key := range ServicesOf(d) {
		mine[key] = true
	}
	for _, fam := range state.Families {
		sources := sourcesOf(d, fam)
		sharing := sharing(c, sources)
		sockets, used := map[socket]bool{}, map[socket]uint64{}
		for key := range s.Destinations {
			one := socket{key.Service.Protocol, netip.AddrPortFrom(key.Addr, key.Port)}
			if mine[key.Service] && family(key.Addr) == fam {
				sockets[one] = true
			}
			if sharing[key.Service] {
				n := f.IPVS.Connections[key]
				used[one] += uint64(n.Active) + uint64(n.Inactive)
			}
		}
		each := uint64(len(sources)) * portsOfTuple
		all.Sources += len(sources)
		all.Sockets += len(sockets)
		all.Tuples += each * uint64(len(sockets))
		for one := range sockets {
			all.InUse += used[one]
			if each > 0 {
				all.Fullest = max(all.Fullest, float64(used[one])/float64(each))
			}
		}
	}
	hold, err := strconv.ParseUint(f.Sysctls[timeWait], 10, 32)
	if err != nil || hold == 0 {
		hold = defaultTimeWait
	}
	all.Rate = float64(all.Tuples) / float64(hold)
	return all
}

func sourcesOf(d *profiles.Director, f state.Family) []netip.Addr {
	var list []netip.Addr
	for _, s := range d.SNAT {
		if family(s.Value) == f {
			list = append(list, s.Value)
		}
	}
	return list
}

// sharing are the services whose connections have one of these sources.
func sharing(c *profiles.Config, sources []netip.Addr) map[state.ServiceKey]bool {
	services := map[state.ServiceKey]bool{}
	for i := range c.Directors {
		d := &c.Directors[i]
		if d.Mode == profiles.FullNAT && slices.ContainsFunc(d.SNAT, func(s profiles.At[netip.Addr]) bool { return slices.Contains(sources, s.Value) }) {
			for _, key := range ServicesOf(d) {
				services[key] = true
			}
		}
	}
	return services
}

// capacity tells when a director's ports run short. How many exactly would be
// another problem every minute; status shows them.
func (b *builder) capacity(d *profiles.Director) {
	switch all := CapacityOf(d, b.config, b.State, b.facts); {
	case all.Fullest >= CapacityOut:
		b.problem("director "+d.Name, d.Pos, "more than %.0f %% of the ports towards a real server are in use, and clients are about to be refused; add addresses to snat, or real servers", CapacityOut*100)
		b.Problems[len(b.Problems)-1].Error = true
	case all.Fullest >= CapacityShort:
		b.problem("director "+d.Name, d.Pos, "more than %.0f %% of the ports towards a real server are in use; add addresses to snat, or real servers", CapacityShort*100)
	}
	b.later(capacityInterval)
}

// String is the capacity on one line.
func (c Capacity) String() string {
	return fmt.Sprintf("%d of %d tuples in use, the fullest real server %.0f %% (sources: %d, real servers' ports: %d); sustains %.0f new connections a second",
		c.InUse, c.Tuples, c.Fullest*100, c.Sources, c.Sockets, c.Rate)
}
