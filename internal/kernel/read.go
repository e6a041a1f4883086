package kernel

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// Read reads the parts of the kernel that are named, and those whose last read
// failed or whose question has changed; the rest is as it was seen before. The
// snapshot shares its maps and slices with later ones: it is not to be changed.
// After an error there is no snapshot, because unknown is not empty.
func (h *Host) Read(ctx context.Context, q Query, parts Parts) (Snapshot, error) {
	h.stale |= parts | h.asked(q)
	h.query = Query{
		Interfaces: slices.Clone(q.Interfaces), Placing: slices.Clone(q.Placing), Tables: slices.Clone(q.Tables), Sysctls: slices.Clone(q.Sysctls),
		Window: q.Window, Named: slices.Clone(q.Named), Everywhere: q.Everywhere, Sweep: q.Sweep, IPVS: q.IPVS, Expected: slices.Clone(q.Expected),
		NFT: q.NFT, Proxy: q.Proxy, MarkMask: q.MarkMask, Marks: q.Marks, Listening: slices.Clone(q.Listening), Asking: slices.Clone(q.Asking),
	}
	h.unnamed = map[int]bool{}
	for range readPasses {
		if err := h.readStale(ctx); err != nil {
			return Snapshot{}, err
		}
		if h.stale == 0 {
			break
		}
	}
	h.readAwaited()
	h.cached.Facts.Now = time.Now()
	if h.cached.Facts.NFT.MarksUnknown != "" || h.cached.Facts.NFT.Missing != "" {
		// Unknown does not stay so.
		h.stale |= PartMarks
	}
	return h.cached, nil
}

// TableNames reads the names of tables ahead of everything else, because they
// tell which tables to read: the facts hold SystemTables and OwnTables. Without
// again they may be those of the last read.
func (h *Host) TableNames(again bool) (state.Facts, error) {
	if again || h.stale&PartNames != 0 {
		if err := h.readTableNames(); err != nil {
			h.stale |= PartNames
			return state.Facts{}, err
		}
		h.stale &^= PartNames
	}
	return state.Facts{SystemTables: h.cached.Facts.SystemTables, OwnTables: h.cached.Facts.OwnTables}, nil
}

// readPasses bounds the passes of one Read while links change below it. What
// is stale after them is read by the next Read, which the event of that change
// asks for.
const readPasses = 3

// readStale reads every stale part once.
func (h *Host) readStale(ctx context.Context) error {
	if h.stale&(PartRoutes|PartMain) != 0 || len(h.lost) > 0 || len(h.expired) > 0 {
		h.stale |= PartNexthops
	}
	for _, r := range [...]struct {
		part Parts
		read func() error
	}{
		// Links come first: everything else names them.
		{PartLinks, h.readLinks},
		{PartNames, h.readTableNames},
		{PartRules, h.readRules},
		// Routes name them.
		{PartNexthops, h.readNexthops},
		{PartRoutes | PartExpired, h.readRoutes},
		{PartMain | PartExpired, h.readMain},
		{PartValues, h.readValues},
		{PartIPVS, h.readIPVS},
		{PartNFT, h.readNFTable},
		{PartSockets, h.readSockets},
		{PartMarks, h.readMarkUses},
	} {
		if h.stale&r.part == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the kernel: %w", err)
		}
		if err := r.read(); err != nil {
			return err
		}
		h.stale &^= r.part &^ PartExpired
		if len(h.lost) == 0 && len(h.expired) == 0 && len(h.readdressed) == 0 {
			h.stale &^= PartExpired
		}
		if h.linksMoved() {
			// A read met a link that was not known: what is kept may name it wrongly.
			h.noteLinks()
		}
	}
	return nil
}

// asked returns the parts that answer another question than q.
func (h *Host) asked(q Query) Parts {
	var parts Parts
	if !slices.Equal(q.Interfaces, h.query.Interfaces) {
		parts |= PartMain | PartValues
	}
	if !slices.Equal(q.Named, h.query.Named) {
		parts |= PartMain
	}
	if !slices.Equal(q.Tables, h.query.Tables) {
		parts |= PartRoutes | PartRules
	}
	if q.Sweep && !h.query.Sweep {
		parts |= PartRoutes
	}
	if !slices.Equal(q.Sysctls, h.query.Sysctls) {
		parts |= PartValues
	}
	if q.Everywhere != h.query.Everywhere {
		parts |= PartMain
	}
	if q.IPVS != h.query.IPVS {
		parts |= PartIPVS
	}
	if q.NFT != h.query.NFT || q.Proxy != h.query.Proxy {
		parts |= PartNFT
	}
	if q.Marks != h.query.Marks || q.MarkMask != h.query.MarkMask {
		parts |= PartMarks
	}
	if !slices.Equal(q.Listening, h.query.Listening) || !slices.Equal(q.Asking, h.query.Asking) {
		parts |= PartSockets
	}
	if q.Window != h.query.Window || q.MarkMask != h.query.MarkMask {
		parts |= PartRules
	}
	return parts
}

// linkName spells a link that a route names. A link that came after the last
// look at them is looked for once.
func (h *Host) linkName(index int) string {
	if s := h.links.name(index); s != "" || h.unnamed[index] {
		return s
	}
	if err := h.links.read(); err != nil {
		h.options.Log.Warn("links not read again", "error", err)
	}
	s := h.links.name(index)
	if s == "" {
		if h.unnamed == nil {
			h.unnamed = map[int]bool{}
		}
		h.unnamed[index] = true
	}
	return s
}

