package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// LVS is a director with two real servers, and clients near and far:
//
//	client -- router ==(bridge lan)== director, neighbour, rs1, rs2
//
// Routed, the real servers are in networks of their own:
//
//	client -- router ==(bridge lan)== director, neighbour
//	            |  |
//	          rs1  rs2
//
// Every host but the router has one interface, eth0, and its default by the
// router. Nobody has the VIP, whose network is the LAN's, and the real servers
// serve the web on Port. Segments are sent as large as a wire takes them, none
// is left to the card to cut: the path's MTU counts.
type LVS struct {
	Lab                                 *Lab
	Client, Router, Director, Neighbour *Host
	RealServers                         [2]*Host
	Webs                                [2]*Web // of the real servers
	VIP                                 Addresses
	ClientAddress, NeighbourAddress     Addresses
	DirectorAddress, RouterAddress      Addresses // on the LAN
	RealAddresses                       [2]Addresses
	// RouterLinks are the router's interfaces to the real servers, and
	// DirectorLink to the director: ports of the bridge, unless routed.
	RouterLinks  [2]string
	DirectorLink string
}

// NewLVS builds an LVS in a lab of its own, which the caller closes.
func NewLVS(ctx context.Context, routed bool) (*LVS, error) {
	l := &LVS{
		Lab:              New(ctx),
		VIP:              addresses("203.0.113.145", "2001:db8:1::145"),
		ClientAddress:    addresses("198.51.100.10", "2001:db8:c1::10"),
		NeighbourAddress: addresses("203.0.113.10", "2001:db8:1::10"),
		DirectorAddress:  addresses("203.0.113.20", "2001:db8:1::20"),
		RouterAddress:    addresses("203.0.113.1", "2001:db8:1::1"),
		RealAddresses:    [2]Addresses{addresses("203.0.113.147", "2001:db8:1::147"), addresses("203.0.113.148", "2001:db8:1::148")},
		RouterLinks:      [2]string{"rs1", "rs2"},
		DirectorLink:     "director",
	}
	if routed {
		l.RealAddresses = [2]Addresses{addresses("10.0.1.7", "2001:db8:a1::7"), addresses("10.0.2.7", "2001:db8:a2::7")}
	}
	if err := l.build(ctx, routed); err != nil {
		l.Lab.Close()
		return nil, fmt.Errorf("build LVS: %w", err)
	}
	return l, nil
}

func (l *LVS) build(ctx context.Context, routed bool) error {
	hosts, err := l.Lab.Hosts("client", "router", "director", "neighbour", "rs1", "rs2")
	if err != nil {
		return err
	}
	l.Client, l.Router, l.Director, l.Neighbour = hosts[0], hosts[1], hosts[2], hosts[3]
	l.RealServers = [2]*Host(hosts[4:])

	clients := addresses("198.51.100.1", "2001:db8:c1::1")
	type station struct {
		host         *Host
		own, gateway Addresses
	}
	apart := []station{{l.Client, l.ClientAddress, clients}}
	inLAN := []station{{l.Director, l.DirectorAddress, l.RouterAddress}, {l.Neighbour, l.NeighbourAddress, l.RouterAddress}}
	for i, h := range l.RealServers {
		if routed {
			gateway := addresses(fmt.Sprintf("10.0.%d.1", i+1), fmt.Sprintf("2001:db8:a%d::1", i+1))
			apart = append(apart, station{h, l.RealAddresses[i], gateway})
		} else {
			inLAN = append(inLAN, station{h, l.RealAddresses[i], l.RouterAddress})
		}
	}
	for _, s := range apart {
		if err := l.Lab.Link(End{l.Router, s.host.Name, s.gateway.with(24, 64)}, End{s.host, "eth0", s.own.with(24, 64)}); err != nil {
			return err
		}
	}
	var ports []string
	for _, s := range inLAN {
		if err := l.Lab.Link(End{Host: l.Router, Link: s.host.Name}, End{s.host, "eth0", s.own.with(24, 64)}); err != nil {
			return err
		}
		ports = append(ports, s.host.Name)
	}
	if err := l.Router.Bridge("lan", ports, l.RouterAddress.with(24, 64)...); err != nil {
		return err
	}
	if err := l.Router.Forward(); err != nil {
		return err
	}
	for _, s := range append(apart, inLAN...) {
		if err := s.host.Routes([2]string{"default4", s.gateway.V4.String()}, [2]string{"default6", s.gateway.V6.String()}); err != nil {
			return err
		}
		if _, err := s.host.Run(ctx, "ip", "link", "set", "eth0", "gso_max_segs", "1"); err != nil {
			return err
		}
	}
	for i, h := range l.RealServers {
		if l.Webs[i], err = h.ServeWeb(Port); err != nil {
			return err
		}
	}
	return nil
}

// At is an address of a pair and a port, of the family asked for.
func (a Addresses) At(v6 bool, port uint16) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(a.V6, port)
	}
	return netip.AddrPortFrom(a.V4, port)
}
