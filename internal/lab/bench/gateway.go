package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
)

// Works of the rows about another gateway.
const (
	otherGateway = "gateway changed under prefixes, last packet by the old one"
	lostPackets  = "gateway changed under prefixes, packets lost"
	oneExchange  = "nexthop object exchanged under prefixes, to the kernel's answer"
)

// ipVersion is one in which a gateway can change.
type ipVersion struct {
	name             string
	list             func(int) []netip.Prefix
	everything       string
	own, first, next netip.Addr
}

var ipVersions = []ipVersion{
	{"IPv4", list4, "0.0.0.0/0", netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr(gateway4), netip.MustParseAddr("10.1.0.3")},
	{"IPv6", list6, "::/0", netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr(gateway6), netip.MustParseAddr("2001:db8:1::3")},
}

// gateway changes the default route in main that the daemon learns its gateway
// from, there and back, while packets flow to many of the million prefixes. Both
// gateways live and take everything: whatever is lost is lost by the change. The
// floor is a nexthop object under as many routes, exchanged by one message.
func (b *bench) gateway() error {
	for _, v := range ipVersions {
		b.log.Printf("%d prefixes of %s by another gateway", million, v.name)
		err := b.onSegment(v, func(one *segment) error {
			return b.onSegment(v, func(other *segment) error { return b.changeGateways(one, other) })
		})
		if err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

// changeGateways lets the daemon on one segment and the floor on another one
// change their gateways in turns.
func (b *bench) changeGateways(one, other *segment) error {
	d, err := b.startListed(one)
	if err != nil {
		return err
	}
	defer d.stop()
	replace, err := b.listFloor(other)
	if err != nil {
		return err
	}
	for run := range b.runs {
		if err := b.settle(d.Pid()); err != nil {
			return err
		}
		if err := b.changeGateway(one, ours, run, one.replaceDefault); err != nil {
			return fmt.Errorf("%w\n%s", err, d.log)
		}
		if err := b.changeGateway(other, floorHop, run, replace); err != nil {
			return err
		}
	}
	return nil
}

// startListed starts the daemon, which has the list and learns its gateway.
func (b *bench) startListed(s *segment) (*daemon, error) {
	if err := giveList(s.host, s.list(million)); err != nil {
		return nil, err
	}
	if err := configure(s.host, "[uplink.a]\ninterface = \"em1\"\nto = [\"@list.zone\"]\n"); err != nil {
		return nil, err
	}
	d, _, err := b.startDaemon(s.host)
	return d, err
}

// listFloor puts the list into main, by a nexthop object, and returns what
// exchanges that.
func (b *bench) listFloor(s *segment) (func(netip.Addr) (time.Time, error), error) {
	// With 1 the kernel tells of every route, and takes its time for it.
	if err := s.host.Sysctl("net/ipv4/nexthop_compat_mode=0"); err != nil {
		return nil, err
	}
	w := way{gateway: s.first, nexthop: 1, table: unix.RT_TABLE_MAIN, protocol: unix.RTPROT_STATIC}
	err := routeSocket(s.host, func(socket rawSocket) (err error) {
		if w.link, err = linkIndex("em1"); err != nil {
			return err
		}
		if err := socket.send(nexthop(w, unix.NLM_F_EXCL)); err != nil {
			return fmt.Errorf("add nexthop: %w", err)
		}
		if err := socket.send(routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, s.list(million), w)); err != nil {
			return fmt.Errorf("add routes: %w", err)
		}
		return nil
	})
	return func(next netip.Addr) (start time.Time, err error) {
		w.gateway = next
		message := nexthop(w, unix.NLM_F_REPLACE)
		err = routeSocket(s.host, func(socket rawSocket) error {
			start = time.Now()
			err := socket.send(message)
			b.took(key{oneExchange + ", " + s.name, million, b.where, floorHop}, time.Since(start))
			return err
		})
		return start, err
	}, err
}

// segment is a host with one uplink whose network has two gateways.
type segment struct {
	ipVersion
	lab      *lab.Lab
	host     *lab.Host
	gateways [2]*lab.Host
}

func (b *bench) newSegment(v ipVersion) (s *segment, err error) {
	runtime.GC()
	s = &segment{ipVersion: v, lab: lab.New(b.ctx)}
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

// onSegment runs f on a segment of its own.
func (b *bench) onSegment(v ipVersion, f func(*segment) error) error {
	s, err := b.newSegment(v)
	if err != nil {
		return err
	}
	return errors.Join(f(s), s.host.Down("em1"), s.lab.Close())
}

// changeGateway is one change, there or back. What change returns is when it began.
func (b *bench) changeGateway(s *segment, program string, run int, change func(next netip.Addr) (time.Time, error)) error {
	from := run % 2
	next := []netip.Addr{s.next, s.first}[from]
	// The neighbour is known, as one that answers is.
	if _, err := b.must(s.host, "ping", "-c", "1", "-W", "2", next.String()); err != nil {
		return err
	}
	// Destinations from all over the list.
	var targets []netip.Addr
	list := s.list(million)
	for i := range 16 {
		targets = append(targets, list[i*(len(list)-1)/15].Addr().Next())
	}
	flow, err := startFlow(s, targets)
	if err != nil {
		return err
	}
	var start time.Time
	if err = b.flows(flow, from); err == nil {
		start, err = change(next)
	}
	if err == nil {
		err = flow.moved(b, from)
	}
	last, lost, stopped := flow.stop(from)
	if err := errors.Join(err, stopped); err != nil {
		return err
	}
	// It may have been the last one before the change.
	b.took(key{otherGateway + ", " + s.name, million, b.where, program}, max(pace, last.Sub(start)))
	b.report.add(key{lostPackets + ", " + s.name, million, b.where, program}, count, float64(lost))
	return nil
}

// flows waits until packets arrive at the gateway from, and is an error when some
// arrive at the other one.
func (b *bench) flows(flow *flow, from int) error {
	err := lab.Wait(b.ctx, func() error {
		if n := flow.arrived(from); n < 1000 {
			return fmt.Errorf("%d packets have arrived at the old gateway", n)
		}
		return nil
	})
	if n := flow.arrived(1 - from); err == nil && n > 0 {
		err = fmt.Errorf("%d packets go by the new gateway before the change", n)
	}
	return err
}

// replaceDefault changes the default route in main, and returns when it began.
func (s *segment) replaceDefault(next netip.Addr) (start time.Time, err error) {
	err = routeSocket(s.host, func(socket rawSocket) error {
		link, err := linkIndex("em1")
		if err != nil {
			return err
		}
		w := way{gateway: next, link: link, table: unix.RT_TABLE_MAIN, protocol: unix.RTPROT_BOOT}
		message := routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, []netip.Prefix{netip.MustParsePrefix(s.everything)}, w)
		start = time.Now()
		return socket.send(message)
	})
	if err != nil {
		return start, fmt.Errorf("change the default route: %w", err)
	}
	return start, nil
}
