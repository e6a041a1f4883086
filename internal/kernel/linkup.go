package kernel

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// look asks the kernel for a link as it is now.
func (l *links) look(index int) (netlink.Link, error) {
	link, err := l.handle.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, unix.ENODEV
	}
	return link, err
}

// appendLinkUp encodes the struct ifinfomsg that brings a link up or down.
func appendLinkUp(b []byte, index int, up bool) []byte {
	flags := uint32(0)
	if up {
		flags = unix.IFF_UP
	}
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = appendNative32(b, uint32(index))
	b = appendNative32(b, flags)
	return appendNative32(b, unix.IFF_UP) // which flags to change
}

// applyLinkUps brings links up and down, the ledger first, and gives one error
// a step.
func (h *Host) applyLinkUps(steps []state.Step) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		u := s.Object.(state.LinkUp)
		if err := h.applyLinkUp(s.Op, u); err != nil {
			errs[i] = fmt.Errorf("%s link %s: %w", s.Op, u, err)
		}
	}
	return errs
}

func (h *Host) applyLinkUp(op state.Op, u state.LinkUp) error {
	index := h.links.index(u.Link)
	err := error(unix.ENODEV)
	up := false
	if index != 0 {
		var link netlink.Link
		if link, err = h.links.look(index); err == nil {
			up = link.Attrs().RawFlags&unix.IFF_UP != 0
		}
	}
	restores := op == state.Restore
	switch {
	case restores && errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	case !restores && up != u.Up:
		h.ledger.noteUp(index, up, u.Up)
	}
	if err := h.ledger.save(); err != nil {
		return err
	}
	if up != u.Up {
		if err := h.conn.do([]message{{kind: unix.RTM_NEWLINK, body: appendLinkUp(nil, index, u.Up)}})[0]; err != nil {
			return err
		}
	}
	if restores {
		h.ledger.forgetUp(index)
	}
	return h.ledger.save()
}

// upBefore tells which links sisod has brought up or down, and what they were.
func (g *ledger) upBefore(l *links) map[string]bool {
	before := map[string]bool{}
	for _, e := range g.page.Ups {
		name := l.name(e.Link)
		if name == "" {
			g.absent[e] = true
			continue
		}
		if now := l.list[l.byIndex[e.Link]].Up; now != e.Found && now == e.Set {
			before[name] = e.Found
		}
	}
	return before
}

func (g *ledger) upAt(index int) int {
	return slices.IndexFunc(g.page.Ups, func(e upEntry) bool { return e.Link == index })
}

// noteUp records a change that is about to be made.
func (g *ledger) noteUp(index int, found, set bool) {
	g.reload()
	i := g.upAt(index)
	switch {
	case i < 0:
		g.page.Ups = append(g.page.Ups, upEntry{index, found, set})
	case g.page.Ups[i].Set == found:
		g.page.Ups[i].Set = set
	default:
		g.page.Ups[i] = upEntry{index, found, set}
	}
	g.dirty = true
}

func (g *ledger) forgetUp(index int) {
	if i := g.upAt(index); i >= 0 {
		g.dirty = true
		g.page.Ups = slices.Delete(g.page.Ups, i, i+1)
	}
}
