package kernel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sisod/sisod/internal/state"
)

// Traces of NetworkManager, below the root folder.
const (
	networkManagerDevices = "run/NetworkManager/devices"
	networkManagerRuns    = "run/NetworkManager"
	networkManagerEnabled = "etc/systemd/system/multi-user.target.wants/NetworkManager.service"
)

// NetworkManagerDevices is the folder in which NetworkManager says of each device
// what it does with it, there or not.
func (h *Host) NetworkManagerDevices() string { return filepath.Join(h.root(), networkManagerDevices) }

// readAwaited notes which of the links that get VIPs wait for NetworkManager.
func (h *Host) readAwaited() {
	h.cached.Facts.Awaited = nil
	for _, l := range h.links.all() {
		if !slices.Contains(h.query.Placing, l.Name) || !h.awaits(l) {
			continue
		}
		if h.cached.Facts.Awaited == nil {
			h.cached.Facts.Awaited = map[string]time.Time{}
		}
		h.cached.Facts.Awaited[l.Name] = h.ledger.awaited()[l.Index]
	}
}

// awaits reports whether NetworkManager is still to configure a link. What has an
// address is configured, be it by others, and no file is read. Of lo, and of what
// has no neighbours, NetworkManager waits for others to configure it.
func (h *Host) awaits(l state.Link) bool {
	if !l.Up || l.Loopback || l.NoARP || slices.ContainsFunc(h.links.addresses(), func(a state.Address) bool { return a.Link == l.Name && !a.LinkLocal }) {
		return false
	}
	content, _, err := readEnd(filepath.Join(h.NetworkManagerDevices(), strconv.Itoa(l.Index)), leaseBytes)
	switch {
	case err == nil:
		return networkManagerIdle(content)
	case !errors.Is(err, fs.ErrNotExist):
		return false // what cannot be known is not waited for
	}
	// It writes the file once it knows what to do with the device.
	return slices.ContainsFunc([]string{networkManagerRuns, networkManagerEnabled}, func(path string) bool {
		_, err := os.Lstat(filepath.Join(h.root(), path))
		return err == nil
	})
}

// networkManagerIdle reports whether a device is NetworkManager's to configure and
// no connection is active on it, be it one that others have made
// (src/core/nm-config.c, nm_config_device_state_write).
func networkManagerIdle(content []byte) bool {
	section, managed, active := "", true, false
	eachLine(content, func(line string) {
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if section != "[device]" {
			return
		}
		switch name, value, _ := strings.Cut(line, "="); strings.TrimSpace(name) {
		case "managed":
			managed = strings.TrimSpace(value) != "false"
		case "connection-uuid":
			active = true
		}
	})
	return managed && !active
}

// awaitedEntry is a link whose VIPs wait for NetworkManager, in the ledger.
type awaitedEntry struct {
	Link  int       `json:"link"` // interface index
	Since time.Time `json:"since"`
}

// awaited tells since when links have been waited for, by index.
func (g *ledger) awaited() map[int]time.Time {
	g.reload()
	since := map[int]time.Time{}
	for _, e := range g.page.Awaited {
		since[e.Link] = e.Since
	}
	return since
}

// RememberAwaited keeps for later passes and processes since when links have been
// waited for: Facts.Awaited. It writes only what is new.
func (h *Host) RememberAwaited(awaited map[string]time.Time) error {
	g := h.ledger
	if len(awaited) == 0 && len(g.page.Awaited) == 0 {
		return nil
	}
	g.reload()
	var list []awaitedEntry
	for link, since := range awaited {
		list = append(list, awaitedEntry{h.links.index(link), since.Round(0).UTC()})
	}
	slices.SortFunc(list, func(a, b awaitedEntry) int { return a.Link - b.Link })
	if slices.EqualFunc(list, g.page.Awaited, func(a, b awaitedEntry) bool { return a.Link == b.Link && a.Since.Equal(b.Since) }) {
		return nil
	}
	g.page.Awaited, g.dirty = list, true
	return g.save()
}
