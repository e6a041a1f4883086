package kernel

import (
	"fmt"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/state"
)

// dumpTries is how often a dump is begun anew when the ruleset changes meanwhile.
const dumpTries = 10

// ruleTexts are the texts that a chain's rules have with them, in order. What the
// rules do is not decoded: the kernel may give it back in forms that the library
// does not read (a direction of connections is one byte, which v0.3.0 reads as four).
func (n *nft) ruleTexts(chain string) ([]string, error) {
	body := []byte{unix.NFPROTO_INET, 0, 0, 0} // struct nfgenmsg
	body = appendString(body, unix.NFTA_RULE_TABLE, state.NFTableName)
	body = appendString(body, unix.NFTA_RULE_CHAIN, chain)
	request := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE), Flags: netlink.Request | netlink.Dump},
		Data:   body,
	}
	for range dumpTries {
		messages, err := n.reader.Execute(request)
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
		}
		var texts []string
		whole := true
		for _, m := range messages {
			whole = whole && m.Header.Flags&netlink.DumpInterrupted == 0
			text, err := ruleTextOf(m.Data)
			if err != nil {
				return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
			}
			texts = append(texts, text)
		}
		if whole {
			return texts, nil
		}
	}
	return nil, fmt.Errorf("list rules of chain %s: the ruleset changes all the time", chain)
}

// ruleTextOf is the text with one rule.
func ruleTextOf(body []byte) (string, error) {
	const nfgenmsg = 4
	if len(body) < nfgenmsg {
		return "", errMalformed
	}
	text := "not written by sisod"
	a := attributes{rest: body[nfgenmsg:]}
	for a.next() {
		if a.kind == unix.NFTA_RULE_USERDATA {
			if own := userdata.Get(a.value, ruleText); own != nil {
				text = string(own)
			}
		}
	}
	return text, a.err
}
