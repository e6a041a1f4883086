package daemon

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/sisod/sisod/internal/kernel"
	"github.com/sisod/sisod/profiles"
)

// loadAttempts bounds the readings of profiles whose folders come and go.
const loadAttempts = 3

// reload reads the profiles again and asks for a pass when that changes what is
// in force, or may.
func (l *loop) reload() {
	if l.load() {
		// Routes tell of their changes, and a million of them take longer to list than
		// all else together.
		l.pending.parts |= kernel.AllParts &^ kernel.PartRoutes
		l.pending.facts = true
	}
}

// load reads the profiles. A configuration that does not load changes
// nothing: what is in force stays, and where nothing is, the last good one
// stands in. It reports whether there is something new to apply.
func (l *loop) load() (changed bool) {
	c, err := l.read()
	if err != nil {
		if l.report.ConfigError != err.Error() {
			l.Log.Error("load profiles: nothing is changed", "error", err.Error())
		}
		l.report.ConfigError = err.Error()
		if l.config == nil {
			changed = l.standIn()
		}
		l.publish()
		return changed
	}
	if l.report.ConfigError != "" {
		l.Log.Info("load profiles", "state", "good again")
	}
	l.report.ConfigError, l.report.LastGood = "", false
	l.config, l.kept, l.proven = c, false, false
	l.spare()
	return true
}

// spare keeps memory small beside long lists. Read, one leaves twice its size behind; and
// what is in memory is mostly lists, which hold no pointers and cost a collection nothing.
func (l *loop) spare() {
	if os.Getenv("GOGC") == "" {
		percent := 100
		if len(expected(l.config)) > 0 {
			percent = 40
		}
		debug.SetGCPercent(percent)
	}
	debug.FreeOSMemory()
}

// collect gives the next pass room for what it makes, so that no collection falls into
// it: half the time of a small pass is one when it does. It is for quiet moments.
func (l *loop) collect() {
	heap := [...]metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/goal:bytes"}}
	metrics.Read(heap[:])
	now, live, goal := heap[0].Value.Uint64(), heap[1].Value.Uint64(), heap[2].Value.Uint64()
	if now > live && goal > live && now-live > (goal-live)/4 {
		runtime.GC()
	}
}

// read watches the files of the profiles and reads them: in this order, and once
// more when that finds folders to watch, or a change between the two is missed.
func (l *loop) read() (c *profiles.Config, err error) {
	l.watch.follow(l.files(l.config))
	for range loadAttempts {
		if c, err = profiles.LoadAgain("", l.ConfigDir, l.config, unchanged); err != nil {
			return nil, err
		}
		if !l.watch.follow(l.files(c)) {
			break
		}
	}
	return c, nil
}

// files are those that a configuration depends on; nil is none at all.
func (l *loop) files(c *profiles.Config) []file {
	list := []file{
		{path: filepath.Join(l.ConfigDir, profiles.SettingsFile), matter: wishes},
		{path: filepath.Join(l.ConfigDir, profiles.ProfilesDir), within: true, matter: wishes},
		{path: l.Host.NamesFile(), matter: tableNames},
	}
	if c == nil {
		return list
	}
	for _, f := range c.Files {
		list = append(list, file{path: f, matter: wishes})
	}
	for _, u := range c.Uplinks {
		if u.Gateway.Auto {
			for _, dir := range l.Host.LeaseDirs() {
				list = append(list, file{path: dir, within: true, matter: leases})
			}
			break
		}
	}
	if len(c.Placing()) > 0 {
		list = append(list, file{path: l.Host.NetworkManagerDevices(), within: true, matter: leases})
	}
	return list
}

// standIn takes the kept copy of the last good configuration, and reports
// whether there is one.
func (l *loop) standIn() bool {
	kept, err := lastGood{l.StateDir}.load(l.ConfigDir)
	switch {
	case err != nil:
		l.Log.Error("load last good configuration", "error", err.Error())
	case kept == nil:
		l.Log.Warn("no last good configuration is kept: the kernel is left as it is")
	default:
		l.Log.Warn("last good configuration stands in", "kept", lastGood{l.StateDir}.root())
		l.config, l.kept, l.report.LastGood = kept, true, true
		return true
	}
	return false
}

// keep makes what is in force the last good configuration, once. Whoever waits for
// this process does not wait for the disk.
func (l *loop) keep() {
	if l.kept || !l.proven {
		return
	}
	l.kept = true
	if err := (lastGood{l.StateDir}).keep(l.config, l.ConfigDir); err != nil {
		l.Log.Warn("keep last good configuration", "error", err)
	}
	// So do a long list's comparison with the kernel, and the copy's check.
	debug.FreeOSMemory()
}
