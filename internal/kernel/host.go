// Package kernel is the only room that speaks to the kernel: it reads what a
// network namespace has, writes the steps of a plan, and listens to events.
//
// It decides nothing: what should be there is said by a plan.
package kernel

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sisod/sisod/internal/prefix"
	"github.com/sisod/sisod/internal/state"
)

// Options are the places that a Host reads and writes besides the kernel's
// own. The zero value of a field is the place named in its comment.
type Options struct {
	RunDir      string // /run/sisod: ledger and lock
	IPRoute2Dir string // /etc/iproute2: rt_tables, and the drop-in that sisod writes
	Root        string // /: below it the leases of DHCP clients are looked for
	EventBuffer int    // bytes, 1 MiB: how much may wait in the event socket before events are lost
	Log         *slog.Logger
}

// Host is one network namespace: that of the thread that opened it. A Host is
// not safe for concurrent use, and because /proc/sys/net follows the calling
// thread, its callers stay in that namespace.
type Host struct {
	options Options
	conn    *conn // rules and routes
	generic *conn // IPVS, and receivers of encapsulated packets
	nft     *nft  // nil until it is needed
	links   *links
	ledger  *ledger
	cached  Snapshot
	// query is what cached answers, but for the parts in stale.
	query Query
	stale Parts
	// order holds sisod's rules as the kernel goes through them, as of the last
	// read of PartRules.
	order map[state.Family]ruleOrder
	// seenIPVS is IPVS as of the last read of PartIPVS.
	seenIPVS seenIPVS
	lookCost time.Duration
	// countRest is until when connections are not counted again.
	countRest time.Time
	// mains holds what was learned of main's routes, and expired the interfaces of
	// which it has to be learned again; those in readdressed have other addresses.
	mains       map[LinkFamily]*mainOfLink
	expired     map[LinkFamily]bool
	readdressed map[string]bool
	// elsewhere are the tables of others that had a default when all were looked at.
	elsewhere map[state.Family]map[uint32]bool
	// tables holds what was read of the tables in query, swept what a sweep found in
	// others, and lost what of them has to be read again.
	tables map[tableOf]tableRoutes
	swept  state.Routes
	lost   []extent
	// sweptAll: the last sweep was over all tables of the kernel.
	sweptAll bool
	// leased are the leases in use as of the last look at them, by link index.
	leased map[int][]lease
	// tidied: what a killed process left half written has been removed.
	tidied bool
	// lookedAt are the sysctls that ReadAlso has read since the values were.
	lookedAt map[string]bool
	// markRest is how long PartMarks is not to be read again.
	markRest time.Duration
	// unnamed are link indices that a read met and found no link for.
	unnamed map[int]bool
}

// Open opens the network namespace of the calling thread. Reading needs no
// privilege; applying needs CAP_NET_ADMIN, and write access to the places in o.
func Open(o Options) (*Host, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{options: o, stale: AllParts | PartMarks, lookedAt: map[string]bool{}, leased: map[int][]lease{}}
	h.cached.Facts.Sysctls = map[string]string{}
	var err error
	if h.ledger, err = openLedger(o.RunDir, o.Log); err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	if h.conn, err = openConn(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	if h.generic, err = openConn(unix.NETLINK_GENERIC); err != nil {
		h.conn.close()
		return nil, fmt.Errorf("open host: %w", err)
	}
	if h.links, err = openLinks(); err != nil {
		h.generic.close()
		h.conn.close()
		return nil, fmt.Errorf("open host: %w", err)
	}
	h.conn.linkName = h.linkName
	return h, nil
}

// Close ends the use of the kernel. What was applied stays.
func (h *Host) Close() {
	h.nft.close()
	h.links.close()
	h.generic.close()
	h.conn.close()
}

// Parts says which parts of the kernel a pass has to read again.
type Parts uint16

// The parts. A pass that reads none of them works on what it knows.
const (
	PartLinks    Parts = 1 << iota // links and addresses
	PartMain                       // routes of others: main's, learned gateways, leases
	PartRoutes                     // routes in sisod's tables
	PartRules                      // rules, own and foreign
	PartValues                     // sysctls, devices, VIPs, up-states, ledger
	PartNames                      // rt_tables
	PartIPVS                       // services, destinations, timeouts and sync daemons of IPVS
	PartNFT                        // sisod's table of nf_tables
	PartSockets                    // sockets of transparent proxies
	PartNexthops                   // nexthop objects; they are read with PartRoutes and PartMain
	PartExpired                    // of PartMain and PartRoutes, what was named to Expire
	AllParts     Parts = 1<<iota - 1
	// PartMarks is no part of AllParts: rules of others that use sisod's bits of
	// marks, which are read when Event.Marks says so.
	PartMarks Parts = AllParts + 1
)

// Query says what of the kernel is of interest.
type Query struct {
	Interfaces []string  // of uplinks: whose routes in main and whose leases count
	Tables     []uint32  // sisod's own, and those it is about to use
	Sysctls    []string  // paths below /proc/sys
	Window     [2]uint32 // rule priorities that are sisod's, first and last
	// Placing are the interfaces that VIPs of directors are put on.
	Placing []string
	// Named are the families of interfaces whose gateway is known from elsewhere:
	// it is not looked for beyond main and the leases.
	Named []LinkFamily
	// Everywhere learns main's routes of all links that are up, not of Interfaces
	// alone.
	Everywhere bool
	// Sweep looks for routes of sisod's in every table of the kernel, not only in Tables;
	// with Expected, only in those that the ledger records, if it does.
	Sweep bool
	// Expected are long sets of one family each that routes are likely to lead to.
	// What is found to be one of them shares its memory.
	Expected []prefix.Set
	// IPVS asks for the kernel's balancer, which loads it. What is sisod's in it
	// is read in any case.
	IPVS bool
	// NFT asks for nf_tables, which loads it, and Proxy whether packets can be given
	// to transparent sockets. sisod's table is read in any case.
	NFT, Proxy bool
	// MarkMask are the bits of marks that are sisod's, and Marks whether they are in
	// use, so that rules of nf_tables that others have on them are of interest.
	MarkMask uint32
	Marks    bool
	// Listening and Asking are ports of this host and of others whose sockets are of
	// interest.
	Listening, Asking []state.Port
}

// LinkFamily is one address family of an interface.
type LinkFamily struct {
	Link   string
	Family state.Family
}

// Snapshot is what one Read saw.
type Snapshot struct {
	Facts    state.Facts
	Observed state.Observed
}

// Outcome is what became of one step.
type Outcome struct {
	Step state.Step
	// Err is the kernel's refusal, nil when the step is done or was not tried.
	Err error
	// Held is why the step was not tried: "waits for …". Empty when it was.
	Held string
}

// Done reports whether the step was applied.
func (o Outcome) Done() bool { return o.Err == nil && o.Held == "" }
