package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Abroad is a web server with a public address at home and a default route to
// a firewall abroad, which forwards its own port to the server:
//
//	domesticclient -- domestic ------------- firewall -- foreignclient
//	               192.168.1.253 |         | 192.168.10.1
//	                            em1 - web - em2
//	               192.168.1.254             192.168.10.2
//
// Main sends the national networks by em1 as static routes, and all else by
// em2. So a domestic client that asks the firewall's address is answered by
// em1, with a source that it has never asked. Everything is IPv4.
type Abroad struct {
	Lab                           *Lab
	Web                           *Host // its interfaces are em1 and em2
	Domestic, Firewall            *Host // routers
	DomesticClient, ForeignClient *Host
	// Direct is the web server's own public address, and Forwarded the firewall's.
	Direct, Forwarded netip.AddrPort
	// Private is the web server's address that the firewall forwards to.
	Private netip.Addr
	// National are the destinations of the static routes in main.
	National []netip.Prefix
}

// NewAbroad builds an Abroad in a lab of its own, which the caller closes. It
// needs the program nft.
func NewAbroad(ctx context.Context) (*Abroad, error) {
	l := New(ctx)
	a := &Abroad{
		Lab:       l,
		Direct:    netip.MustParseAddrPort("192.168.1.254:80"),
		Forwarded: netip.MustParseAddrPort("203.0.113.1:80"),
		Private:   netip.MustParseAddr("192.168.10.2"),
		National: []netip.Prefix{
			netip.MustParsePrefix("198.51.100.0/24"), // the domestic client's
			netip.MustParsePrefix("1.0.1.0/24"), netip.MustParsePrefix("1.0.2.0/23"), netip.MustParsePrefix("1.0.8.0/21"),
			netip.MustParsePrefix("14.16.0.0/12"), netip.MustParsePrefix("27.8.0.0/13"), netip.MustParsePrefix("36.128.0.0/10"),
		},
	}
	if err := a.build(ctx); err != nil {
		l.Close()
		return nil, fmt.Errorf("build server with a firewall abroad: %w", err)
	}
	return a, nil
}

func (a *Abroad) build(ctx context.Context) error {
	hosts, err := a.Lab.Hosts("web", "domestic", "firewall", "domesticclient", "foreignclient")
	if err != nil {
		return err
	}
	a.Web, a.Domestic, a.Firewall, a.DomesticClient, a.ForeignClient = hosts[0], hosts[1], hosts[2], hosts[3], hosts[4]
	for _, cable := range [][2]End{
		{{a.Web, "em1", []string{"192.168.1.254/30"}}, {a.Domestic, "web", []string{"192.168.1.253/30"}}},
		{{a.Web, "em2", []string{"192.168.10.2/24"}}, {a.Firewall, "web", []string{"192.168.10.1/24"}}},
		{{a.Domestic, "backbone", []string{"10.255.255.1/30"}}, {a.Firewall, "backbone", []string{"10.255.255.2/30"}}},
		{{a.Domestic, "client", []string{"198.51.100.1/24"}}, {a.DomesticClient, "eth0", []string{"198.51.100.10/24"}}},
		{{a.Firewall, "client", []string{"203.0.113.1/24"}}, {a.ForeignClient, "eth0", []string{"203.0.113.10/24"}}},
	} {
		if err := a.Lab.Link(cable[0], cable[1]); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		host *Host
		via  string
	}{
		{a.Web, "192.168.10.1"}, {a.Domestic, "10.255.255.2"}, {a.Firewall, "10.255.255.1"},
		{a.DomesticClient, "198.51.100.1"}, {a.ForeignClient, "203.0.113.1"},
	} {
		if err := r.host.Routes([2]string{"default4", r.via}); err != nil {
			return err
		}
	}
	for _, n := range a.National {
		if err := a.Web.Routes([2]string{n.String(), "192.168.1.253"}); err != nil {
			return err
		}
	}
	for _, router := range []struct {
		host  *Host
		owner netip.Prefix
	}{
		{a.Domestic, netip.MustParsePrefix("192.168.1.252/30")},
		{a.Firewall, netip.MustParsePrefix("192.168.10.0/24")},
	} {
		if err := router.host.Forward(); err != nil {
			return err
		}
		if err := router.host.AcceptOnly("web", router.owner); err != nil {
			return err
		}
	}
	if err := a.Firewall.PortForward(ctx, a.Forwarded, netip.AddrPortFrom(a.Private, Port)); err != nil {
		return err
	}
	_, err = a.Web.Serve(Port)
	return err
}
