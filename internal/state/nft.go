package state

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// NFTableName is sisod's one table of nftables, in family inet.
const NFTableName = "sisod"

// NFTable is sisod's table of nftables as a whole, which is replaced in one
// transaction. The zero value is no table.
type NFTable struct {
	// Text is the table as `nft -s list table inet sisod` prints it, and its identity.
	Text   string
	chains *[]NFChain // nil for one that was read
}

// NFChain is a base chain.
type NFChain struct {
	Name     string
	Type     string // "filter", "route" or "nat"
	Hook     string // "prerouting", "input", "forward", "output" or "postrouting"
	Priority int32  // lower is asked first (linux/netfilter_ipv4.h, NF_IP_PRI_*)
	Rules    []NFRule
}

// Priorities of chains. Connections get their mark after they are known and before
// others translate their addresses; sisod's own translations come at the usual place.
const (
	PriorityArriving = -310 // before anybody else looks
	PriorityMangle   = -150
	PriorityCaptured = PriorityMangle + 1 // after the connection has its mark
	PrioritySource   = 100
	PriorityOnward   = 200 // after all others have looked
)

// NFRule is a rule: every match must hold, in order, for the statements to act.
type NFRule []NFStatement

// NFStatement is a match or a statement of a rule, spelled as nft prints it.
type NFStatement interface {
	fmt.Stringer
	nfStatement()
}

// NewNFTable makes the table of chains; those without rules are left out.
func NewNFTable(chains []NFChain) NFTable {
	var kept []NFChain
	var b strings.Builder
	for _, c := range chains {
		if len(c.Rules) == 0 {
			continue
		}
		kept = append(kept, c)
		lines := make([]string, 0, len(c.Rules))
		for _, r := range c.Rules {
			lines = append(lines, r.String())
		}
		b.WriteString(SpellNFChain(c, lines))
	}
	if len(kept) == 0 {
		return NFTable{}
	}
	return NFTable{Text: SpellNFTable(b.String()), chains: &kept}
}

// NFRules are the rules of sisod's chains, in order. Whoever asks for some adds
// its own to those of others.
type NFRules struct {
	Arriving  []NFRule // whatever comes in by an interface, before its connection is known
	Incoming  []NFRule // the same, when that is known
	Captured  []NFRule // the same, after that: what goes to transparent sockets
	Onward    []NFRule // the same, last: what decides its way
	Delivered []NFRule // what has arrived at this host
	Forwarded []NFRule // what only passes
	Sent      []NFRule // what this host sends; a changed mark has its way looked up again
	Outgoing  []NFRule // whatever goes out by an interface
	Translate []NFRule // the first packet of what goes out by an interface
}

// AddPackets adds rules to those of sisod's table.
func (d *Desired) AddPackets(r NFRules) {
	p := &d.packets
	p.Arriving = append(p.Arriving, r.Arriving...)
	p.Incoming = append(p.Incoming, r.Incoming...)
	p.Captured = append(p.Captured, r.Captured...)
	p.Onward = append(p.Onward, r.Onward...)
	p.Delivered = append(p.Delivered, r.Delivered...)
	p.Forwarded = append(p.Forwarded, r.Forwarded...)
	p.Sent = append(p.Sent, r.Sent...)
	p.Outgoing = append(p.Outgoing, r.Outgoing...)
	p.Translate = append(p.Translate, r.Translate...)
	// The first translation counts: that of a service before that of all that leaves.
	slices.SortStableFunc(p.Translate, func(x, y NFRule) int { return cmp.Compare(x.masquerades(), y.masquerades()) })
	d.NFTable = NewNFTable([]NFChain{
		{Name: "arriving", Type: "filter", Hook: "prerouting", Priority: PriorityArriving, Rules: p.Arriving},
		{Name: "incoming", Type: "filter", Hook: "prerouting", Priority: PriorityMangle, Rules: p.Incoming},
		{Name: "captured", Type: "filter", Hook: "prerouting", Priority: PriorityCaptured, Rules: p.Captured},
		{Name: "onward", Type: "filter", Hook: "prerouting", Priority: PriorityOnward, Rules: p.Onward},
		{Name: "delivered", Type: "filter", Hook: "input", Priority: PriorityMangle, Rules: p.Delivered},
		{Name: "forwarded", Type: "filter", Hook: "forward", Priority: PriorityMangle, Rules: p.Forwarded},
		{Name: "sent", Type: "route", Hook: "output", Priority: PriorityMangle, Rules: p.Sent},
		{Name: "outgoing", Type: "filter", Hook: "postrouting", Priority: PriorityMangle, Rules: p.Outgoing},
		{Name: "translate", Type: "nat", Hook: "postrouting", Priority: PrioritySource, Rules: p.Translate},
	})
}

