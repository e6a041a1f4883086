package kernel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sisod/sisod/internal/state"
)

type knownEntry struct {
	Uplink    string       `json:"uplink"`
	Interface string       `json:"interface"`
	Family    state.Family `json:"family"`
	Via       netip.Addr   `json:"via"` // "": point-to-point
}

// known are the gateways in use, now or earlier in this boot.
func (g *ledger) known() map[state.GatewayKey]netip.Addr {
	g.reload()
	known := map[state.GatewayKey]netip.Addr{}
	for _, e := range g.page.Known {
		known[state.GatewayKey{Uplink: e.Uplink, Interface: e.Interface, Family: e.Family}] = e.Via
	}
	return known
}

// remember replaces the known gateways, on disk too, when they differ.
func (g *ledger) remember(known map[state.GatewayKey]netip.Addr) error {
	if maps.Equal(known, g.known()) {
		return nil
	}
	g.page.Known = nil
	for k, via := range known {
		g.page.Known = append(g.page.Known, knownEntry{k.Uplink, k.Interface, k.Family, via})
	}
	slices.SortFunc(g.page.Known, func(a, b knownEntry) int {
		return cmp.Or(strings.Compare(a.Uplink, b.Uplink), int(a.Family)-int(b.Family))
	})
	g.dirty = true
	return g.save()
}

// Remember keeps the gateways in use for later passes and processes. It
// writes only what is new.
func (h *Host) Remember(known map[state.GatewayKey]netip.Addr) error {
	// What is known is read with the values.
	h.stale |= PartValues
	return h.ledger.remember(known)
}
