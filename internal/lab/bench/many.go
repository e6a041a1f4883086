package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sisod/sisod/internal/lab"
)

// tenUplinks is how many a host with many has.
const tenUplinks = 10

// many is a host with many uplinks, em0 and on, with addresses of IPv4 on each.
type many struct {
	*bench
	lab       *lab.Lab
	host      *lab.Host
	router    *lab.Host
	uplinks   int
	addresses int // of each
}

// onManyUplinks runs f on such a host of its own. Its addresses are for f to add.
func (b *bench) onManyUplinks(uplinks, addresses int, f func(*many) error) error {
	m := &many{bench: b, lab: lab.New(b.ctx), uplinks: uplinks, addresses: addresses}
	hosts, err := m.lab.Hosts("host", "router")
	if err == nil {
		m.host, m.router = hosts[0], hosts[1]
		for i := 0; i < uplinks && err == nil; i++ {
			err = m.lab.Link(
				lab.End{Host: m.host, Link: fmt.Sprintf("em%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.2/16", i)}},
				lab.End{Host: m.router, Link: fmt.Sprintf("host%d", i), Addresses: []string{fmt.Sprintf("10.%d.0.1/16", i)}})
		}
	}
	if err == nil {
		err = m.host.Routes([2]string{"default4", "10.0.0.1"})
	}
	if err == nil {
		err = f(m)
	}
	return errors.Join(err, m.lab.Close())
}

// profile is of all uplinks, with their gateways of IPv4.
func (m *many) profile() string {
	var text strings.Builder
	for i := range m.uplinks {
		fmt.Fprintf(&text, "[uplink.isp%d]\ninterface = \"em%d\"\ngateway = \"10.%d.0.1\"\n", i, i, i)
	}
	return text.String()
}
