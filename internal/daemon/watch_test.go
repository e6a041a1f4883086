package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

func runningWatcher(t *testing.T) *watcher {
	t.Helper()
	w, err := newWatcher(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var owned sync.WaitGroup
	owned.Go(func() { w.run(ctx) })
	t.Cleanup(func() {
		stop()
		owned.Wait()
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// told waits for the watcher to tell of a change, and returns what it is about.
func told(t *testing.T, w *watcher) []matter {
	t.Helper()
	select {
	case <-w.changed:
		return w.take()
	case <-time.After(patience):
		t.Fatal("nothing is told of the change")
	}
	return nil
}

func TestTraceFindsEveryTurn(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(top, "v1", "real.toml"), "")
	for link, target := range map[string]string{
		"current": "v1", "a.toml": "current/real.toml", "b.toml": filepath.Join(top, "a.toml"), "up": "v1/..",
		"loop": "loop", "lost": "nowhere/at/all",
	} {
		if err := os.Symlink(target, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path   string
		places []string
		real   string
	}{
		{"v1/real.toml", []string{"v1/real.toml"}, "v1/real.toml"},
		{"v1", []string{"v1"}, "v1"},
		{"current/real.toml", []string{"current", "v1/real.toml"}, "v1/real.toml"},
		{"b.toml", []string{"b.toml", "a.toml", "current", "v1/real.toml"}, "v1/real.toml"},
		{"up/v1/real.toml", []string{"up", "v1/real.toml"}, "v1/real.toml"},
		{"missing/deeper/file", []string{"missing"}, ""},
		{"v1/missing", []string{"v1/missing"}, ""},
		{"lost", []string{"lost", "nowhere"}, ""},
	} {
		places, real := trace(filepath.Join(top, c.path))
		var got []string
		for _, p := range places {
			rel, err := filepath.Rel(top, filepath.Join(p.dir, p.name))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, rel)
		}
		if !slices.Equal(got, c.places) {
			t.Errorf("%s: places %q, want %q", c.path, got, c.places)
		}
		if want := filepath.Join(top, c.real); real != want && (c.real != "" || real != "") {
			t.Errorf("%s: leads to %q, want %q", c.path, real, c.real)
		}
	}
	if places, real := trace(filepath.Join(top, "loop")); real != "" || len(places) > traceLinks+1 {
		t.Errorf("a loop leads to %q over %d places", real, len(places))
	}
}

// toldOf makes a change and returns all that it is about. A busy machine may tell
// of it in several parts: what the mark, which is one event, comes after is over.
func toldOf(t *testing.T, w *watcher, mark string, of matter, do func()) []matter {
	t.Helper()
	do()
	if err := os.Chmod(mark, 0o600); err != nil {
		t.Fatal(err)
	}
	var about []matter
	for !slices.Contains(about, of) {
		about = append(about, told(t, w)...)
	}
	about = slices.DeleteFunc(about, func(m matter) bool { return m == of })
	slices.Sort(about)
	return slices.Compact(about)
}

func TestWatcherTellsWhatAChangeIsAbout(t *testing.T) {
	top := t.TempDir()
	path := func(name string) string { return filepath.Join(top, name) }
	write(t, path("profiles/isp.toml"), "")
	write(t, path("lists/cn.zone"), "")
	write(t, path("marks/names"), "")
	write(t, path("marks/leases"), "")
	w := runningWatcher(t)
	files := []file{
		{path: path("profiles"), within: true, matter: wishes},
		{path: path("lists/cn.zone"), matter: wishes},
		{path: path("rt_tables.d/sisod.conf"), matter: tableNames},
		{path: path("leases"), within: true, matter: leases},
		{path: path("marks/names"), matter: tableNames},
		{path: path("marks/leases"), matter: leases},
	}
	if !w.follow(files) {
		t.Error("the first folders are not new")
	}
	if w.follow(files) {
		t.Error("the same folders are new")
	}
	for _, c := range []struct {
		name string
		do   func()
		want []matter
	}{
		{"profile written", func() { write(t, path("profiles/isp.toml"), "x") }, []matter{wishes}},
		{"profile added", func() { write(t, path("profiles/new.toml"), "x") }, []matter{wishes}},
		{"list renamed over", func() {
			write(t, path("lists/.new"), "x")
			if err := os.Rename(path("lists/.new"), path("lists/cn.zone")); err != nil {
				t.Error(err)
			}
		}, []matter{wishes}},
		{"folder of names comes", func() { write(t, path("rt_tables.d/sisod.conf"), "x") }, []matter{tableNames}},
		{"several at once", func() {
			write(t, path("leases/em1"), "x")
			write(t, path("profiles/isp.toml"), "y")
		}, []matter{wishes, leases}},
		{"mode changed", func() {
			if err := os.Chmod(path("profiles/isp.toml"), 0o600); err != nil {
				t.Error(err)
			}
		}, []matter{wishes}},
		{"file in the folder that came", func() { write(t, path("leases/em2"), "x") }, []matter{leases}},
		{"folder removed", func() {
			if err := os.RemoveAll(path("profiles")); err != nil {
				t.Error(err)
			}
		}, []matter{wishes}},
	} {
		mark, of := path("marks/names"), tableNames
		if slices.Contains(c.want, tableNames) {
			mark, of = path("marks/leases"), leases
		}
		if got := toldOf(t, w, mark, of, c.do); !slices.Equal(got, c.want) {
			t.Errorf("%s: about %v, want %v", c.name, got, c.want)
		}
		w.follow(files)
	}
	// A folder made anew is another one, and watched.
	toldOf(t, w, path("marks/names"), tableNames, func() { write(t, path("profiles/isp.toml"), "") })
	if !w.follow(files) {
		t.Error("a folder made anew is not new")
	}
	got := toldOf(t, w, path("marks/names"), tableNames, func() { write(t, path("profiles/isp.toml"), "z") })
	if !slices.Equal(got, []matter{wishes}) {
		t.Errorf("in the folder made anew: about %v", got)
	}
}

func TestWatcherLeavesFoldersThatAreOfNoInterestAnyMore(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := runningWatcher(t)
	for _, name := range []string{"a", "b"} {
		write(t, filepath.Join(top, name, "cn.zone"), "")
		w.follow([]file{{path: filepath.Join(top, name, "cn.zone"), matter: wishes}})
		if list, want := w.inner.WatchList(), []string{filepath.Join(top, name)}; !slices.Equal(list, want) {
			t.Errorf("watched are %q, want %q", list, want)
		}
	}
}

func TestWatcherIsNotStirredByNeighbours(t *testing.T) {
	top := t.TempDir()
	path := func(name string) string { return filepath.Join(top, name) }
	write(t, path("lists/cn.zone"), "")
	w := runningWatcher(t)
	w.follow([]file{{path: path("lists/cn.zone"), matter: wishes}, {path: path("etc/sisod"), matter: tableNames}})
	for i := range 20 {
		write(t, path("lists/other"), fmt.Sprint(i))
		write(t, path("resolv.conf"), fmt.Sprint(i))
	}
	// What is told is this alone, and nothing was told before it.
	write(t, path("lists/cn.zone"), "x")
	if got := told(t, w); !slices.Equal(got, []matter{wishes}) {
		t.Errorf("about %v", got)
	}
}

func TestWatcherDoesNotWaitForFilesThatNeverRest(t *testing.T) {
	top := t.TempDir()
	name := filepath.Join(top, "isp.toml")
	w := runningWatcher(t)
	w.follow([]file{{path: top, within: true, matter: wishes}})
	deadline := time.After(patience)
	for i := 0; ; i++ {
		write(t, name, fmt.Sprint(i))
		select {
		case <-w.changed:
			return
		case <-deadline:
			t.Fatal("nothing is told while a file is written again and again")
		default:
		}
	}
}
