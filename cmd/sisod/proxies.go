package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/sisod/sisod/internal/daemon"
	"github.com/sisod/sisod/profiles"
	"github.com/sisod/sisod/routing"
)

// captureStatus is what a tproxy captures.
type captureStatus struct {
	Services   []string `json:"services"`
	Interfaces []string `json:"interfaces"`
	Listen     string   `json:"listen"`
}

// capacityStatus is how many connections with other addresses than its own a role
// can tell apart, and how many it has.
type capacityStatus struct {
	Clients   int `json:"clients,omitempty"`   // of a tproxy: addresses seen now
	Upstreams int `json:"upstreams,omitempty"` // of a tproxy: servers behind
	Ports     int `json:"ports,omitempty"`     // of a tproxy: local ones, for one client and one server
	Tuples    int `json:"tuples"`
	InUse     int `json:"in_use"`                     // TIME_WAIT included
	Percent   int `json:"percent"`                    // in use, of a director towards the real server with the least left
	Rate      int `json:"new_connections_per_second"` // in the long run
	// Busiest is the client and the server of a tproxy with most connections.
	Busiest *busiestStatus `json:"busiest,omitempty"`

	text string // of a director
}

type busiestStatus struct {
	Client netip.Addr     `json:"client"`
	Server netip.AddrPort `json:"server"`
	InUse  int            `json:"in_use"` // of Ports
}

// proxies tells how the transparent proxies stand.
func proxies(c *profiles.Config, pass daemon.Pass) []roleStatus {
	var list []roleStatus
	for i := range c.Captures {
		p := &c.Captures[i]
		one := roleStatus{Name: p.Name, Role: "tproxy", VIPs: []vipStatus{}, Captures: &captureStatus{Listen: p.Listen.String()}}
		for _, s := range p.Services {
			one.Captures.Services = append(one.Captures.Services, s.String())
		}
		for _, n := range p.Interfaces {
			one.Captures.Interfaces = append(one.Captures.Interfaces, n.Value)
		}
		if have, known := routing.CapacityOf(p, pass.Facts); known {
			one.Capacity = &capacityStatus{
				Clients: have.Clients, Upstreams: have.Upstreams, Ports: have.Ports, Tuples: have.Tuples,
				InUse: have.Used, Percent: have.Percent(), Rate: have.Rate,
			}
			if have.Busiest > 0 {
				one.Capacity.Busiest = &busiestStatus{have.Client, have.Server, have.Busiest}
			}
		}
		list = append(list, one)
	}
	return list
}

// line is a tproxy in one line.
func (r roleStatus) line(pal palette) string {
	return fmt.Sprintf("%s %s, %s on %s, to %s", r.Role, pal.bold(r.Name), strings.Join(r.Captures.Services, " "), strings.Join(r.Captures.Interfaces, " "), r.Captures.Listen)
}

// lines is what a person reads of a capacity.
func (c capacityStatus) lines(pal palette) []string {
	paint := func(s string) string { return s }
	switch {
	case c.Percent >= routing.FillError:
		paint = pal.bad
	case c.Percent >= routing.FillProblem:
		paint = pal.warn
	}
	if c.text != "" {
		return []string{"  " + paint(c.text)}
	}
	used := paint(fmt.Sprintf("%d in use, %d %%", c.InUse, c.Percent))
	lines := []string{fmt.Sprintf("  room for %s (%s, %s, %s), %s, %d new ones a second",
		plural(c.Tuples, "connection"), plural(c.Clients, "client"), plural(c.Upstreams, "server"), plural(c.Ports, "port"), used, c.Rate)}
	if c.Busiest != nil {
		lines = append(lines, fmt.Sprintf("    most of %s to %s: %d", c.Busiest.Client, c.Busiest.Server, c.Busiest.InUse))
	}
	return lines
}
