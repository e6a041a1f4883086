package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/sisod/sisod/internal/state"
)

// procIPVS lists the services and destinations of the calling thread's network
// namespace (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show).
const procIPVS = "/proc/thread-self/net/ip_vs"

// closeLook is how many services one look reads whole. What the list does not
// tell of them, thresholds, tunnel types and the flags of schedulers, is thus
// seen by the next look where there are no more services, and else in turn.
const closeLook = 32

// IPVSMoved reports whether IPVS is not as the last Read saw it. The kernel tells
// nobody of such changes, so that they have to be looked for; one look costs a
// fraction of a Read.
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
	if timeouts != h.cached.Observed.Timeouts || !maps.Equal(syncs, h.seenIPVS.syncs) {
		return true, nil
	}
	return h.closelyMoved(number)
}

// closelyMoved reads the services whose turn it is.
func (h *Host) closelyMoved(number uint16) (bool, error) {
	seen := h.cached.Observed
	for range min(closeLook, len(h.seenIPVS.turns)) {
		h.seenIPVS.next %= len(h.seenIPVS.turns)
		key := h.seenIPVS.turns[h.seenIPVS.next]
		h.seenIPVS.next++
		s, found, err := h.generic.service(number, key)
		if err != nil {
			return false, fmt.Errorf("look at service %s: %w", key.Option(), err)
		}
		moved := !found || s != seen.Services[key]
		err = h.generic.destinations(number, key, func(d state.Destination, _ state.Connections) {
			moved = moved || seen.Destinations[d.DestinationKey] != d
		})
		if err != nil {
			return false, fmt.Errorf("look at destinations of service %s: %w", key.Option(), err)
		}
		if moved {
			return true, nil
		}
	}
	return false, nil
}

// seenIPVS is what a look is compared with.
type seenIPVS struct {
	seed  maphash.Seed
	print uint64
	syncs map[bool]state.SyncDaemon // sisod's and others'
	// turns are sisod's services, and next the place in it of whose turn it is to be
	// read whole.
	turns  []state.ServiceKey
	next   int
	buffer []byte // of fingerprint
}

// take notes what was read. The order of turns is any, and stays while the
// services do, so that each has its turn.
func (s *seenIPVS) take(services map[state.ServiceKey]state.Service) {
	same := len(s.turns) == len(services) && !slices.ContainsFunc(s.turns, func(k state.ServiceKey) bool {
		_, there := services[k]
		return !there
	})
	if !same {
		s.turns = slices.AppendSeq(make([]state.ServiceKey, 0, len(services)), maps.Keys(services))
	}
}

// listBuffer is a multiple of what the kernel gives at once of a list.
const listBuffer = 32 << 10

// fingerprint is a number that stands for all services and destinations, but
// not for their connections.
func (h *Host) fingerprint() (uint64, error) {
	s := &h.seenIPVS
	if s.buffer == nil {
		s.seed, s.buffer = maphash.MakeSeed(), make([]byte, listBuffer)
	}
	f, err := os.Open(procIPVS)
	if errors.Is(err, fs.ErrNotExist) {
		return fingerprint(s.seed, s.buffer, bytes.NewReader(nil))
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return fingerprint(s.seed, s.buffer, f)
}

func fingerprint(seed maphash.Seed, buffer []byte, list io.Reader) (uint64, error) {
	var hash maphash.Hash
	hash.SetSeed(seed)
	held := 0 // bytes of a line that has not come to its end
	for {
		n, err := list.Read(buffer[held:])
		rest := buffer[:held+n]
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			_, _ = hash.Write(withoutCounters(rest[:i]))
			_ = hash.WriteByte('\n')
			rest = rest[i+1:]
		}
		if held = copy(buffer, rest); held == len(buffer) {
			return 0, errMalformed
		}
		switch {
		case err == io.EOF:
			_, _ = hash.Write(buffer[:held])
			return hash.Sum64(), nil
		case err != nil:
			return 0, err
		}
	}
}

var destinationLine = []byte("  -> ")

// withoutCounters is a line of the list without the counters of connections,
// which come last:
//
//	"  -> 0A000007:0050      Route   1      0          0         "
func withoutCounters(line []byte) []byte {
	if !bytes.HasPrefix(line, destinationLine) {
		return line
	}
	rest := line
	for range 2 {
		rest = bytes.TrimRight(rest, " ")
		i := len(rest)
		for i > 0 && '0' <= rest[i-1] && rest[i-1] <= '9' {
			i--
		}
		if i == 0 || i == len(rest) || rest[i-1] != ' ' {
			return line
		}
		rest = rest[:i]
	}
	return rest
}