func (h *Host) readLinks() error {
	if err := h.links.read(); err != nil {
		return err
	}
	h.noteLinks()
	return nil
}

// linksMoved reports whether the links are not those of the snapshot.
func (h *Host) linksMoved() bool {
	return !slices.Equal(h.links.all(), h.cached.Facts.Links) || !slices.Equal(h.links.addresses(), h.cached.Facts.Addresses)
}

// noteLinks takes the links into the snapshot, and marks what may have changed
// with them.
func (h *Host) noteLinks() {
	if !h.linksMoved() {
		return
	}
	h.expireMoved()
	h.cached.Observed.VIPs = h.ledger.vips(h.links)
	h.cached.Facts.Links = h.links.all()
	h.cached.Facts.Addresses = h.links.addresses()
}

// ReadAlso is the snapshot of the last Read with further sysctls in it: which
// ones a role needs depends on what that Read saw. A path is read once for as
// long as the values of that Read count.
func (h *Host) ReadAlso(paths []string) Snapshot {
	values := h.cached.Facts.Sysctls
	for _, path := range paths {
		if _, known := values[path]; known || h.lookedAt[path] {
			continue
		}
		h.lookedAt[path] = true
		if value, err := readSysctl(path); err == nil {
			values = maps.Clone(values)
			values[path] = value
		}
	}
	h.cached.Facts.Sysctls, h.cached.Observed.Sysctls = values, values
	return h.cached
}

func (h *Host) readTableNames() error {
	system, own, err := h.readNames()
	if err != nil {
		return err
	}
	h.cached.Facts.SystemTables, h.cached.Facts.OwnTables = system, own
	h.cached.Observed.Names = map[state.TableName]bool{}
	for name, number := range own {
		h.cached.Observed.Names[state.TableName{Number: number, Name: name}] = true
	}
	return nil
}

func (h *Host) readRules() error {
	own := map[state.Rule]bool{}
	order := map[state.Family]ruleOrder{}
	var foreign []state.Rule
	for _, f := range state.Families {
		rules, err := h.conn.listRules(f)
		if err != nil {
			return err
		}
		var mine []state.Rule
		for _, r := range rules {
			switch {
			case r.Protocol == state.Protocol && !r.Partial:
				mine = append(mine, r.Rule)
			case h.concerns(r.Rule):
				foreign = append(foreign, r.Rule)
			}
		}
		for _, r := range mine {
			own[r] = true
		}
		order[f] = orderOf(mine)
	}
	h.cached.Observed.Rules, h.cached.Facts.ForeignRules, h.order = own, foreign, order
	return nil
}

// concerns reports whether a rule of somebody else's stands between sisod's, leads
// to a table of sisod's, or looks at bits of marks that are sisod's.
func (h *Host) concerns(r state.Rule) bool {
	return h.query.Window[0] <= r.Priority && r.Priority <= h.query.Window[1] ||
		r.Action == state.Lookup && slices.Contains(h.query.Tables, r.Table) || r.Mask&h.query.MarkMask != 0
}

// ruleOrders returns copies of the orders, for one application; nil when the
// rules may have changed since they were read.
func (h *Host) ruleOrders() map[state.Family]ruleOrder {
	if h.stale&PartRules != 0 {
		return nil
	}
	orders := map[state.Family]ruleOrder{}
	for f, o := range h.order {
		orders[f] = ruleOrder{}
		for priority, rules := range o {
			orders[f][priority] = slices.Clone(rules)
		}
	}
	return orders
}

func (h *Host) readValues() error {
	// Each is opened once, whoever asks for it.
	values, absent := map[string]string{}, map[string]error{}
	read := func(path string) (string, error) {
		if value, ok := values[path]; ok || absent[path] != nil {
			return value, absent[path]
		}
		value, err := readSysctl(path)
		if err != nil {
			absent[path] = err
		} else {
			values[path] = value
		}
		return value, err
	}
	before := h.ledger.before(h.links, read)
	before.Timeouts = h.cached.Observed.Before.Timeouts
	devices, err := h.readDevices()
	if err != nil {
		return err
	}
	h.cached.Observed.Devices, h.cached.Observed.VIPs = devices, h.ledger.vips(h.links)
	h.cached.Observed.Up = map[string]bool{}
	for _, l := range h.cached.Facts.Links {
		h.cached.Observed.Up[l.Name] = l.Up
	}
	for _, path := range h.query.Sysctls {
		// What cannot be read is left out. What could be given back was read already:
		// what drains still stands on it.
		_, _ = read(path)
	}
	h.lookedAt = map[string]bool{}
	groups := map[string]uint32{}
	for _, l := range h.cached.Facts.Links {
		_, remembered := before.Groups[l.Name]
		if remembered || slices.Contains(h.query.Interfaces, l.Name) {
			groups[l.Name] = l.Group
		}
	}
	h.cached.Facts.Sysctls, h.cached.Observed.Sysctls = values, values
	h.cached.Facts.Known = h.ledger.known()
	h.cached.Facts.FoundGroups = before.Groups
	h.cached.Facts.Marks = h.ledger.marks()
	h.cached.Observed.Marks = h.cached.Facts.Marks
	h.cached.Observed.Groups, h.cached.Observed.Before = groups, before
	return nil
}
