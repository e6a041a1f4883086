package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// Registers: the first of 16 bytes, which all expressions share, and two of 4
// bytes for a proxy's address and port.
const (
	nftRegister     = 1
	nftPortRegister = 2
)

// nftExpressions is a statement as the kernel knows it.
func nftExpressions(s state.NFStatement) ([]expr.Any, error) {
	equal := func(not bool, data []byte) expr.Any {
		op := expr.CmpOpEq
		if not {
			op = expr.CmpOpNeq
		}
		return &expr.Cmp{Op: op, Register: nftRegister, Data: data}
	}
	meta := func(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: nftRegister} }
	target := func(a netip.Addr) []expr.Any {
		p := &expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
		if a.Is6() {
			p.Offset, p.Len = 24, 16
		}
		return []expr.Any{p, equal(false, a.AsSlice())}
	}
	load := func(data []byte) expr.Any { return &expr.Immediate{Register: nftRegister, Data: data} }
	native := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	port := func(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
	switch s := s.(type) {
	case state.NFInterface:
		name := make([]byte, unix.IFNAMSIZ)
		if len(s.Name) >= len(name) {
			return nil, fmt.Errorf("interface name %q is too long", s.Name)
		}
		copy(name, s.Name)
		key := expr.MetaKeyIIFNAME
		if s.Out {
			key = expr.MetaKeyOIFNAME
		}
		return []expr.Any{meta(key), equal(s.Not, name)}, nil
	case state.NFDirection:
		direction := byte(0)
		if s.Reply {
			direction = 1
		}
		return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: nftRegister}, equal(false, []byte{direction})}, nil
	case state.NFRelated:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: nftRegister},
			&expr.Bitwise{SourceRegister: nftRegister, DestRegister: nftRegister, Len: 4, Mask: native(expr.CtStateBitRELATED), Xor: native(0)},
			equal(true, native(0)),
		}, nil
	case state.NFMark:
		return []expr.Any{
			markExpression(s.Connection, false),
			&expr.Bitwise{SourceRegister: nftRegister, DestRegister: nftRegister, Len: 4, Mask: native(s.Mask), Xor: native(0)},
			equal(s.Not, native(s.Value)),
		}, nil
	case state.NFSetMark:
		return []expr.Any{
			markExpression(s.Connection, false),
			&expr.Bitwise{SourceRegister: nftRegister, DestRegister: nftRegister, Len: 4, Mask: native(^s.Mask), Xor: native(s.Value)},
			markExpression(s.Connection, true),
		}, nil
	case state.NFFamily:
		return []expr.Any{meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfproto(s.Family)})}, nil
	case state.NFTransport:
		return []expr.Any{meta(expr.MetaKeyL4PROTO), equal(false, []byte{s.Protocol})}, nil
	case state.NFDestinationPort:
		return []expr.Any{
			meta(expr.MetaKeyL4PROTO), equal(false, []byte{s.Protocol}),
			&expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			equal(false, port(s.Port)),
		}, nil
	case state.NFSource:
		p := &expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
		if s.Addr.Is6() {
			p.Offset, p.Len = 8, 16
		}
		return []expr.Any{meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)}), p, equal(false, s.Addr.AsSlice())}, nil
	case state.NFTarget:
		return append([]expr.Any{meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)})}, target(s.Addr)...), nil
	case state.NFForeignSource:
		return []expr.Any{&expr.Fib{Register: nftRegister, ResultADDRTYPE: true, FlagSADDR: true}, equal(true, native(unix.RTN_LOCAL))}, nil
	case state.NFDestination:
		kind, ok := map[string]uint32{"unicast": unix.RTN_UNICAST, "local": unix.RTN_LOCAL, "anycast": unix.RTN_ANYCAST, "multicast": unix.RTN_MULTICAST}[s.Type]
		if !ok {
			return nil, fmt.Errorf("no kind of address %q", s.Type)
		}
		return []expr.Any{&expr.Fib{Register: nftRegister, ResultADDRTYPE: true, FlagDADDR: true}, equal(s.Not, native(kind))}, nil
	case state.NFTransparentSocket:
		return []expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: nftRegister}, equal(false, []byte{1})}, nil
	case state.NFWildcardSocket:
		wildcard := byte(1)
		if s.Not {
			wildcard = 0
		}
		return []expr.Any{&expr.Socket{Key: expr.SocketKeyWildcard, Register: nftRegister}, equal(false, []byte{wildcard})}, nil
	case state.NFTransparentProxy:
		proxy := &expr.TProxy{Family: nfproto(s.Family), RegPort: nftPortRegister}
		var exprs []expr.Any
		// The port's register lies behind the 16 bytes of an address.
		if s.Port != 0 {
			exprs = append(exprs, &expr.Immediate{Register: nftPortRegister, Data: port(s.Port)})
		} else {
			exprs = append(exprs, &expr.Payload{DestRegister: nftPortRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
		}
		if s.Addr.IsValid() {
			proxy.RegAddr = nftRegister
			exprs = append(exprs, load(s.Addr.AsSlice()))
		}
		return append(exprs, proxy), nil
	case state.NFOriginal:
		exprs := []expr.Any{
			meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)}),
			meta(expr.MetaKeyL4PROTO), equal(false, []byte{s.Protocol}),
			originalDestination, equal(false, s.Addr.AsSlice()),
		}
		if s.Port != 0 {
			exprs = append(exprs, &expr.Ct{Key: expr.CtKeyPROTODST, Register: nftRegister}, equal(false, port(s.Port)))
		}
		return exprs, nil
	case state.NFRedirected:
		exprs := append([]expr.Any{meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)})}, target(s.Addr)...)
		return append(exprs, originalDestination, equal(true, s.Addr.AsSlice())), nil
	case state.NFTurn:
		return []expr.Any{&expr.Numgen{Register: nftRegister, Type: unix.NFT_NG_INCREMENTAL, Modulus: s.Of}, equal(false, native(0))}, nil
	case state.NFSourceNAT:
		return []expr.Any{load(s.Addr.AsSlice()), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(nfprotoOf(s.Addr)), RegAddrMin: nftRegister}}, nil
	case state.NFMasquerade:
		return []expr.Any{&expr.Masq{}}, nil
	case state.NFSetSource:
		p := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: nftRegister, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4,
			CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
		if s.Addr.Is6() {
			// IPv6 has no checksum of its own; that of ICMPv6 covers the addresses.
			p.Offset, p.Len, p.CsumType, p.CsumOffset = 8, 16, expr.CsumTypeNone, 0
		}
		// The header must be of the family; nft takes that for said.
		return []expr.Any{meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)}), load(s.Addr.AsSlice()), p}, nil
	case state.NFSynAck:
		const synAck = 0x12
		return []expr.Any{
			meta(expr.MetaKeyL4PROTO), equal(false, []byte{unix.IPPROTO_TCP}),
			&expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{SourceRegister: nftRegister, DestRegister: nftRegister, Len: 1, Mask: []byte{synAck}, Xor: []byte{0}},
			equal(false, []byte{synAck}),
		}, nil
	case state.NFMaxSegment:
		return []expr.Any{
			load(port(s.Size)),
			&expr.Exthdr{SourceRegister: nftRegister, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
		}, nil
	case state.NFAccept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, nil
	}
	return nil, fmt.Errorf("no expression for %T", s)
}

// originalDestination reads where a connection was directed to. In a table of both
// families the kernel reserves 16 bytes for it, and of an IPv4 address writes the
// first four: the others are what was there before, and must not be compared
// (net/netfilter/nft_ct.c, NFT_CT_DST).
var originalDestination = &expr.Ct{Key: expr.CtKeyDST, Register: nftRegister}

// markExpression reads the mark into the register, or writes it from there.
func markExpression(connection, write bool) expr.Any {
	if connection {
		return &expr.Ct{Key: expr.CtKeyMARK, Register: nftRegister, SourceRegister: write}
	}
	return &expr.Meta{Key: expr.MetaKeyMARK, Register: nftRegister, SourceRegister: write}
}

func nfproto(f state.Family) byte {
	if f == state.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func nfprotoOf(a netip.Addr) byte {
	if a.Is6() {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}
