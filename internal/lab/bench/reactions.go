package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Works of the rows about a daemon with few prefixes.
const (
	startReady  = "start to READY, two uplinks"
	newAddress  = "address added to its rule, ten uplinks"
	oldAddress  = "address removed to its rule's end, ten uplinks"
	ruleBack    = "rule deleted by others to its return, ten uplinks"
	idleWork    = "processor time in 20 s of nothing, ten uplinks"
	idleSmall   = "memory, ten uplinks"
	applyBeside = "apply with nothing to do, beside routes of others"
)

// each is how many reactions of a kind are measured for one run.
const each = 8

// idleSpan is how long idling is looked at.
const idleSpan = 20 * time.Second

func (b *bench) reactions() error {
	for range 2*b.runs + 1 {
		err := b.onSite(func(s *site) error {
			if err := configure(s.host, two("")); err != nil {
				return err
			}
			d, took, err := s.startDaemon(s.host)
			if err != nil {
				return err
			}
			defer d.stop()
			s.took(key{startReady, 0, s.where, ours}, took)
			rules, err := s.lines(s.host, "rule", "show", "proto", "115")
			if err == nil && rules < 4 {
				err = fmt.Errorf("ready with %d rules", rules)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := b.onManyUplinks(tenUplinks, 1, (*many).react); err != nil {
		return err
	}
	return b.onSite((*site).applyBesideOthers)
}

// react measures what a daemon with ten uplinks does about events that come one
// at a time, from before the event to the kernel's message about the answer.
func (m *many) react() error {
	if err := configure(m.host, m.profile()); err != nil {
		return err
	}
	d, _, err := m.startDaemon(m.host)
	if err != nil {
		return err
	}
	defer d.stop()
	if err := m.settle(d.Pid()); err != nil {
		return err
	}
	before, err := used(d.Pid())
	if err != nil {
		return err
	}
	if err := m.pause(idleSpan); err != nil {
		return err
	}
	after, err := used(d.Pid())
	if err != nil {
		return err
	}
	m.took(key{idleWork, 0, m.where, ours}, after-before)
	rss, err := memory(d.Pid(), "VmRSS")
	if err != nil {
		return err
	}
	m.report.add(key{idleSmall, 0, m.where, ours}, mebi, rss)

	w, err := listen(m.host, nil)
	if err != nil {
		return err
	}
	defer w.close()
	return routeSocket(m.host, func(socket rawSocket) error {
		for i := range m.runs * each {
			if err := m.reactOnce(w, socket, i); err != nil {
				return fmt.Errorf("%w\n%s", err, d.log)
			}
		}
		return nil
	})
}

// reactOnce adds an address, deletes its rule as somebody else would, and removes
// the address.
func (m *many) reactOnce(w *witness, socket rawSocket, i int) error {
	link, err := linkIndex(fmt.Sprintf("em%d", i%m.uplinks))
	if err != nil {
		return err
	}
	a := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i % m.uplinks), 9, byte(i)}), 16)
	rule, err := m.reaction(w, socket, newAddress, address(unix.RTM_NEWADDR, a, link), ruleOf(unix.RTM_NEWRULE, a.Addr()))
	if err != nil {
		return err
	}
	e := &encoder{perSend: 1}
	// What the kernel told of the rule is what deletes it.
	e.begin(unix.RTM_DELRULE, 0, rule.body)
	e.end()
	if _, err := m.reaction(w, socket, ruleBack, e.batches, ruleOf(unix.RTM_NEWRULE, a.Addr())); err != nil {
		return err
	}
	_, err = m.reaction(w, socket, oldAddress, address(unix.RTM_DELADDR, a, link), ruleOf(unix.RTM_DELRULE, a.Addr()))
	return err
}

// reaction makes an event, and measures until the kernel tells of what follows.
func (m *many) reaction(w *witness, socket rawSocket, work string, event []batch, follows func(notice) bool) (answer notice, err error) {
	// Events that follow each other closely are gathered, and that is another
	// measurement.
	if err := m.pause(50 * time.Millisecond); err != nil {
		return answer, err
	}
	w.forget()
	start := time.Now()
	if err := socket.send(event); err != nil {
		return answer, fmt.Errorf("%s: %w", work, err)
	}
	at, err := w.until(10*time.Second, func(n notice) bool {
		answer = n
		return follows(n)
	})
	if err != nil {
		return answer, fmt.Errorf("%s: %w", work, err)
	}
	m.took(key{work, 0, m.where, ours}, at.Sub(start))
	return answer, nil
}

// address encodes one that comes or goes.
func address(kind uint16, a netip.Prefix, link uint32) []batch {
	e := &encoder{perSend: 1}
	flags := uint16(0)
	if kind == unix.RTM_NEWADDR {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	e.begin(kind, flags, binary.NativeEndian.AppendUint32([]byte{family(a.Addr()), byte(a.Bits()), 0, unix.RT_SCOPE_UNIVERSE}, link))
	e.attribute(unix.IFA_LOCAL, a.Addr().AsSlice())
	e.attribute(unix.IFA_ADDRESS, a.Addr().AsSlice())
	e.end()
	return e.batches
}

// applyBesideOthers is sisod apply with nothing to do on a host whose main has
// 100,000 routes of a BGP daemon by an uplink.
func (s *site) applyBesideOthers() error {
	const others = 100_000
	file := filepath.Join(s.dir, "others")
	if err := writeLines(file, list4(others), "route add %s via "+gateway4+" dev em1 proto bgp"); err != nil {
		return err
	}
	if _, err := s.must(s.host, "ip", "-batch", file); err != nil {
		return err
	}
	if err := configure(s.host, two("")); err != nil {
		return err
	}
	if _, err := s.must(s.host, s.sisod, "apply"); err != nil {
		return err
	}
	for range s.runs {
		var printed lineCounter
		took, err := s.run(s.host, &printed, []int{0}, s.sisod, "apply")
		if err == nil && printed != 1 {
			err = errors.New("apply found something to do")
		}
		if err != nil {
			return err
		}
		s.took(key{applyBeside, others, s.where, ours}, took)
	}
	return nil
}

// ruleOf matches a message about the rule from an address.
func ruleOf(kind uint16, a netip.Addr) func(notice) bool {
	return func(n notice) bool {
		return n.kind == kind && string(attribute(n.body, unix.SizeofRtMsg, unix.FRA_SRC)) == string(a.AsSlice())
	}
}
