package kernel

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// roles is what the ledger has of LVS roles: objects that carry no owner mark.
// An object that was seen to be absent is not sisod's when it is there again
// without sisod having made it.
type roles struct {
	Devices  []deviceEntry  `json:"devices,omitempty"`
	Ups      []upEntry      `json:"links_up,omitempty"`
	VIPs     []vipEntry     `json:"vips,omitempty"`
	Services services       `json:"services,omitempty"`
	Syncs    []bool         `json:"sync_masters,omitempty"` // by state.SyncDaemon.Master
	Timeouts *timeoutsEntry `json:"timeouts,omitempty"`
	Drains   []drainEntry   `json:"drains,omitempty"`
	Awaited  []awaitedEntry `json:"awaited,omitempty"`
	// Limits are the services by how long what is removed of them drains.
	Limits     map[limit]services `json:"drain_limits,omitempty"`
	MarkedVIPs []markedEntry      `json:"marked_vips,omitempty"`
}

// limit is a time in the file's words, "10m0s".
type limit time.Duration

func (l limit) MarshalText() ([]byte, error) { return []byte(time.Duration(l).String()), nil }

func (l *limit) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	*l = limit(d)
	return err
}

// markedEntry is a state.MarkedVIP, and since when it is asked for no more.
type markedEntry struct {
	Mark  uint32     `json:"mark"`
	Addr  netip.Addr `json:"addr"`
	Since time.Time  `json:"since,omitzero"`
}

// deviceEntry is a link that sisod made, or a receiver of encapsulated packets.
type deviceEntry struct {
	Name   string     `json:"name,omitempty"`
	Type   string     `json:"type"`
	Remote netip.Addr `json:"remote,omitzero"`
	Port   uint16     `json:"port,omitempty"`
	// Family is that of the packets that come to Port.
	Family state.Family `json:"family,omitempty"`
	// Link is the interface index, 0 for a device that comes with its module,
	// and from before the making of any other until after it.
	Link int `json:"link,omitempty"`
}

func (e deviceEntry) device() state.Device {
	return state.Device{Name: e.Name, Type: e.Type, Remote: e.Remote, EncapPort: e.Port, EncapFamily: e.Family}
}

func entryOf(d state.Device) deviceEntry {
	return deviceEntry{Name: d.Name, Type: d.Type, Remote: d.Remote, Port: d.EncapPort, Family: d.EncapFamily}
}

type upEntry struct {
	Link  int  `json:"link"` // interface index
	Found bool `json:"found"`
	Set   bool `json:"set"`
}

type vipEntry struct {
	Link int        `json:"link"` // interface index
	Addr netip.Addr `json:"addr"`
}

// serviceEntry is a state.ServiceKey as the file spells it for what drains.
type serviceEntry struct {
	Family   state.Family    `json:"family"`
	Protocol state.Transport `json:"protocol,omitempty"`
	Addr     netip.Addr      `json:"addr,omitzero"`
	Port     uint16          `json:"port,omitempty"`
	Mark     uint32          `json:"mark,omitempty"`
}

// services is a set that is a sorted list of words in the file: there may be
// thousands, and they are written and read again with every change.
type services map[state.ServiceKey]bool

func (s services) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 2+len(s)*len(`"132 203.0.113.255:65535",`))
	b = append(b, '[')
	for i, k := range slices.SortedFunc(maps.Keys(s), state.CompareServices) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendServiceText(append(b, '"'), k), '"')
	}
	return append(b, ']'), nil
}

func (s *services) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*s = make(services, len(list))
	for _, text := range list {
		k, err := serviceOfText(text)
		if err != nil {
			return err
		}
		(*s)[k] = true
	}
	return nil
}

// appendServiceText spells a service for the file: "6 203.0.113.1:80", by the
// number of its protocol, or "IPv4 fwmark 7".
func appendServiceText(b []byte, k state.ServiceKey) []byte {
	if k.Mark != 0 {
		b = append(append(b, k.Family.String()...), " fwmark "...)
		return strconv.AppendUint(b, uint64(k.Mark), 10)
	}
	b = append(strconv.AppendUint(b, uint64(k.Protocol), 10), ' ')
	return netip.AddrPortFrom(k.Addr, k.Port).AppendTo(b)
}

func serviceOfText(text string) (state.ServiceKey, error) {
	first, rest, _ := strings.Cut(text, " ")
	if mark, is := strings.CutPrefix(rest, "fwmark "); is {
		i := slices.IndexFunc(state.Families[:], func(f state.Family) bool { return f.String() == first })
		n, err := strconv.ParseUint(mark, 10, 32)
		if i < 0 || err != nil || n == 0 {
			return state.ServiceKey{}, fmt.Errorf("no service: %q", text)
		}
		return state.ServiceKey{Family: state.Families[i], Mark: uint32(n)}, nil
	}
	protocol, err := strconv.ParseUint(first, 10, 8)
	at, err2 := netip.ParseAddrPort(rest)
	if err != nil || err2 != nil || at.Addr().Zone() != "" {
		return state.ServiceKey{}, fmt.Errorf("no service: %q", text)
	}
	f := state.IPv6
	if at.Addr().Is4() {
		f = state.IPv4
	}
	return state.ServiceKey{Family: f, Protocol: state.Transport(protocol), Addr: at.Addr(), Port: at.Port()}, nil
}

