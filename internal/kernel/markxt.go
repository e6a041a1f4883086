package kernel

import "encoding/binary"

// Flags of matches and modes of targets of iptables (linux/netfilter/xt_socket.h
// and xt_connmark.h).
const (
	xtRestoreSocketMark = 1 << 2

	xtConnmarkSet, xtConnmarkSave = 0, 1

	xtShiftRight = 1
)

// extension reads a match or a target of iptables, as iptables-nft leaves them in
// nf_tables: a blob for each, which the kernel gives back as it got it.
func (r *markReader) extension(a attributes) error {
	var name string
	var revision uint32
	var info []byte
	for a.next() {
		switch a.kind {
		case nftaXtName:
			name = a.text()
		case nftaXtRev:
			revision = a.be32()
		case nftaXtInfo:
			info = a.value
		}
	}
	if a.err != nil {
		return a.err
	}
	field := func(i int) uint32 {
		if len(info) < 4*(i+1) {
			return 0
		}
		return binary.NativeEndian.Uint32(info[4*i:])
	}
	octet := func(i int) byte {
		if len(info) <= i {
			return 0
		}
		return info[i]
	}
	switch name {
	case "mark", "connmark": // mark, mask, invert
		kind := map[string]int{"mark": ofPacket, "connmark": ofConnection}[name]
		if revision != 1 {
			r.looks(kind, allBits)
			break
		}
		w := word{}
		w.seen[kind] = field(1)
		r.compared(w, true, field(0))
	case "MARK": // mark, mask
		if revision != 2 {
			r.writes(ofPacket, allBits)
			break
		}
		r.writes(ofPacket, field(0)|field(1))
	case "CONNMARK": // ctmark, ctmask, nfmask, and the mode; with a shift before it since revision 2
		ctMark, ctMask, nfMask := field(0), field(1), field(2)
		shift := func(v uint32) uint32 { return v }
		mode := octet(12)
		switch revision {
		case 1:
		case 2:
			mode = octet(14)
			n := octet(13)
			if octet(12) == xtShiftRight {
				shift = func(v uint32) uint32 { return v >> n }
			} else {
				shift = func(v uint32) uint32 { return v << n }
			}
		default:
			r.writes(ofPacket, allBits)
			r.writes(ofConnection, allBits)
			return nil
		}
		switch mode {
		case xtConnmarkSet:
			r.writes(ofConnection, ctMask|ctMark)
		case xtConnmarkSave:
			r.writes(ofConnection, ctMask|shift(nfMask))
		default:
			r.writes(ofPacket, nfMask|shift(ctMask))
		}
	case "TPROXY": // mark_mask, mark_value
		r.writes(ofPacket, field(0)|field(1))
	case "HMARK":
		r.writes(ofPacket, allBits)
	case "socket":
		if octet(0)&xtRestoreSocketMark != 0 {
			r.writes(ofPacket, allBits)
		}
	}
	return nil
}
