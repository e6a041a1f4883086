package daemon

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// place is a name in a folder.
type place struct{ dir, name string }

// traceLinks is the most symbolic links on a way (path_resolution(7)).
const traceLinks = 40

// trace lists the places where a change makes a path lead to something else:
// every symbolic link on the way, the end of it, or, where the way breaks off,
// the name that is missing there. real is the path without links, "" when
// there is nothing at its end. The path is absolute.
func trace(path string) (places []place, real string) {
	at, todo, links := "/", split(path), 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		stat, err := os.Lstat(next)
		if err != nil {
			return append(places, place{at, name}), ""
		}
		if stat.Mode()&fs.ModeSymlink == 0 {
			if len(todo) == 0 {
				places = append(places, place{at, name})
			}
			at = next
			continue
		}
		places = append(places, place{at, name})
		target, err := os.Readlink(next)
		if links++; err != nil || links > traceLinks {
			return places, ""
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		todo = append(split(target), todo...)
	}
	return places, at
}

// split lists the names of a path. It keeps "..", which a link on the way may
// turn into something else than the folder before it.
func split(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}