// NFTableRead is a table that was found; chains are texts of SpellNFChain.
func NFTableRead(chains string) NFTable { return NFTable{Text: SpellNFTable(chains)} }

// SpellNFTable is a table of spelled chains.
func SpellNFTable(chains string) string {
	return "table inet " + NFTableName + " {\n" + chains + "}\n"
}

// SpellNFChain is a chain with spelled rules.
func SpellNFChain(c NFChain, rules []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook %s priority %s; policy accept;\n", c.Name, c.Type, c.Hook, priorityName(c.Priority))
	for _, r := range rules {
		b.WriteString("\t\t" + r + "\n")
	}
	b.WriteString("\t}\n")
	return b.String()
}

func priorityName(p int32) string {
	switch p {
	case PriorityArriving:
		return "raw - 10"
	case PriorityMangle:
		return "mangle"
	case PriorityCaptured:
		return "mangle + 1"
	case PrioritySource:
		return "srcnat"
	}
	return fmt.Sprint(p)
}

// Chains are the chains to write.
func (t NFTable) Chains() []NFChain {
	if t.chains == nil {
		return nil
	}
	return *t.chains
}

// Kind is KindNFTable.
func (NFTable) Kind() Kind { return KindNFTable }

// String is the table's name and size.
func (t NFTable) String() string {
	chains, rules := 0, 0
	for line := range strings.Lines(t.Text) {
		switch {
		case strings.HasPrefix(line, "\tchain "):
			chains++
			rules--
		case strings.HasPrefix(line, "\t\t"):
			rules++
		}
	}
	return fmt.Sprintf("inet %s (chains: %d, rules: %d)", NFTableName, chains, rules)
}

// Spell is String.
func (t NFTable) Spell(Names) string { return t.String() }

// Commands are nft's.
func (t NFTable) Commands(op Op, _ Names) []string {
	name := "table inet " + NFTableName
	if op.Removes() {
		return []string{"nft delete " + name}
	}
	return []string{"nft -f - <<'END'\n" + name + "\ndelete " + name + "\n" + t.Text + "END"}
}

// masquerades is 1 for a rule that masquerades.
func (r NFRule) masquerades() int {
	if slices.Contains(r, NFStatement(NFMasquerade{})) {
		return 1
	}
	return 0
}

// String is the rule as nft prints it.
func (r NFRule) String() string {
	words := make([]string, 0, len(r))
	for _, s := range r {
		words = append(words, s.String())
	}
	return strings.Join(words, " ")
}

