package lvs

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/state"
	"github.com/sisod/sisod/profiles"
)

var deviceTypes = map[string]string{"tunl0": "ipip", "gre0": "gre", "ip6tnl0": "ip6tnl", "sit0": "sit", "ip6gre0": "ip6gre"}

// tunnels are the devices that decapsulate a VIP's packets: the module's own,
// which takes them from anybody, or one for each director that is named. The
// first is where an IPv6 VIP is put. None: they cannot be, and that is told.
func (b *builder) tunnels(r *profiles.RealServer, vip netip.Addr) []state.Device {
	var out []state.Device
	if len(r.Directors) == 0 {
		name := cmp.Or(r.Interface, r.Tunnel.Device(vip, vip))
		kind, known := deviceTypes[name]
		switch {
		case known:
			out = append(out, state.Device{Name: name, Type: kind})
		case b.hasNeighbours(name):
			b.problem(subject(r), r.Pos, "interface %s takes nothing out of a tunnel, and has neighbours who find the VIP %s there and go past the director; leave the key interface out, and the tunnel's own device is taken", name, vip)
			return nil
		case b.isThere(name):
			out = append(out, state.Device{Name: name})
		default:
			b.problem(subject(r), r.Pos, "interface %s is not there; name the director, and sisod makes it a tunnel of its own: director = [ … ]", name)
			return nil
		}
	}
	for i, d := range r.Directors {
		shared := r.Tunnel.Device(vip, d.Value)
		name := b.freeName(r.Name, family(vip), i, out)
		named := false
		if i == 0 && r.Interface != "" && !b.asOther(r.Interface, deviceTypes[shared]) {
			name, named = r.Interface, true
		}
		if named && b.hasNeighbours(name) {
			b.problem(subject(r), r.Pos, "interface %s is there, and is no tunnel; leave the key interface out, or name one that is not there, and sisod makes it", name)
			return nil
		}
		device := state.Device{Name: name, Type: deviceTypes[shared], Remote: d.Value}
		if have, ok := b.between(device, named); ok {
			device = have
		}
		out = append(out, device)
		// One that a role of before brought up goes down again.
		found, raised := b.observed.Before.Up[shared]
		if l, ok := b.link(shared); ok && l.Up && (found || !raised) {
			b.problem(subject(r), d.Pos, "device %s is up, so encapsulated packets of anybody are let in beside those of %s; set it down if nothing else needs it: ip link set %s down", shared, d.Value, shared)
		}
	}
	if r.Tunnel.Kind == "gue" {
		for _, f := range b.outerFamilies(r, out[0]) {
			out = append(out, state.Device{Type: "gue", EncapPort: r.Tunnel.Port, EncapFamily: f})
		}
	}
	return out
}

// outerFamilies are the families in which a role's packets come: its directors',
// the tunnel's, or for a device that is not sisod's those of the host's addresses.
func (b *builder) outerFamilies(r *profiles.RealServer, tunnel state.Device) []state.Family {
	in := map[state.Family]bool{}
	for _, d := range r.Directors {
		in[family(d.Value)] = true
	}
	switch {
	case len(in) > 0:
	case tunnel.Type == "":
		for _, a := range b.facts.Addresses {
			in[family(a.Prefix.Addr())] = true
		}
	default:
		in[map[bool]state.Family{true: state.IPv6, false: state.IPv4}[strings.HasPrefix(tunnel.Type, "ip6")]] = true
	}
	return slices.Sorted(maps.Keys(in))
}

// between is the device of the same type to the same director that is asked for
// already: over IPv6, and with GRE, one takes both families, and the kernel
// refuses a second one with the same ends. One that sisod has made stays as it
// is, whatever place in whose list its director has now, unless it is to have
// another name.
func (b *builder) between(like state.Device, named bool) (state.Device, bool) {
	for d := range b.Devices {
		if d.Type == like.Type && d.Remote == like.Remote {
			return d, true
		}
	}
	for d := range b.observed.Devices {
		if d.Type == like.Type && d.Remote == like.Remote && !named {
			return d, true
		}
	}
	return state.Device{}, false
}

// asOther reports whether a name is asked for already as a device of another
// type: that of a VIP of the other family.
func (b *builder) asOther(name, kind string) bool {
	for d := range b.Devices {
		if d.Name == name && d.Type != kind {
			return true
		}
	}
	return false
}

// freeName is a name for the device to the director at place i. The device of
// one that had the place before has its name still.
func (b *builder) freeName(role string, inner state.Family, i int, besides []state.Device) string {
	taken := func(name string) bool {
		named := func(d state.Device) bool { return d.Name == name }
		return slices.ContainsFunc(besides, named) || slices.ContainsFunc(slices.Collect(maps.Keys(b.Devices)), named) ||
			slices.ContainsFunc(slices.Collect(maps.Keys(b.observed.Devices)), named)
	}
	for taken(deviceName(role, inner, i)) {
		i++
	}
	return deviceName(role, inner, i)
}

// deviceName is a name of at most 15 bytes (IFNAMSIZ), stable for a role: of a
// long or strange one a sum.
func deviceName(role string, inner state.Family, i int) string {
	const room = 8
	plain := strings.Trim(role, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
	if len(role) > room || !plain {
		sum := fnv.New32a()
		sum.Write([]byte(role))
		role = fmt.Sprintf("%08x", sum.Sum32())
	}
	return fmt.Sprintf("rs%dv%d-%s", i, inner, role)
}
