package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"os"

	"github.com/sisod/sisod/internal/state"
)

// procIPVS lists the services and destinations of the calling thread's network
// namespace (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show).
const procIPVS = "/proc/thread-self/net/ip_vs"

// IPVSMoved reports whether IPVS is not as the last Read saw it: a service, a
// destination, a weight, a forwarding method, a scheduler, persistence, a
// timeout or a sync daemon. The kernel tells nobody of such changes, so that
// they have to be looked for; one look costs a fraction of a Read. Thresholds,
// tunnel types and the flags of schedulers are left to a Read.
//
// It is false when nobody asked for IPVS and nothing in it is sisod's.
func (h *Host) IPVSMoved() (bool, error) {
	h.ledger.reload()
	if !h.query.IPVS && !h.ledger.balances() {
		return false, nil
	}
	if h.stale&PartIPVS != 0 {
		return true, nil
	}
	number, err := h.ipvsNumber()
	if errors.As(err, new(errNoIPVS)) {
		return h.cached.Facts.IPVS.Missing == "", nil
	}
	var print uint64
	if err == nil {
		print, err = h.fingerprint()
	}
	if err != nil {
		return false, fmt.Errorf("look at ipvs: %w", err)
	}
	if h.cached.Facts.IPVS.Missing != "" || print != h.seenIPVS.print {
		return true, nil
	}
	timeouts, err := h.generic.timeouts(number)
	if err != nil {
		return false, fmt.Errorf("look at ipvs timeouts: %w", err)
	}
	syncs, err := h.generic.syncDaemons(number)
	if err != nil {
		return false, fmt.Errorf("look at ipvs sync daemons: %w", err)
	}
	return timeouts != h.cached.Observed.Timeouts || !maps.Equal(syncs, h.seenIPVS.syncs), nil
}

// seenIPVS is what a look is compared with.
type seenIPVS struct {
	seed  maphash.Seed
	print uint64
	syncs map[bool]state.SyncDaemon // sisod's and others'
}

// fingerprint is a number that stands for all services and destinations, but
// not for their connections.
func (h *Host) fingerprint() (uint64, error) {
	content, err := os.ReadFile(procIPVS)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if h.seenIPVS.seed == (maphash.Seed{}) {
		h.seenIPVS.seed = maphash.MakeSeed()
	}
	return fingerprint(h.seenIPVS.seed, content), nil
}

func fingerprint(seed maphash.Seed, content []byte) uint64 {
	var hash maphash.Hash
	hash.SetSeed(seed)
	for line := range bytes.Lines(content) {
		// "  -> 0A000007:0050      Route   1      0          0": the counters of
		// connections come last.
		if fields := bytes.Fields(line); len(fields) == 6 && string(fields[0]) == "->" {
			for _, f := range fields[:4] {
				_, _ = hash.Write(f)
				_ = hash.WriteByte(' ')
			}
		} else {
			_, _ = hash.Write(line)
		}
		_ = hash.WriteByte('\n')
	}
	return hash.Sum64()
}
