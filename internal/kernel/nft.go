package kernel

import (
	"errors"
	"fmt"
	"time"

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
	socket *netlink.Conn // of conn
	port   uint32        // the socket's address
	reader *netlink.Conn // for what the library does not read
	// proxies: the kernel has what transparent proxies need.
	proxies bool
}

func openNFT() (*nft, error) {
	n := &nft{}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		n.socket = c
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

// flush sends a transaction. The library waits for as many answers as there are
// messages, and a kernel that does not know nf_tables gives one for all of them
// (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch).
func (n *nft) flush() error {
	if err := n.socket.SetReadDeadline(time.Now().Add(nftAnswer)); err != nil {
		return err
	}
	err := n.conn.Flush()
	return errors.Join(err, n.socket.SetReadDeadline(time.Time{}))
}

// nftAnswer is how long an answer may take, the send included, in which the
// kernel loads what modules the rules need.
const nftAnswer = 30 * time.Second

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
	err = nftRefusal(n.flush())
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
	table, err := n.conn.ListTableOfFamily(nftTable.Name, nftTable.Family)
	absent := errors.Is(err, unix.ENOENT)
	if h.query.Proxy && (err == nil || absent) {
		if err := n.probeProxy(); err != nil && !errors.Is(err, unix.EPERM) {
			h.cached.Facts.NFT.NoProxy = err.Error()
		}
	}
	switch {
	case absent:
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
	err := n.flush()
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
