package kernel

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/sisod/sisod/internal/state"
)

func TestTableOfPacketsIsReadAsWrittenAndSpelledAsNftDoes(t *testing.T) {
	enterNamespace(t)
	h := openTestHost(t)
	a4, a6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	table := state.NewNFTable([]state.NFChain{
		{Name: "arriving", Type: "filter", Hook: "prerouting", Priority: state.PriorityArriving, Rules: []state.NFRule{
			{state.NFInterface{Name: "eth0"}, state.NFSetMark{Mask: 0x3f000000, Value: 0x01000000}},
		}},
		{Name: "onward", Type: "filter", Hook: "prerouting", Priority: state.PriorityOnward, Rules: []state.NFRule{
			{state.NFInterface{Name: "eth0"}, state.NFMark{Mask: 0x3f000000, Value: 0x01000000}, state.NFSetMark{Mask: 0x3f000000}},
		}},
		{Name: "forwarded", Type: "filter", Hook: "forward", Priority: state.PriorityMangle, Rules: []state.NFRule{
			{state.NFDirection{Reply: true}, state.NFOriginal{Protocol: 6, Addr: a4, Port: 80}, state.NFSynAck{}, state.NFMaxSegment{Size: 1452}},
		}},
		{Name: "outgoing", Type: "filter", Hook: "postrouting", Priority: state.PriorityMangle, Rules: []state.NFRule{
			{state.NFSource{Addr: a4}, state.NFSynAck{}, state.NFMaxSegment{Size: 1440}},
			{state.NFSource{Addr: a6}, state.NFSynAck{}, state.NFInterface{Out: true, Name: "eth1"}, state.NFMaxSegment{Size: 1400}},
			{state.NFTarget{Addr: a4}, state.NFSynAck{}, state.NFMaxSegment{Size: 1452}},
			{state.NFTarget{Addr: a6}, state.NFSynAck{}, state.NFInterface{Out: true, Name: "eth1"}, state.NFMaxSegment{Size: 1392}},
		}},
		{Name: "translate", Type: "nat", Hook: "postrouting", Priority: state.PrioritySource, Rules: []state.NFRule{
			{state.NFOriginal{Protocol: 6, Addr: a4, Port: 443}, state.NFAccept{}},
			{state.NFOriginal{Protocol: 6, Addr: a4}, state.NFTurn{Of: 2}, state.NFSourceNAT{Addr: a4}},
			{state.NFOriginal{Protocol: 17, Addr: a6, Port: 53}, state.NFSourceNAT{Addr: a6}},
			{state.NFMark{Mask: 0xc0ffffff, Value: 7}, state.NFRedirected{Addr: a4}, state.NFSourceNAT{Addr: a4}},
			{state.NFMark{Mask: 0xc0ffffff, Value: 7}, state.NFRedirected{Addr: a6}, state.NFSourceNAT{Addr: a6}},
			{state.NFInterface{Out: true, Name: "eth0"}, state.NFMasquerade{}},
		}},
	})
	if err := h.writeNFTable(state.Add, table); err != nil {
		t.Fatal(err)
	}
	if got := readHost(t, h, Query{NFT: true}, AllParts).Observed.NFTable; got.Text != table.Text {
		t.Errorf("read\n%s\nwant\n%s", got.Text, table.Text)
	}
	out, err := exec.Command("nft", "-s", "list", "table", "inet", state.NFTableName).CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v %s", err, out)
	}
	if got := string(out); squeezed(got) != squeezed(table.Text) {
		t.Errorf("nft has\n%s\nwant\n%s", got, table.Text)
	}
}

// squeezed leaves out what nft writes otherwise: an empty line between chains, and a
// protocol that a later match tells as well.
func squeezed(s string) string {
	return strings.NewReplacer("\n\n", "\n", "meta l4proto tcp ", "").Replace(s)
}
