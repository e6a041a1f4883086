package kernel

import (
	"fmt"
	"net/netip"

	"github.com/sisod/sisod/internal/state"
)

// Attributes of a synchronisation daemon (IPVS_DAEMON_ATTR_*).
const (
	daemonState uint16 = iota + 1
	daemonLink
	daemonID
	daemonMaxLen
	daemonGroup
	daemonGroup6
	daemonPort
	daemonTTL
)

// Values of daemonState (IP_VS_STATE_*).
const (
	daemonMaster uint32 = 1
	daemonBackup uint32 = 2
)

// What the kernel does where it was not asked for anything else (net/netfilter/
// ipvs/ip_vs_sync.c, start_sync_thread).
const (
	syncGroup = "224.0.0.81"
	syncPort  = 8848
	syncTTL   = 1
	syncMTU   = 1500 // of a master; of a backup it is at least that
)

// appendSyncDaemon appends a synchronisation daemon.
func appendSyncDaemon(b []byte, d state.SyncDaemon) []byte {
	role := daemonBackup
	if d.Master {
		role = daemonMaster
	}
	b, nest := openNest(b, ipvsDaemon)
	b = appendUint32(b, daemonState, role)
	b = appendString(b, daemonLink, d.Link)
	b = appendUint32(b, daemonID, uint32(d.ID))
	if d.MaxLen != 0 {
		b = appendUint16(b, daemonMaxLen, uint16(d.MaxLen))
	}
	switch {
	case d.Group.Is4():
		b = appendAddr(b, daemonGroup, d.Group)
	case d.Group.Is6():
		b = appendAddr(b, daemonGroup6, d.Group)
	}
	if d.Port != 0 {
		b = appendUint16(b, daemonPort, d.Port)
	}
	if d.TTL != 0 {
		b = appendAttribute(b, daemonTTL, d.TTL)
	}
	closeNest(b, nest)
	return b
}

// decodeSyncDaemon reads a message about a synchronisation daemon. What is as the
// kernel does by itself is left out. Kernels before 4.3 say no more than the link
// and the ID.
func decodeSyncDaemon(body []byte) (state.SyncDaemon, error) {
	nest, err := ipvsNest(body, ipvsDaemon)
	if err != nil {
		return state.SyncDaemon{}, fmt.Errorf("decode ipvs sync daemon: %w", err)
	}
	var d state.SyncDaemon
	var role uint32
	a := attributes{rest: nest}
	for a.next() {
		switch a.kind {
		case daemonState:
			role = a.uint32()
		case daemonLink:
			d.Link = a.text()
		case daemonID:
			d.ID = int(a.uint32())
		case daemonMaxLen:
			d.MaxLen = int(a.uint16())
		case daemonGroup:
			d.Group = a.group(state.IPv4)
		case daemonGroup6:
			d.Group = a.group(state.IPv6)
		case daemonPort:
			d.Port = a.uint16()
		case daemonTTL:
			d.TTL = a.uint8()
		}
	}
	if a.err == nil && (role != daemonMaster && role != daemonBackup || d.Link == "") {
		a.err = errMalformed
	}
	if a.err != nil {
		return state.SyncDaemon{}, fmt.Errorf("decode ipvs sync daemon: %w", a.err)
	}
	d.Master = role == daemonMaster
	headers := 20 + 8
	if d.Group.Is6() {
		headers = 40 + 8
	}
	// A backup's follows its link, where that takes more than masters send.
	if usual := syncMTU - headers; d.MaxLen == usual || !d.Master && d.MaxLen > usual {
		d.MaxLen = 0
	}
	if d.Group == netip.MustParseAddr(syncGroup) {
		d.Group = netip.Addr{}
	}
	if d.Port == syncPort {
		d.Port = 0
	}
	if d.TTL == syncTTL {
		d.TTL = 0
	}
	return d, nil
}

// group is an address of exactly a family.
func (a *attributes) group(f state.Family) netip.Addr {
	if len(a.value) != f.Bits()/8 {
		a.err = errMalformed
	}
	return a.addr()
}