// timeoutsEntry is a value as found and as set, in the manner of sysctlEntry.
type timeoutsEntry struct {
	Found seconds  `json:"found"`
	Set   seconds  `json:"set"`
	Prior *seconds `json:"prior,omitempty"`
}

// seconds are timeouts for tcp, tcp after FIN, and udp.
type seconds [3]int64

func secondsOf(t state.Timeouts) seconds {
	return seconds{int64(t.TCP / time.Second), int64(t.TCPFin / time.Second), int64(t.UDP / time.Second)}
}

func (s seconds) timeouts() state.Timeouts {
	return state.Timeouts{TCP: time.Duration(s[0]) * time.Second, TCPFin: time.Duration(s[1]) * time.Second, UDP: time.Duration(s[2]) * time.Second}
}

func (e timeoutsEntry) owns(s seconds) bool { return s == e.Set || e.Prior != nil && s == *e.Prior }

type drainEntry struct {
	Service serviceEntry `json:"service"`
	Addr    netip.Addr   `json:"addr"`
	Port    uint16       `json:"port,omitempty"`
	Since   time.Time    `json:"since"`
}

// tidy drops what is gone, and sorts, before the ledger is written.
func (g *ledger) tidy() {
	r := &g.page.roles
	r.VIPs = slices.DeleteFunc(r.VIPs, func(e vipEntry) bool { return g.absent[e] })
	r.Devices = slices.DeleteFunc(r.Devices, func(e deviceEntry) bool { return g.absent[e] })
	r.Ups = slices.DeleteFunc(r.Ups, func(e upEntry) bool { return g.absent[e] })
	maps.DeleteFunc(r.Services, func(k state.ServiceKey, _ bool) bool { return g.absent[k] })
	r.Syncs = slices.DeleteFunc(r.Syncs, func(master bool) bool { return g.absent[syncRole(master)] })
	clear(g.absent)
	slices.SortFunc(r.VIPs, func(a, b vipEntry) int { return cmp.Or(a.Link-b.Link, a.Addr.Compare(b.Addr)) })
	slices.SortFunc(r.Devices, func(a, b deviceEntry) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Family, b.Family))
	})
	slices.SortFunc(r.Ups, func(a, b upEntry) int { return a.Link - b.Link })
}

// syncRole names a synchronisation daemon among what is absent.
type syncRole bool

// note tells that an object is about to be made: fresh, when it was not sisod's
// before. A file with the same words is then written all the same, so that
// other processes forget that they saw it absent.
func (g *ledger) note(entry any, known bool) (fresh bool) {
	fresh = !known || g.absent[entry]
	delete(g.absent, entry)
	if fresh {
		g.dirty, g.written = true, nil
	}
	return fresh
}

// balances reports whether anything in IPVS is sisod's.
func (g *ledger) balances() bool {
	return len(g.page.Services)+len(g.page.Syncs) > 0 || g.page.Timeouts != nil
}

// services lists the services that are sisod's.
func (g *ledger) services() []state.ServiceKey {
	keys := slices.Collect(maps.Keys(g.page.Services))
	return slices.DeleteFunc(keys, func(k state.ServiceKey) bool { return g.absent[k] })
}

func (g *ledger) ownsService(k state.ServiceKey) bool { return g.page.Services[k] && !g.absent[k] }

func (g *ledger) missService(k state.ServiceKey) { g.absent[k] = true }

// missBalancer tells that IPVS is gone, and everything in it.
func (g *ledger) missBalancer() {
	for k := range g.page.Services {
		g.missService(k)
	}
	for _, master := range g.page.Syncs {
		g.missSync(master)
	}
}

func (g *ledger) noteService(k state.ServiceKey) (fresh bool) {
	g.reload()
	fresh = g.note(k, g.page.Services[k])
	if g.page.Services == nil {
		g.page.Services = services{}
	}
	g.page.Services[k] = true
	return fresh
}

func (g *ledger) forgetService(k state.ServiceKey) {
	if g.page.Services[k] {
		g.dirty = true
		delete(g.page.Services, k)
	}
}

func (g *ledger) ownsSync(master bool) bool {
	return slices.Contains(g.page.Syncs, master) && !g.absent[syncRole(master)]
}

func (g *ledger) missSync(master bool) {
	if slices.Contains(g.page.Syncs, master) {
		g.absent[syncRole(master)] = true
	}
}

