package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// remoteAttributes are where IFLA_INFO_DATA has the other end of a tunnel, by the
// type of the link (linux/if_tunnel.h: IFLA_IPTUN_REMOTE, IFLA_GRE_REMOTE).
var remoteAttributes = map[string]uint16{"ipip": 3, "sit": 3, "ip6tnl": 3, "gre": 7, "ip6gre": 7}

// appendDevice encodes the making of a link.
func appendDevice(b []byte, d state.Device) ([]byte, error) {
	b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
	b = appendString(b, unix.IFLA_IFNAME, d.Name)
	b, linkInfo := openNest(b, unix.IFLA_LINKINFO)
	b = appendString(b, unix.IFLA_INFO_KIND, d.Type)
	if d.Remote.IsValid() {
		kind, ok := remoteAttributes[d.Type]
		if !ok {
			return nil, fmt.Errorf("a link of type %s has no remote end", d.Type)
		}
		var data int
		b, data = openNest(b, unix.IFLA_INFO_DATA)
		b = appendAddr(b, kind, d.Remote)
		closeNest(b, data)
	}
	closeNest(b, linkInfo)
	return b, nil
}

// device reads what a link is, in the terms of a Device.
func (l *links) device(index int) (state.Device, error) {
	link, err := l.look(index)
	if err != nil {
		return state.Device{}, err
	}
	d := state.Device{Name: link.Attrs().Name, Type: link.Type()}
	var remote net.IP
	switch t := link.(type) {
	case *netlink.Iptun:
		remote = t.Remote
	case *netlink.Sittun:
		remote = t.Remote
	case *netlink.Ip6tnl:
		remote = t.Remote
	case *netlink.Gretun:
		remote = t.Remote
	}
	if a, ok := netip.AddrFromSlice(remote); ok {
		if a = a.Unmap(); !a.IsUnspecified() {
			d.Remote = a
		}
	}
	return d, nil
}

// readDevices finds what of the devices that sisod made is there.
func (h *Host) readDevices() (map[state.Device]bool, error) {
	h.ledger.reload()
	own := map[state.Device]bool{}
	var ports map[encapPort]bool
	for _, e := range h.ledger.page.Devices {
		d := e.device()
		switch index := h.links.index(e.Name); {
		case h.ledger.absent[e]:
			continue
		case e.Port != 0:
			if ports == nil {
				var err error
				if ports, err = h.encapPorts(); err != nil {
					return nil, fmt.Errorf("list ports of encapsulation: %w", err)
				}
			}
			if ports[encapPort{e.Family, e.Port}] {
				own[d] = true
				continue
			}
		case d.Fallback():
			if index != 0 {
				own[d] = true
				continue
			}
		default:
			if e.Link != 0 {
				index = e.Link
			}
			if h.links.name(index) == "" {
				break
			}
			found, err := h.links.device(index)
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return nil, fmt.Errorf("read device %s: %w", e.Name, err)
			}
			if err == nil && found.Type == e.Type {
				own[found] = true
				continue
			}
		}
		h.ledger.absent[e] = true
	}
	return own, nil
}

// applyDevices makes and deletes devices, the ledger first, and gives one error
// a step. The links are read again after it.
func (h *Host) applyDevices(steps []state.Step) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		d := s.Object.(state.Device)
		var err error
		switch {
		case s.Op.Removes():
			err = h.deleteDevice(d)
		case d.EncapPort != 0:
			err = h.addEncapPort(d)
		default:
			err = h.addDevice(d)
		}
		if err != nil {
			errs[i] = fmt.Errorf("%s device %s: %w", s.Op, d, err)
		}
	}
	if err := h.links.read(); err != nil {
		h.options.Log.Warn("links not read again", "error", err)
	}
	return errs
}

