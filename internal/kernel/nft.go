package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// nft is the socket for nf_tables, opened when it is needed first.
type nft struct {
	conn   *nftables.Conn
	port   uint32        // the socket's address
	reader *netlink.Conn // for what the library does not read
	// proxies: the kernel has what transparent proxies need.
	proxies bool
}

func openNFT() (*nft, error) {
	n := &nft{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var name unix.Sockaddr
		if control := raw.Control(func(fd uintptr) { name, err = unix.Getsockname(int(fd)) }); control != nil {
			return control
		}
		if address, ok := name.(*unix.SockaddrNetlink); ok {
			n.port = address.Pid
		}
		return err
	}))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables socket: %w", err)
	}
	n.conn = conn
	if n.reader, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		_ = conn.CloseLasting()
		return nil, fmt.Errorf("open nf_tables socket: %w", err)
	}
	return n, nil
}

// nf is the socket, opened if need be.
func (h *Host) nf() (*nft, error) {
	if h.nft == nil {
		n, err := openNFT()
		if err != nil {
			return nil, err
		}
		h.nft = n
	}
	h.links.listener.ignoreNFT(h.nft.port)
	return h.nft, nil
}

func (n *nft) close() {
	if n != nil {
		_ = n.conn.CloseLasting()
		_ = n.reader.Close()
	}
}

var nftTable = &nftables.Table{Name: state.NFTableName, Family: nftables.TableFamilyINet}

// ruleText is the type of the piece of a rule's user data that holds what the
// rule says, because the kernel gives back its expressions in a form of its own.
// Who edits a rule with nft writes user data of its own. nft skips types that it
// does not know (nftables, src/netlink_delinearize.c, parse_rule_udata_cb).
const ruleText userdata.Type = 115

// applyNFTables carries out steps about the table, each in one transaction.
func (h *Host) applyNFTables(steps []state.Step) []error {
	errs := make([]error, len(steps))
	for i, s := range steps {
		if err := h.writeNFTable(s.Op, s.Object.(state.NFTable)); err != nil {
			errs[i] = fmt.Errorf("%s nft table %s: %w", s.Op, s.Object.(state.NFTable), err)
		}
	}
	return errs
}

func (h *Host) writeNFTable(op state.Op, t state.NFTable) error {
	n, err := h.nf()
	if err != nil {
		return err
	}
	// What is not there cannot be deleted, so that it is made first.
	n.conn.AddTable(nftTable)
	n.conn.DelTable(nftTable)
	if !op.Removes() {
		n.conn.AddTable(nftTable)
		if err := n.addChains(t.Chains()); err != nil {
			return err
		}
	}
	if !op.Removes() {
		if err := h.ledger.noteTable(true); err != nil {
			return err
		}
	}
	err = nftRefusal(n.conn.Flush())
	if err == nil && op.Removes() {
		err = h.ledger.noteTable(false)
	}
	return err
}

func (n *nft) addChains(chains []state.NFChain) error {
	accept := nftables.ChainPolicyAccept
	for _, c := range chains {
		hook, ok := nftHooks[c.Hook]
		if !ok {
			return fmt.Errorf("chain %s: no hook %s", c.Name, c.Hook)
		}
		chain := n.conn.AddChain(&nftables.Chain{
			Name: c.Name, Table: nftTable, Hooknum: hook, Type: nftables.ChainType(c.Type),
			Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)), Policy: &accept,
		})
		for _, r := range c.Rules {
			var exprs []expr.Any
			for _, s := range r {
				e, err := nftExpressions(s)
				if err != nil {
					return fmt.Errorf("rule %s: %w", r, err)
				}
				exprs = append(exprs, e...)
			}
			text := r.String()
			if len(text) > 250 {
				return fmt.Errorf("rule %s: too long for the kernel to remember", r)
			}
			n.conn.AddRule(&nftables.Rule{Table: nftTable, Chain: chain, Exprs: exprs, UserData: userdata.Append(nil, ruleText, []byte(text))})
		}
	}
	return nil
}

var nftHooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
	"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
}

// nftRefusal is the kernel's no in the operator's words.
func nftRefusal(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: this kernel lacks a part of nf_tables that the table needs (of nft_ct, nft_fib_inet, nft_masq, nft_nat, nft_socket, nft_tproxy, nft_numgen)", err)
	}
	return err
}

