package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sisod/sisod/profiles"
)

// settle is how long the profiles' folders must be quiet before they are read
// again: an editor's save and a package's unpacking are several events.
const settle = 50 * time.Millisecond

// watcher tells when a folder with profiles or prefix lists has changed. It
// watches folders, not files: a file that is renamed over loses its watch.
type watcher struct {
	inner   *fsnotify.Watcher
	log     *slog.Logger
	folders map[string]bool
	changed chan struct{}
}

func newWatcher(log *slog.Logger) (*watcher, error) {
	inner, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch profiles: %w", err)
	}
	return &watcher{inner: inner, log: log, folders: map[string]bool{}, changed: make(chan struct{}, 1)}, nil
}

// follow watches the folders of a configuration, and no other. A folder that
// is not there yet is found through its parent.
func (w *watcher) follow(dir string, c *profiles.Config) {
	want := map[string]bool{}
	add := func(folder string) {
		// The target of a link is where its events happen.
		if real, err := filepath.EvalSymlinks(folder); err == nil {
			want[real] = true
		}
		want[folder] = true
	}
	add(filepath.Dir(dir))
	add(dir)
	add(filepath.Join(dir, "profiles"))
	if c != nil {
		for _, f := range c.Files {
			add(filepath.Dir(f))
			if real, err := filepath.EvalSymlinks(f); err == nil {
				add(filepath.Dir(real))
			}
		}
	}
	for folder := range want {
		// Added again even when it is known: a folder that was removed and made
		// anew is another one.
		if err := w.inner.Add(folder); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				w.log.Warn("watch profiles", "folder", folder, "error", err)
			}
			delete(want, folder)
		}
	}
	for folder := range w.folders {
		if !want[folder] {
			// The error says that the folder is gone, and the watch with it.
			_ = w.inner.Remove(folder)
		}
	}
	w.folders = want
}

// run gathers events until ctx is done and signals changed once they settle.
func (w *watcher) run(ctx context.Context) {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-w.inner.Events:
			if !ok {
				return
			}
			quiet.Reset(settle)
		case err, ok := <-w.inner.Errors:
			if !ok {
				return
			}
			w.log.Warn("watch profiles", "error", err)
			quiet.Reset(settle)
		case <-quiet.C:
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
}
