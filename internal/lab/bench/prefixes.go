package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/lab"
	"github.com/sisod/sisod/internal/prefix"
)

// Programs of the rows.
const (
	ours        = "sisod"
	ipBatch     = "ip -batch"
	ipShow      = "ip route show"
	floor       = "raw netlink"
	floorHop    = "raw netlink, nexthop object"
	restore     = "ipvsadm -R"
	keepalived  = "keepalived reload"
	networkdIs  = "systemd-networkd"
	ipvsadmShow = "ipvsadm -Sn"
)

// Works of the rows about prefixes.
const (
	firstApply = "first apply of prefixes"
	reapply    = "prefixes, nothing changed"
)

var prefixSizes = []int{1_000, 10_000, 100_000, 1_000_000}

// rawTable is where peers and the floor put their routes.
const rawTable = 100

// listed is the profile of a site whose first uplink has the list.
func listed() string { return two(`to = ["@list.zone"]`) }

// giveList writes the list beside the profile.
func giveList(h *lab.Host, list []netip.Prefix) error {
	return h.Do(func() error { return writeLines(filepath.Join(configFolder, "list.zone"), list, "%s") })
}

// prefixes makes every size from nothing, by each program on a host of its own,
// in turns.
func (b *bench) prefixes() error {
	for _, n := range prefixSizes {
		list := list4(n)
		// The floor writes the destinations that sisod writes to that table, in the order
		// that takes the kernel least. The two subnets alone make its trie wider, and
		// slower to fill.
		routes := append(subnets4(), slices.Collect(prefix.Of(list...).Rounds())...)
		file := filepath.Join(b.dir, "routes")
		if err := writeLines(file, list, "route add %s via "+gateway4+" dev em1 table 100 proto static"); err != nil {
			return err
		}
		for run := range b.runs {
			b.log.Printf("%d prefixes, run %d of %d", n, run+1, b.runs)
			last := run == b.runs-1
			if err := b.onSite(func(s *site) error { return s.applyList(list, last) }); err != nil {
				return err
			}
			if err := b.onSite(func(s *site) error { return s.batchList(file, n) }); err != nil {
				return err
			}
			for _, program := range []string{floor, floorHop} {
				err := b.onSite(func(s *site) error {
					took, err := s.rawList(program, routes)
					if err == nil {
						s.took(key{firstApply, n, s.where, program}, took)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	return nil
}

// applyList is sisod's first apply. After the last one, it is told to apply again.
func (s *site) applyList(list []netip.Prefix, again bool) error {
	n := len(list)
	if err := giveList(s.host, list); err != nil {
		return err
	}
	if err := configure(s.host, listed()); err != nil {
		return err
	}
	took, err := s.must(s.host, s.sisod, "apply")
	if err != nil {
		return err
	}
	s.took(key{firstApply, n, s.where, ours}, took)
	if err := s.whole("destinations", n); err != nil || !again {
		return err
	}
	for range s.runs {
		var printed lineCounter
		took, err := s.run(s.host, &printed, []int{0}, s.sisod, "apply")
		if err != nil {
			return err
		}
		if printed != 1 {
			return fmt.Errorf("apply nothing: it printed %d lines, and not that there is nothing to do", printed)
		}
		s.took(key{reapply, n, s.where, ours}, took)
		if took, err = s.must(s.host, "ip", "route", "show", "table", "destinations"); err != nil {
			return err
		}
		s.took(key{reapply, n, s.where, ipShow}, took)
	}
	return nil
}

func (s *site) batchList(file string, n int) error {
	took, err := s.must(s.host, "ip", "-batch", file)
	if err != nil {
		return err
	}
	s.took(key{firstApply, n, s.where, ipBatch}, took)
	return s.whole("100", n)
}

// rawList is the floor: by a gateway, as ip writes routes, or by a nexthop object.
// It returns how long the kernel took.
func (s *site) rawList(program string, list []netip.Prefix) (took time.Duration, err error) {
	err = routeSocket(s.host, func(socket rawSocket) error {
		link, err := linkIndex("em1")
		if err != nil {
			return err
		}
		w := way{gateway: netip.MustParseAddr(gateway4), link: link, table: rawTable, protocol: unix.RTPROT_STATIC}
		if program == floorHop {
			w.nexthop = 1
			if err := socket.send(nexthop(w, unix.NLM_F_EXCL)); err != nil {
				return fmt.Errorf("add nexthop: %w", err)
			}
		}
		batches := routes(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, list, w)
		start := time.Now()
		if err := socket.send(batches); err != nil {
			return fmt.Errorf("add routes: %w", err)
		}
		took = time.Since(start)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return took, s.whole("100", len(list))
}

// whole is an error when a table has fewer routes than it should.
func (s *site) whole(table string, n int) error {
	got, err := s.lines(s.host, "route", "show", "table", table)
	if err == nil && got < n {
		err = fmt.Errorf("table %s has %d routes, want %d", table, got, n)
	}
	return err
}

// took adds a time to the figures.
func (b *bench) took(k key, d time.Duration) {
	b.report.add(k, seconds, d.Seconds())
	b.log.Printf("  %s, %s: %s", k.Program, k.Work, spell(d.Seconds(), seconds))
}
