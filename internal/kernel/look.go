package kernel

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// watched are the paths of sysctls that the last Read looked at, whoever asked.
func (h *Host) watched() []string {
	paths := slices.AppendSeq(slices.Clone(h.query.Sysctls), maps.Keys(h.lookedAt))
	for path := range h.cached.Observed.Sysctls {
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// Silent reports whether anything that was read changes without a word of the
// kernel's, so that somebody has to look: IPVS, receivers of encapsulated
// packets, and most sysctls.
func (h *Host) Silent() bool {
	h.ledger.reload()
	return h.query.IPVS || h.ledger.balances() || h.receives() || slices.ContainsFunc(h.watched(), unannounced)
}

// Moved returns the parts of what is silent that are not as the last Read saw
// them, or that nobody has read since they were written. One look costs a
// fraction of a Read; LookCost tells it.
func (h *Host) Moved() (Parts, error) {
	// The clock is the thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime()
	defer func() { h.lookCost = threadTime() - start }()
	return h.moved()
}

// LookCost is the processor's time that the last Moved took.
func (h *Host) LookCost() time.Duration { return h.lookCost }

// threadTime is the processor's time that the calling thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func (h *Host) moved() (Parts, error) {
	var parts Parts
	moved, err := h.IPVSMoved()
	if err != nil {
		return 0, err
	}
	if moved {
		parts |= PartIPVS
	}
	if h.stale&PartValues != 0 || slices.ContainsFunc(h.watched(), h.sysctlMoved) {
		return parts | PartValues, nil
	}
	if h.receives() {
		devices, err := h.readDevices()
		if err != nil {
			return 0, fmt.Errorf("look at devices: %w", err)
		}
		if !maps.Equal(devices, h.cached.Observed.Devices) {
			parts |= PartValues
		}
	}
	return parts, nil
}

func (h *Host) sysctlMoved(path string) bool {
	value, err := readSysctl(path)
	seen, was := h.cached.Observed.Sysctls[path]
	return (err == nil) != was || value != seen
}

// receives reports whether a receiver of encapsulated packets is sisod's.
func (h *Host) receives() bool {
	return slices.ContainsFunc(h.ledger.page.Devices, func(e deviceEntry) bool { return e.Port != 0 })
}

// unannounced reports whether the kernel says nothing when a sysctl changes.
func unannounced(path string) bool {
	_, name, found := strings.Cut(path, "/conf/")
	_, name, _ = strings.Cut(name, "/")
	return path != forwardSwitch && !(found && announced(name))
}
