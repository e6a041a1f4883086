package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Attributes of connections (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaMark     = 8
	ctaMarkMask = 21
	ctDelete    = 2 // IPCTNL_MSG_CT_DELETE
)

// applyMarks carries out steps about marks: a new one is noted, for one that
// goes the connections that carry it are forgotten.
func (h *Host) applyMarks(steps []state.Step) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		m := s.Object.(state.Mark)
		var err error
		if s.Op.Removes() {
			err = forgetConnections(m)
		}
		if err == nil {
			err = h.ledger.noteMark(m, !s.Op.Removes())
		}
		if err != nil {
			errs[i] = fmt.Errorf("%s mark %s: %w", s.Op, m, err)
		}
	}
	return errs
}

// forgetConnections deletes the kernel's record of the connections that carry a
// mark, of both classes. Where nothing is tracked there is nothing to forget.
func forgetConnections(m state.Mark) error {
	value, mask := m.Carried()
	if mask == 0 {
		// The kernel would take it for all connections.
		return errors.New("a mark without bits")
	}
	c, err := openConn(unix.NETLINK_NETFILTER)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.close()
	var msgs []message
	for _, family := range [...]byte{unix.AF_INET, unix.AF_INET6} {
		body := []byte{family, 0, 0, 0}
		body = appendAttribute(body, ctaMark, binary.BigEndian.AppendUint32(nil, value)...)
		body = appendAttribute(body, ctaMarkMask, binary.BigEndian.AppendUint32(nil, mask)...)
		msgs = append(msgs, message{kind: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctDelete, body: body})
	}
	for _, err := range c.do(msgs) {
		// Without the module there are no records.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("forget connections: %w", err)
		}
	}
	return nil
}
