package routing

import (
	"cmp"
	"container/heap"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strconv"

	"github.com/sisod/sisod/internal/state"
)

// The rows from RowAddresses to RowSources, where rules about very many addresses stand.
//
// A rule `from PREFIX goto BLOCK` leads a lookup to the few rules that may concern it,
// instead of past all of them. The rules of a block share a priority, so that one that
// comes or goes is one message; a rule behind every few blocks leads on to the end.
const (
	rowBranches  = state.RowAddresses + 1 // and those that follow
	branchRows   = 4
	rowBranchOff = rowBranches + branchRows // what no branch leads away
	rowBlocks    = rowBranchOff + 1
	blocksAtOnce = 3 // then comes a way out
	rowTreeEnd   = state.RowSources - 1
	blockGroups  = (rowTreeEnd - rowBlocks) / (blocksAtOnce + 1)
	blockPlaces  = blockGroups * blocksAtOnce
	// mostBlocks leaves room, so that a new block finds a place without moving others.
	mostBlocks = blockPlaces * 7 / 10
)

// sourceTree spreads rules about addresses over blocks. A lookup passes the branches
// and one block: of n addresses about the square root.
func (b *builder) sourceTree(f state.Family, sources []source) {
	slices.SortFunc(sources, func(x, y source) int { return comparePrefixes(x.prefix, y.prefix) })
	origin := sources[0].exit.profile.Pos.Short()
	leave := func(row int) {
		r := b.row(f, row, 0)
		r.Action, r.Target = state.Goto, b.config.Settings.Priority+rowTreeEnd
		b.rule(r, origin)
	}
	leave(rowBranchOff)
	blocks := spread(sources, min(mostBlocks, int(math.Ceil(math.Sqrt(float64(len(sources)))))))
	for i, p := range places(blocks) {
		row := rowBlocks + p.place/blocksAtOnce*(blocksAtOnce+1) + p.place%blocksAtOnce
		branch := b.row(f, rowBranches+p.attempt%branchRows, 0)
		branch.From, branch.Action, branch.Target = blocks[i].prefix, state.Goto, b.config.Settings.Priority+uint32(row)
		b.rule(branch, blocks[i].sources[0].exit.profile.Pos.Short())
		for _, s := range blocks[i].sources {
			b.sourceRule(row, s)
		}
		leave(rowBlocks + p.place/blocksAtOnce*(blocksAtOnce+1) + blocksAtOnce)
	}
	end := b.row(f, rowTreeEnd, 0)
	end.Action = state.Nop
	b.rule(end, origin)
}

// block is what lies in one prefix.
type block struct {
	prefix  netip.Prefix
	sources []source // sorted, disjoint
}

// fullest is a heap of blocks, that with the most sources first.
type fullest []block

func (h fullest) Len() int      { return len(h) }
func (h fullest) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *fullest) Push(x any)   { *h = append(*h, x.(block)) }
func (h fullest) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(len(h[j].sources), len(h[i].sources)), comparePrefixes(h[i].prefix, h[j].prefix)) < 0
}
func (h *fullest) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// spread divides sources into n blocks or less, always the fullest first: one source
// more or less changes one or two of them.
func spread(sources []source, n int) []block {
	h := fullest{{netip.PrefixFrom(sources[0].prefix.Addr(), 0).Masked(), sources}}
	for len(h) < n && len(h[0].sources) > 1 {
		low, high := divide(heap.Pop(&h).(block).sources)
		heap.Push(&h, low)
		heap.Push(&h, high)
	}
	slices.SortFunc(h, func(x, y block) int { return comparePrefixes(x.prefix, y.prefix) })
	return h
}

// divide splits two sources or more at the first bit in which they differ.
func divide(sources []source) (low, high block) {
	l, h := halves(common(sources[0].prefix.Addr(), sources[len(sources)-1].prefix.Addr()))
	at := slices.IndexFunc(sources, func(s source) bool { return h.Contains(s.prefix.Addr()) })
	return block{l, sources[:at]}, block{h, sources[at:]}
}

// placed is where a block stands: the place that it came to at that attempt.
type placed struct{ place, attempt int }

// places gives each block a place that depends on its prefix, and on few of the other
// blocks: a block that comes does not move those that are there. Two ways to a block
// from one prefix would be one rule to the kernel, which does not compare where a goto
// leads, so that the attempt tells them apart by their row.
func places(blocks []block) []placed {
	order := make([]int, len(blocks))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(hash(blocks[i].prefix, -1), hash(blocks[j].prefix, -1)), i-j)
	})
	out := make([]placed, len(blocks))
	taken := map[int]bool{}
	for _, i := range order {
		for attempt := 0; ; attempt++ {
			place := int(hash(blocks[i].prefix, attempt) % uint32(blockPlaces))
			if !taken[place] {
				taken[place] = true
				out[i] = placed{place, attempt}
				break
			}
		}
	}
	return out
}

func hash(p netip.Prefix, attempt int) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.String() + strconv.Itoa(attempt)))
	x := h.Sum32()
	// FNV's last byte changes the lowest bits alone.
	x ^= x >> 16
	x *= 0x7feb352d
	return x ^ x>>15
}
