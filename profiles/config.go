// Package profiles reads the TOML profiles of sisod and checks them: bytes in,
// one Config or all complaints out, each with file, line and column.
//
// It knows the profile format and nothing of the kernel or of the host that
// the profiles are for: whether an interface exists is not its question.
package profiles

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/sisod/sisod/internal/prefix"
)

// DefaultDir is where sisod.toml and the folder profiles are read from.
const DefaultDir = "/etc/sisod"

// Position is a place in a file. Line and Col count from 1, Col in characters
// (Unicode code points); a zero Line means the file as a whole.
type Position struct {
	File string // as the operator would type it
	Line int
	Col  int
}

// String is file:line:col, as compilers write it.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// Short is the base name and the line: how plans and logs name an origin.
func (p Position) Short() string {
	if p.Line == 0 {
		return filepath.Base(p.File)
	}
	return fmt.Sprintf("%s:%d", filepath.Base(p.File), p.Line)
}

// Config is all profiles and the settings, checked.
type Config struct {
	Settings Settings
	Uplinks  []Uplink // by name
	Rules    []Rule   // as written, files in name order
	Routes   []Route

	RealServers []RealServer // by name
	Directors   []Director   // by name
	IPVS        *IPVS        // nil: nothing asked
	Captures    []Capture    // by name

	// Files are all files that were read, prefix lists included: what to watch
	// and what to keep as the last good configuration.
	Files []string
	// Readings tell what each of Files was when it was read.
	Readings map[string]Reading
}

// Reading is a file as it was opened, and when that was.
type Reading struct {
	Stat fs.FileInfo
	At   time.Time
	// Sum tells what was read from anything else, as far as a CRC does (NewSum).
	Sum uint64
}

// Settings are the values of sisod.toml.
type Settings struct {
	Priority uint32 // first of a window of Window rule priorities
	Table    uint32 // first number given to a table that has none
	MarkMask uint32 // the bits of a packet mark that are sisod's
	Group    uint32 // link group of the uplinks' interfaces
	Watch    bool   // reload when a profile changes
}

// Window is the number of rule priorities that sisod calls its own.
const Window = 1000

// DefaultSettings are the settings without a sisod.toml.
var DefaultSettings = Settings{Priority: 11500, Table: 11500, MarkMask: 0x3f000000, Group: 115, Watch: true}

// At is a value with its place.
type At[T any] struct {
	Value T
	Pos   Position
}

// Uplink is [uplink.NAME].
type Uplink struct {
	Name      string
	Pos       Position
	Interface string
	Gateway   Gateway
	Table     uint32       // 0: allocated
	Addresses []netip.Addr // nil: every global address of the interface
	Sources   []At[netip.Prefix]
	Routes    []Route // Table is the uplink's name
	To        []PrefixList
	// Listed are the prefixes of To, all in one set, and Thinned those that remain
	// when what a wider one of them says already is left out.
	Listed, Thinned prefix.Set
	Forward         bool
	Masquerade      bool
	Guard           bool
	RPFilter        string // "strict", "loose", "off", or "": left alone
	AdvMSS          uint32 // bytes, 0: unset
	MTU             uint32 // bytes, 0: unset
	Default         *Default
}

// Gateway is the way out of an uplink, family by family.
type Gateway struct {
	Pos Position
	// None: the interface is point-to-point, the device is the way.
	None bool
	// IPv4 and IPv6 are the addresses given; the zero Addr where none is.
	IPv4, IPv6 netip.Addr
	// Auto: families without an address are learned. With one address and no
	// "auto", the other family is none of this uplink's business.
	Auto bool
}

// GuardMetric is the metric of an uplink's guard, the last route of its table.
// Every metric of a profile is below it.
const GuardMetric = 4278198272

// DefaultMetric is the metric of a [uplink.NAME.default] that gives none.
const DefaultMetric = 100

// Default is [uplink.NAME.default].
type Default struct {
	Pos    Position
	Metric uint32 // from 1: IPv6 has no metric 0
	Weight int    // 1 to 256
}

// PrefixList is one entry of `to`: a prefix, or a file of prefixes.
type PrefixList struct {
	Pos  Position
	File string // "" for an inline prefix
	// Prefixes are masked.
	Prefixes prefix.Set
}

// Rule is [[rule]]. Its fields are ip-rule(8)'s.
type Rule struct {
	Pos      Position
	Priority uint32
	Families Families
	Not      bool
	From, To netip.Prefix // zero Prefix: any
	IIF, OIF string
	Mark     uint32
	Mask     uint32 // 0: no fwmark
	IPProto  uint8
	SPort    [2]uint16 // first and last; zero: any
	DPort    [2]uint16
	UIDs     *[2]uint32
	TOS      uint8
	// Lookup is a table, or Action is "unreachable", "blackhole" or "prohibit".
	Lookup               Table
	Action               string
	SuppressPrefixLength *int
	SuppressIfgroup      *int
}

// Families says which address families a wish is for.
type Families struct{ IPv4, IPv6 bool }

// Table is a table by name or by number.
type Table struct {
	Name   string // "" when given by number
	Number uint32
}

// Route is [[route]], or an entry of an uplink's `routes`.
type Route struct {
	Pos      Position
	Table    Table
	To       netip.Prefix
	Type     string // "unicast" unless given
	Via      netip.Addr
	Dev      string // in an uplink's routes: its interface unless given
	OnLink   bool
	Src      netip.Addr
	Metric   *uint32
	MTU      uint32
	AdvMSS   uint32
	InitCwnd uint32
	QuickAck bool
	Nexthops []Nexthop
}

// Nexthop is one entry of a route's `nexthops`.
type Nexthop struct {
	Via    netip.Addr
	Dev    string
	OnLink bool
	Weight int // from 1
}

// Follows reports whether connections are to be followed, marked, translated,
// captured or told to leave room.
func (c *Config) Follows() bool {
	return c.Marks() || slices.ContainsFunc(c.RealServers, RealServer.AsMain) ||
		slices.ContainsFunc(c.Directors, func(d Director) bool { return d.Mode == FullNAT })
}

// Marks reports whether packets are to be marked.
func (c *Config) Marks() bool {
	return len(c.Captures) > 0 || slices.ContainsFunc(c.Uplinks, func(u Uplink) bool { return u.Forward || u.Masquerade })
}

// Interfaces are the interfaces of all uplinks.
func (c *Config) Interfaces() []string {
	names := make([]string, 0, len(c.Uplinks))
	for _, u := range c.Uplinks {
		names = append(names, u.Interface)
	}
	return names
}
