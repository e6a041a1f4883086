package state

// Op is what a step does with its object.
type Op uint8

// The operations.
const (
	Add     Op = iota // the object is not there
	Replace           // it takes the place of another value of itself
	Delete            // the object goes
	Restore           // the value from before sisod comes back
)

var opNames = [...]string{"add", "replace", "delete", "restore"}

// String is the operation as messages and the JSON of a plan spell it.
func (o Op) String() string { return opNames[o] }

// Sign is the operation as the text of a plan marks it.
func (o Op) Sign() string { return [...]string{"+", "~", "-", "<"}[o] }

// Removes reports whether the operation takes the object away.
func (o Op) Removes() bool { return o == Delete }

// takesBack reports whether the operation belongs to the second half of a plan.
func (o Op) takesBack() bool { return o == Delete || o == Restore }

// phase is one row of the order of apply.
type phase struct {
	kind Kind
	back bool
	// long: a set of routes that is, or goes by a nexthop, and rules to tables that such
	// a set is written into.
	long bool
	// descending applies the steps of the phase from the last to the first.
	descending bool
	why        string
}

// phases is the order of apply: what others stand on comes first, and goes
// last.
var phases = [...]phase{
	{kind: KindTableName, why: "so that an operator who looks in the middle reads names"},
	{kind: KindMark, why: "a number is noted before a connection carries it"},
	{kind: KindDevice, why: "everything else names links"},
	{kind: KindLinkGroup, why: "a suppress_ifgroup rule that finds no link in the group lets main decide replies"},
	{kind: KindSysctl, why: "a reverse-path filter must be right before packets take the new way"},
	{kind: KindLinkUp, why: "after its filter is right: the first packet may come with the link"},
	{kind: KindRoute, why: "a table is complete before any rule leads to it"},
	{kind: KindNFTable, why: "a mark that no rule looks at changes no way"},
	{kind: KindRule, why: "ascending: main's own networks are let through before a source rule catches them"},
	{kind: KindTimeouts, why: "before the first connection of a service"},
	{kind: KindSyncDaemon, why: "before the first connection that a backup should know"},
	{kind: KindService, why: "a destination belongs to a service; the VIP's return path stands already"},
	{kind: KindDestination, why: "a service that has none refuses who comes"},
	{kind: KindVIP, why: "connections come with it: neighbours' ARP is silenced, replies have their way, a director that takes over refuses nobody"},
	{kind: KindVIP, back: true, why: "before anything that serves its connections, and before the ARP sysctls are given back"},
	{kind: KindDestination, back: true, why: "no new connections for what is taken down"},
	{kind: KindService, back: true, why: "when its destinations are gone"},
	{kind: KindSyncDaemon, back: true, why: "nothing is left to tell a backup"},
	{kind: KindTimeouts, back: true, why: "given back when no service of sisod's uses them"},
	{kind: KindRule, back: true, descending: true, why: "the mirror image: source rules go before the rule that protects main's networks"},
	{kind: KindNFTable, back: true, why: "marks mean nothing when their rules are gone"},
	{kind: KindRoute, back: true, why: "a table is emptied only after the rules to it are gone, or it would leak into main"},
	{kind: KindLinkUp, back: true, why: "a link goes down when nothing uses it"},
	{kind: KindNexthop, why: "routes name it; and below a million IPv6 routes another gateway takes the kernel half a second"},
	{kind: KindRoute, long: true, why: "nothing else waits for a million prefixes"},
	{kind: KindRule, long: true, why: "a table is complete before any rule leads to it"},
	{kind: KindNexthop, back: true, why: "after the routes that take the place of those by it; the others go with it, in one message"},
	{kind: KindRoute, back: true, long: true, why: "what is left when the nexthop is gone"},
	{kind: KindSysctl, back: true, why: "the filter is put back when the ways that needed it are gone"},
	{kind: KindLinkGroup, back: true, why: "no rule looks at the group any more"},
	{kind: KindDevice, back: true, why: "when nothing names it any more"},
	{kind: KindMark, back: true, why: "when no packet gets the mark any more, its connections are forgotten"},
	{kind: KindTableName, back: true, why: "the name goes with the last thing that it named"},
}

// phaseOf is the row of a step, as an index into phases. Rules to the tables in
// filling come after what fills them.
func phaseOf(s Step, filling map[familyTable]bool) int {
	long := false
	switch o := s.Object.(type) {
	case RouteSet:
		long = o.isLong()
	case Rule:
		long = !s.Op.takesBack() && o.Action == Lookup && filling[familyTable{o.Family, o.Table}]
	}
	for i, p := range phases {
		if p.kind == s.Object.Kind() && p.back == s.Op.takesBack() && p.long == long {
			return i
		}
	}
	return len(phases)
}

// isLong reports whether the set belongs to the rows of long ones.
func (s RouteSet) isLong() bool { return s.Dsts.Len() >= LongSet || s.Nexthop != 0 }

// filling are the tables that steps write long sets of routes into.
func filling(steps []Step) map[familyTable]bool {
	var tables map[familyTable]bool
	for _, s := range steps {
		if o, ok := s.Object.(RouteSet); ok && !s.Op.takesBack() && o.isLong() {
			mark(&tables, familyTable{o.Family, o.Table})
		}
	}
	return tables
}
