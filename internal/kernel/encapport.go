package kernel

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// fouFamily is the generic netlink family of receivers of packets in UDP, and
// the module that has it (net/ipv4/fou.c).
const fouFamily = "fou"

// Commands and attributes of the family (linux/fou.h).
const (
	fouAdd uint8 = 1
	fouDel uint8 = 2
	fouGet uint8 = 3

	fouPort   uint16 = 1
	fouAF     uint16 = 2
	fouType   uint16 = 4
	fouIsGUE  uint8  = 2 // FOU_ENCAP_GUE
	fouModule        = "fou"
)

// encapPort is a receiver of GUE.
type encapPort struct {
	family state.Family
	port   uint16
}

func appendEncapPort(b []byte, p encapPort) []byte {
	b = appendPort(b, fouPort, p.port)
	return appendAttribute(b, fouAF, addressFamily(p.family))
}

// encapPorts lists the receivers of GUE; without the module there are none.
func (h *Host) encapPorts() (map[encapPort]bool, error) {
	ports := map[encapPort]bool{}
	number, err := h.generic.genericFamily(fouFamily)
	if errors.Is(err, unix.ENOENT) {
		return ports, nil
	}
	if err != nil {
		return nil, err
	}
	err = h.generic.dump(genericMessage(number, fouGet, nil), func() { clear(ports) }, func(_ uint16, body []byte) error {
		p, gue, err := decodeEncapPort(body)
		if err == nil && gue {
			ports[p] = true
		}
		return err
	})
	return ports, err
}

func decodeEncapPort(body []byte) (p encapPort, gue bool, err error) {
	rest, err := genericBody(body)
	a := attributes{rest: rest, err: err}
	for a.next() {
		switch a.kind {
		case fouPort:
			p.port = a.bigUint16()
		case fouAF:
			p.family, _ = familyOf(a.uint8())
		case fouType:
			gue = a.uint8() == fouIsGUE
		}
	}
	if err = a.err; err == nil && p.family == 0 {
		err = errMalformed
	}
	if err != nil {
		return encapPort{}, false, fmt.Errorf("decode fou port: %w", err)
	}
	return p, gue, nil
}

// addEncapPort opens a receiver, the ledger first. One that is there already is
// somebody else's: what the ledger names is closed by flush, also after a process
// was killed.
func (h *Host) addEncapPort(d state.Device) error {
	number, err := h.fou()
	if err != nil {
		return err
	}
	ports, err := h.encapPorts()
	if err != nil {
		return err
	}
	p, entry := encapPort{d.EncapFamily, d.EncapPort}, entryOf(d)
	if ports[p] {
		if slices.Contains(h.ledger.ownDevices(), entry) {
			return nil
		}
		return encapPortError(unix.EADDRINUSE)
	}
	fresh := h.ledger.noteDevice(entry)
	if err := h.ledger.save(); err != nil {
		return err
	}
	body := appendAttribute(appendEncapPort(nil, p), fouType, fouIsGUE)
	err = h.generic.do([]message{genericMessage(number, fouAdd, body)})[0]
	if err == nil {
		return nil
	}
	err = encapPortError(err)
	if fresh {
		h.ledger.forgetDevice(entry)
		err = errors.Join(err, h.ledger.save())
	}
	return err
}

// encapPortError says what the kernel means.
func encapPortError(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: somebody else receives on this UDP port", err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: no such family in this kernel", err)
	}
	return err
}

// deleteEncapPort closes a receiver.
func (h *Host) deleteEncapPort(d state.Device) error {
	number, err := h.generic.genericFamily(fouFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	err = h.generic.do([]message{genericMessage(number, fouDel, appendEncapPort(nil, encapPort{d.EncapFamily, d.EncapPort}))})[0]
	if gone(err) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// fou is the number of the family. Its module has no alias by which the kernel
// would find it.
func (h *Host) fou() (uint16, error) {
	number, err := h.generic.genericFamily(fouFamily)
	if !errors.Is(err, unix.ENOENT) {
		return number, err
	}
	if err := loadModule(fouModule); err != nil {
		return 0, fmt.Errorf("no GUE yet: %w", err)
	}
	return h.generic.genericFamily(fouFamily)
}