// The matches and statements.
type (
	// NFInterface matches the interface that a packet comes in or goes out by.
	NFInterface struct {
		Out, Not bool
		Name     string
	}
	// NFDirection matches packets of the side that a connection began at, or replies.
	NFDirection struct{ Reply bool }
	// NFRelated matches what belongs to a connection without being of it: ICMP errors.
	NFRelated struct{}
	// NFMark matches bits of a packet's mark, or of its connection's.
	NFMark struct {
		Connection, Not bool
		Mask, Value     uint32
	}
	// NFSetMark sets bits of a packet's mark, or of its connection's, and no other.
	NFSetMark struct {
		Connection  bool
		Mask, Value uint32
	}
	// NFFamily matches packets of a family.
	NFFamily struct{ Family Family }
	// NFTransport matches a protocol, an IANA number.
	NFTransport struct{ Protocol uint8 }
	// NFDestinationPort matches a port of TCP or UDP.
	NFDestinationPort struct {
		Protocol uint8
		Port     uint16
	}
	// NFSource matches packets from an address.
	NFSource struct{ Addr netip.Addr }
	// NFTarget matches packets to an address.
	NFTarget struct{ Addr netip.Addr }
	// NFForeignSource matches packets whose source is no address of the host.
	NFForeignSource struct{}
	// NFDestination matches packets to a kind of address: "local", "unicast" …
	NFDestination struct {
		Not  bool
		Type string
	}
	// NFTransparentSocket matches packets of a transparent socket. A socket that is
	// no more than a memory of its connection (TIME_WAIT) has no other property.
	NFTransparentSocket struct{}
	// NFWildcardSocket matches packets of a socket that is bound to every address,
	// or, with Not, to one.
	NFWildcardSocket struct{ Not bool }
	// NFTransparentProxy gives the packet to a socket of the host. The zero Addr is
	// the interface's own, port 0 the packet's own.
	NFTransparentProxy struct {
		Family Family
		Addr   netip.Addr
		Port   uint16
	}
	// NFOriginal matches where a connection was directed to when it began. Port 0 is
	// every port.
	NFOriginal struct {
		Protocol uint8
		Addr     netip.Addr
		Port     uint16
	}
	// NFRedirected matches packets to Addr of connections that were directed
	// elsewhere when they began.
	NFRedirected struct{ Addr netip.Addr }
	// NFTurn matches every Of-th packet.
	NFTurn struct{ Of uint32 }
	// NFSourceNAT makes Addr the source of a connection.
	NFSourceNAT struct{ Addr netip.Addr }
	// NFMasquerade makes the interface's address the source of a connection.
	NFMasquerade struct{}
	// NFSetSource writes the source of a packet, without any connection's knowledge.
	NFSetSource struct{ Addr netip.Addr }
	// NFSynAck matches the second segment of a TCP handshake.
	NFSynAck struct{}
	// NFMaxSegment lowers the MSS that a TCP segment announces, bytes.
	NFMaxSegment struct{ Size uint16 }
	// NFAccept ends the chain.
	NFAccept struct{}
)

func (NFInterface) nfStatement()         {}
func (NFDirection) nfStatement()         {}
func (NFRelated) nfStatement()           {}
func (NFMark) nfStatement()              {}
func (NFSetMark) nfStatement()           {}
func (NFFamily) nfStatement()            {}
func (NFTransport) nfStatement()         {}
func (NFDestinationPort) nfStatement()   {}
func (NFSource) nfStatement()            {}
func (NFTarget) nfStatement()            {}
func (NFForeignSource) nfStatement()     {}
func (NFDestination) nfStatement()       {}
func (NFTransparentSocket) nfStatement() {}
func (NFWildcardSocket) nfStatement()    {}
func (NFTransparentProxy) nfStatement()  {}
func (NFOriginal) nfStatement()          {}
func (NFRedirected) nfStatement()        {}
func (NFTurn) nfStatement()              {}
func (NFSourceNAT) nfStatement()         {}
func (NFMasquerade) nfStatement()        {}
func (NFSetSource) nfStatement()         {}
func (NFSynAck) nfStatement()            {}
func (NFMaxSegment) nfStatement()        {}
func (NFAccept) nfStatement()            {}

func not(n bool) string {
	if n {
		return "!= "
	}
	return ""
}

// nfFamily is the family as nft spells it before addresses.
func nfFamily(f Family) string {
	if f == IPv6 {
		return "ip6"
	}
	return "ip"
}

