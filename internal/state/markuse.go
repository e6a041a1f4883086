package state

import "fmt"

// MarkUse is a rule of nftables of somebody else's that looks at, or writes, bits
// of marks. Those of iptables-nft are among them.
type MarkUse struct {
	Family, Table, Chain string
	Handle               uint64 // as `nft -a list ruleset` prints it
	Connection           bool   // of connections' marks, not of packets'
	Writes               bool
	Bits                 uint32
}

// String is what the rule does, and where it is.
func (u MarkUse) String() string {
	verb, mark := "looks at", "meta mark"
	if u.Writes {
		verb = "writes"
	}
	if u.Connection {
		mark = "ct mark"
	}
	return fmt.Sprintf("the rule with handle %d of chain %s %s bits %#08x of %s", u.Handle, u.Chain, verb, u.Bits, mark)
}
