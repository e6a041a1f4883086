package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// forever is the lifetime without an end (linux/if_addr.h,
// INFINITY_LIFE_TIME).
const forever = ^uint32(0)

// appendVIP encodes struct ifaddrmsg and its attributes. An IPv6 VIP comes
// without duplicate address detection, and deprecated.
func appendVIP(b []byte, index int, addr netip.Addr) []byte {
	family := uint8(unix.AF_INET)
	if addr.Is6() {
		family = unix.AF_INET6
	}
	b = append(b, family, uint8(addr.BitLen()), 0, unix.RT_SCOPE_UNIVERSE)
	b = appendNative32(b, uint32(index))
	b = appendAddr(b, unix.IFA_LOCAL, addr)
	b = appendAddr(b, unix.IFA_ADDRESS, addr)
	if addr.Is6() {
		b = appendUint32(b, unix.IFA_FLAGS, unix.IFA_F_NODAD)
		// Preferred and valid, in seconds, and two times that are the kernel's own.
		lifetimes := appendNative32(appendNative32(nil, 0), forever)
		b = appendAttribute(b, unix.IFA_CACHEINFO, append(lifetimes, make([]byte, 8)...)...)
	}
	return b
}

// applyVIPs adds and deletes VIPs, the ledger first, and gives one error a step.
// What it has added it announces.
func (h *Host) applyVIPs(steps []state.Step) []error {
	errs := make([]error, len(steps))
	entries := make([]vipEntry, len(steps))
	fresh := make([]bool, len(steps))
	var msgs []message
	var sent []int
	for i, s := range steps {
		v := s.Object.(state.VIP)
		index := h.links.index(v.Link)
		entries[i] = vipEntry{index, v.Addr}
		m := message{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: appendVIP(nil, index, v.Addr)}
		switch {
		case s.Op.Removes() && !h.ledger.ownsVIP(entries[i]):
			// Gone with its link, or never sisod's.
			continue
		case s.Op.Removes():
			m = message{kind: unix.RTM_DELADDR, body: m.body}
		case index == 0:
			errs[i] = fmt.Errorf("add address %s: %w", v, unix.ENODEV)
			continue
		default:
			fresh[i] = h.ledger.noteVIP(entries[i])
		}
		msgs, sent = append(msgs, m), append(sent, i)
	}
	answers := make([]error, len(msgs))
	if err := h.ledger.save(); err != nil {
		fill(answers, err)
	} else {
		answers = h.sendVIPs(msgs, entries, steps, sent)
	}
	var added []state.VIP
	for k, i := range sent {
		v, err := steps[i].Object.(state.VIP), answers[k]
		switch removes := steps[i].Op.Removes(); {
		case removes && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)):
			err = nil
		case !removes && errors.Is(err, unix.EEXIST) && fresh[i]:
			err = errForeign{err, "take it away, or name no interface for this VIP"}
		case !removes && errors.Is(err, unix.EEXIST):
			err = nil
		case !removes && errors.Is(err, unix.EACCES) && v.Addr.Is6():
			err = fmt.Errorf("%w: is IPv6 disabled on %s?", err, v.Link)
		case !removes && err == nil:
			added = append(added, v)
		}
		if steps[i].Op.Removes() && err == nil || !steps[i].Op.Removes() && err != nil && fresh[i] {
			h.ledger.forgetVIP(entries[i])
		}
		if err != nil {
			errs[i] = fmt.Errorf("%s address %s: %w", steps[i].Op, v, err)
		}
	}
	if err := h.ledger.save(); err != nil {
		for _, i := range sent {
			errs[i] = errors.Join(errs[i], err)
		}
	}
	h.AnnounceVIPs(added)
	return errs
}

// sendVIPs sends the messages of the steps in sent. The kernel does not say
// whose doing an IPv6 address is.
func (h *Host) sendVIPs(msgs []message, entries []vipEntry, steps []state.Step, sent []int) []error {
	taken := make([]func(), len(msgs))
	for k, i := range sent {
		taken[k] = func() {}
		if entries[i].Addr.Is6() {
			taken[k] = h.links.listener.expectVIP(entries[i].Link, entries[i].Addr, !steps[i].Op.Removes())
		}
	}
	answers := h.conn.do(msgs)
	for k, err := range answers {
		if err != nil {
			taken[k]()
		}
	}
	return answers
}

// vips are those that sisod has put on links and that are there.
func (g *ledger) vips(l *links) map[state.VIP]bool {
	g.reload()
	there := map[state.VIP]bool{}
	if len(g.page.VIPs) == 0 {
		return there
	}
	for _, a := range l.addresses() {
		if a.Prefix.IsSingleIP() {
			there[state.VIP{Link: a.Link, Addr: a.Prefix.Addr()}] = true
		}
	}
	own := map[state.VIP]bool{}
	for _, e := range g.page.VIPs {
		v := state.VIP{Link: l.name(e.Link), Addr: e.Addr}
		switch {
		case !there[v]:
			g.absent[e] = true
		case !g.absent[e]:
			own[v] = true
		}
	}
	return own
}

func (g *ledger) ownsVIP(e vipEntry) bool {
	g.reload()
	return slices.Contains(g.page.VIPs, e) && !g.absent[e]
}

func (g *ledger) noteVIP(e vipEntry) (fresh bool) {
	g.reload()
	known := slices.Contains(g.page.VIPs, e)
	if !known {
		g.page.VIPs = append(g.page.VIPs, e)
	}
	return g.note(e, known)
}

func (g *ledger) forgetVIP(e vipEntry) {
	if i := slices.Index(g.page.VIPs, e); i >= 0 {
		g.dirty = true
		g.page.VIPs = slices.Delete(g.page.VIPs, i, i+1)
	}
}
