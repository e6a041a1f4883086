package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the files must be quiet before they are read again: an
	// editor's save and a package's unpacking are several events.
	settle = 50 * time.Millisecond
	// settleMost is how long files that never rest are waited for.
	settleMost = time.Second
)

// matter is what a file is about.
type matter uint8

// The matters, from the one that decides most.
const (
	wishes matter = iota // profiles, settings and lists of prefixes
	tableNames
	leases // of DHCP clients
	matters
)

// file is a path that is of interest, there or not.
type file struct {
	path   string
	within bool // a folder, and everything in it
	matter matter
}

// watcher tells when files of interest have changed. It watches folders, not
// files: a file that is renamed over loses its watch.
type watcher struct {
	inner   *fsnotify.Watcher
	log     *slog.Logger
	changed chan struct{} // something is there to take

	mu      sync.Mutex
	folders map[string]*folder
	stirred [matters]bool // changed, and not settled yet
	due     [matters]bool
	refused map[string]bool // folders that cannot be watched, told once
}

// folder is a watched folder: which of its names are of interest, "" being all.
type folder struct {
	names map[string][matters]bool
	id    fs.FileInfo // tells a folder from another one of that name
}

func newWatcher(log *slog.Logger) (*watcher, error) {
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch profiles: %w", err)
	}
	return &watcher{inner: inner, log: log, folders: map[string]*folder{}, refused: map[string]bool{}, changed: make(chan struct{}, 1)}, nil
}

func (w *watcher) close() error {
	if err := w.inner.Close(); err != nil {
		return fmt.Errorf("end watching profiles: %w", err)
	}
	return nil
}

// follow watches files, and no others. It reports whether a folder is watched
// that was not: what happened there before may have been missed.
func (w *watcher) follow(files []file) (fresh bool) {
	want := map[string]*folder{}
	note := func(dir, name string, m matter) {
		if want[dir] == nil {
			want[dir] = &folder{names: map[string][matters]bool{}}
		}
		marks := want[dir].names[name]
		marks[m] = true
		want[dir].names[name] = marks
	}
	for _, f := range files {
		places, real := trace(f.path)
		for _, p := range places {
			note(p.dir, p.name, f.matter)
		}
		if f.within && real != "" {
			note(real, "", f.matter)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for dir, f := range want {
		var err error
		// Added again even when it is known: a folder that was removed and made
		// anew is another one.
		if f.id, err = os.Lstat(dir); err == nil {
			err = w.inner.Add(dir)
		}
		if err != nil {
			if !w.refused[dir] {
				w.log.Log(context.Background(), want[dir].loss(err), "watch folder", "folder", dir, "error", err)
			}
			w.refused[dir] = true
			delete(want, dir)
			continue
		}
		fresh = fresh || w.folders[dir] == nil || !os.SameFile(w.folders[dir].id, f.id)
	}
	for dir := range w.folders {
		if want[dir] == nil {
			// The error says that the folder is gone, and the watch with it.
			_ = w.inner.Remove(dir)
		}
	}
	w.folders = want
	return fresh
}

// loss is how bad it is that a folder cannot be watched. Leases are the last
// resort of several, and those of some clients are for root alone.
func (f *folder) loss(err error) slog.Level {
	for _, marks := range f.names {
		if marks[wishes] || marks[tableNames] {
			return slog.LevelWarn
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// take returns the matters that have changed since the last call.
func (w *watcher) take() []matter {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []matter
	for m, due := range w.due {
		if due {
			list = append(list, matter(m))
		}
	}
	w.due = [matters]bool{}
	return list
}

// concerns notes what an event is about, and reports whether it is about anything.
func (w *watcher) concerns(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	some := false
	mark := func(marks [matters]bool) {
		for m, of := range marks {
			w.stirred[m] = w.stirred[m] || of
			some = some || of
		}
	}
	if f := w.folders[filepath.Dir(path)]; f != nil {
		mark(f.names[""])
		mark(f.names[filepath.Base(path)])
	}
	// The folder itself went away.
	if f := w.folders[path]; f != nil {
		for _, marks := range f.names {
			mark(marks)
		}
	}
	return some
}

// everything notes that anything may have changed.
func (w *watcher) everything() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for m := range w.stirred {
		w.stirred[m] = true
	}
}

// settled hands what was stirred up over to take.
func (w *watcher) settled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for m, stirred := range w.stirred {
		w.due[m] = w.due[m] || stirred
	}
	w.stirred = [matters]bool{}
}

// run gathers events until ctx is done and signals changed once they settle.
func (w *watcher) run(ctx context.Context) {
	quiet := stopped()
	defer quiet.Stop()
	var first time.Time // of those that are not told yet
	stir := func() {
		if first.IsZero() {
			first = time.Now()
		}
		quiet.Reset(max(0, min(settle, settleMost-time.Since(first))))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.inner.Events:
			if !ok {
				return
			}
			if w.concerns(e.Name) {
				stir()
			}
		case err, ok := <-w.inner.Errors:
			if !ok {
				return
			}
			// Most of all: more events than the kernel keeps.
			w.log.Warn("watch profiles", "error", err)
			w.everything()
			stir()
		case <-quiet.C:
			first = time.Time{}
			w.settled()
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
}
