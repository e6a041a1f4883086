package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// applyGroups moves links between groups, the ledger first, and gives one
// error a step.
func (h *Host) applyGroups(steps []state.Step) []error {
	errs := make([]error, len(steps))
	var due []int
	noted := make([]int, len(steps))
	for i, s := range steps {
		o, ok := s.Object.(state.LinkGroup)
		if !ok {
			errs[i] = fmt.Errorf("apply %s: not a link group", s.Object.Kind())
			continue
		}
		index := h.links.index(o.Link)
		var found uint32
		err := error(unix.ENODEV)
		if index != 0 {
			found, err = h.links.group(index)
		}
		switch {
		case s.Op == state.Restore && index == 0:
			// Gone, and its group with it.
		case err != nil:
			errs[i] = fmt.Errorf("%s link group %s: %w", s.Op, o, err)
		case s.Op == state.Restore:
			noted[i] = index
			if h.ledger.ownsGroup(index, found) {
				due = append(due, i)
			}
		case found != o.Group:
			h.ledger.noteGroup(index, found, o.Group)
			due = append(due, i)
		}
	}
	if err := h.ledger.save(); err != nil {
		for _, i := range due {
			errs[i] = fmt.Errorf("%s link group %s: %w", steps[i].Op, steps[i].Object, err)
		}
		return errs
	}
	for _, i := range due {
		o := steps[i].Object.(state.LinkGroup)
		if err := h.links.setGroup(h.links.index(o.Link), o.Group); err != nil {
			errs[i] = fmt.Errorf("%s link group %s: %w", steps[i].Op, o, err)
			noted[i] = 0
		}
	}
	for _, index := range noted {
		h.ledger.forgetGroup(index)
	}
	if err := h.ledger.save(); err != nil {
		for i, index := range noted {
			if index != 0 {
				errs[i] = errors.Join(errs[i], err)
			}
		}
	}
	return errs
}
