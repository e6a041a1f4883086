package daemon

import (
	"io/fs"
	"syscall"
	"time"

	"github.com/sisod/sisod/profiles"
)

// rested is how long a file must have been left alone when it was read for its
// times to tell a later change: they are as fine as the file system's clock, and
// with some that is two seconds.
const rested = 3 * time.Second

// unchanged reports whether a file is what it was when it was read. The change
// time is the kernel's: nobody sets it back, as a copy does with the time of
// modification.
func unchanged(r profiles.Reading, now fs.FileInfo) bool {
	was, known := r.Stat.Sys().(*syscall.Stat_t)
	is, ok := now.Sys().(*syscall.Stat_t)
	return known && ok &&
		was.Dev == is.Dev && was.Ino == is.Ino && was.Size == is.Size && was.Mtim == is.Mtim && was.Ctim == is.Ctim &&
		r.At.Sub(time.Unix(was.Ctim.Unix())) > rested
}
