package lab

import (
	"context"
	"fmt"
	"net/netip"
)

// Addresses are the addresses of one thing, one a family.
type Addresses struct{ V4, V6 netip.Addr }

// All lists both, IPv4 first.
func (a Addresses) All() []netip.Addr { return []netip.Addr{a.V4, a.V6} }

// addresses reads a pair.
func addresses(v4, v6 string) Addresses {
	return Addresses{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

// with spells both addresses with the length of their networks.
func (a Addresses) with(bits4, bits6 int) []string {
	return []string{fmt.Sprintf("%s/%d", a.V4, bits4), fmt.Sprintf("%s/%d", a.V6, bits6)}
}

// Port is where the hosts of the ready topologies serve.
const Port = 80

// Uplink is one way out of a host: the provider's router at its other end, and
// a client behind that.
type Uplink struct {
	Link    string // the host's interface
	Address Addresses
	Gateway Addresses
	Router  *Host
	Client  *Host
	Remote  Addresses // the client's
}

// TwoUplinks is a host with two providers and a server on Port:
//
//	client1 -- isp1 ----------- isp2 -- client2
//	             |               |
//	            em1 -- host -- em2
//
// Main's default goes by em1. Both clients reach both addresses of the host,
// but each provider drops what comes from the host with the other's source.
type TwoUplinks struct {
	Lab     *Lab
	Host    *Host
	Uplinks [2]Uplink
	// Neighbours are the machines of that option, by uplink.
	Neighbours [2]Neighbour
}

// TwoUplinksOptions are the variants of TwoUplinks.
type TwoUplinksOptions struct {
	// RPFilter is the host's net.ipv4.conf.*.rp_filter: 0, 1 (strict) or 2 (loose).
	RPFilter int
	// PointToPoint makes em2 a link without neighbours, as a tunnel's, with
	// single addresses at both ends and no gateway.
	PointToPoint bool
	// Neighbours puts a machine, which serves on Port, beside the host on each
	// uplink's network. The host is its gateway, and forwards.
	Neighbours bool
}

// provider is what TwoUplinks has twice. The uplink's network is the lower
// half of what the provider routes to the host; the upper half is for a
// network behind it.
type provider struct {
	router, client, link  string
	host, gateway         Addresses
	clientGateway, remote Addresses
	backbone              Addresses
	delegated             [2]netip.Prefix // routed to the host, and the only sources accepted from it
	beside                Addresses       // an address of the uplink's network
	behind                Addresses       // the host's own address in the upper half
	beyond                Addresses       // an address in the upper half
}

func providers() [2]provider {
	return [2]provider{
		{
			router: "isp1", client: "client1", link: "em1",
			host: addresses("192.0.2.2", "2001:db8:1::2"), gateway: addresses("192.0.2.1", "2001:db8:1::1"),
			clientGateway: addresses("203.0.113.1", "2001:db8:c1::1"), remote: addresses("203.0.113.10", "2001:db8:c1::10"),
			backbone:  addresses("10.255.255.1", "2001:db8:ff::1"),
			delegated: [2]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/48")},
			beside:    addresses("192.0.2.3", "2001:db8:1::3"),
			behind:    addresses("192.0.2.129", "2001:db8:1:1::1"), beyond: addresses("192.0.2.130", "2001:db8:1:1::2"),
		},
		{
			router: "isp2", client: "client2", link: "em2",
			host: addresses("198.51.100.2", "2001:db8:2::2"), gateway: addresses("198.51.100.1", "2001:db8:2::1"),
			clientGateway: addresses("203.0.113.129", "2001:db8:c2::1"), remote: addresses("203.0.113.140", "2001:db8:c2::10"),
			backbone:  addresses("10.255.255.2", "2001:db8:ff::2"),
			delegated: [2]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:2::/48")},
			beside:    addresses("198.51.100.3", "2001:db8:2::3"),
			behind:    addresses("198.51.100.129", "2001:db8:2:1::1"), beyond: addresses("198.51.100.130", "2001:db8:2:1::2"),
		},
	}
}

// Lengths of the networks of a provider and of what it routes to the host.
const (
	uplinkBits4, uplinkBits6 = 25, 64
	clientBits4, clientBits6 = 25, 64
)

// NewTwoUplinks builds a TwoUplinks in a lab of its own, which the caller
// closes.
func NewTwoUplinks(ctx context.Context, o TwoUplinksOptions) (*TwoUplinks, error) {
	l := New(ctx)
	t, err := buildTwoUplinks(l, o)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("build two uplinks: %w", err)
	}
	return t, nil
}

func buildTwoUplinks(l *Lab, o TwoUplinksOptions) (*TwoUplinks, error) {
	t := &TwoUplinks{Lab: l}
	two := providers()
	hosts, err := l.Hosts("host", two[0].router, two[1].router, two[0].client, two[1].client)
	if err != nil {
		return nil, err
	}
	t.Host = hosts[0]
	if err := t.Host.Sysctl(fmt.Sprintf("net/ipv4/conf/default/rp_filter=%d", o.RPFilter)); err != nil {
		return nil, err
	}
	for i, p := range two {
		t.Uplinks[i] = Uplink{Link: p.link, Address: p.host, Gateway: p.gateway, Router: hosts[1+i], Client: hosts[3+i], Remote: p.remote}
		if err := t.connect(i, p, o); err != nil {
			return nil, err
		}
	}
	err = l.Link(
		End{hosts[1], "backbone", two[0].backbone.with(30, 64)},
		End{hosts[2], "backbone", two[1].backbone.with(30, 64)})
	if err != nil {
		return nil, err
	}
	for i := range two {
		// All else is the Internet, and the other provider is the way to it.
		other := two[1-i].backbone
		if err := t.Uplinks[i].Router.Routes([2]string{"default4", other.V4.String()}, [2]string{"default6", other.V6.String()}); err != nil {
			return nil, err
		}
	}
	gateway := two[0].gateway
	if err := t.Host.Routes([2]string{"default4", gateway.V4.String()}, [2]string{"default6", gateway.V6.String()}); err != nil {
		return nil, err
	}
	_, err = t.Host.Serve(Port)
	return t, err
}

// connect lays the cables of one provider.
func (t *TwoUplinks) connect(i int, p provider, o TwoUplinksOptions) error {
	u, pointToPoint := t.Uplinks[i], o.PointToPoint && i == 1
	if err := u.Router.Forward(); err != nil {
		return err
	}
	lay, host, router := t.Lab.Link, p.host.with(uplinkBits4, uplinkBits6), p.gateway.with(uplinkBits4, uplinkBits6)
	if pointToPoint {
		lay = t.Lab.PointToPoint
		host = []string{p.host.V4.String() + " peer " + p.gateway.V4.String(), p.host.V6.String() + " peer " + p.gateway.V6.String()}
		router = []string{p.gateway.V4.String() + " peer " + p.host.V4.String(), p.gateway.V6.String() + " peer " + p.host.V6.String()}
	}
	if o.Neighbours {
		if err := t.share(i, p, host, router); err != nil {
			return err
		}
	} else if err := lay(End{t.Host, p.link, host}, End{u.Router, "host", router}); err != nil {
		return err
	}
	if err := u.Router.AcceptOnly("host", p.delegated[:]...); err != nil {
		return err
	}
	for i, via := range p.host.All() {
		by := via.String()
		if pointToPoint {
			by = "dev host"
		}
		if err := u.Router.Routes([2]string{p.delegated[i].String(), by}); err != nil {
			return err
		}
	}
	err := t.Lab.Link(
		End{u.Router, "client", p.clientGateway.with(clientBits4, clientBits6)},
		End{u.Client, "eth0", p.remote.with(clientBits4, clientBits6)})
	if err != nil {
		return err
	}
	return u.Client.Routes([2]string{"default4", p.clientGateway.V4.String()}, [2]string{"default6", p.clientGateway.V6.String()})
}

// share makes an uplink's network one of three: host, router and a machine
// beside the host.
func (t *TwoUplinks) share(i int, p provider, host, router []string) error {
	machine, err := t.Lab.Host("beside" + p.link)
	if err != nil {
		return err
	}
	u := t.Uplinks[i]
	if err := t.Lab.Link(End{t.Host, p.link, host}, End{Host: u.Router, Link: "cable"}); err != nil {
		return err
	}
	if err := t.Lab.Link(End{machine, "eth0", p.beside.with(uplinkBits4, uplinkBits6)}, End{Host: u.Router, Link: "beside"}); err != nil {
		return err
	}
	if err := u.Router.Bridge("host", []string{"cable", "beside"}, router...); err != nil {
		return err
	}
	t.Neighbours[i] = Neighbour{Host: machine, Link: p.link, Address: p.beside}
	return t.adopt(machine, p.host)
}

// Neighbour is a machine that has the host for its gateway.
type Neighbour struct {
	Host    *Host
	Link    string          // the interface of TwoUplinks.Host that leads there
	Address Addresses       // its own
	Network [2]netip.Prefix // IPv4 and IPv6
}

// AddLAN puts a network with one machine, which serves on Port, behind the
// host at its interface lan0. Its addresses are of the provider with the
// given index (0 or 1), which routes them to the host; the host forwards.
func (t *TwoUplinks) AddLAN(index int) (Neighbour, error) {
	p := providers()[index]
	return t.addLAN("lan", "lan0", p.beyond, p.behind, uplinkBits4, uplinkBits6)
}

// AddPrivateLAN is AddLAN with addresses that no provider knows, at interface
// lan1.
func (t *TwoUplinks) AddPrivateLAN() (Neighbour, error) {
	return t.addLAN("private", "lan1", addresses("10.1.0.2", "fd00:10:1::2"), addresses("10.1.0.1", "fd00:10:1::1"), 16, 64)
}

func (t *TwoUplinks) addLAN(name, link string, own, gateway Addresses, bits4, bits6 int) (Neighbour, error) {
	machine, err := t.Lab.Host(name)
	if err != nil {
		return Neighbour{}, err
	}
	n := Neighbour{Host: machine, Link: link, Address: own}
	for i, a := range own.All() {
		n.Network[i] = netip.PrefixFrom(a, []int{bits4, bits6}[i]).Masked()
	}
	if err := t.Lab.Link(End{t.Host, link, gateway.with(bits4, bits6)}, End{machine, "eth0", own.with(bits4, bits6)}); err != nil {
		return n, err
	}
	return n, t.adopt(machine, gateway)
}

// AddContainer puts a bridge docker0 with one container, which serves on Port,
// behind the host, as Docker does but without address translation.
func (t *TwoUplinks) AddContainer() (Neighbour, error) {
	container, err := t.Lab.Host("container")
	if err != nil {
		return Neighbour{}, err
	}
	bridge, own := addresses("172.17.0.1", "fd00:17::1"), addresses("172.17.0.2", "fd00:17::2")
	n := Neighbour{Host: container, Link: "docker0", Address: own,
		Network: [2]netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00:17::/64")}}
	if err := t.Lab.Link(End{Host: t.Host, Link: "veth0"}, End{container, "eth0", own.with(16, 64)}); err != nil {
		return n, err
	}
	if err := t.Host.Bridge(n.Link, []string{"veth0"}, bridge.with(16, 64)...); err != nil {
		return n, err
	}
	return n, t.adopt(container, bridge)
}

// adopt makes the host the gateway of a machine behind it, and that a server.
func (t *TwoUplinks) adopt(machine *Host, gateway Addresses) error {
	if err := t.Host.Forward(); err != nil {
		return err
	}
	if err := machine.Routes([2]string{"default4", gateway.V4.String()}, [2]string{"default6", gateway.V6.String()}); err != nil {
		return err
	}
	_, err := machine.Serve(Port)
	return err
}
