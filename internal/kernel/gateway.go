package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// mainRoutesLimit is how many of main's routes on one interface and family
// go into an uplink's table. More are a routing daemon's business.
const mainRoutesLimit = 1000

// protocolNames are the spellings of rt_protos, for messages.
var protocolNames = map[uint8]string{
	unix.RTPROT_REDIRECT: "redirect", unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot", unix.RTPROT_STATIC: "static",
	unix.RTPROT_GATED: "gated", unix.RTPROT_RA: "ra", unix.RTPROT_MRT: "mrt", unix.RTPROT_ZEBRA: "zebra",
	unix.RTPROT_BIRD: "bird", unix.RTPROT_XORP: "xorp", unix.RTPROT_DHCP: "dhcp", unix.RTPROT_KEEPALIVED: "keepalived",
	unix.RTPROT_BABEL: "babel", unix.RTPROT_BGP: "bgp", unix.RTPROT_ISIS: "isis", unix.RTPROT_OSPF: "ospf",
	unix.RTPROT_RIP: "rip", unix.RTPROT_EIGRP: "eigrp",
}

func protocolName(p uint8) string {
	if s, ok := protocolNames[p]; ok {
		return s
	}
	return "protocol " + strconv.Itoa(int(p))
}

// hostProtocols are the origins of routes that belong to the interface and
// not to a routing daemon.
var hostProtocols = [...]uint8{unix.RTPROT_KERNEL, unix.RTPROT_BOOT, unix.RTPROT_STATIC, unix.RTPROT_RA, unix.RTPROT_DHCP}

func hostProtocol(p uint8) bool { return slices.Contains(hostProtocols[:], p) }

// candidate is a learned gateway with what ranks it.
type candidate struct {
	state.LearnedGateway
	preference int // of the router that advertised itself: 1 high, 0 medium, -1 low (RFC 4191)
	table      uint32
}

// sharedNetwork is the address space between a provider and its customers (RFC 6598).
var sharedNetwork = netip.MustParsePrefix("100.64.0.0/10")

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedNetwork.Contains(a)
}

// candidates are the ways out of the interface that a default route names.
func (h *Host) candidates(r observedRoute, index int, link string) []candidate {
	table := "table " + strconv.FormatUint(uint64(r.Table), 10)
	if r.Table == state.TableMain {
		table = "main"
	}
	var found []candidate
	for _, hop := range r.Hops.All() {
		if hop.Dev != link || !hop.Via.IsValid() && !h.links.withoutGateway(index) {
			continue
		}
		found = append(found, candidate{
			LearnedGateway: state.LearnedGateway{
				Link: link, Family: r.Family, Via: hop.Via, OnLink: hop.OnLink,
				Main: r.Table == state.TableMain, Metric: r.Metric,
				Source: fmt.Sprintf("%s (%s)", table, protocolName(r.Protocol)),
			},
			table: r.Table,
		})
	}
	return found
}

// preferRouters asks for the preference that routers gave themselves.
func (h *Host) preferRouters(index int, defaults []candidate) error {
	body := make([]byte, unix.SizeofRtMsg, 64)
	body[0], body[5] = unix.AF_INET6, unix.RTPROT_RA
	body = appendUint32(body, unix.RTA_TABLE, state.TableMain)
	body = appendUint32(body, unix.RTA_OIF, uint32(index))
	preferences := map[netip.Addr]int{}
	err := h.conn.dump(message{kind: unix.RTM_GETROUTE, body: body}, func() { clear(preferences) }, func(kind uint16, body []byte) error {
		if kind != unix.RTM_NEWROUTE || len(body) < unix.SizeofRtMsg || body[0] != unix.AF_INET6 || body[1] != 0 || body[5] != unix.RTPROT_RA {
			return nil
		}
		var via netip.Addr
		preference, on := 0, uint32(0)
		a := attributes{rest: body[unix.SizeofRtMsg:]}
		for a.next() {
			switch a.kind {
			case unix.RTA_GATEWAY:
				via = a.addr()
			case unix.RTA_OIF:
				on = a.uint32()
			case unix.RTA_PREF:
				// Two bits, signed: 3 is low.
				preference = int(int8(a.uint8()<<6) >> 6)
			}
		}
		if int(on) == index {
			preferences[via] = preference
		}
		return a.err
	})
	if err != nil {
		return fmt.Errorf("read router preferences: %w", err)
	}
	for i := range defaults {
		defaults[i].preference = preferences[defaults[i].Via]
	}
	return nil
}

// best ranks candidates as the kernel would choose, without repetitions.
func best(found []candidate) []state.LearnedGateway {
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.Metric, b.Metric), cmp.Compare(b.preference, a.preference), cmp.Compare(a.table, b.table))
	})
	var ranked []state.LearnedGateway
	for _, c := range found {
		if !slices.ContainsFunc(ranked, func(g state.LearnedGateway) bool { return g.Via == c.Via }) {
			ranked = append(ranked, c.LearnedGateway)
		}
	}
	return ranked
}

// leaseGateways are the routers of the leases of an interface.
func (h *Host) leaseGateways(index int, link string) []state.LearnedGateway {
	var addresses []netip.Prefix
	for _, a := range h.links.addresses() {
		if a.Link == link && a.Prefix.Addr().Is4() {
			addresses = append(addresses, a.Prefix)
		}
	}
	var found []state.LearnedGateway
	for _, l := range h.leasesInUse(index, addresses, findLeases(h.root(), index, link)) {
		for _, via := range l.gateways {
			onLink := !slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Contains(via) })
			if !slices.ContainsFunc(found, func(g state.LearnedGateway) bool { return g.Via == via }) {
				found = append(found, state.LearnedGateway{Link: link, Family: state.IPv4, Via: via, OnLink: onLink, Source: l.source})
			}
		}
	}
	return found
}

// leasesInUse are those whose addresses are there: any other was given up, or is
// another network's. An address that no file tells of keeps the lease that it had:
// NetworkManager is without a lease in its files while it restarts, and
// the address says how long one lasts.
func (h *Host) leasesInUse(index int, addresses []netip.Prefix, found []lease) []lease {
	of := func(list []lease, a netip.Addr) bool {
		return slices.ContainsFunc(list, func(l lease) bool { return l.address == a })
	}
	var list []lease
	for _, l := range slices.Concat(found, slices.DeleteFunc(h.leased[index], func(l lease) bool { return of(found, l.address) })) {
		if slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Addr() == l.address }) {
			list = append(list, l)
		}
	}
	h.leased[index] = list
	return list
}
