package lab

import "fmt"

// RealServers are two machines behind the host of a TwoUplinks, at its bridge
// back0, with a default by the host. They serve on Port.
type RealServers struct {
	Hosts     [2]*Host
	Addresses [2]Addresses
	Own       Addresses    // the host's, in their network
	VIPs      [2]Addresses // one of each uplink's network, that nobody has
}

// AddRealServers puts them there.
func (t *TwoUplinks) AddRealServers() (RealServers, error) {
	r := RealServers{
		Addresses: [2]Addresses{addresses("10.9.0.11", "fd00:9::11"), addresses("10.9.0.12", "fd00:9::12")},
		Own:       addresses("10.9.0.1", "fd00:9::1"),
		VIPs:      [2]Addresses{addresses("192.0.2.100", "2001:db8:1::100"), addresses("198.51.100.100", "2001:db8:2::100")},
	}
	var ports []string
	for i := range r.Hosts {
		name := fmt.Sprintf("rs%d", i+1)
		h, err := t.Lab.Host(name)
		if err != nil {
			return r, err
		}
		r.Hosts[i] = h
		ports = append(ports, name)
		if err := t.Lab.Link(End{Host: t.Host, Link: name}, End{h, "eth0", r.Addresses[i].with(24, 64)}); err != nil {
			return r, err
		}
	}
	if err := t.Host.Bridge("back0", ports, r.Own.with(24, 64)...); err != nil {
		return r, err
	}
	for _, h := range r.Hosts {
		if err := t.adopt(h, r.Own); err != nil {
			return r, err
		}
	}
	return r, nil
}
