package lab

import (
	"context"
	"fmt"
)

// SharedSubnet is a host with two interfaces in one network, and a server on
// Port:
//
//	client -- router ==(bridge)== em1, em2 of host
//
// Each interface answers ARP for its own address alone, so the way in is that
// of the address. Main's default goes by em1, and so do all replies.
type SharedSubnet struct {
	Lab                  *Lab
	Host, Router, Client *Host
	Links                [2]string    // em1 and em2
	Address              [2]Addresses // of em1 and em2
	Gateway              Addresses
}

// NewSharedSubnet builds a SharedSubnet in a lab of its own, which the caller
// closes.
func NewSharedSubnet(ctx context.Context) (*SharedSubnet, error) {
	l := New(ctx)
	s := &SharedSubnet{
		Lab:     l,
		Links:   [2]string{"em1", "em2"},
		Address: [2]Addresses{addresses("192.0.2.2", "2001:db8:1::2"), addresses("192.0.2.3", "2001:db8:1::3")},
		Gateway: addresses("192.0.2.1", "2001:db8:1::1"),
	}
	if err := s.build(); err != nil {
		l.Close()
		return nil, fmt.Errorf("build shared subnet: %w", err)
	}
	return s, nil
}

func (s *SharedSubnet) build() error {
	hosts, err := s.Lab.Hosts("host", "router", "client")
	if err != nil {
		return err
	}
	s.Host, s.Router, s.Client = hosts[0], hosts[1], hosts[2]
	if err := s.Host.Sysctl("net/ipv4/conf/all/arp_ignore=1", "net/ipv4/conf/all/arp_announce=2"); err != nil {
		return err
	}
	for i, link := range s.Links {
		if err := s.Lab.Link(End{s.Host, link, s.Address[i].with(24, 64)}, End{Host: s.Router, Link: link}); err != nil {
			return err
		}
	}
	if err := s.Router.Bridge("lan", s.Links[:], s.Gateway.with(24, 64)...); err != nil {
		return err
	}
	if err := s.Router.Forward(); err != nil {
		return err
	}
	gateway, client := addresses("203.0.113.1", "2001:db8:c1::1"), addresses("203.0.113.10", "2001:db8:c1::10")
	if err := s.Lab.Link(End{s.Router, "client", gateway.with(24, 64)}, End{s.Client, "eth0", client.with(24, 64)}); err != nil {
		return err
	}
	for host, via := range map[*Host]Addresses{s.Host: s.Gateway, s.Client: gateway} {
		if err := host.Routes([2]string{"default4", via.V4.String()}, [2]string{"default6", via.V6.String()}); err != nil {
			return err
		}
	}
	_, err = s.Host.Serve(Port)
	return err
}
