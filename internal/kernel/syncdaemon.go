package kernel

import (
	"fmt"

	"github.com/sisod/sisod/internal/state"
)

// Attributes of a synchronisation daemon (IPVS_DAEMON_ATTR_*).
const (
	daemonState uint16 = iota + 1
	daemonLink
	daemonID
)

// Values of daemonState (IP_VS_STATE_*).
const (
	daemonMaster uint32 = 1
	daemonBackup uint32 = 2
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
	closeNest(b, nest)
	return b
}

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
		}
	}
	if a.err == nil && (role != daemonMaster && role != daemonBackup || d.Link == "") {
		a.err = errMalformed
	}
	if a.err != nil {
		return state.SyncDaemon{}, fmt.Errorf("decode ipvs sync daemon: %w", a.err)
	}
	d.Master = role == daemonMaster
	return d, nil
}
