// Package state holds the kernel objects that sisod owns, as plain values:
// what profiles ask for, what the kernel has, the difference of the two and
// the order in which that difference is applied.
//
// It knows how iproute2 spells an object and nothing of how the kernel is
// talked to: links are named, never numbered, and there is no system call
// here.
package state

import (
	"maps"
	"slices"
)

// Protocol is the owner mark of every route and rule of sisod: the value of
// rtm_protocol and FRA_PROTOCOL, spelled "sisod" in rt_protos.
const Protocol = 115

// Family is an address family, 4 or 6.
type Family uint8

// The two families, in the order in which sisod speaks of them.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families in printing order.
var Families = [...]Family{IPv4, IPv6}

// String is "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Bits is the length of an address of the family, in bits.
func (f Family) Bits() int {
	if f == IPv6 {
		return 128
	}
	return 32
}

// command is iproute2's program and family option.
func (f Family) command() string {
	if f == IPv6 {
		return "ip -6"
	}
	return "ip"
}

// State is a set of objects: all that sisod wants, or all that it owns.
type State struct {
	Names   map[TableName]bool
	Groups  map[string]uint32 // link name to link group
	Sysctls map[string]string // path below /proc/sys to value
	Marks   map[Mark]bool
	NFTable NFTable
	Routes  Routes
	Rules   map[Rule]bool

	Nexthops     map[uint32]Nexthop // by ID
	Devices      map[Device]bool
	Up           map[string]bool // link name to IFF_UP
	VIPs         map[VIP]bool
	Services     map[ServiceKey]Service
	Destinations map[DestinationKey]Destination
	Timeouts     Timeouts            // the zero value: left alone
	Syncs        map[bool]SyncDaemon // by Master
}

// New returns an empty state.
func New() State {
	return State{
		Names:   map[TableName]bool{},
		Groups:  map[string]uint32{},
		Sysctls: map[string]string{},
		Marks:   map[Mark]bool{},
		Routes:  Routes{},
		Rules:   map[Rule]bool{},

		Nexthops:     map[uint32]Nexthop{},
		Devices:      map[Device]bool{},
		Up:           map[string]bool{},
		VIPs:         map[VIP]bool{},
		Services:     map[ServiceKey]Service{},
		Destinations: map[DestinationKey]Destination{},
		Syncs:        map[bool]SyncDaemon{},
	}
}

// TableNames maps the numbers of the state's tables to their names.
func (s State) TableNames() Names {
	n := Names{}
	for t := range s.Names {
		n[t.Number] = t.Name
	}
	return n
}

// SortedRules returns the rules by family, priority and spelling.
func (s State) SortedRules() []Rule {
	return slices.SortedFunc(maps.Keys(s.Rules), CompareRules)
}

// Names spells table numbers by name. A nil Names spells them as numbers.
type Names map[uint32]string

// Table spells one table as iproute2 does.
func (n Names) Table(number uint32) string {
	if name, ok := n[number]; ok {
		return name
	}
	return wellKnownTable(number)
}

// Kind is a kind of object.
type Kind uint8

// The kinds, in the order of the table in order.go.
const (
	KindTableName Kind = iota
	KindMark
	KindDevice
	KindLinkGroup
	KindSysctl
	KindLinkUp
	KindVIP
	KindNexthop
	KindRoute
	KindNFTable
	KindRule
	KindTimeouts
	KindSyncDaemon
	KindService
	KindDestination
)

var kindNames = [...]string{
	"table name", "mark", "device", "link group", "sysctl", "link", "address", "nexthop", "route", "nft table", "rule",
	"ipvs timeouts", "ipvs sync", "service", "destination",
}

// String names the kind as messages and the JSON of a plan do.
func (k Kind) String() string { return kindNames[k] }

// Object is a thing that a step adds, sets or deletes.
type Object interface {
	Kind() Kind
	// Spell writes the object as its own program would print it.
	Spell(Names) string
	// Commands are the shell commands that do op, as an operator would type them.
	Commands(op Op, n Names) []string
}