// readNFTable reads the table as it is.
func (h *Host) readNFTable() error {
	marks := state.NFTFacts{MarkUses: h.cached.Facts.NFT.MarkUses, MarksUnknown: h.cached.Facts.NFT.MarksUnknown}
	h.cached.Facts.NFT, h.cached.Observed.NFTable = marks, state.NFTable{}
	if !h.query.NFT && !h.ledger.tabled() {
		// To ask would load the module.
		return nil
	}
	n, err := h.nf()
	if err != nil {
		h.cached.Facts.NFT.Missing = err.Error()
		return nil
	}
	if h.query.Proxy {
		if err := n.probeProxy(); err != nil && !errors.Is(err, unix.EPERM) {
			h.cached.Facts.NFT.NoProxy = err.Error()
		}
	}
	table, err := n.conn.ListTableOfFamily(nftTable.Name, nftTable.Family)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT):
		// nfnetlink answers so when nf_tables is not there (net/netfilter/nfnetlink.c).
		h.cached.Facts.NFT.Missing = "the module nf_tables is not there (" + err.Error() + ")"
		return nil
	case errors.Is(err, unix.EPERM):
		h.cached.Facts.NFT.Unread = "reading nf_tables needs CAP_NET_ADMIN"
		return nil
	case err != nil:
		return fmt.Errorf("read nft table: %w", err)
	}
	text, err := n.spell(table)
	if err != nil {
		return fmt.Errorf("read nft table: %w", err)
	}
	h.cached.Observed.NFTable = state.NFTableRead(text)
	return nil
}

// probeTable is there for the length of a transaction.
const probeTable = state.NFTableName + "-probe"

// probeProxy finds out whether the kernel has what a transparent proxy needs:
// a transaction that makes a table with such a rule and deletes it again.
func (n *nft) probeProxy() error {
	if n.proxies {
		return nil
	}
	table := &nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet}
	n.conn.AddTable(table)
	chain := n.conn.AddChain(&nftables.Chain{Name: "probe", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
	var exprs []expr.Any
	for _, s := range []state.NFStatement{
		state.NFFamily{Family: state.IPv4}, state.NFTransport{Protocol: unix.IPPROTO_TCP}, state.NFTransparentSocket{}, state.NFWildcardSocket{Not: true},
		state.NFTransparentProxy{Family: state.IPv4, Port: 1},
	} {
		e, err := nftExpressions(s)
		if err != nil {
			return err
		}
		exprs = append(exprs, e...)
	}
	n.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	n.conn.DelTable(table)
	err := n.conn.Flush()
	n.proxies = err == nil
	return err
}

// spell is what the kernel has, in the words of what was written.
func (n *nft) spell(table *nftables.Table) (string, error) {
	all, err := n.conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return "", err
	}
	text := ""
	if table.Flags != 0 {
		text += fmt.Sprintf("\tflags %#x\n", table.Flags)
	}
	for _, c := range all {
		if c.Table.Name != table.Name {
			continue
		}
		lines, err := n.ruleTexts(c.Name)
		if err != nil {
			return "", err
		}
		chain := state.NFChain{Name: c.Name, Type: string(c.Type)}
		if c.Priority != nil {
			chain.Priority = int32(*c.Priority)
		}
		if c.Hooknum != nil {
			for name, hook := range nftHooks {
				if *hook == *c.Hooknum {
					chain.Hook = name
				}
			}
		}
		if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			lines = append(lines, "policy drop")
		}
		text += state.SpellNFChain(chain, lines)
	}
	return text, nil
}

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
		p := &expr.Payload{DestRegister: nftRegister, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
		if s.Addr.Is6() {
			p.Offset, p.Len = 24, 16
		}
		return []expr.Any{
			meta(expr.MetaKeyNFPROTO), equal(false, []byte{nfprotoOf(s.Addr)}),
			p, equal(false, s.Addr.AsSlice()),
			originalDestination, equal(true, s.Addr.AsSlice()),
		}, nil
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

// eventOfNFT says whether a message of nf_tables is about sisod's table.
func eventOfNFT(kind uint16, body []byte) bool {
	const nfgenmsg = 4
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || kind&0xff == unix.NFT_MSG_NEWGEN || len(body) < nfgenmsg || body[0] != unix.NFPROTO_INET {
		return false
	}
	// The first attribute of tables, chains, rules and sets alike is the table's name.
	a := attributes{rest: body[nfgenmsg:]}
	for a.next() {
		if a.kind == unix.NFTA_TABLE_NAME {
			return a.text() == state.NFTableName
		}
	}
	return false
}
