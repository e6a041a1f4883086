package routing

import (
	"fmt"
	"strconv"

	"github.com/sisod/sisod/internal/state"
)

// sharedBits reports a rule of somebody else's that looks at sisod's bits of marks.
// One that looks at all 32 bits looks for a number of its own, mostly: it is in the
// way where that has bits of sisod's.
func (b *builder) sharedBits(r state.Rule) {
	own, looked := b.config.Settings.MarkMask, r.Mask
	if looked == 1<<32-1 {
		looked = r.Mark
	}
	if len(b.Marks) == 0 || looked&own == 0 {
		return
	}
	b.Problems = append(b.Problems, state.Problem{
		Subject: "rule " + strconv.FormatUint(uint64(r.Priority), 10),
		Text: fmt.Sprintf("somebody else's rule looks at bits of marks that are sisod's (mark_mask %#08x): %s; packets are taken for each other's; %s",
			own, r.Spell(b.tables.Names()), moveBits),
	})
}

const moveBits = "move sisod's bits with mark_mask in sisod.toml, or those of the other program"

// sharedMarks reports tables of nftables of others whose rules use sisod's bits of
// marks, each once: a program mostly has many such rules, or none.
func (b *builder) sharedMarks() {
	if len(b.Marks) == 0 {
		return
	}
	own := b.config.Settings.MarkMask
	if why := b.facts.NFT.MarksUnknown; why != "" && b.facts.NFT.Unread == "" {
		b.Problems = append(b.Problems, state.Problem{
			Subject: "nft tables",
			Text:    fmt.Sprintf("whether rules of others use bits of marks that are sisod's (mark_mask %#08x) is not known: %s", own, why),
		})
	}
	type table struct{ family, name string }
	told := map[table]bool{}
	for _, u := range b.facts.NFT.MarkUses {
		key := table{u.Family, u.Table}
		if told[key] {
			continue
		}
		told[key] = true
		more := -1
		for _, o := range b.facts.NFT.MarkUses {
			if o.Family == u.Family && o.Table == u.Table {
				more++
			}
		}
		others := ""
		if more > 0 {
			others = fmt.Sprintf(", and %d more there", more)
		}
		b.Problems = append(b.Problems, state.Problem{
			Subject: "nft table " + u.Family + " " + u.Table,
			Text: fmt.Sprintf("somebody else's rules use bits of marks that are sisod's (mark_mask %#08x): %s%s; packets are taken for each other's; %s",
				own, u, others, moveBits),
		})
	}
}
