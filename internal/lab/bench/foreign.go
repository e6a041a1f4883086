package main

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Works of the rows about routes of others.
const (
	foreignRoutes = "routes of others added to main, time of the writer"
	foreignWork   = "routes of others added to main, processor time of the daemon"
	foreignGrowth = "routes of others added to main, memory the daemon grows by"
)

// noDaemon is the writer without sisod beside it.
const noDaemon = "no daemon"

// protoBGP is RTPROT_BGP of linux/rtnetlink.h.
const protoBGP = 186

// foreign adds a million routes by an uplink's gateway to main, as a BGP daemon
// does, as fast as the kernel takes them, while sisod runs and has nothing to do
// with them. What the daemon works until it is quiet again counts.
func (b *bench) foreign() error {
	list := list4(million)
	for run := range b.runs {
		b.log.Printf("%d routes of others, run %d of %d", million, run+1, b.runs)
		if err := b.onSite(func(s *site) error { return s.foreignOnce(list) }); err != nil {
			return err
		}
		err := b.onSite(func(s *site) error {
			took, err := s.writeForeign(list)
			s.took(key{foreignRoutes, million, s.where, noDaemon}, took)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *site) foreignOnce(list []netip.Prefix) error {
	if err := configure(s.host, two("")); err != nil {
		return err
	}
	d, _, err := s.startDaemon(s.host)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := s.settle(d.Pid()); err != nil {
		return err
	}
	before, err := used(d.Pid())
	if err != nil {
		return err
	}
	small, err := memory(d.Pid(), "VmRSS")
	if err != nil {
		return err
	}
	took, err := s.writeForeign(list)
	if err != nil {
		return err
	}
	if err := s.settle(d.Pid()); err != nil {
		return err
	}
	after, err := used(d.Pid())
	if err != nil {
		return err
	}
	large, err := memory(d.Pid(), "VmHWM")
	if err != nil {
		return err
	}
	s.took(key{foreignRoutes, million, s.where, ours}, took)
	s.took(key{foreignWork, million, s.where, ours}, after-before)
	s.report.add(key{foreignGrowth, million, s.where, ours}, mebi, max(0, large-small))
	return s.whole("main", million)
}

// writeForeign is the floor's way of writing them.
func (s *site) writeForeign(list []netip.Prefix) (took time.Duration, err error) {
	err = routeSocket(s.host, func(socket rawSocket) error {
		link, err := linkIndex("em1")
		if err != nil {
			return err
		}
		w := way{gateway: netip.MustParseAddr(gateway4), link: link, table: unix.RT_TABLE_MAIN, protocol: protoBGP}
		batches := routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, list, w)
		start := time.Now()
		err = socket.send(batches)
		took = time.Since(start)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("add routes to main: %w", err)
	}
	return took, nil
}
