package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about another gateway.
const (
	otherGateway = "gateway changed under prefixes, last packet by the old one"
	lostPackets  = "gateway changed under prefixes, packets lost"
)

// versions of IP that a gateway can change in.
var ipVersions = []struct {
	name             string
	list             func(int) []netip.Prefix
	everything       string
	own, first, next netip.Addr
}{
	{"IPv4", list4, "0.0.0.0/0", netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr(gateway4), netip.MustParseAddr("10.1.0.3")},
	{"IPv6", list6, "::/0", netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr(gateway6), netip.MustParseAddr("2001:db8:1::3")},
}

// gateway changes the default route in main that the daemon learns its gateway
// from, there and back, while packets flow to many of the million prefixes. Both
// gateways live and take everything: whatever is lost is lost by the change. The
// floor is a nexthop object under as many routes, exchanged by one message.
func (b *bench) gateway() error {
	for i, v := range ipVersions {
		b.log.Printf("%d prefixes of %s by another gateway", million, v.name)
		if err := b.gatewayFloor(i); err != nil {
			return fmt.Errorf("floor of %s: %w", v.name, err)
		}
		if err := b.gatewayOurs(i); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func (b *bench) gatewayFloor(version int) error {
	v := ipVersions[version]
	return b.onSite(func(s *site) error {
		// With 1 the kernel tells of every route, and takes its time for it.
		if err := s.host.Sysctl("net/ipv4/nexthop_compat_mode=0"); err != nil {
			return err
		}
		return routeSocket(s.host, func(socket rawSocket) error {
			link, err := linkIndex("em1")
			if err != nil {
				return err
			}
			w := way{gateway: v.first, link: link, nexthop: 1, table: rawTable, protocol: unix.RTPROT_STATIC}
			if err := socket.send(nexthop(w, unix.NLM_F_EXCL)); err != nil {
				return fmt.Errorf("add nexthop: %w", err)
			}
			if err := socket.send(routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, v.list(million), w)); err != nil {
				return fmt.Errorf("add routes: %w", err)
			}
			for run := range s.runs {
				w.gateway = []netip.Addr{v.next, v.first}[run%2]
				message := nexthop(w, unix.NLM_F_REPLACE)
				start := time.Now()
				if err := socket.send(message); err != nil {
					return fmt.Errorf("replace nexthop: %w", err)
				}
				s.took(key{otherGateway + ", " + v.name, million, s.where, floorHop}, time.Since(start))
			}
			return nil
		})
	})
}

// segment is a host with one uplink whose network has two gateways.
type segment struct {
	lab      *lab.Lab
	host     *lab.Host
	gateways [2]*lab.Host
}

func (b *bench) newSegment(version int) (s *segment, err error) {
	v := ipVersions[version]
	s = &segment{lab: lab.New(b.ctx)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lab.Close())
		}
	}()
	hosts, err := s.lab.Hosts("host", "switch", "first", "next")
	if err != nil {
		return nil, err
	}
	s.host, s.gateways = hosts[0], [2]*lab.Host{hosts[2], hosts[3]}
	bits := map[bool]int{true: 16, false: 64}[v.own.Is4()]
	for i, e := range []struct {
		host    *lab.Host
		link    string
		address netip.Addr
	}{{hosts[0], "em1", v.own}, {hosts[2], "eth0", v.first}, {hosts[3], "eth0", v.next}} {
		err := s.lab.Link(
			lab.End{Host: e.host, Link: e.link, Addresses: []string{netip.PrefixFrom(e.address, bits).String()}},
			lab.End{Host: hosts[1], Link: fmt.Sprintf("port%d", i)})
		if err != nil {
			return nil, err
		}
	}
	if err := hosts[1].Bridge("br0", []string{"port0", "port1", "port2"}); err != nil {
		return nil, err
	}
	for _, g := range s.gateways {
		// Every address is its own, but for those of the segment: what arrives is counted.
		if _, err := b.must(g, "ip", "route", "add", "local", v.everything, "dev", "lo", "table", "main"); err != nil {
			return nil, err
		}
	}
	if _, err := b.must(s.host, "ip", "route", "add", v.everything, "via", v.first.String(), "dev", "em1"); err != nil {
		return nil, err
	}
	return s, nil
}

func (b *bench) gatewayOurs(version int) error {
	s, err := b.newSegment(version)
	if err != nil {
		return err
	}
	return errors.Join(b.changeGateways(s, version), s.host.Down("em1"), s.lab.Close())
}

func (b *bench) changeGateways(s *segment, version int) error {
	v := ipVersions[version]
	list := v.list(million)
	if err := giveList(s.host, list); err != nil {
		return err
	}
	if err := configure(s.host, "[uplink.a]\ninterface = \"em1\"\nto = [\"@list.zone\"]\n"); err != nil {
		return err
	}
	d, _, err := b.startDaemon(s.host)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := b.settle(d.Pid()); err != nil {
		return err
	}
	// Destinations from all over the list.
	var targets []netip.Addr
	for i := range 16 {
		targets = append(targets, list[i*(len(list)-1)/15].Addr().Next())
	}
	for run := range b.runs {
		if err := b.changeGateway(s, version, targets, run); err != nil {
			return fmt.Errorf("%w\n%s", err, d.log)
		}
		if err := b.settle(d.Pid()); err != nil {
			return err
		}
	}
	return nil
}

// changeGateway is one change, there or back.
func (b *bench) changeGateway(s *segment, version int, targets []netip.Addr, run int) error {
	v := ipVersions[version]
	from := run % 2
	next := []netip.Addr{v.next, v.first}[from]
	// The neighbour is known, as one that answers is.
	if _, err := b.must(s.host, "ping", "-c", "1", "-W", "2", next.String()); err != nil {
		return err
	}
	flow, err := startFlow(s, targets)
	if err != nil {
		return err
	}
	start, err := b.replaceDefault(s, version, next, flow, from)
	if err == nil {
		err = flow.moved(b, from)
	}
	last, lost, stopped := flow.stop(from)
	if err := errors.Join(err, stopped); err != nil {
		return err
	}
	k := key{otherGateway + ", " + v.name, million, b.where, ours}
	b.took(k, max(0, last.Sub(start)))
	k.Work = lostPackets + ", " + v.name
	b.report.add(k, count, float64(lost))
	return nil
}

// replaceDefault changes the default route when the flow flows.
func (b *bench) replaceDefault(s *segment, version int, next netip.Addr, flow *flow, from int) (start time.Time, err error) {
	err = lab.Wait(b.ctx, func() error {
		if n := flow.arrived(from); n < 1000 {
			return fmt.Errorf("%d packets have arrived at the old gateway", n)
		}
		return nil
	})
	if n := flow.arrived(1 - from); err == nil && n > 0 {
		err = fmt.Errorf("%d packets go by the new gateway before the change", n)
	}
	if err != nil {
		return start, err
	}
	err = routeSocket(s.host, func(socket rawSocket) error {
		link, err := linkIndex("em1")
		if err != nil {
			return err
		}
		w := way{gateway: next, link: link, table: unix.RT_TABLE_MAIN, protocol: unix.RTPROT_BOOT}
		message := routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, []netip.Prefix{netip.MustParsePrefix(ipVersions[version].everything)}, w)
		start = time.Now()
		return socket.send(message)
	})
	if err != nil {
		return start, fmt.Errorf("change the default route: %w", err)
	}
	return start, nil
}
