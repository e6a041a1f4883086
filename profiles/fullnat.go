package profiles

import (
	"fmt"
	"slices"
)

// DefaultMSSRoom is what a fullnat real server leaves free: the option with an
// IPv4 client's address and port.
const DefaultMSSRoom = 8

// maxMSSRoom is all that a TCP header has for options (RFC 9293, 3.1), bytes.
const maxMSSRoom = 40

// mssRoom reads bytes to be left free in each segment; none is 0.
func mssRoom(f field[int64]) int {
	const why = "bytes of a TCP option with the client's address: 8 for IPv4, some programs use 16; 40 are all that a TCP header has"
	v, ok := within(f, 4, maxMSSRoom, why)
	if ok && v%4 != 0 {
		f.at.bad(fmt.Sprintf("mss_room must be a multiple of 4, not %d", v), "TCP options fill words of 4 bytes: "+fmt.Sprint((v+3)/4*4))
		return 0
	}
	return int(v)
}

// fullNAT judges what a director needs to put an address of its own in the place
// of the client's.
func (b *builder) fullNAT(raw rawDirector, role string, d *Director, back []placedBackend, known []string) {
	if d.Mode != FullNAT {
		if d.Mode != "" {
			misplaced(d.Mode, "the source of packets is changed in mode fullnat alone", raw.SNAT.at, raw.MSSRoom.at)
		}
		return
	}
	list, good := addressList(raw.SNAT, role)
	d.SNAT, d.MSSRoom = placedValues(list), mssRoom(raw.MSSRoom)
	if raw.MSSRoom.at != nil && raw.FWMark.at != nil {
		raw.MSSRoom.at.badKey("mss_room is for services, and not for fwmark", "replies do not carry the mark: leave the room on the real servers (mss_room of [real_server.NAME])")
	}
	if d.OnePacket {
		raw.OnePacket.at.badKey("one_packet is not for mode fullnat", "a connection that the kernel forgets at once cannot have its source changed: remove it")
	}
	if raw.SNAT.at == nil {
		if !misspelt(raw.at, "snat", known) {
			raw.at.badKey(role+" has no snat", `mode fullnat needs the sources that real servers see: add the line snat = "10.0.0.5", an address of this host in their network`)
		}
		return
	}
	b.roles.sources = append(b.roles.sources, list...)
	for _, r := range back {
		if good && !slices.ContainsFunc(list, func(s placedAddress) bool { return s.addr.Is4() == r.Address.Is4() }) {
			raw.SNAT.at.bad(fmt.Sprintf("snat has no %s address, and real server %s is %s", family(r.Address), r.Address, family(r.Address)), "add an address of this host that the real servers can answer to")
			return
		}
	}
	for _, s := range list {
		if len(back) > 0 && len(back) == len(raw.RealServers.at.elements) && !slices.ContainsFunc(back, func(r placedBackend) bool { return s.addr.Is4() == r.Address.Is4() }) {
			s.at.bad(fmt.Sprintf("snat %s is %s, and no real server of %s is", s.addr, family(s.addr), role), "remove it, or add real servers of that family")
		}
	}
}

// fullNATServer judges a real server whose clients are, to all that it sees, its
// director.
func (b *builder) fullNATServer(raw rawRealServer, role string, r *RealServer, dips []placedAddress, known []string) {
	misplaced(FullNAT, "the VIP stands on the director alone: a fullnat real server never sees it", raw.VIP.at, raw.Interface.at)
	misplaced(FullNAT, "what goes to the director's addresses has the room, whatever the port", raw.Services.at)
	if raw.Director.at == nil && !misspelt(raw.at, "director", known) {
		raw.at.badKey(role+" has no director", `mode fullnat needs the addresses that requests come from: add the line director = ["10.0.0.5"], all that the director has in snat`)
	}
	r.MSSRoom = DefaultMSSRoom
	if raw.MSSRoom.at != nil {
		r.MSSRoom = mssRoom(raw.MSSRoom)
	}
	for _, d := range dips {
		i := slices.IndexFunc(b.roles.peers, func(o placedAddress) bool { return o.addr == d.addr })
		if i >= 0 {
			d.at.bad(fmt.Sprintf("director %s is that of %s already, at %s", d.addr, b.roles.peers[i].role, b.roles.peers[i].at.pos()), "one way leads to an address: join the two")
		}
	}
	b.roles.peers = append(b.roles.peers, dips...)
}

// strangeSources complains about sources of fullnat directors that are something
// else as well.
func (b *builder) strangeSources() {
	for _, s := range b.roles.sources {
		if i := slices.IndexFunc(b.roles.rips, func(r placedAddress) bool { return r.addr == s.addr }); i >= 0 {
			s.at.bad(fmt.Sprintf("snat %s is a real server of %s, at %s", s.addr, b.roles.rips[i].role, b.roles.rips[i].at.pos()), "an address of this host that the real servers can answer to")
		}
	}
}