func (g *ledger) noteSync(master bool) (fresh bool) {
	g.reload()
	known := slices.Contains(g.page.Syncs, master)
	if !known {
		g.page.Syncs = append(g.page.Syncs, master)
	}
	return g.note(syncRole(master), known)
}

func (g *ledger) forgetSync(master bool) {
	if i := slices.Index(g.page.Syncs, master); i >= 0 {
		g.dirty = true
		g.page.Syncs = slices.Delete(g.page.Syncs, i, i+1)
	}
}

// timeoutsBefore is what can be given back: nil when sisod has not changed the
// timeouts, or somebody else has since.
func (g *ledger) timeoutsBefore(now state.Timeouts) *state.Timeouts {
	g.reload()
	e := g.page.Timeouts
	if e == nil || now == (state.Timeouts{}) {
		return nil
	}
	if s := secondsOf(now); s == e.Found || !e.owns(s) {
		return nil
	}
	found := e.Found.timeouts()
	return &found
}

// noteTimeouts records a change that is about to be made.
func (g *ledger) noteTimeouts(found, set state.Timeouts) {
	g.reload()
	g.dirty = true
	was, now := secondsOf(found), secondsOf(set)
	if e := g.page.Timeouts; e != nil && e.owns(was) {
		e.Set, e.Prior = now, &was
		return
	}
	g.page.Timeouts = &timeoutsEntry{Found: was, Set: now}
}

func (g *ledger) forgetTimeouts() {
	if g.page.Timeouts != nil {
		g.page.Timeouts, g.dirty = nil, true
	}
}

// drains tells since when destinations are being drained.
func (g *ledger) drains() map[state.DestinationKey]time.Time {
	drains := map[state.DestinationKey]time.Time{}
	for _, e := range g.page.Drains {
		drains[state.DestinationKey{Service: state.ServiceKey(e.Service), Addr: e.Addr, Port: e.Port}] = e.Since
	}
	return drains
}

// RememberDrains keeps for later passes and processes since when destinations
// are being drained: Facts.IPVS.Draining. It writes only what is new.
func (h *Host) RememberDrains(drains map[state.DestinationKey]time.Time) error {
	g := h.ledger
	g.reload()
	if maps.EqualFunc(drains, g.drains(), time.Time.Equal) {
		return nil
	}
	g.page.Drains = nil
	for k, since := range drains {
		g.page.Drains = append(g.page.Drains, drainEntry{serviceEntry(k.Service), k.Addr, k.Port, since.Round(0).UTC()})
	}
	slices.SortFunc(g.page.Drains, func(a, b drainEntry) int {
		return cmp.Or(state.CompareServices(state.ServiceKey(a.Service), state.ServiceKey(b.Service)), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	g.dirty = true
	h.stale |= PartIPVS
	return g.save()
}

// limits are how long removed destinations of services keep their connections.
func (g *ledger) limits() map[state.ServiceKey]time.Duration {
	limits := map[state.ServiceKey]time.Duration{}
	for l, list := range g.page.Limits {
		for k := range list {
			limits[k] = time.Duration(l)
		}
	}
	return limits
}

// markedVIPs are the VIPs of services by mark.
func (g *ledger) markedVIPs() map[state.MarkedVIP]time.Time {
	vips := map[state.MarkedVIP]time.Time{}
	for _, e := range g.page.MarkedVIPs {
		vips[state.MarkedVIP{Mark: e.Mark, Addr: e.Addr}] = e.Since
	}
	return vips
}

// RememberDirectors keeps for later passes and processes what no profile tells
// of a director that is gone: Facts.IPVS.Limits and MarkedVIPs. It writes only
// what is new.
func (h *Host) RememberDirectors(limits map[state.ServiceKey]time.Duration, vips map[state.MarkedVIP]time.Time) error {
	g := h.ledger
	g.reload()
	if maps.Equal(limits, g.limits()) && maps.EqualFunc(vips, g.markedVIPs(), time.Time.Equal) {
		return nil
	}
	g.page.Limits, g.page.MarkedVIPs = map[limit]services{}, nil
	for k, d := range limits {
		if g.page.Limits[limit(d)] == nil {
			g.page.Limits[limit(d)] = services{}
		}
		g.page.Limits[limit(d)][k] = true
	}
	for m, since := range vips {
		g.page.MarkedVIPs = append(g.page.MarkedVIPs, markedEntry{m.Mark, m.Addr, since.Round(0).UTC()})
	}
	slices.SortFunc(g.page.MarkedVIPs, func(a, b markedEntry) int {
		return cmp.Or(cmp.Compare(a.Mark, b.Mark), a.Addr.Compare(b.Addr))
	})
	g.dirty = true
	h.stale |= PartIPVS
	return g.save()
}