// addDevice makes a link. A fallback device comes with the module, which the
// kernel loads when it is asked for a link of the type.
func (h *Host) addDevice(d state.Device) error {
	body, err := appendDevice(nil, d)
	if err != nil {
		return err
	}
	there := h.links.index(d.Name)
	if there != 0 && !d.Fallback() && !h.ledger.ownsLink(there, d.Name) {
		return errForeign{unix.EEXIST, "delete it (ip link del " + d.Name + ") or give this one another name"}
	}
	for _, e := range h.ledger.ownDevices() {
		// What sisod made by this name is another thing now, or has another name, or
		// it has these ends under another name, which the kernel allows one link
		// alone: it is in the way.
		sameEnds := d.Remote.IsValid() && e.Type == d.Type && e.Remote == d.Remote
		if d.Fallback() || e.Name != d.Name && !sameEnds {
			continue
		}
		if index := cmp.Or(e.Link, h.links.index(e.Name)); index != 0 {
			if err := h.deleteLink(index); err != nil {
				return err
			}
		}
	}
	entry := entryOf(d)
	fresh := h.ledger.noteDevice(entry)
	if err := h.ledger.save(); err != nil {
		return err
	}
	if there == 0 || !d.Fallback() {
		err = h.conn.do([]message{{kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body}})[0]
	}
	if read := h.links.read(); read != nil {
		return errors.Join(err, read)
	}
	index := h.links.index(d.Name)
	if errors.Is(err, unix.EEXIST) && index != 0 && (d.Fallback() || !fresh) {
		err = nil
	}
	if err != nil {
		if fresh {
			h.ledger.forgetDevice(entry)
			err = errors.Join(err, h.ledger.save())
		}
		return deviceError(d, index, err)
	}
	if d.Fallback() {
		return nil
	}
	h.ledger.bindDevice(entry, index)
	return h.ledger.save()
}

// deviceError says what the kernel means.
func deviceError(d state.Device, index int, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: no links of type %s in this kernel: %s", err, d.Type, moduleCure(cmp.Or(linkModules[d.Type], d.Type)))
	case errors.Is(err, unix.EEXIST) && index == 0:
		return fmt.Errorf("%w: another link of type %s has the same ends", err, d.Type)
	}
	return err
}

// deleteDevice takes away what sisod has made; fallback devices stay with
// their module.
func (h *Host) deleteDevice(d state.Device) error {
	for _, e := range slices.Clone(h.ledger.ownDevices()) {
		switch {
		case e.device() == d && d.EncapPort != 0:
			if err := h.deleteEncapPort(d); err != nil {
				return err
			}
		case e.device() == d && d.Fallback():
		case d.EncapPort == 0 && !d.Fallback() && e.Link != 0 && h.links.name(e.Link) == d.Name:
			found, err := h.links.device(e.Link)
			if err == nil && found != d {
				continue // one that has taken its place
			}
			if err == nil {
				err = h.deleteLink(e.Link)
			}
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return err
			}
		case d.EncapPort == 0 && !d.Fallback() && e.Link == 0 && e.device() == d && h.links.index(d.Name) != 0:
			// A process was killed between making it and saying so.
			if err := h.deleteLink(h.links.index(d.Name)); err != nil {
				return err
			}
		default:
			continue
		}
		h.ledger.forgetDevice(e)
	}
	return h.ledger.save()
}

func (h *Host) deleteLink(index int) error {
	body := append([]byte{unix.AF_UNSPEC, 0, 0, 0}, appendNative32(nil, uint32(index))...)
	err := h.conn.do([]message{{kind: unix.RTM_DELLINK, body: append(body, make([]byte, 8)...)}})[0]
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// ownDevices are the entries of what sisod made and nobody was seen to take away.
func (g *ledger) ownDevices() []deviceEntry {
	g.reload()
	return slices.DeleteFunc(slices.Clone(g.page.Devices), func(e deviceEntry) bool { return g.absent[e] })
}

// ownsLink reports whether sisod made the link with that index.
func (g *ledger) ownsLink(index int, name string) bool {
	return slices.ContainsFunc(g.ownDevices(), func(e deviceEntry) bool { return e.Link == index || e.Link == 0 && e.Name == name })
}

// noteDevice records a device that is about to be made. One of that name that
// was there before is not any more.
func (g *ledger) noteDevice(e deviceEntry) (fresh bool) {
	g.reload()
	fresh = g.note(e, slices.Contains(g.page.Devices, e))
	g.page.Devices = slices.DeleteFunc(g.page.Devices, func(have deviceEntry) bool {
		return have.Name == e.Name && have.Port == e.Port && have.Family == e.Family
	})
	g.page.Devices = append(g.page.Devices, e)
	g.dirty = true
	return fresh
}

// bindDevice records the index of a link that was made.
func (g *ledger) bindDevice(e deviceEntry, index int) {
	if i := slices.Index(g.page.Devices, e); i >= 0 && index != e.Link {
		g.page.Devices[i].Link = index
		delete(g.absent, g.page.Devices[i])
		g.dirty = true
	}
}

// forgetDevice removes an entry whose device is gone.
func (g *ledger) forgetDevice(e deviceEntry) {
	if i := slices.Index(g.page.Devices, e); i >= 0 {
		g.dirty = true
		g.page.Devices = slices.Delete(g.page.Devices, i, i+1)
	}
}