func familyOf(a netip.Addr) Family {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

func (s NFInterface) String() string {
	return map[bool]string{false: "iifname ", true: "oifname "}[s.Out] + not(s.Not) + `"` + s.Name + `"`
}

func (s NFDirection) String() string {
	return map[bool]string{false: "ct direction original", true: "ct direction reply"}[s.Reply]
}

func (NFRelated) String() string { return "ct state related" }

func markOf(connection bool) string {
	if connection {
		return "ct mark"
	}
	return "meta mark"
}

func (s NFMark) String() string {
	return fmt.Sprintf("%s & 0x%08x %s 0x%08x", markOf(s.Connection), s.Mask, map[bool]string{false: "==", true: "!="}[s.Not], s.Value)
}

func (s NFSetMark) String() string {
	m := markOf(s.Connection)
	if s.Value == 0 {
		return fmt.Sprintf("%s set %s & 0x%08x", m, m, ^s.Mask)
	}
	return fmt.Sprintf("%s set %s & 0x%08x | 0x%08x", m, m, ^s.Mask|s.Value, s.Value) // as nft spells it: the bits to be set are kept, too
}

func (s NFFamily) String() string {
	return map[bool]string{false: "meta nfproto ipv4", true: "meta nfproto ipv6"}[s.Family == IPv6]
}

func (s NFTransport) String() string { return "meta l4proto " + spellIPProto(s.Protocol) }

func (s NFDestinationPort) String() string {
	return fmt.Sprintf("%s dport %d", spellIPProto(s.Protocol), s.Port)
}

func (s NFSource) String() string {
	return fmt.Sprintf("%s saddr %s", nfFamily(familyOf(s.Addr)), s.Addr)
}

func (s NFTarget) String() string {
	return fmt.Sprintf("%s daddr %s", nfFamily(familyOf(s.Addr)), s.Addr)
}

func (NFForeignSource) String() string { return "fib saddr type != local" }

func (s NFDestination) String() string { return "fib daddr type " + not(s.Not) + s.Type }

func (NFTransparentSocket) String() string { return "socket transparent 1" }

func (s NFWildcardSocket) String() string {
	return map[bool]string{false: "socket wildcard 1", true: "socket wildcard 0"}[s.Not]
}

func (s NFTransparentProxy) String() string {
	to := ""
	if s.Addr.IsValid() {
		to = s.Addr.String()
		if s.Addr.Is6() {
			to = "[" + to + "]"
		}
	}
	if s.Port != 0 {
		to += fmt.Sprintf(":%d", s.Port)
	}
	return "tproxy " + nfFamily(s.Family) + " to " + to
}

func (s NFOriginal) String() string {
	text := fmt.Sprintf("meta l4proto %s ct original %s daddr %s", spellIPProto(s.Protocol), nfFamily(familyOf(s.Addr)), s.Addr)
	if s.Port != 0 {
		text += fmt.Sprintf(" ct original proto-dst %d", s.Port)
	}
	return text
}

func (s NFRedirected) String() string {
	f := nfFamily(familyOf(s.Addr))
	return fmt.Sprintf("%s daddr %s ct original %s daddr != %s", f, s.Addr, f, s.Addr)
}

func (s NFTurn) String() string { return fmt.Sprintf("numgen inc mod %d 0", s.Of) }

func (s NFSourceNAT) String() string {
	return fmt.Sprintf("snat %s to %s", nfFamily(familyOf(s.Addr)), s.Addr)
}

func (NFMasquerade) String() string { return "masquerade" }

func (s NFSetSource) String() string {
	return fmt.Sprintf("%s saddr set %s", nfFamily(familyOf(s.Addr)), s.Addr)
}

func (NFSynAck) String() string { return "tcp flags syn,ack / syn,ack" }

func (s NFMaxSegment) String() string { return fmt.Sprintf("tcp option maxseg size set %d", s.Size) }

func (NFAccept) String() string { return "accept" }
